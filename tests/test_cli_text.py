"""Numbers and rows as people read them."""

import pytest

from engine.cli import text as words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (7 << 40, "7.0 TiB"),
        (9 << 50, "9216.0 TiB"),
    ],
)
def test_sizes_are_in_binary_units(count, text):
    assert words.size(count) == text


def test_columns_are_aligned_and_the_last_is_as_wide_as_it_likes():
    assert words.columns([("a", "b"), ("long", "c d e f g")]) == ["a     b", "long  c d e f g"]
    assert words.columns([]) == []
