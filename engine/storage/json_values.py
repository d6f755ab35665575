"""Validates the values of a store's JSON as they are read; a bad value is a ``ValueError``.

A store may come from anywhere. Later code computes with these numbers, builds names from these texts
and allocates by these lengths, and relies on the checks here.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MAX = (1 << 63) - 1  # of a count
MAX_64 = (1 << 64) - 1  # of a checksum
_MAX_TEXT = 4096  # characters


def loads(text: bytes) -> Any:
    """Parse JSON. ``ValueError`` also for too deep nesting, for NaN and for a duplicate name."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def number(value: object, least: int = 0, most: int = MAX) -> int:
    """Return ``value`` if it is a whole number from ``least`` to ``most``."""
    if type(value) is not int:
        raise ValueError(f"expected a whole number, found {_shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"a number is out of range: {_shown(value)}")
    return value


def real(value: object) -> float:
    """Return ``value`` if it is a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"expected a number, found {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def truth(value: object) -> bool:
    """Return ``value`` if it is true or false."""
    if type(value) is not bool:
        raise ValueError(f"expected true or false, found {_shown(value)}")
    return value


def text(value: object) -> str:
    """Return ``value`` if it is a text short enough for an error message."""
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise ValueError(f"expected a text, found {_shown(value)}")
    return value


def members(value: object) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object."""
    if type(value) is not dict:
        raise ValueError(f"expected an object, found {_shown(value)}")
    return value


def items(value: object) -> list[Any]:
    """Return ``value`` if it is a JSON array."""
    if type(value) is not list:
        raise ValueError(f"expected an array, found {_shown(value)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _shown(value: object) -> str:
    if type(value) is int and value.bit_length() > 128:
        return "a number of many digits"
    shown = (
        repr(value) if type(value) in (int, float, bool, str, type(None)) else type(value).__name__
    )
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
