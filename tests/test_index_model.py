"""A random walk of writes and searches over a store of vectors, beside a dict that says what is in it.

Two stores are open on the folder, of which one writes. Segments are of a few vectors, so that they are
merged, trained anew and laid out all the time.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from indexed import clustered, leftovers, small_limits, stored

from engine import Store
from engine.index import calibrate

EXAMPLES, STEPS = 5, 12
DIM, LEAST = 6, 20
LIMITS = small_limits(LEAST, extent_rows=70, recall_sample=40, rerank_depths=(1, 2, 4))
POOL = clustered(400, DIM, clusters=8)
POOL[:3] = 0  # vectors of no direction
POOL[3:6] *= 100
RECALL = 0.8
SEEDS = st.integers(0, 1 << 16)


class Walk(RuleBasedStateMachine):
    found: ClassVar = [
        0,
        0,
    ]  # true neighbours that were found, and that were looked for, in all walks
    met: ClassVar[set[str]] = set()

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=folder))

    @initialize()
    def begin(self) -> None:
        self.path = self.folder / "store"
        self.writer = Store.open(self.path, create=True, encoder="none", limits=LIMITS)
        self.reader = Store.open(self.path, read_only=True, limits=LIMITS)
        self.there: dict[int, np.ndarray] = {}
        self.next, self.arrays = 1, 0
        self.ingest(150, 0, 400)
        self.ingest(60, 1, 400)

    @rule(count=st.sampled_from([1, 15, 30, 60, 120]), seed=SEEDS, spread=st.sampled_from([5, 400]))
    def ingest(self, count: int, seed: int, spread: int) -> None:
        """With duplicates, of which there are many where few are drawn from."""
        rows = POOL[np.random.default_rng(seed).integers(0, spread, count)]
        self.arrays += 1
        assert self.writer.ingest(rows, name=f"{self.arrays}").added == count
        self.there |= dict(zip(range(self.next, self.next + count), rows, strict=True))
        self.next += count

    @rule(share=st.floats(0, 1), seed=SEEDS)
    def remove(self, share: float, seed: int) -> None:
        ids = np.array(sorted(self.there), np.int64)
        some = np.random.default_rng(seed).permutation(ids)[: int(share * len(ids))].tolist()
        if some:
            self.writer.remove(ids=some)
            for id_ in some:
                del self.there[id_]

    @rule(recall=st.sampled_from([None, None, 0.9, 1.0]))
    def optimize(self, recall: float | None) -> None:
        report = self.writer.optimize(recall=recall)
        assert report.skipped == ()
        if report.laid_out:
            self.met.add("laid out")

    @rule(writer=st.booleans())
    def reopen(self, writer: bool) -> None:
        if writer:
            self.writer.close()
            self.writer = Store.open(self.path, limits=LIMITS)
        else:
            self.reader.close()
            self.reader = Store.open(self.path, read_only=True, limits=LIMITS)

    @rule(
        seed=SEEDS,
        k=st.sampled_from([1, 5, 10, 60]),
        recall=st.sampled_from([None, None, None, 0.5, 1]),
        writer=st.booleans(),
    )
    def search(self, seed: int, k: int, recall: float | None, writer: bool) -> None:
        if not self.arrays:
            return
        rng = np.random.default_rng(seed)
        queries = POOL[rng.integers(0, len(POOL), 8)] + np.float32(0.05) * rng.standard_normal(
            (8, DIM)
        ).astype(np.float32)
        scores, ids = (self.writer if writer else self.reader).search_vectors(
            queries, k, recall=recall
        )
        known = np.array(sorted(self.there), np.int64)
        most = min(k, len(known))
        assert (ids[:, most:] == -1).all()
        assert np.isneginf(scores[:, most:]).all()
        if not most:
            return
        assert np.isin(ids[:, :most], known).all()
        assert all(len(set(line)) == most for line in ids[:, :most].tolist())
        assert (np.diff(scores[:, :most], axis=1) <= 0).all()
        vectors = np.stack([self.there[id_] for id_ in known.tolist()])
        products = queries @ vectors.T
        own = np.take_along_axis(products, np.searchsorted(known, ids[:, :most]), 1)
        np.testing.assert_allclose(scores[:, :most], own, rtol=1e-4, atol=1e-5)
        truth = -np.sort(-products, axis=1)[:, :most]
        if recall == 1:
            np.testing.assert_allclose(scores[:, :most], truth, rtol=1e-4, atol=1e-5)
        elif recall is None:
            worst = truth[:, -1:] - 1e-5 * np.maximum(np.abs(truth[:, -1:]), 1)
            self.found[0] += int((scores[:, :most] >= worst).sum())
            self.found[1] += scores[:, :most].size

    @invariant()
    def there_are_few_segments(self) -> None:
        segments = self.writer.info().segments
        assert len(segments) <= 2 + np.log2(max(self.next, LEAST) / LEAST)
        self.met.add(f"{min(len(segments), 2)} segments")
        self.met.update("ordered" for segment in segments if segment["ordered"])

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        try:
            for seed, k in ((0, 5), (1, 10), (2, 20)):
                self.search(seed, k, None, writer=bool(seed))
            if self.arrays:
                wanted = {id_: row.tobytes() for id_, row in self.there.items()}
                assert stored(self.writer) == stored(self.reader) == wanted
            assert self.writer.check().problems == ()
            assert leftovers(self.path) == []
        finally:
            self.writer.close()
            self.reader.close()
            shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_random_walk_agrees_with_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MEASURED_K", (10, 20))
    Walk.found[:], Walk.met = [0, 0], set()
    run_state_machine_as_test(
        lambda: Walk(tmp_path),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True
        ),
    )
    assert {"laid out", "ordered", "1 segments", "2 segments"} <= Walk.met
    found, looked_for = Walk.found
    assert looked_for > 100
    assert found / looked_for > RECALL
