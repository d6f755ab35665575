"""Settings: memory sizes, their shares, and what a store keeps of how it was made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import (
    DEFAULT_MEMORY,
    MEMORY_FLOOR,
    MemoryBudget,
    StructuralSettings,
    default_store,
    parse_memory,
)
from engine.errors import StoreFormatError, UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128M", 128 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("2GB", 2 << 30),
        ("2 GiB", 2 << 30),
        (" 512M ", 512 << 20),
        ("0.5G", 512 << 20),
        ("1T", 1 << 40),
        ("200000K", 200_000 << 10),
        ("268435456", 256 << 20),
        (256 << 20, 256 << 20),
        (None, DEFAULT_MEMORY),
    ],
)
def test_memory_sizes_are_in_binary_units(text, size):
    assert parse_memory(text).total == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "1e9", "2X", "G", "1,5G", "2G2", "inf", "nan"])
def test_what_is_no_size_is_a_usage_error_that_shows_one(text):
    with pytest.raises(UsageError, match="512M or 2G"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["127M", "1K", "0", 0, -1, MEMORY_FLOOR - 1])
def test_less_than_the_floor_is_refused(text):
    with pytest.raises(UsageError, match="at least 128M"):
        parse_memory(text)


@pytest.mark.slow
@given(st.text(max_size=12) | st.integers(0, 10**400).map("{}G".format))
def test_any_text_is_a_size_or_a_usage_error(text):
    try:
        assert parse_memory(text).total >= MEMORY_FLOOR
    except UsageError as error:
        assert len(str(error).splitlines()) == 1


@given(st.integers(MEMORY_FLOOR, 1 << 44))
def test_what_is_held_at_once_fits_into_the_budget(total):
    budget = MemoryBudget(total)
    assert budget.block_cache + budget.write_buffers + budget.chunk <= total
    assert budget.training + budget.block_cache + budget.write_buffers <= total
    assert budget.decoding <= total
    assert budget.max_file < total
    assert min(budget.write_buffers, budget.chunk, budget.decoding) > 1 << 20


def test_structural_settings_survive_a_round_trip():
    settings = StructuralSettings.new()
    assert StructuralSettings.from_dict(settings.to_dict()) == settings
    assert StructuralSettings.from_dict(settings.to_dict() | {"later": 1}) == settings


def test_every_store_draws_its_own_seed():
    seeds = {StructuralSettings.new().hash_seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 1 << 64 for seed in seeds)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"hash_seed": 1},
        {"hash_seed": "x", "canonical_version": 1, "fingerprint_version": 1},
        {"hash_seed": None, "canonical_version": 1, "fingerprint_version": 1},
        {"hash_seed": float("inf"), "canonical_version": 1, "fingerprint_version": 1},
        [],
        None,
        "settings",
    ],
)
def test_settings_that_cannot_be_read_are_a_store_format_error(values):
    with pytest.raises(StoreFormatError):
        StructuralSettings.from_dict(values)


def test_the_default_store_may_be_named_in_the_environment(monkeypatch):
    monkeypatch.delenv("ENGINE_STORE", raising=False)
    assert default_store() == "engine.store"
    monkeypatch.setenv("ENGINE_STORE", "/data/photos.store")
    assert default_store() == "/data/photos.store"
    monkeypatch.setenv("ENGINE_STORE", "")
    assert default_store() == "engine.store"
