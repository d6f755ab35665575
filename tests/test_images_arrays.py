"""Arrays as people have them: grey with a channel of its own, channels first, floats from 0 to 1."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture

from engine import Store, UsageError

FIRST = "numpy.moveaxis(array, 0, -1)"
FIRST_OF_MANY = "array.transpose(0, 2, 3, 1)"
FLOATS = "(array * 255).astype(numpy.uint8)"


def test_grey_images_may_have_a_channel_of_their_own(tmp_path: Path) -> None:
    flat = np.stack([picture(i, 8, 12)[..., 0] for i in range(4)])
    grey = flat[..., None]
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.ingest(grey, name="grey").added == 4
        assert store.ingest(flat, name="flat").duplicates == 4
        for images in (flat, grey):
            assert store.find_identical(images).tolist() == [1, 2, 3, 4]
            found = [result.identical[0].id for result in store.lookup_many(images)]
            assert found == [1, 2, 3, 4]
        assert store.lookup(grey[1]).identical[0].id == 2
        assert store.ingest([("one", grey[0])]).duplicates == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_that_come_first_are_refused_with_the_cure(tmp_path: Path, channels: int) -> None:
    last = np.stack([picture(i, 8, 12, channels) for i in range(2)])
    many = last.transpose(0, 3, 1, 2)
    one = many[0]
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        for call, how in (
            (lambda: store.ingest(many, name="a"), FIRST_OF_MANY),
            (lambda: store.find_identical(many), FIRST_OF_MANY),
            (lambda: store.lookup_many(many), FIRST_OF_MANY),
            (lambda: store.ingest([("a", one)]), FIRST),
            (lambda: store.lookup(one), FIRST),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert how in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
        assert np.array_equal(many.transpose(0, 2, 3, 1), last)
        store.ingest([("a", np.moveaxis(one, 0, -1))])
        assert store.lookup(last[0]).identical


def test_three_grey_images_are_three(tmp_path: Path) -> None:
    grey = np.stack([picture(i, 8, 12)[..., 0] for i in range(3)])
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.ingest(grey, name="a").added == 3
        assert store.find_identical(grey).tolist() == [1, 2, 3]
        assert [result.identical[0].id for result in store.lookup_many(grey)] == [1, 2, 3]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_refused_with_the_cure(tmp_path: Path, dtype: Any) -> None:
    many = (np.stack([picture(i, 8, 12) for i in range(2)]) / 255).astype(dtype)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        for call in (
            lambda: store.ingest(many, name="a"),
            lambda: store.find_identical(many),
            lambda: store.lookup_many(many),
            lambda: store.ingest([("a", many[0])]),
            lambda: store.lookup(many[0]),
            lambda: store.lookup(many[0, ..., 0]),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert FLOATS in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_other_floats_are_refused_without_it(tmp_path: Path, value: float) -> None:
    many = np.full((2, 8, 12, 3), 0.5, np.float32)
    many[1, 2, 3, 1] = value
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        for call in (lambda: store.find_identical(many), lambda: store.lookup(many[1])):
            with pytest.raises(UsageError, match="dtype float32") as caught:
                call()
            assert FLOATS not in str(caught.value)
