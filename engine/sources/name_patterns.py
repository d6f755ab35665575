"""Expands patterns of file names such as ``{000..150}.tar`` or ``{train,test}.zip``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from engine.errors import UsageError

MAX_SHARDS = 100_000
_BRACES = re.compile(r"(\{[^{}]*\})")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def expand(spec: str) -> Iterator[str] | None:
    """The names that a pattern with ``{000..150}`` or ``{a,b}`` stands for; None if not a pattern.

    ``UsageError`` if there are more than 100,000.
    """
    parts = [_choices(part) for part in _BRACES.split(spec)]
    if all(isinstance(part, str) for part in parts):
        return None
    choices = [[part] if isinstance(part, str) else part for part in parts]
    count = math.prod(map(len, choices))
    if count > MAX_SHARDS:
        raise UsageError(f"{spec}: stands for {count:,} files: at most {MAX_SHARDS:,} at a time")
    return map("".join, itertools.product(*choices))


class _Range(Sequence[str]):
    """Numbers as text, made on demand."""

    def __init__(self, first: str, last: str) -> None:
        start, end = int(first), int(last)
        step = 1 if start <= end else -1
        self._numbers = range(start, end + step, step)
        padded = any(len(text) > 1 and text[0] == "0" for text in (first, last))
        self._width = max(len(first), len(last)) if padded else 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, at: Any) -> Any:
        return f"{self._numbers[at]:0{self._width}d}"


def _choices(part: str) -> str | Sequence[str]:
    if match := _RANGE.fullmatch(part):
        return _Range(match[1], match[2])
    if part.startswith("{") and "," in part:
        return part[1:-1].split(",")
    return part
