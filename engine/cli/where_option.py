"""Turns ``--where 'year>1999'`` into the conditions of ``where=``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from engine.errors import UsageError
from engine.search.where import Scalar

_CONDITION = re.compile(r"\s*([^<>=]*[^<>=\s])\s*(==|<=|>=|=|<|>)(.*)", re.S)


def where_of(options: Iterable[str]) -> dict[str, list[tuple[str, Scalar]]]:
    """All conditions by field; ``UsageError`` for an option that is not a condition."""
    found: dict[str, list[tuple[str, Scalar]]] = {}
    for option in options:
        read = _CONDITION.fullmatch(option)
        if read is None:
            raise UsageError(
                f"--where {option!r:.60}: write FIELD=VALUE, or FIELD>VALUE with <, <=, > or >="
            )
        field, compare, value = read.groups()
        found.setdefault(field, []).append(("==" if compare == "=" else compare, _value(value)))
    return found


def _value(text: str) -> Scalar:
    """The value of a JSON number, boolean or string; any other text stays as it is."""
    text = text.strip()
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    return value if isinstance(value, str | bool | int | float) else text
