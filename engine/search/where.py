"""Restricts a search to images by their metadata: compares fields with values.

    {"label": "cat"}                          equal to a value
    {"year": (">", 1999)}                     one of "==", "<", "<=", ">", ">="
    {"year": [(">", 1999), ("<=", 2005)]}     all of several comparisons

The conditions on all fields must hold. Numbers compare with numbers and texts with texts; truth values
compare with truth values, by "==" only. So 1, "1" and true are different values. A condition does not
hold for an image without its field.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import UsageError, shortened
from engine.storage.bitmap import IdSet
from engine.storage.session import Session

Scalar = str | bool | int | float
Condition = Scalar | tuple[str, Scalar] | list[tuple[str, Scalar]]
Conditions = Mapping[str, Condition]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KINDS = {str: "a text", bool: "true or false", float: "a number"}
_MAX = 100  # conditions, since each is checked for every image
_IDS = 4096  # ids collected before they are added to a set
_FORM = 'where= is of the form {"label": "cat"} or {"year": (">", 1999)}'


@dataclass(frozen=True)
class _Condition:
    """One comparison of one field."""

    field: str
    compare: str
    value: Scalar

    @property
    def kind(self) -> type:
        return _kind(self.value)

    def holds(self, value: object) -> bool:
        """Whether it holds for a value of the same kind as its own."""
        return _COMPARE[self.compare](value, self.value)


class WhereMetadata:
    """A restriction by metadata; its images are found again after each commit."""

    def __init__(self, conditions: Conditions) -> None:
        """``UsageError`` if ``conditions`` are invalid."""
        if not isinstance(conditions, Mapping) or not conditions:
            raise UsageError(f"{_FORM}, not {shortened(conditions)}")
        self.conditions = tuple(
            one for field, asked in conditions.items() for one in _conditions(field, asked)
        )
        if len(self.conditions) > _MAX:
            raise UsageError(f"where= has {len(self.conditions)} conditions: use at most {_MAX}")
        # A text, since 1, 1.0 and True are equal in Python, but 1 and True are not in a store.
        self.key = repr(self.conditions)
        self._found = IdSet.none(0)
        self._commit = -1

    def ids(self, store: Session) -> IdSet:
        """The images for which all conditions hold, cached until the commit changes.

        It scans the records once, in the memory of the set. ``UsageError`` if no image has a value to
        compare with, since a misspelt field would silently find nothing.
        """
        if self._commit != store.snapshot.state.commit:
            self._found, self._commit = self._scan(store), store.snapshot.state.commit
        return self._found

    def _scan(self, store: Session) -> IdSet:
        found = IdSet.none(store.snapshot.state.next_id)
        met = [False] * len(self.conditions)  # whether any image has a value to compare
        ids: list[int] = []
        for id_, metadata in store.snapshot.tables.records.metadata():
            holding = True
            for number, one in enumerate(self.conditions):
                value = metadata.get(one.field)
                if _kind(value) is one.kind:
                    met[number] = True
                    holding &= one.holds(value)
                else:
                    holding = False
            if holding:
                ids.append(id_)
                if len(ids) >= _IDS:
                    found.add(np.array(ids, np.int64))
                    ids.clear()
        found.add(np.array(ids, np.int64))
        for one, has in zip(self.conditions, met, strict=True):
            if not has:
                raise UsageError(
                    f"{store.path} has no image whose metadata has {_KINDS[one.kind]} as "
                    f"{shortened(one.field)}: lookups show the metadata of the images that they find"
                )
        return found


def _conditions(field: object, asked: object) -> Iterable[_Condition]:
    """The comparisons of one field."""
    if not isinstance(field, str):
        raise UsageError(f"{_FORM}: a field is a text, not {shortened(field)}")
    pairs = asked if isinstance(asked, list) else [asked]
    if not pairs:
        raise UsageError(f"{_FORM}: the list of {shortened(field)} has no comparisons")
    if isinstance(asked, list) and not all(isinstance(one, tuple) for one in pairs):
        raise UsageError(
            f'{_FORM}: a list holds comparisons, such as [(">", 1999), ("<", 2005)], which all have to '
            f"hold, not {shortened(asked)}"
        )
    return [_condition(field, *_pair(one)) for one in pairs]


def _pair(asked: object) -> tuple[object, object]:
    if not isinstance(asked, tuple):
        return "==", asked
    if len(asked) != 2:
        raise UsageError(f"{_FORM}, not {shortened(asked)}")
    return asked[0], asked[1]


def _condition(field: str, compare: object, value: object) -> _Condition:
    if not isinstance(compare, str) or compare not in _COMPARE:
        raise UsageError(f"where= compares by {', '.join(_COMPARE)}, not {shortened(compare)}")
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | bool | int | float) or value != value or value in _INFINITE:
        raise UsageError(
            f"where= compares {shortened(field)} with a text, a finite number or a truth value, not "
            f"{shortened(value)}"
        )
    if isinstance(value, bool) and compare != "==":
        raise UsageError(f"where= compares a truth value by ==, not {compare}")
    return _Condition(field, compare, value)


_INFINITE = (math.inf, -math.inf)


def _kind(value: object) -> type:
    """The type that a value compares with: str, bool, float for numbers, or NoneType for others."""
    for kind in (str, bool):
        if isinstance(value, kind):
            return kind
    return float if isinstance(value, int | float) else type(None)
