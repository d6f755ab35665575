"""The text tower of an encoder, as ``encoder.json`` describes it; loads nothing.

A tower is two more files in the encoder's folder: an ONNX model, ``ids`` (n, context) int64 →
``embedding`` (n, dim) float32, and a ``tokenizer.json`` of the library tokenizers, which makes the ids
of a text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EncoderError
from engine.images import hashing

Contents = Callable[
    [str, int], bytes
]  # the bytes of a file by its name, and the most that it may have

_MAX_MODEL = (1 << 31) - 1  # bytes of a model, ONNX's limit for one file
_MAX_TOKENIZER = 64 << 20  # bytes; those of a hundred languages have 35 MB
_MAX_CONTEXT = 4096  # tokens
_MAX_ID = (1 << 31) - 1
_SHA256 = 64  # hex digits


@dataclass(frozen=True, slots=True)
class TextTower:
    """The text tower of the encoder called ``encoder``. Its names of files have no folder."""

    encoder: str
    dim: int
    folder: Path
    model: str
    model_sha256: str
    tokenizer: str
    tokenizer_sha256: str
    context: int  # tokens of a text that count
    pad_id: int  # of the token that fills up a short text

    @classmethod
    def described(
        cls, body: dict[str, Any], *, encoder: str, dim: int, folder: Path
    ) -> TextTower | None:
        """The tower in the field "text" of a description; None if there is none.

        ``ValueError``, ``KeyError`` or ``TypeError`` if the field makes no sense.
        """
        found = body.get("text")
        if found is None:
            return None
        model, model_sha256 = _file(found)
        tokenizer, tokenizer_sha256 = _file(found["tokenizer"])
        context = _number(found, "context", 1, _MAX_CONTEXT)
        pad_id = _number(found, "pad_id", 0, _MAX_ID)
        return cls(
            encoder,
            dim,
            folder,
            model,
            model_sha256,
            tokenizer,
            tokenizer_sha256,
            context,
            pad_id,
        )

    @property
    def files(self) -> tuple[str, str]:
        """The names of its files."""
        return self.model, self.tokenizer

    def read_model(self, contents: Contents | None = None) -> bytes:
        """The bytes of the model, verified; ``contents`` as in ``registry.read``."""
        return self._verified(self.model, _MAX_MODEL, self.model_sha256, contents)

    def read_tokenizer(self, contents: Contents | None = None) -> bytes:
        """The bytes of ``tokenizer.json``, verified; ``contents`` as in ``registry.read``."""
        return self._verified(self.tokenizer, _MAX_TOKENIZER, self.tokenizer_sha256, contents)

    def _verified(self, name: str, most: int, sha256: str, contents: Contents | None) -> bytes:
        path = self.folder / name
        try:
            data = (contents or plain_contents(self.folder))(name, most)
        except OSError as error:
            raise EncoderError(f"{path} cannot be read: {error.strerror}") from None
        if hashing.file_hash(data).hex() != sha256:
            raise EncoderError(f"{path} is not the file that encoder.json describes: copy it again")
        return data


def plain_contents(folder: Path) -> Contents:
    """Reads files of a folder with a plain open; ``OSError``, also if a file has too many bytes."""

    def contents(name: str, most: int) -> bytes:
        path = folder / name
        # Do not open a pipe, which would wait for a writer.
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if path.stat().st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return path.read_bytes()

    return contents


def _file(entry: dict[str, Any]) -> tuple[str, str]:
    """A file's name and SHA-256. Only the last part of the path, so that it stays in the folder."""
    name, sha256 = Path(entry["path"]).name, entry["sha256"]
    if name in ("", "..") or "\0" in name:
        raise ValueError("text must name its files")
    if not isinstance(sha256, str) or len(sha256) != _SHA256:
        raise ValueError(f"sha256 must have {_SHA256} hex digits")
    return name, sha256


def _number(body: dict[str, Any], name: str, low: int, high: int) -> int:
    value = body[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high:,}")
    return value
