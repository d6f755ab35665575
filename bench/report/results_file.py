"""Writes and reads the files of a run's results: ``results.csv`` and ``results.json``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any

from engine.errors import UsageError

from ..harness.measurement import Measurement, Skipped
from .results import COLUMNS, Results, rounded, rows

FORMAT = 1
CSV_NAME, JSON_NAME = "results.csv", "results.json"
_MAX_BYTES = 64 << 20  # of a file of results
_KINDS = {"settings": "plain value", "machine": "text or number", "versions": "text"}


def save(results: Results, folder: Path) -> None:
    """Write ``results.csv``, a line for each measurement, and ``results.json``, with every sample."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(results))
    _replace(folder / CSV_NAME, table.getvalue())
    body = {"format": FORMAT} | asdict(results)
    for one in body["measurements"]:
        one["samples"] = [rounded(sample) for sample in one["samples"]]
    _replace(folder / JSON_NAME, json.dumps(body, separators=(",", ":")) + "\n")


def load(path: Path) -> Results:
    """Read the results that ``save`` wrote, from a folder or its results.json; else ``UsageError``."""
    file = path
    try:
        if path.is_dir():
            file = path / JSON_NAME
        # Opening a pipe without a writer would wait for ever.
        if file.exists() and not file.is_file():
            raise OSError(0, "it is no file")
        with file.open("rb") as opened:
            raw = opened.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the results {file} cannot be read: {reason}; name a results.json of engine bench"
        ) from None
    if len(raw) > _MAX_BYTES:
        raise UsageError(f"{file} is too large for results of engine bench: name another file")
    try:
        # By default Python guesses other encodings and accepts NaN; ``save`` writes neither.
        return _results(json.loads(raw.decode("utf-8"), parse_constant=_no_constant))
    except (ValueError, RecursionError, _WrongError) as error:  # UnicodeDecodeError is a ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{file} has no results of engine bench: {reason[:200]}; name a results.json of it"
        ) from None


def kept(folder: Path) -> bool:
    """Whether a run that did not end has left measurements in a folder."""
    return (folder / JSON_NAME).exists() and bool(load(folder).measurements)


class _WrongError(Exception):
    """A part of a file is invalid."""


def _results(body: object) -> Results:
    if not isinstance(body, dict):
        raise _WrongError("it is no object")
    if _a(body, "format", int) != FORMAT:
        raise _WrongError(f"its format is {body['format']} and not {FORMAT}")
    return Results(
        started=_time(body),
        seconds=_number(body.get("seconds"), "seconds"),
        complete=_a(body, "complete", bool),
        settings=_scalars(body, "settings", str | int | float | list | None),
        machine=_scalars(body, "machine", str | int),
        versions=_scalars(body, "versions", str),
        measurements=tuple(_measurement(one) for one in _a(body, "measurements", list)),
        skipped=tuple(_skipped(one) for one in _a(body, "skipped", list)),
    )


def _measurement(one: object) -> Measurement:
    samples = _a(one, "samples", list)
    if not samples:
        raise _WrongError("a measurement has no samples")
    return Measurement(
        n=_count(one),
        tier=_a(one, "tier", str),
        method=_a(one, "method", str),
        figure=_a(one, "figure", str),
        unit=_a(one, "unit", str),
        samples=tuple(_number(sample, "a sample") for sample in samples),
        note=_a(one, "note", str),
    )


def _skipped(one: object) -> Skipped:
    return Skipped(_count(one), _a(one, "tier", str), _a(one, "method", str), _a(one, "why", str))


def _a(body: object, name: str, kind: type) -> Any:
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _WrongError(f"{name} is missing, or no {kind.__name__}")
    return value


def _time(body: object) -> str:
    text = _a(body, "started", str)
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise _WrongError("started is no time") from None
    return str(text)


def _scalars(body: object, name: str, kind: UnionType | type) -> dict[str, Any]:
    """The description of a run: values that fit on a line, or lists of these."""
    found: dict[str, Any] = _a(body, name, dict)
    for value in found.values():
        if not isinstance(value, kind):
            raise _WrongError(f"a value of {name} is no {_KINDS[name]}")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, list | dict):
                raise _WrongError(f"a list of {name} has more than plain values")
            if isinstance(one, int | float) and not isinstance(one, bool):
                _number(one, f"a number of {name}")
    return found


def _no_constant(name: str) -> float:
    raise _WrongError(f"{name} is no number")


def _count(body: object) -> int:
    n = _a(body, "n", int)
    if not 0 <= n < 1 << 63:
        raise _WrongError("n is no number of images")
    return int(n)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _WrongError(f"{what} is no number")
    if abs(value) > 1e300 or not math.isfinite(value):
        raise _WrongError(f"{what} is not finite")
    return float(value)


def _replace(path: Path, text: str) -> None:
    """Write a file atomically; file names that are not UTF-8 are escaped."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
