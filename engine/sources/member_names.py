"""The names of archives, tables and their members: how they are built, parsed and checked."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl

from engine.errors import UsageError
from engine.images.file_types import SUFFIXES
from engine.sources.items import absolute

MAX_NAME = 4096  # bytes, the limit of a path
_APPLE_DOUBLE = b"._"
_MACOS_FOLDER = b"__MACOSX/"
_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)


def name_of(path: Path, query: str) -> bytes:
    """The name of an archive in results. It includes the query, so that members can be found again."""
    return absolute(path) + (b"?" + query.encode("utf-8", "surrogateescape") if query else b"")


def query_values(path: Path, query: str, known: Collection[str]) -> dict[str, str]:
    """The values of the query after ``?``; ``UsageError`` for a name that is not in ``known``."""
    pairs = parse_qsl(query, keep_blank_values=True)
    values = dict(pairs)
    if len(values) < len(pairs) or set(values) - set(known) or bool(query) != bool(pairs):
        names = " or ".join(f"?{name}=" for name in sorted(known))
        raise UsageError(f"{path}?{query}: {query!r} is not known: write {names}")
    return values


def wanted_fields(values: dict[str, str]) -> tuple[str, ...] | None:
    """The fields that ``metadata=a,b`` names; None, for all fields, if it is missing."""
    if "metadata" not in values:
        return None
    return tuple(name for name in values["metadata"].split(",") if name)


def claims_by_name(name: bytes) -> bool:
    """Whether a member has an image's name; a macOS attribute file "._NAME" does not count."""
    base = name.rpartition(b"/")[2]
    if base.startswith(_APPLE_DOUBLE) or name.startswith(_MACOS_FOLDER):
        return False
    stem, dot, suffix = base.rpartition(b".")
    return bool(stem and dot) and (b"." + suffix.lower()) in _SUFFIXES


def name_problem(name: bytes) -> str:
    """What is wrong with a member's name; empty if it is valid."""
    if not name:
        return "a member without a name"
    if b"\0" in name:
        return "a name with a null byte"
    if len(name) > MAX_NAME:
        return f"a name of {len(name):,} bytes is over the limit of {MAX_NAME:,}"
    return ""


def no_member(member: bytes) -> str:
    """The message for a member that does not exist."""
    return f"has no member {member[:200].decode(errors='backslashreplace')!r}"
