"""Patterns of names that are left out of folders: ``fnmatch``'s, whose ``*`` matches a slash too."""

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
        if not isinstance(patterns, Iterable):
            raise UsageError(f"exclude= is a list of patterns, not {patterns!r:.60}")
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in given:
            able = isinstance(pattern, str) and pattern.strip("/")
            if not able or pattern.startswith(("/", "./", "../")):
                raise UsageError(
                    f"exclude= has patterns of names and of paths below the folder, such as '*.tmp' or "
                    f"'thumbs/*', not {pattern!r:.60}"
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
