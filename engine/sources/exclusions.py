"""Patterns of names to skip inside folders: those of ``fnmatch``, whose ``*`` also matches a slash."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable

from engine.errors import UsageError

Patterns = str | Iterable[str]


class Exclusions:
    """Decides which files and folders below a named folder are skipped."""

    def __init__(self, patterns: Patterns = ()) -> None:
        """``patterns``: one pattern or several; ``UsageError`` for anything else."""
        if not isinstance(patterns, Iterable):
            raise UsageError(f"exclude= must be a list of patterns, not {patterns!r:.60}")
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in given:
            able = isinstance(pattern, str) and pattern.strip("/")
            if not able or pattern.startswith(("/", "./", "../")):
                raise UsageError(
                    f"exclude= takes patterns of names and of paths below the folder, such as '*.tmp' "
                    f"or 'thumbs/*', not {pattern!r:.60}"
                )
        self._matches = [
            re.compile(fnmatch.translate(pattern.rstrip(os.sep))).match for pattern in given
        ]

    def __bool__(self) -> bool:
        return bool(self._matches)

    def match(self, name: str, below: str) -> bool:
        """Whether to skip a file or a folder, by its name or by its path below the named folder."""
        return any(matches(name) or matches(below) for matches in self._matches)


NOTHING = Exclusions()
