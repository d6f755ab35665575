"""Reads several SOURCE arguments as one stream of items, in a stable order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engine.errors import EngineError, SourceError, UsageError
from engine.sources import files
from engine.sources.exclusions import Exclusions, Patterns
from engine.sources.items import Item, Reject, absolute
from engine.sources.locate import archive_of, check_source, expanded, is_folder, is_synthetic
from engine.sources.member_names import MAX_NAME
from engine.sources.named_arrays import arrays_of, missing_array
from engine.sources.path_lists import MAX_LINE, check_list, listed, shown
from engine.sources.synthetic import SyntheticBits

_MAX_SHOWN = 200  # characters of a source in a message
_MAX_FOLDERS = 1024  # named folders in ``Sources.folders``


class Sources:
    """Several SOURCEs as one stream of items."""

    def __init__(
        self,
        specs: Sequence[str],
        *,
        files_from: str | os.PathLike[str] | None = None,
        recursive: bool = True,
        null: bool = False,
        exclude: Patterns = (),
    ) -> None:
        """``files_from`` is a file with more sources, one per line; "-" is standard input.

        ``null``: each source in a list ends with a null byte, as ``find -print0`` writes them.
        ``exclude``: patterns of names and paths to skip in folders.

        ``UsageError`` for a missing source, before anything is read. Pipes are not read before the
        iteration.
        """
        if not specs and files_from is None:
            raise UsageError("name at least one source: a folder, an image, an archive, or -")
        if null and files_from is None and "-" not in specs:
            raise UsageError("null bytes end the names of a list: name one with files_from=, or -")
        if files_from is not None and files_from != "-":
            check_list(files_from, null=null)
        self._specs = list(specs)
        self._files_from = files_from
        self._recursive = recursive
        self._null = null
        self._exclude = Exclusions(exclude)
        self.folders: dict[bytes, None] = {}  # the first named folders, in order
        for spec in specs:
            if spec != "-":
                check_source(spec)
                self._note_folder(spec)

    @property
    def has_lists(self) -> bool:
        """Whether some sources are named in a list, which may be a pipe."""
        return self._files_from is not None or "-" in self._specs

    def count(self) -> int | None:
        """The number of items, rows of arrays included; None if only reading all would show it."""
        if self.has_lists:
            return None
        total = 0
        for spec in self._specs:
            for one in expanded(spec):
                count = self._count(one)
                if count is None:
                    return None
                total += count
        return total

    def _note_folder(self, spec: str) -> bool:
        """Whether a source is a folder; if so, add it to ``folders``."""
        if is_synthetic(spec) or not is_folder(Path(spec)):
            return False
        if len(self.folders) < _MAX_FOLDERS:
            self.folders[absolute(spec)] = None
        return True

    def _count(self, spec: str) -> int | None:
        path = Path(spec)
        if is_synthetic(spec):
            return SyntheticBits(spec).count
        if is_folder(path):
            return files.count(path, recursive=self._recursive, exclude=self._exclude)
        try:
            found = arrays_of(spec)
            if found is not None:
                return sum(array.count for array in found)
            archive = archive_of(spec)
            return archive.count if archive is not None else 1
        except (EngineError, OSError):
            return 1

    def __iter__(self) -> Iterator[Item]:
        for spec in self._specs:
            if spec == "-":
                yield from self._listed(listed("-", null=self._null))
            else:
                yield from self._items(spec)
        if self._files_from is not None:
            yield from self._listed(listed(self._files_from, null=self._null))

    def _listed(self, lines: Iterable[str]) -> Iterator[Item]:
        for spec in lines:
            if len(os.fsencode(spec)) > MAX_LINE or "\0" in spec:
                why = "it holds a null byte: is the list one for null=True?" if "\0" in spec else ""
                yield Reject(os.fsencode(spec[:_MAX_SHOWN]), f"not a path{why and ': ' + why}")
            elif spec == "-":
                yield Reject(b"-", "standard input cannot list itself")
            else:
                try:
                    yield from self._items(spec)
                except UsageError as error:
                    yield _reject(os.fsencode(spec), str(error))

    def _items(self, spec: str) -> Iterator[Item]:
        for one in expanded(spec):
            try:
                yield from self._one(one)
            # One file of a pattern is wrong, or has changed since it was checked. The rest goes on.
            except UsageError as error:
                yield _reject(absolute(one), str(error))

    def _one(self, spec: str) -> Iterator[Item]:
        if is_synthetic(spec):
            yield SyntheticBits(spec)
            return
        path = Path(spec)
        if self._note_folder(spec):
            yield from files.walk(path, recursive=self._recursive, exclude=self._exclude)
            return
        archive = None
        try:
            found = arrays_of(spec)
            if found is None:
                archive = archive_of(spec)
        except SourceError as error:
            yield _reject(absolute(spec), str(error))
            return
        except OSError as error:
            yield _reject(absolute(spec), f"cannot be read: {error.strerror}")
            return
        if found is not None:
            yield from found
        elif archive is not None:
            yield archive
        else:
            item = files.one(path)
            if isinstance(item, Reject):
                yield _reject(item.name, missing_array(spec) or item.reason)
            else:
                yield item


def _reject(name: bytes, reason: str) -> Reject:
    """The reject for a source, which may be any line of a list; a long name or reason is cut."""
    return Reject(name[:MAX_NAME], shown(reason, 5 * _MAX_SHOWN))
