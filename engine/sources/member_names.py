"""What archives, tables and their members are called: names, the query in them, and which are bad."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl

from engine.errors import UsageError
from engine.images.file_types import SUFFIXES
from engine.sources.items import absolute

MAX_NAME = 4096  # bytes: no path on a disk is longer
_APPLE_DOUBLE = b"._"
_MACOS_FOLDER = b"__MACOSX/"
_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)


def name_of(path: Path, query: str) -> bytes:
    """The name of an archive in results; with its query, so that a member can be found again."""
    return absolute(path) + (b"?" + query.encode("utf-8", "surrogateescape") if query else b"")


def query_values(path: Path, query: str, known: Collection[str]) -> dict[str, str]:
    """What stands behind ``?``; ``UsageError`` for a name that is not among ``known``."""
    pairs = parse_qsl(query, keep_blank_values=True)
    values = dict(pairs)
    if len(values) < len(pairs) or set(values) - set(known) or bool(query) != bool(pairs):
        names = " or ".join(f"?{name}=" for name in sorted(known))
        raise UsageError(f"{path}?{query}: {query!r} is not known: write {names}")
    return values


def wanted_fields(values: dict[str, str]) -> tuple[str, ...] | None:
    """The fields that ``metadata=a,b`` names: none for an empty one; None, all, where it is missing."""
    if "metadata" not in values:
        return None
    return tuple(name for name in values["metadata"].split(",") if name)


def claims_by_name(name: bytes) -> bool:
    """Whether a member is named as an image; what macOS keeps beside one as "._NAME" is not."""
    base = name.rpartition(b"/")[2]
    if base.startswith(_APPLE_DOUBLE) or name.startswith(_MACOS_FOLDER):
        return False
    stem, dot, suffix = base.rpartition(b".")
    return bool(stem and dot) and (b"." + suffix.lower()) in _SUFFIXES


def name_problem(name: bytes) -> str:
    """Why a member cannot be called by its name; empty if it can."""
    if not name:
        return "a member without a name"
    if b"\0" in name:
        return "a name with a null byte"
    if len(name) > MAX_NAME:
        return f"a name of {len(name):,} bytes is over the limit of {MAX_NAME:,}"
    return ""


def no_member(member: bytes) -> str:
    """There is none of this name."""
    return f"has no member {member[:200].decode(errors='backslashreplace')!r}"
