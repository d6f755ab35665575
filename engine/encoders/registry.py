"""Finds an encoder by name or path, and reads its description without loading the model.

An encoder is a folder of ``encoder.json`` and ONNX files, as ``engine train`` writes it. The model takes
``pixels`` (n, S, S, 3) uint8 and returns ``embedding`` (n, dim) float32 of unit length. Some have a text
tower too: see ``engine.encoders.text_tower``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import EncoderMemory
from engine.encoders.text_tower import Contents, TextTower, plain_contents
from engine.errors import EncoderError
from engine.images import hashing
from engine.images.preprocessing import Preprocessing

_BUILT_IN = Path(__file__).parent / "models"
DESCRIPTION = "encoder.json"
MAX_MODEL = (1 << 31) - 1  # bytes of a model, ONNX's limit for one file
_MAX_DESCRIBED = 1 << 20  # bytes of a description
MAX_DIM = 1 << 16  # dimensions
MAX_SIDE = 2048  # pixels
_MAX_SHORTER_SIDE = 2 * MAX_SIDE  # pixels
_MAX_MEMORY = 1 << 50  # bytes
_SQUASH = "squash-bilinear-antialias"
_RESIZE = re.compile(r"(squash|crop)-([a-z]+)-antialias")
_MAX_NAME = 100  # characters


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """An encoder's description, with the model that the description chooses.

    Without a choice it is the int8 model if there is one, else the float32 model.
    """

    name: str
    dim: int
    preprocessing: Preprocessing
    model: Path
    sha256: str  # of the model file, hex
    description: dict[str, Any]
    content: bytes = field(repr=False, compare=False)  # the model file's bytes
    text: TextTower | None = None  # what encodes texts, if it has that
    batch: int = 0  # 1 if the model takes exactly one picture at a time, 0 if any number
    # Bytes of memory that were measured: of the loaded encoder, and for each picture; None if unknown.
    load_bytes: int | None = None
    picture_bytes: int | None = None

    @property
    def needs(self) -> EncoderMemory:
        """The memory that it needs: as measured, or guessed from its size."""
        guess = EncoderMemory.guess(len(self.content), self.preprocessing.size)
        return EncoderMemory(
            self.load_bytes or guess.load_bytes, self.picture_bytes or guess.picture_bytes
        )

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that it needs, all in one folder."""
        return (self.model.name, *(self.text.files if self.text else ()), DESCRIPTION)


def names() -> list[str]:
    """The names of the encoders that come with the engine."""
    return sorted(path.parent.name for path in _BUILT_IN.glob(f"*/{DESCRIPTION}"))


def comes_along(files: EncoderFiles) -> bool:
    """Whether an encoder is one of those that come with the engine."""
    return files.model.parent.parent == _BUILT_IN


def find(name_or_path: str) -> EncoderFiles:
    """The encoder with this name, or in this folder.

    Raises ``EncoderError`` if there is none, or if its files do not match its description.
    """
    if name_or_path in names():
        return read(_BUILT_IN / name_or_path)
    path = Path(name_or_path)
    if path.is_file() and path.name == DESCRIPTION:
        path = path.parent
    if not (path / DESCRIPTION).is_file():
        raise EncoderError(
            f"there is no encoder {name_or_path!r}: name one of {', '.join([*names(), 'none'])}, "
            f"a folder that 'engine train --out' wrote, or a model to import such as timm:NAME "
            f"('engine encoders' lists what there is)"
        )
    return read(path)


def read(folder: Path, contents: Contents | None = None) -> EncoderFiles:
    """The encoder in ``folder``, verified by its checksum.

    ``contents(name, most)`` reads a file of the folder of at most ``most`` bytes. It replaces a plain
    open for a folder that is not trusted.
    """
    contents = contents or plain_contents(folder)
    with _reading(folder):
        body = _description(contents(DESCRIPTION, _MAX_DESCRIBED))
        chosen = _chosen(body)
        # Only the last part of the path, so that it cannot lead out of the folder.
        model = folder / Path(chosen["path"]).name
        dim, preprocessing = _size(body, "dim", MAX_DIM), _preprocessing(body)
        name = _name(body["name"])
        content = contents(model.name, MAX_MODEL)
        sha256 = hashing.file_hash(content).hex()
        text = TextTower.described(body, encoder=name, dim=dim, folder=folder)
        load_bytes, picture_bytes = _memory(body)
        found = EncoderFiles(
            name,
            dim,
            preprocessing,
            model,
            sha256,
            body,
            content,
            text=text,
            batch=_batch(body),
            load_bytes=load_bytes,
            picture_bytes=picture_bytes,
        )
    if sha256 != chosen.get("sha256"):
        raise EncoderError(f"{model} is not the file that {DESCRIPTION} describes: copy it again")
    return found


