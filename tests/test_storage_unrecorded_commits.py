"""Committed bytes that no record tells of get one again, in pieces that a repair can read."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.storage import extents, unrecorded_commits
from engine.storage.commit_evidence import appends_of
from engine.storage.extents import HEADER_BYTES
from engine.storage.state import State


@pytest.mark.parametrize(("dim", "rows"), [(1 << 10, 3000), (1 << 21, 2)])
def test_each_piece_is_of_whole_rows_however_long_these_are(
    tmp_path: Path, dim: int, rows: int
) -> None:
    family = extents.vectors(1, dim)
    path = family.path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.touch()
    size = rows * family.row_bytes
    os.truncate(path, HEADER_BYTES + size)
    view: Any = SimpleNamespace(
        path=tmp_path,
        state=State(extents={family.name: [[1, size]]}),
        manifest=SimpleNamespace(space=SimpleNamespace(families=(family,))),
        keys=SimpleNamespace(scan=lambda table: iter(())),
    )
    ((_, value),) = unrecorded_commits.mended(view, 7)
    assert value is not None
    at = 0
    for _, _, offset, length, _ in appends_of(value):
        assert offset == at and length > 0 and length % family.row_bytes == 0
        at += length
    assert at == size
