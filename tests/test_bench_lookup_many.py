"""The benchmark of lookups that find much, at tiny sizes: that it asks what it says."""

from pathlib import Path

import pytest

from bench.harness.errors import BenchError
from bench.questions import lookup_many

pytestmark = pytest.mark.slow


def test_an_image_with_many_sources_is_compared_with_one_with_one(tmp_path: Path) -> None:
    answer = lookup_many.measure_sources(tmp_path, 40, rounds=2)
    assert answer.what == "an identical hit of 40 sources, of one with one"
    assert answer.met == (float(answer.measured) <= 1.2) or answer.measured == "1.20"


def test_near_images_are_all_found_with_all_of_their_sources(tmp_path: Path) -> None:
    answer = lookup_many.measure_near(tmp_path, 30, 400, rounds=1)
    assert answer.measured.endswith(" ms") and "30 near images of 400 sources" in answer.what


def test_files_are_looked_up_at_once_and_one_by_one(tmp_path: Path) -> None:
    files = lookup_many.made_photographs(tmp_path / "photos", 12)
    answer = lookup_many.measure_many(tmp_path, files, "none", rounds=1)
    assert "12 files" in answer.what and answer.measured.endswith("x as fast")


def test_a_wrong_answer_ends_the_run(tmp_path: Path) -> None:
    files = lookup_many.made_photographs(tmp_path / "photos", 3)
    files[1].write_bytes(b"no image")
    with pytest.raises(BenchError):
        lookup_many.measure_many(tmp_path, files, "none", rounds=1)
