"""The sources of the images of one commit: file names, and rows of arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from engine.errors import StoreDamagedError
from engine.storage import source_counts
from engine.storage.open_files import OpenFiles
from engine.storage.runs import BUCKET_BITS, Run, RunsOfBucket
from engine.storage.tables import Tables

# How many buckets of runs, and how many array names, are cached.
_BUCKETS = 4096
# A bucket with at most this many runs is cached when it is first read.
_FEW_RUNS = 16
# How many runs are cached in total.
_MAX_RUNS = 1 << 15


class ImageSources:
    """The sources of the images of one commit. Its caches are bounded."""

    def __init__(self, files: OpenFiles, commit: int) -> None:
        self._files = files
        self._commit = commit
        # If rows come from one array, a bucket's few runs answer for 4,096 images.
        self._buckets: dict[int, list[Run] | RunsOfBucket] = {}
        self._remembered = 0  # runs in all cached buckets
        self._last_bucket = -1
        # Buckets with too many runs to cache.
        self._too_many: set[int] = set()
        self._array_names: dict[int, bytes] = {}
        self._counts_hold: bool | None = None

    @property
    def tables(self) -> Tables:
        """The open tables; ``StoreError`` if they are closed."""
        return self._files.tables

    def of(self, id_: int, most: int, *, in_runs: bool = False) -> tuple[list[bytes], int]:
        """Return the first ``most`` sources of image ``id_``, and the number of all its sources.

        ``in_runs``: the flag of the image's row; it saves two scans.
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
        """Count an image's files and rows in runs of its own; append up to ``most`` to ``names``."""
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
        """Return the stored count of an image's files and own runs; None if they have to be read."""
        if self._counts_hold is None:
            self._counts_hold = source_counts.hold(self.tables, self._commit)
        return self.tables.meta.source_count(id_) if self._counts_hold else None

    def _bucket(self, id_: int) -> Iterable[Run]:
        """Return the runs of several images that may include image ``id_``."""
        bucket = id_ >> BUCKET_BITS
        found = self._buckets.get(bucket)
        again = bucket == self._last_bucket and bucket not in self._too_many
        # A second read of the same bucket: cache it, because a third is likely.
        if found is None and again:
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
        """Return the name of array ``number`` in results."""
        name = self._array_names.get(number)
        if name is None:
            name = self.tables.arrays.name_of(number)
            if name is None:
                raise StoreDamagedError(f"array {number} has no name; run 'engine check'")
            if len(self._array_names) >= _BUCKETS:
                self._array_names.clear()
            self._array_names[number] = name
        return name
