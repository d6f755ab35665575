"""Where the images of one commit were seen: names of files, and rows of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from engine.errors import StoreDamagedError
from engine.storage import source_counts
from engine.storage.open_files import OpenFiles
from engine.storage.runs import BUCKET_BITS, Run, RunsOfBucket
from engine.storage.tables import Tables

_BUCKETS = 4096  # buckets of runs, and names of arrays, that are remembered
_FEW_RUNS = 16  # of a bucket that is remembered when it is first read
_MAX_RUNS = 1 << 15  # that are remembered, of all buckets


class ImageSources:
    """The sources of the images of one commit. What it remembers is bounded."""

    def __init__(self, files: OpenFiles, commit: int) -> None:
        self._files = files
        self._commit = commit
        # Bounded: a bucket's few runs answer for 4,096 images where their rows are one array's.
        self._buckets: dict[int, list[Run] | RunsOfBucket] = {}
        self._remembered = 0  # runs in them
        self._last_bucket = -1
        self._too_many: set[int] = set()  # buckets that are not remembered
        self._array_names: dict[int, bytes] = {}
        self._counts_hold: bool | None = None

    @property
    def tables(self) -> Tables:
        """The open tables; ``StoreError`` if they are closed."""
        return self._files.tables

    def of(self, id_: int, most: int, *, in_runs: bool = False) -> tuple[list[bytes], int]:
        """The first ``most`` places where image ``id_`` was seen, and how many there are.

        ``in_runs``: what the image's row says; two scans less.
        """
        names: list[bytes] = []
        count = 0 if in_runs else self._own_sources(id_, names, most)
        for run in self._bucket(id_):
            rows = run.rows_of(id_)
            if rows:
                count += len(rows)
                self._name_rows(run, rows, names, most)
        return names, count

    def _own_sources(self, id_: int, names: list[bytes], most: int) -> int:
        """How many files and rows in runs of its own an image has; ``names`` gets up to ``most``."""
        enough = max(most, source_counts.COUNTED)
        count = 0
        for at, name in enumerate(self.tables.sources.names_of(id_)):
            if at == enough and (kept := self._kept_count(id_)) is not None:
                return kept
            count += 1
            if len(names) < most:
                names.append(name)
        for at, run in enumerate(self.tables.runs.of_one(id_), count):
            if at == enough and (kept := self._kept_count(id_)) is not None:
                return kept
            count += run.count
            self._name_rows(run, run.rows_of(id_), names, most)
        return count

    def _name_rows(self, run: Run, rows: range, names: list[bytes], most: int) -> None:
        if len(names) < most:
            base = self.array_name(run.array)
            names += [b"%s#%d" % (base, row) for row in rows[: most - len(names)]]

    def _kept_count(self, id_: int) -> int | None:
        """How many files and runs of its own are noted of an image; None if they have to be read."""
        if self._counts_hold is None:
            self._counts_hold = source_counts.hold(self.tables, self._commit)
        return self.tables.meta.source_count(id_) if self._counts_hold else None

    def _bucket(self, id_: int) -> Iterable[Run]:
        """The runs of several images that image ``id_`` may be in."""
        bucket = id_ >> BUCKET_BITS
        found = self._buckets.get(bucket)
        again = bucket == self._last_bucket and bucket not in self._too_many
        if found is None and again:  # and once more, most likely
            self._remember(bucket, list(islice(self.tables.runs.in_bucket(id_), _MAX_RUNS + 1)))
            found = self._buckets.get(bucket)
        if found is None:
            self._last_bucket = bucket
            return self._read_bucket(id_)
        return found if isinstance(found, list) else found.over(id_)

    def _read_bucket(self, id_: int) -> Iterator[Run]:
        runs: list[Run] = []
        for run in self.tables.runs.in_bucket(id_):
            if run.id > id_ and len(runs) > _FEW_RUNS:
                return
            runs.append(run)
            yield run
        if len(runs) <= _FEW_RUNS:
            self._remember(id_ >> BUCKET_BITS, runs)

    def _remember(self, bucket: int, runs: list[Run]) -> None:
        if len(runs) > _MAX_RUNS:
            self._too_many.add(bucket)
            return
        if self._remembered + len(runs) > _MAX_RUNS or len(self._buckets) >= _BUCKETS:
            self._buckets.clear()
            self._remembered = 0
        self._buckets[bucket] = runs if len(runs) <= _FEW_RUNS else RunsOfBucket(runs)
        self._remembered += len(runs)

    def array_name(self, number: int) -> bytes:
        """What array ``number`` is called in results."""
        name = self._array_names.get(number)
        if name is None:
            name = self.tables.arrays.name_of(number)
            if name is None:
                raise StoreDamagedError(f"array {number} has no name; run 'engine check'")
            if len(self._array_names) >= _BUCKETS:
                self._array_names.clear()
            self._array_names[number] = name
        return name