def read_text(folder: Path, contents: Contents | None = None) -> tuple[TextTower | None, str]:
    """The text tower of the encoder in ``folder``, if it has one, and the SHA-256 of its image model.

    Only the description is read, so the SHA-256 is what it says. ``contents`` as for ``read``.
    """
    contents = contents or plain_contents(folder)
    with _reading(folder):
        body = _description(contents(DESCRIPTION, _MAX_DESCRIBED))
        name, dim = _name(body["name"]), _size(body, "dim", MAX_DIM)
        tower = TextTower.described(body, encoder=name, dim=dim, folder=folder)
        return tower, str(_chosen(body)["sha256"])


def _chosen(body: dict[str, Any]) -> dict[str, Any]:
    """The entry of the model that a description chooses."""
    files = body["files"]
    found = files[body.get("default") or ("int8" if "int8" in files else "fp32")]
    if not isinstance(found, dict):
        raise ValueError("files must be objects")
    return found


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn the errors of reading a description into ``EncoderError``."""
    try:
        yield
    except OSError as error:
        raise EncoderError(f"{folder} cannot be read: {error.strerror}: {error.filename}") from None
    except RecursionError:
        raise EncoderError(
            f"{folder / DESCRIPTION} does not describe an encoder (nested too deeply)"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EncoderError(
            f"{folder / DESCRIPTION} does not describe an encoder ({error})"
        ) from None


def _description(text: bytes) -> dict[str, Any]:
    body = json.loads(text.decode("utf-8"))
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    return body


def _preprocessing(body: dict[str, Any]) -> Preprocessing:
    """How pictures become the input: "squash-bilinear-antialias", or "crop-…" with "shorter_side"."""
    side = _size(body, "image_size", MAX_SIDE)
    resize = body.get("resize", _SQUASH)
    found = _RESIZE.fullmatch(resize) if isinstance(resize, str) else None
    if found is None:
        raise ValueError(
            "resize must be squash or crop, an interpolation, and antialias, with dashes"
        )
    if found[1] == "squash":
        return Preprocessing(side, None, found[2])
    return Preprocessing(side, _size(body, "shorter_side", _MAX_SHORTER_SIDE), found[2])


def described(preprocessing: Preprocessing) -> dict[str, Any]:
    """The fields of ``encoder.json`` that say how pictures become the input."""
    way = "squash" if preprocessing.shorter_side is None else "crop"
    body: dict[str, Any] = {
        "image_size": preprocessing.size,
        "resize": f"{way}-{preprocessing.interpolation}-antialias",
    }
    if preprocessing.shorter_side is not None:
        body["shorter_side"] = preprocessing.shorter_side
    return body


def _batch(body: dict[str, Any]) -> int:
    batch = body.get("batch", 0)
    if type(batch) is not int or batch not in (0, 1):
        raise ValueError("batch must be 1, or left out")
    return batch


def _memory(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """The measured bytes of the loaded encoder, and for each picture."""
    memory = body.get("memory") or {}
    if not isinstance(memory, dict):
        raise ValueError("memory must be an object")
    load, picture = (
        _size(memory, name, _MAX_MEMORY) if name in memory else None
        for name in ("load_bytes", "picture_bytes")
    )
    return load, picture


def _size(body: dict[str, Any], name: str, most: int) -> int:
    value = body[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most:,}")
    return value


def _name(value: object) -> str:
    """The name with control characters escaped, because terminals and reports show it."""
    if not isinstance(value, str):
        raise ValueError("name must be text")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value[:_MAX_NAME])
