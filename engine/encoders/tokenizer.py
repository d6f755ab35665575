"""Turns texts into the ids of tokens, as a ``tokenizer.json`` says (library tokenizers)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.encoders.session import one_line
from engine.errors import EncoderError, how_to_install

MAX_CHARACTERS = 1 << 16  # of a text; what follows is beyond every context

Ids = npt.NDArray[np.int64]


def is_installed() -> bool:
    """Whether the library tokenizers can be imported."""
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        return False
    return True


class Tokenizer:
    """A loaded tokenizer that pads and truncates every text to ``context`` tokens."""

    def __init__(self, content: bytes, path: Path, *, context: int, pad_id: int) -> None:
        """``content`` is what is in ``path``. ``EncoderError`` if it is not a tokenizer."""
        try:
            from tokenizers import Tokenizer as Loaded
        except ImportError:
            raise EncoderError(f"text queries need tokenizers: {how_to_install('text')}") from None
        self._path = path
        self._context = context
        try:
            self._loaded: Any = Loaded.from_str(content.decode("utf-8"))
            # The file may have settings of its own for both.
            self._loaded.enable_truncation(context)
            self._loaded.enable_padding(length=context, pad_id=pad_id)
        except (KeyboardInterrupt, MemoryError):
            raise
        # The library raises Exception, and a panic of its Rust code, which is a BaseException.
        except BaseException as error:
            raise self._unfit(error) from None

    @property
    def max_id(self) -> int:
        """The greatest id of a token."""
        return max(self._loaded.get_vocab(with_added_tokens=True).values(), default=0)

    def ids(self, texts: Sequence[str]) -> tuple[Ids, list[bool]]:
        """The ids of texts, (n, context) int64, and whether each text was cut to fit.

        ``EncoderError`` if the tokenizer fails.
        """
        ids = np.empty((len(texts), self._context), np.int64)
        cut = []
        for row, text in enumerate(texts):
            # Texts come one by one. A batch would start threads, which a later fork would lack.
            try:
                found = self._loaded.encode(_valid(text[:MAX_CHARACTERS]))
                ids[row] = found.ids
                cut.append(bool(found.overflowing) or len(text) > MAX_CHARACTERS)
            except (KeyboardInterrupt, MemoryError):
                raise
            except BaseException as error:
                raise self._unfit(error) from None
        return ids, cut

    def _unfit(self, error: BaseException) -> EncoderError:
        return EncoderError(f"{self._path} cannot be used as a tokenizer: {one_line(error)[:200]}")


def _valid(text: str) -> str:
    """The text with lone surrogates, which are no characters, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
