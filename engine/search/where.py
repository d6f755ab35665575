"""Restricts a search to images by what their metadata says: one field compared with one value.

    {"label": "cat"}                          equal to it
    {"year": (">", 1999)}                     one of "==", "<", "<=", ">", ">="
    {"year": [(">", 1999), ("<=", 2005)]}     all of them

Several fields are to hold together. Numbers compare with numbers, texts with texts and truth values, by
"==" alone, with truth values: 1, "1" and true are three. Of an image without the field nothing holds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import UsageError
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
_MAX = 100  # conditions: each is asked of every image
_IDS = 4096  # found that wait for the set they go into
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
        """Whether it holds of a value, which has the kind of its own."""
        return _COMPARE[self.compare](value, self.value)


class WhereMetadata:
    """Conditions on metadata, asked of all images, commit after commit."""

    def __init__(self, conditions: Conditions) -> None:
        """``UsageError`` for what are no conditions."""
        if not isinstance(conditions, Mapping) or not conditions:
            raise UsageError(f"{_FORM}, not {_short(conditions)}")
        self.conditions = tuple(
            one for field, asked in conditions.items() for one in _conditions(field, asked)
        )
        if len(self.conditions) > _MAX:
            raise UsageError(f"where= has {len(self.conditions)} conditions: {_MAX} are the most")
        # As they were typed: to Python 1, 1.0 and true are one, and to a store they are two.
        self.key = repr(self.conditions)
        self._found = IdSet.none(0)
        self._commit = -1

    def ids(self, store: Session) -> IdSet:
        """The images of which all conditions hold, remembered until the commit changes.

        One scan of the records, in the memory of the set. ``UsageError`` if no image has a value to
        compare with: a misspelt field would find nothing, silently.
        """
        if self._commit != store.snapshot.state.commit:
            self._found, self._commit = self._scan(store), store.snapshot.state.commit
        return self._found

    def _scan(self, store: Session) -> IdSet:
        found = IdSet.none(store.snapshot.state.next_id)
        met = [False] * len(self.conditions)  # whether some image has a value for it
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
                    f"{_short(one.field)}: see the metadata of what a lookup finds"
                )
        return found


def _conditions(field: object, asked: object) -> Iterable[_Condition]:
    """The comparisons of one field."""
    if not isinstance(field, str):
        raise UsageError(f"{_FORM}: a field is a text, not {_short(field)}")
    pairs = asked if isinstance(asked, list) else [asked]
    if not pairs:
        raise UsageError(f"{_FORM}: nothing is asked of {_short(field)}")
    if isinstance(asked, list) and not all(isinstance(one, tuple) for one in pairs):
        raise UsageError(
            f'{_FORM}: a list holds comparisons, such as [(">", 1999), ("<", 2005)], which all have to '
            f"hold, not {_short(asked)}"
        )
    return [_condition(field, *_pair(one)) for one in pairs]


def _pair(asked: object) -> tuple[object, object]:
    if not isinstance(asked, tuple):
        return "==", asked
    if len(asked) != 2:
        raise UsageError(f"{_FORM}, not {_short(asked)}")
    return asked[0], asked[1]


def _condition(field: str, compare: object, value: object) -> _Condition:
    if not isinstance(compare, str) or compare not in _COMPARE:
        raise UsageError(f"where= compares by {', '.join(_COMPARE)}, not {_short(compare)}")
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | bool | int | float) or value != value or value in _INFINITE:
        raise UsageError(
            f"where= compares {_short(field)} with a text, a finite number or a truth value, not "
            f"{_short(value)}"
        )
    if isinstance(value, bool) and compare != "==":
        raise UsageError(f"where= compares a truth value by ==, not {compare}")
    return _Condition(field, compare, value)


_INFINITE = (math.inf, -math.inf)


def _kind(value: object) -> type:
    """What a value compares with: text, truth values, numbers, or nothing."""
    for kind in (str, bool):
        if isinstance(value, kind):
            return kind
    return float if isinstance(value, int | float) else type(None)


def _short(value: object) -> str:
    """What a caller gave, in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
