"""The scan of fingerprints: what brute force finds, from committed rows only."""

import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import StoreDamagedError
from engine.storage import extents
from engine.storage.extents import FINGERPRINTS, HEADER_BYTES
from engine.storage.fingerprints import Fingerprints

UUID = b"u" * 16
Rows = npt.NDArray[np.uint8]


def write(folder: Path, prints: Rows, rows_an_extent: int) -> None:
    """Extents as a writer leaves them: the last one not full."""
    for at in range(0, len(prints), rows_an_extent):
        number = at // rows_an_extent + 1
        extents.create(folder, FINGERPRINTS, number, UUID)
        with FINGERPRINTS.path(folder, number).open("ab") as file:
            file.write(prints[at : at + rows_an_extent].tobytes())


def scanned(
    reader: Fingerprints,
    queries: Rows,
    most: int,
    rows: int,
    each: int = 1 << 20,
    *,
    holes: bool = False,
) -> dict[tuple[int, int], int]:
    """What was found: (query, row) → distance; the fingerprints that come with it are checked.

    Of the first ``rows`` rows, of which ``each`` are in an extent.
    """
    starts = range(0, rows, each)
    committed = [(number, 32 * min(each, rows - at)) for number, at in enumerate(starts, 1)]
    found: dict[tuple[int, int], int] = {}
    last = [-1] * len(queries)
    for part in reader.near(queries, most, committed, holes=holes):
        assert part.prints.shape == (len(part.rows), 32)
        for row, distance, print_ in zip(part.rows, part.distances, part.prints, strict=True):
            assert row > last[part.query]  # in order, and once
            last[part.query] = int(row)
            assert np.bitwise_count(print_ ^ queries[part.query]).sum() == distance
            found[part.query, int(row)] = int(distance)
    return found


def brute_force(prints: Rows, queries: Rows, most: int) -> dict[tuple[int, int], int]:
    far = np.bitwise_count(prints[None] ^ queries[:, None]).sum(axis=2, dtype=np.int64)
    return {
        (int(q), int(row)): int(far[q, row])
        for q, row in zip(*np.nonzero(far <= most), strict=True)
    }


@pytest.mark.slow
@given(
    n=st.integers(0, 70),
    rows_an_extent=st.integers(1, 40),
    block=st.integers(1, 20),
    most=st.sampled_from([0, 1, 31, 127, 128, 255, 256]),
    committed=st.integers(0, 70),
    seed=st.integers(0, 999),
)
def test_a_scan_finds_what_brute_force_finds(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    rows_an_extent: int,
    block: int,
    most: int,
    committed: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, 256, (2, 32), np.uint8)
    prints = rng.integers(0, 256, (n, 32), np.uint8)
    for row in range(n):  # at every distance from one of the queries, the whole way to 256
        mask = np.zeros(256, np.uint8)
        mask[rng.permutation(256)[: rng.choice([0, 1, 31, 32, 128, 255, 256])]] = 1
        prints[row] = queries[row % 2] ^ np.packbits(mask)
    write(folder, prints, rows_an_extent)
    rows = min(n, committed)
    reader = Fingerprints(folder, block)
    found = scanned(reader, queries, most, rows, rows_an_extent)
    assert found == brute_force(prints[:rows], queries, most)
    reader.close()


def test_rows_that_are_appended_later_are_seen_by_who_is_told_of_them(tmp_path: Path) -> None:
    prints = np.random.default_rng(0).integers(0, 256, (10, 32), np.uint8)
    write(tmp_path, prints[:6], 100)
    reader = Fingerprints(tmp_path)
    assert scanned(reader, prints[2:3], 0, 6) == {(0, 2): 0}
    with FINGERPRINTS.path(tmp_path, 1).open("ab") as file:
        file.write(prints[6:].tobytes())
    assert scanned(reader, prints[8:9], 0, 6) == {}
    assert scanned(reader, prints[8:9], 0, 10) == {(0, 8): 0}
    reader.close()


@pytest.mark.slow
@given(
    spans=st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=8),
    ones=st.integers(0, 256),
    most=st.integers(0, 256),
    rows_an_extent=st.integers(100, 900),
)
def test_holes_are_passed_over_where_nothing_in_them_is_near(
    tmp_path_factory: pytest.TempPathFactory,
    spans: list[tuple[bool, int]],
    ones: int,
    most: int,
    rows_an_extent: int,
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    rng = np.random.default_rng(ones)
    prints = np.concatenate(
        [
            np.zeros((n, 32), np.uint8) if hole else rng.integers(0, 256, (n, 32))
            for hole, n in spans
        ]
    ).astype(np.uint8)
    write(folder, prints, rows_an_extent)
    for number in range(1, -(-len(prints) // rows_an_extent) + 1):
        path = FINGERPRINTS.path(folder, number)
        subprocess.run(["fallocate", "--dig-holes", path], check=False, capture_output=True)
    query = np.zeros(256, np.uint8)
    query[rng.permutation(256)[:ones]] = 1
    queries = np.packbits(query)[None]
    reader = Fingerprints(folder, 64)
    found = scanned(reader, queries, most, len(prints), rows_an_extent, holes=True)
    assert found == brute_force(prints, queries, most)
    reader.close()


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_an_extent_that_is_gone_or_cut_short_is_damage_and_no_crash(
    tmp_path: Path, damage: str
) -> None:
    prints = np.random.default_rng(0).integers(0, 256, (3000, 32), np.uint8)
    write(tmp_path, prints, 4000)
    path = FINGERPRINTS.path(tmp_path, 1)
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, HEADER_BYTES + 100 * 32)
    reader = Fingerprints(tmp_path)
    with pytest.raises(StoreDamagedError, match="gone or cut short"):
        scanned(reader, prints[:1], 0, len(prints))
    reader.close()
