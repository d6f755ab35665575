"""``--memory`` is a bound: each case ingests in a process of its own, whose peak is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.memory import PeakMemory

LIMIT = 128 << 20
SLACK = 48 << 20  # buffers of libraries, and heap that was freed and not given back

CODE = """
import sys
from engine import Store
from engine.memory import PeakMemory

with Store.open("store", create=True, encoder="none", memory="128M") as store:
    store.ingest("warm.png")
    before = PeakMemory().resident
    report = store.ingest("images", keep_pixels=sys.argv[1])
    print(report.added, report.rejected, PeakMemory().resident - before)
"""

pytestmark = pytest.mark.skipif(not PeakMemory().anonymous, reason="needs /proc")


def ingest(folder: Path, keep_pixels: str) -> tuple[int, int, int]:
    """Images added and rejected, and by how much the process grew."""
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "warm.png")
    done = subprocess.run(
        [sys.executable, "-c", CODE, keep_pixels],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    added, rejected, grown = map(int, done.stdout.split())
    return added, rejected, grown


def test_large_photographs_are_decoded_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(6):  # 84 MB each while it is decoded
        Image.new("RGB", (3000, 2000), (40 * number, 200, 30)).save(
            tmp_path / f"images/{number}.jpg"
        )
    added, rejected, grown = ingest(tmp_path, "auto")
    assert (added, rejected) == (6, 0)
    assert grown < LIMIT + SLACK


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_would_take_more_is_rejected_before_it_is_decoded(tmp_path: Path, mode: str) -> None:
    (tmp_path / "images").mkdir()
    colour = (1, 2, 3, 4)[: len(mode)]
    Image.new(mode, (6000, 5000), colour).save(tmp_path / "images/large.png")
    added, rejected, grown = ingest(tmp_path, "auto")
    assert (added, rejected) == (0, 1)
    assert grown < SLACK


@pytest.mark.parametrize("keep_pixels", ["auto", "yes"])
def test_bit_images_in_small_files_do_not_add_up(tmp_path: Path, keep_pixels: str) -> None:
    """Scans of one bit compress a thousandfold; what is kept of them must not wait unpacked."""
    (tmp_path / "images").mkdir()
    for number in range(150):
        page = np.zeros((2000, 2400), np.uint8)
        page[number, number] = 255
        Image.fromarray(page).convert("1").save(tmp_path / f"images/{number}.png")
    added, rejected, grown = ingest(tmp_path, keep_pixels)
    assert (added, rejected) == (150, 0)
    assert grown < LIMIT + SLACK
