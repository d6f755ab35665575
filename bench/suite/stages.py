"""The stages of a run in order, each with a guess of its duration."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from engine.errors import EngineError

from ..data.vector_store import VectorStore
from ..harness import disk
from ..harness.measurement import SECONDS, Measurement, Skipped
from ..peers.methods import DICT, LIST, PIXELS
from . import existing_store, image_stages, peer_stages
from .context import Context
from .engine_index import engine_index
from .figures import Advance, Figure
from .peer_names import IDENTICAL_PEERS, NEAR_PEERS, SIMILAR_PEERS, missing

Work = Callable[[Advance], Iterator[Figure]]


@dataclass(slots=True)
class Stage:
    """A part of the run; ``seconds`` is a rough guess for the progress report."""

    label: str
    seconds: float
    work: Work


def stages_of(context: Context) -> list[Stage]:
    """All stages, in order."""
    plan = context.plan
    if plan.store is not None:
        return [Stage(f"asking {plan.store}", 30, partial(_existing_store, context))]
    found: list[Stage] = []
    if plan.images is not None:
        work = partial(image_stages.made, context)
        found.append(Stage("making, hashing and embedding images", 6, work))
        for n in plan.sizes:
            found += _of_images(context, n)
    if plan.similar:
        for n in plan.sizes:
            found += _of_vectors(context, n)
    found.append(Stage("comparing with others", 0.1, lambda advance: unsuited(context)))
    found.append(Stage("reading the disk", 2, lambda advance: _disk(context)))
    return found


def unsuited(context: Context) -> Iterator[Figure]:
    """Requested peers that do not suit these data."""
    for name in context.plan.peers:
        why = context.plan.unsuited(name)
        if why is not None:
            yield Skipped(context.plan.sizes[-1], why[0], name, why[1])


def _suited(context: Context) -> list[str]:
    return [name for name in context.plan.peers if context.plan.unsuited(name) is None]


def _of_images(context: Context, n: int) -> list[Stage]:
    bits = not context.plan.spec.get("folder")
    each = 1 if bits else 20  # reading a picture takes 20 times as long as making a bit image
    found = [
        Stage(
            f"{method}, {n:,} images",
            1 + 7e-5 * n * each,
            partial(image_stages.in_memory, context, method, n),
        )
        for method in (PIXELS, LIST, DICT)
        if bits or method != PIXELS
    ]
    seconds = 3 + (2.5e-3 if context.is_encoded else 2.5e-5) * n
    found.append(Stage(f"the engine, {n:,} images", seconds + 8, partial(_engine, context, n)))
    for name in _suited(context):
        label = f"{name}, {n:,} images"
        if name in IDENTICAL_PEERS:
            work: Work = partial(peer_stages.key_table, context, name, n)
            found.append(Stage(label, 2 + 2e-5 * n, _guarded(n, "identical", name, work)))
        if name in NEAR_PEERS:
            work = partial(peer_stages.fingerprints, context, name, n)
            found.append(Stage(label, 2 + 2e-4 * n, _guarded(n, "near", name, work)))
    return found


def _engine(context: Context, n: int, advance: Advance) -> Iterator[Figure]:
    """Every tier of one store of images, which is then removed."""
    yield from image_stages.ingest(context, n, advance)
    yield from image_stages.lookups(context, n)
    yield from image_stages.near(context, n)
    if context.is_encoded:
        yield from image_stages.embedded(context, n)
    shutil.rmtree(context.work / "store", ignore_errors=True)


def _of_vectors(context: Context, n: int) -> list[Stage]:
    vectors = VectorStore(n, context.plan.seed, context.work, context.plan.vectors)
    found = [
        Stage(f"the index, {n:,} vectors", 6 + 9e-5 * n, partial(engine_index, context, vectors)),
        Stage(
            f"{peer_stages.FLAT_L2}, {n:,} vectors",
            3 + 2e-5 * n,
            lambda advance: peer_stages.flat_index(context, vectors),
        ),
    ]
    for name in _suited(context):
        if name in SIMILAR_PEERS:
            work = partial(peer_stages.vector_index, context, name, vectors)
            label = f"{name}, {n:,} vectors"
            found.append(Stage(label, 5 + 1.5e-4 * n, _guarded(n, "similar", name, work)))
    return [*found, Stage("tidying up", 0.1, partial(_tidy_up, context))]


def _tidy_up(context: Context, advance: Advance) -> Iterator[Figure]:
    for path in context.work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    yield from ()


def _guarded(n: int, tier: str, name: str, work: Work) -> Work:
    """Leave out a peer that is not installed, crashes or fails, and say why."""

    def guarded(advance: Advance) -> Iterator[Figure]:
        why = missing(name)
        if why is not None:
            yield Skipped(n, tier, name, why)
            return
        try:
            yield from work(advance)
        except EngineError as error:
            yield Skipped(n, tier, name, str(error))

    return guarded


def _existing_store(context: Context, advance: Advance) -> Iterator[Figure]:
    plan, count = context.plan, image_stages.SINGLES
    spec = {"folder": str(plan.store), "memory_bytes": plan.memory, "count": count}
    spec |= {"seed": plan.seed}
    done = context.child("suite.existing_store_child", spec, lambda done: advance(done / count))
    context.images = done.result["images"]
    yield from existing_store.figures(done.result)


def _disk(context: Context) -> Iterator[Figure]:
    n = context.plan.sizes[-1]
    times = disk.random_reads(context.work / "random", seed=context.plan.seed)
    if not times:
        yield Skipped(n, "disk", "disk", "reads cannot be kept out of the page cache here")
        return
    note = "4 KiB at a random place of a file that is not in the page cache"
    yield Measurement(n, "disk", "disk", "read", SECONDS, tuple(times), note)
