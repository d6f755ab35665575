"""Patterns of names that are left out of folders, as a shell has them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable

from engine.errors import UsageError

Patterns = str | Iterable[str]


class Exclusions:
    """Which files and folders below a named folder are left out."""

    def __init__(self, patterns: Patterns = ()) -> None:
        """``patterns``: one, or several; ``UsageError`` for what is none."""
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in given:
            if not isinstance(pattern, str) or not pattern.strip("/"):
                raise UsageError(
                    f"exclude= has patterns of names, such as '*.tmp' or 'thumbs/*', not {pattern!r}"
                )
        self._matches = [
            re.compile(fnmatch.translate(pattern.rstrip(os.sep))).match for pattern in given
        ]

    def __bool__(self) -> bool:
        return bool(self._matches)

    def match(self, name: str, below: str) -> bool:
        """Whether a file or a folder is left out, by its name or by its path below the named folder."""
        return any(matches(name) or matches(below) for matches in self._matches)


NOTHING = Exclusions()
