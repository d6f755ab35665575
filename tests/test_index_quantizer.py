"""Quantizers: what they say of vectors of any size, and what is read back from their files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexed import clustered, nearest, recall_of

from engine.errors import StoreDamagedError
from engine.index.probe import ProbeRadius
from engine.index.quantizer import Quantizer
from engine.index.quantizer_file import HEADER_BYTES, read_quantizer, save_quantizer


def trained(block: np.ndarray, nlist: int = 8) -> Quantizer:
    return Quantizer.train(block, nlist, 1)


def estimates(
    quantizer: Quantizer, block: np.ndarray, queries: np.ndarray, *, corrected: bool = True
) -> np.ndarray:
    """What codes alone say of the inner products of unit queries with vectors: (nq, n)."""
    lists, codes, _ = quantizer.encode(block)
    parts, _, each = quantizer.codebook.shape
    nibbles = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
    own = quantizer.codebook[np.arange(parts), nibbles[:, :parts]].reshape(len(block), parts * each)
    rebuilt = quantizer.centroids.block[lists] + own
    found = queries @ rebuilt[:, : block.shape[1]].T
    if corrected:
        least, step = quantizer.correction
        found = found + least + step * (16 * nibbles[:, parts] + nibbles[:, parts + 1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 3, 64, 65, 130, 509, 1000, 2048])
def test_a_saved_one_is_the_same(tmp_path: Path, dim: int) -> None:
    block = clustered(300, dim)
    quantizer = trained(block)
    path = tmp_path / "q"
    size, _ = save_quantizer(quantizer, path, 7)
    assert path.stat().st_size == size
    loaded = read_quantizer(path, 7, dim, 8, size)
    for one, other in zip(quantizer.encode(block), loaded.encode(block), strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(
        quantizer.centroids.nearest(quantizer.prepare_queries(block), 3),
        loaded.centroids.nearest(loaded.prepare_queries(block), 3),
        strict=True,
    ):
        assert np.array_equal(one, other)
    assert loaded.code_bytes == quantizer.code_bytes == quantizer.encode(block)[1].shape[1]
    assert quantizer.code_bytes <= 128
    assert save_quantizer(quantizer, tmp_path / "again", 7) == save_quantizer(
        loaded, tmp_path / "third", 7
    )


def test_training_again_gives_the_same(tmp_path: Path) -> None:
    block = clustered(500, 24)
    assert save_quantizer(trained(block), tmp_path / "a", 1) == save_quantizer(
        trained(block), tmp_path / "b", 1
    )


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [cut, lengthen, empty, Path.unlink])
def test_a_file_of_another_length_is_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "q"
    size, _ = save_quantizer(trained(clustered(300)), path, 7)
    damage(path)
    with pytest.raises(StoreDamagedError) as error:
        read_quantizer(path, 7, 12, 8, size)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("number", "dim", "nlist"), [(8, 12, 8), (7, 11, 8), (7, 12, 7), (7, 12, 1 << 30)]
)
def test_another_quantizers_file_is_refused(
    tmp_path: Path, number: int, dim: int, nlist: int
) -> None:
    path = tmp_path / "q"
    size, _ = save_quantizer(trained(clustered(300)), path, 7)
    with pytest.raises(StoreDamagedError):
        read_quantizer(path, number, dim, nlist, size)


@pytest.mark.slow
@given(at=st.integers(0, 43), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_header_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("q") / "q"
    size, _ = save_quantizer(trained(clustered(64, 4), 2), path, 7)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(StoreDamagedError):
        read_quantizer(path, 7, 4, 2, size)


@pytest.mark.parametrize("what", ["scale 0", "scale", "centroids", "codebook", "correction"])
def test_numbers_that_cannot_be_computed_with_are_refused(tmp_path: Path, what: str) -> None:
    """Their checksum is right: whoever made the store wrote it so."""
    good = trained(clustered(64, 4), 2)
    numbers = {
        "scale": good.scale,
        "centroids": good.centroids.block.copy(),
        "codebook": good.codebook.copy(),
        "correction": good.correction,
    }
    if what == "scale 0":
        numbers["scale"] = 0.0
    elif what == "scale":
        numbers["scale"] = float("inf")
    elif what == "correction":
        numbers["correction"] = (float("nan"), 1.0)
    else:
        numbers[what].reshape(-1)[3] = np.nan
    size, xxh64 = save_quantizer(Quantizer(4, **numbers), tmp_path / "q", 7)
    with pytest.raises(StoreDamagedError, match="does not match its entry"):
        read_quantizer(tmp_path / "q", 7, 4, 2, size, xxh64)


def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    for size in (0, 10, HEADER_BYTES):
        (tmp_path / "q").write_bytes(bytes(size))
        with pytest.raises(StoreDamagedError):
            read_quantizer(tmp_path / "q", 7, 12, 8, size)


# --- what codes say -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 33, 96, 200])
def test_codes_rank_better_with_their_correction(dim: int) -> None:
    block, queries = clustered(3000, dim), clustered(40, dim, seed=1)
    quantizer = trained(block, 30)
    truth = nearest(block, queries, 10)[1]
    with_, without = (
        recall_of(np.argsort(-estimates(quantizer, block, queries, corrected=c))[:, :20], truth)
        for c in (True, False)
    )
    assert with_ > without
    assert with_ > 0.7


@pytest.mark.slow
def test_codes_are_close_to_inner_products() -> None:
    block, queries = clustered(2000, 32), clustered(40, 32, seed=1)
    found = estimates(trained(block, 20), block, queries)
    assert np.abs(found - queries @ block.T).mean() < 0.05


def test_queries_of_any_length_are_looked_for_alike() -> None:
    quantizer = trained(clustered(500, 24), 8)
    queries = clustered(10, 24, seed=1)
    alike = quantizer.prepare_queries(queries)
    for length in (1e-30, 1e-20, 7, 1e20, 1e37):
        np.testing.assert_allclose(
            quantizer.prepare_queries(queries * np.float32(length)), alike, rtol=1e-3, atol=1e-6
        )
    assert not quantizer.prepare_queries(np.zeros((1, 24), np.float32)).any()


@pytest.mark.slow
@pytest.mark.parametrize("length", [1e-20, 1e-3, 1e3, 1e20])
def test_vectors_of_any_length_are_coded_alike(length: float) -> None:
    block, queries = clustered(1000, 24), clustered(20, 24, seed=1)
    truth = nearest(block, queries, 10)[1]
    found = estimates(trained(block * np.float32(length)), block * np.float32(length), queries)
    assert recall_of(np.argsort(-found)[:, :30], truth) > 0.8


def odd_vectors(n: int = 400, dim: int = 10) -> dict[str, np.ndarray]:
    block = clustered(n, dim)
    some = block.copy()
    some[::7] = 0
    wild = block * np.float32(10) ** np.random.default_rng(0).integers(-20, 21, (n, 1)).astype(
        np.float32
    )
    return {
        "duplicates": np.concatenate([block, np.repeat(block[:1], 10_000, axis=0)]),
        "all the same": np.repeat(block[:1], 1000, axis=0),
        "some zeros": some,
        "all zeros": np.zeros_like(block),
        "of all lengths": wild,
        "as long as can be": np.full_like(block, 3e38),
        "on one line": np.outer(np.linspace(-1, 1, n), block[0]).astype(np.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", odd_vectors())
def test_odd_vectors_are_coded(tmp_path: Path, name: str) -> None:
    block = odd_vectors()[name]
    quantizer = trained(block)
    lists, codes, _ = quantizer.encode(block)
    assert ((lists >= 0) & (lists < 8)).all()
    same = np.flatnonzero((block == block[0]).all(axis=1))
    assert len(np.unique(lists[same])) == len(np.unique(codes[same], axis=0)) == 1
    size, _ = save_quantizer(quantizer, tmp_path / "q", 1)
    loaded = read_quantizer(tmp_path / "q", 1, 10, 8, size)
    assert np.array_equal(loaded.encode(block)[1], codes)


def test_what_is_no_number_is_coded_somewhere_and_harms_no_other() -> None:
    block = clustered(400)
    quantizer = trained(block)
    damaged = block.copy()
    damaged[3], damaged[5, 2], damaged[7] = np.nan, np.inf, -np.inf
    lists, codes, _ = quantizer.encode(damaged)
    assert ((lists >= 0) & (lists < 8)).all()
    others = np.setdiff1d(np.arange(400), [3, 5, 7])
    expected = quantizer.encode(block)
    assert np.array_equal(lists[others], expected[0][others])
    assert np.array_equal(codes[others], expected[1][others])


# --- nearest lists --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "radius", [None, ProbeRadius(1, 1e-6), ProbeRadius(1.3, 1e-6), ProbeRadius(2, 0.3)]
)
@pytest.mark.parametrize("nprobe", [1, 7, 40])
def test_the_nearest_lists_are_those_of_all_within_reach(
    nprobe: int, radius: ProbeRadius | None
) -> None:
    quantizer = trained(clustered(2000, 24), 40)
    queries = quantizer.prepare_queries(clustered(50, 24, seed=3) * 17)
    every = quantizer.centroids.closeness(queries)
    close, lists = quantizer.centroids.nearest(queries, nprobe, radius)
    assert close.shape == lists.shape
    assert close.shape[1] <= nprobe
    for at, (mine, found) in enumerate(zip(every, lists, strict=True)):
        order = np.argsort(-mine)[:nprobe]
        if radius is not None:
            base = max(1 - mine[order[0]], radius.min_distance)
            order = order[1 - mine[order] <= radius.times * base + 1e-6]
        found = found[found >= 0]
        assert found.tolist() == order.tolist()
        np.testing.assert_allclose(close[at, : len(found)], mine[order], atol=1e-6)
        one_close, one = quantizer.centroids.nearest(queries[at : at + 1], nprobe, radius)
        assert one[0].tolist() == order.tolist()
        np.testing.assert_allclose(one_close[0], mine[order], atol=1e-6)
    if radius is not None and nprobe == 40:
        assert (lists >= 0).sum(axis=1).min() >= 1
        assert (lists < 0).any() or lists.shape[1] < nprobe


@pytest.mark.slow
def test_many_searches_later_nearly_the_same_lists_are_found_faster() -> None:
    block = clustered(6000, 16)
    quantizer = trained(block, 600)
    queries = quantizer.prepare_queries(clustered(100, 16, seed=1))
    truth = quantizer.centroids.nearest(queries, 8)[1]
    quantizer.centroids.speed_up()
    assert quantizer.centroids._coarse is not None
    assert recall_of(quantizer.centroids.nearest(queries, 8)[1], truth) > 0.95
    one = [quantizer.centroids.nearest(queries[i : i + 1], 8)[1][0] for i in range(100)]
    assert recall_of(np.array(one), truth) == 1, "one query is compared with all"


def test_of_damaged_centroids_no_list_is_the_nearest() -> None:
    quantizer = trained(clustered(300, 16))
    quantizer.centroids.block = np.full_like(quantizer.centroids.block, np.nan)
    query = quantizer.prepare_queries(clustered(1, 16))
    lists = quantizer.centroids.nearest(query, 3, ProbeRadius(2, 0.1))[1]
    assert lists.shape[0] == 1
    assert lists.size


@pytest.mark.slow
@pytest.mark.parametrize("length", [1e-40, 1e-25, 1.0, 1e25, 3e37])
def test_queries_of_any_length_are_brought_to_one(length: float) -> None:
    block = clustered(300, 70)
    quantizer = trained(block)
    queries = (block[:9] * np.float64(length)).astype(np.float32)
    fitted = quantizer.prepare_queries(queries)[:, :70]
    np.testing.assert_allclose(np.linalg.norm(fitted, axis=1), 1, atol=1e-5)
    queries[4] = 0
    fitted = quantizer.prepare_queries(queries)
    assert not fitted[4].any()
    assert np.isfinite(fitted).all()
