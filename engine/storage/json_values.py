"""Values of the JSON of a store, checked when they are read: one out of range is a ``ValueError``.

A store may come from anywhere. What is computed of a number, named by a text or allocated for a length
relies on these checks, so nothing behind them has to ask again.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX = (1 << 63) - 1  # of what counts something
MAX_64 = (1 << 64) - 1  # of a checksum
_MAX_TEXT = 4096  # characters


def loads(text: bytes) -> Any:
    """What JSON says; ``ValueError`` also for what is nested too deep, for NaN and for a name twice."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def number(value: object, least: int = 0, most: int = MAX) -> int:
    """A whole number within ``least`` and ``most``."""
    if type(value) is not int:
        raise ValueError(f"a whole number is due where there is {_shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"a number is out of range: {_shown(value)}")
    return value


def real(value: object) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"a number is due where there is {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def truth(value: object) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"true or false is due where there is {_shown(value)}")
    return value


def text(value: object) -> str:
    """A text of a length that fits in an error."""
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise ValueError(f"a text is due where there is {_shown(value)}")
    return value


def members(value: object) -> dict[str, Any]:
    """A JSON object."""
    if type(value) is not dict:
        raise ValueError(f"an object is due where there is {_shown(value)}")
    return value


def items(value: object) -> list[Any]:
    """A JSON array."""
    if type(value) is not list:
        raise ValueError(f"an array is due where there is {_shown(value)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _shown(value: object) -> str:
    if type(value) is int and value.bit_length() > 128:
        return "one of many digits"
    shown = (
        repr(value) if type(value) in (int, float, bool, str, type(None)) else type(value).__name__
    )
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
