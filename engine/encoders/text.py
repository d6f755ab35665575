"""Runs the text tower of an encoder: texts to vectors of the same space as the pictures'."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.encoders.session import one_line, open_session
from engine.encoders.text_tower import Contents, TextTower
from engine.encoders.tokenizer import Ids, Tokenizer, is_installed
from engine.encoders.unit_rows import unit_rows
from engine.errors import EncoderError, UsageError, shortened
from engine.forking import abandon_in_child, keep_for_ever

_BATCH = 32  # texts in one run of the model
_TRIED = 3  # texts in a trial; a number that is no model's own batch size
_log = logging.getLogger("engine.encoders")


def require_text(text: object) -> str:
    """``text``, if it is one to look up; ``UsageError`` for anything else, or if it has no words."""
    if not isinstance(text, str):
        raise UsageError(f"a text must be a str, not {type(text).__name__}")
    if not has_words(text):
        raise UsageError(f"the text {shortened(text)} is empty: write what the images show")
    return text


def has_words(text: str) -> bool:
    """Whether a text has a character that can be seen."""
    return any(letter.isprintable() and not letter.isspace() for letter in text)


class TextEncoder:
    """A loaded text tower: n texts → (n, dim) float32 unit vectors."""

    def __init__(
        self, tower: TextTower, contents: Contents | None = None, *, threads: int | None = None
    ) -> None:
        """``contents`` reads the files, as in ``registry.read``. ``EncoderError`` if they do not fit."""
        self._tower = tower
        model = tower.folder / tower.model
        tokenizer = tower.read_tokenizer(contents)
        # Tokenizers are read first: without the library, the model is of no use.
        self._tokenizer = self._load_tokenizer(tokenizer)
        self._session: Any = open_session(tower.read_model(contents), model, threads=threads)
        try:
            inputs = [(i.name, i.type, i.shape[1:]) for i in self._session.get_inputs()]
            outputs = [(o.name, o.type, o.shape[1:]) for o in self._session.get_outputs()]
            batches = [one.shape[0] for one in self._session.get_inputs() if one.shape]
        # ONNX Runtime has no error class of its own.
        except Exception as error:
            raise EncoderError(f"{model} cannot be loaded: {one_line(error)}") from None
        if inputs != [("ids", "tensor(int64)", [tower.context])] or outputs != [
            ("embedding", "tensor(float)", [tower.dim])
        ]:
            raise EncoderError(
                f"{model} is not what encoder.json describes, a model of {tower.context} tokens "
                f"(int64) to {tower.dim} dimensions (float32): copy the encoder's files again"
            )
        if isinstance(batches[0], int):
            raise EncoderError(
                f"{model} takes exactly {batches[0]} texts at a time: export it with a dynamic first "
                f"dimension"
            )
        abandon_in_child(self)

    def _load_tokenizer(self, content: bytes) -> Tokenizer:
        tower = self._tower
        path = tower.folder / tower.tokenizer
        return Tokenizer(content, path, context=tower.context, pad_id=tower.pad_id)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts; returns (n, dim) float32, each row of unit length.

        A text with more tokens than the tower takes is cut, and a warning says so. A row is zero if the
        model returns a vector that is zero or not finite. ``EncoderError`` if the model fails.
        """
        parts = [np.empty((0, self._tower.dim), np.float32)]
        for at in range(0, len(texts), _BATCH):
            some = texts[at : at + _BATCH]
            ids, cut = self._tokenizer.ids(some)
            for text, is_cut in zip(some, cut, strict=True):
                if is_cut:
                    _log.warning(
                        "the text %s is longer than the %d tokens that the encoder %s takes: only its "
                        "beginning was looked up",
                        shortened(text),
                        self._tower.context,
                        self._tower.encoder,
                    )
            parts.append(self._run(ids))
        return np.concatenate(parts)

    def try_out(self) -> None:
        """Run the tower with its greatest id; ``EncoderError`` if model and tokenizer do not fit."""
        shape = (_TRIED, self._tower.context)
        self._run(self._tokenizer.ids(["a", "two words", ""])[0])
        self._run(np.full(shape, self._tokenizer.max_id, np.int64))

    def _run(self, ids: Ids) -> npt.NDArray[np.float32]:
        tower = self._tower
        if self._session is None:
            raise EncoderError(
                f"the encoder {tower.encoder!r} was loaded before this process was forked: load it "
                f"here"
            )
        try:
            vectors = self._session.run(["embedding"], {"ids": ids})[0]
        except MemoryError:
            raise
        # ONNX Runtime has no error class of its own.
        except Exception as error:
            raise EncoderError(
                f"the text model of the encoder {tower.encoder!r} failed, so its tokenizer may be "
                f"another model's: {one_line(error)}"
            ) from None
        return unit_rows(vectors, (len(ids), tower.dim), tower.encoder, "texts")

    def abandon(self) -> None:
        """Drop the session in a forked child, where ending it would wait for threads that are gone."""
        keep_for_ever(self._session)
        self._session = None


def verify(tower: TextTower, contents: Contents | None = None) -> None:
    """Check the files of a tower; ``EncoderError`` if they are not whole, or do not fit.

    Without the library tokenizers, the tower cannot be loaded, and its files are compared with their
    checksums only.
    """
    if is_installed():
        TextEncoder(tower, contents, threads=1).try_out()
    else:
        tower.read_model(contents)
        tower.read_tokenizer(contents)
