"""Checks the extents: their headers and lengths, and the xxh64 of every append."""

from __future__ import annotations

import collections
from contextlib import ExitStack, closing

from engine.errors import StoreDamagedError
from engine.images import hashing
from engine.maintenance.check.damage import DamagedAppend
from engine.maintenance.check.findings import Findings
from engine.records import Place
from engine.storage import extents, manifest, nofollow
from engine.storage.commit_row import CommitRow
from engine.storage.extent_reader import ExtentReader
from engine.storage.extents import Append, Family
from engine.storage.session import Session

_READ = 8 << 20  # bytes at a time


class ExtentsCheck:
    """The check of all committed extents, byte for byte."""

    def __init__(self, store: Session, findings: Findings) -> None:
        self._store = store
        self._findings = findings

    def run(self) -> None:
        """Check every extent, and that each committed byte belongs to an append."""
        self._headers()
        self._named()
        covered = self._appends()
        for name, pairs in self._store.snapshot.state.extents.items():
            for number, size in pairs:
                if covered[name, number] != size:
                    bytes_ = f"{size:,} bytes of {name} {number}"
                    what = f"{bytes_} are committed, but commits appended {covered[name, number]:,}"
                    self._findings.report("keys", what)

    def _headers(self) -> None:
        store = self._store
        for family in store.snapshot.families():
            for number in store.snapshot.manifest.extents[family.name]:
                problem = store.snapshot.header_problem(family, number)
                if problem and not self._rewritten(family, number):
                    self._findings.report(family.inside(number), problem)

    def _named(self) -> None:
        """Check that the manifest names all committed extents."""
        store = self._store
        for name, pairs in store.snapshot.state.extents.items():
            named = store.snapshot.manifest.extents.get(name, [])
            for number, size in pairs:
                if size and number not in named and not self._named_since(name, number):
                    what = f"it does not name {name} {number}, which is committed"
                    self._findings.report("MANIFEST.json", what)

    def _appends(self) -> collections.Counter[tuple[str, int]]:
        """Check every append; returns the appended bytes of each extent, by family and number."""
        with ExitStack() as stack:
            readers = {
                family.name: stack.enter_context(closing(ExtentReader(self._store.path, family)))
                for family in self._families()
            }
            return self._covered(readers)

    def _covered(self, readers: dict[str, ExtentReader]) -> collections.Counter[tuple[str, int]]:
        covered: collections.Counter[tuple[str, int]] = collections.Counter()
        for key, value in self._store.snapshot.tables.commits.scan():
            try:
                row = CommitRow.unpack(key, value)
            except StoreDamagedError as error:
                self._findings.report("keys", f"commit {int.from_bytes(key, 'big')}: {error}")
                continue
            for at, append in enumerate(row.appends):
                covered[append.family, append.extent] += append.length
                reader = readers.get(append.family)
                if reader is not None and not self._is_whole(reader, append, row.commit):
                    place = Place(append.extent, append.offset, append.length)
                    damaged = DamagedAppend(row.commit, at, reader.family, place)
                    self._findings.damage.appends.append(damaged)
        return covered

    def _families(self) -> list[Family]:
        """All families that may have committed bytes, whether the manifest names them or not."""
        space = self._store.snapshot.space
        return [extents.PIXELS, extents.FINGERPRINTS, *space.families]

    def _is_whole(self, reader: ExtentReader, append: Append, commit: int) -> bool:
        """Whether the bytes of an append are those that were committed."""
        where = reader.family.inside(append.extent)
        at = f"bytes {append.offset:,} to {append.offset + append.length:,}"
        try:
            check = hashing.Checksum()
            for start in range(0, append.length, _READ):
                size = min(_READ, append.length - start)
                data = reader.read(Place(append.extent, append.offset + start, size))
                self._findings.bytes_read += len(data)
                check.update(data)
        except StoreDamagedError as error:
            if self._rewritten(reader.family, append.extent):
                return True
            self._findings.report(where, f"{at} of commit {commit} are lost: {error}")
            return False
        if check.value != append.xxh64:
            what = f"{at} of commit {commit} are damaged (wrong checksum)"
            self._findings.report(where, what)
        return check.value == append.xxh64

    def _rewritten(self, family: Family, number: int) -> bool:
        """Whether an extent is gone because a writer rewrote it during the check."""
        store = self._store
        if nofollow.status(store.path, family.inside(number)) is not None:
            return False
        # The manifest names a dropped extent until the writer has saved the next manifest.
        committed = any(n == number for n, _ in store.snapshot.state.extents.get(family.name, ()))
        if committed and not store.is_behind():
            return False
        return number not in manifest.load(store.path).extents.get(family.name, [])

    def _named_since(self, name: str, number: int) -> bool:
        """Whether the manifest names an extent now: it was read before the keys, which may be newer."""
        store = self._store
        return number in manifest.load(store.path).extents.get(name, []) or store.is_behind()
