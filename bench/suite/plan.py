"""The plan of one run of ``engine bench``: arguments, checked before anything is made."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import parse_memory
from engine.errors import UsageError

from ..data.arrays import Vectors, blocks, open_array
from ..data.image_sets import BitSet, FileSet, ImageSet
from ..data.vector_store import QUERIES
from ..data.vector_store import STORE_BYTES as VECTOR_BYTES
from ..harness.sizes import STORE_BYTES, check_disk, check_n, steps_up_to
from ..peers.lancedb_index import LANCEDB
from .peer_names import IDENTICAL_PEERS, NEAR_PEERS, SIMILAR_PEERS, parse_peers

EMBED = ("sample", "all", "none")

_MIN_LIMIT = 256 << 20  # bytes: twice the minimum of a store
_UNIT = 1e-3  # by which the length of a unit vector may differ from 1
_PEER_BYTES = 1_200  # more bytes of disk a vector: an array of all, and one index at a time


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. ``sizes`` rise; ``images`` or ``vectors`` is None if the run has none."""

    sizes: tuple[int, ...]
    seed: int
    memory: int  # bytes: the limit of the store, and of a method in memory
    limit: int | None  # bytes of all memory of the engine's processes, page cache included
    embed: str  # "sample", "all" or "none"
    peers: tuple[str, ...]
    images: ImageSet | None
    spec: dict[str, Any]  # the same set, for children
    vectors: Path | None  # a file of them; None: made ones
    unit: bool  # whether these are of unit length
    similar: bool  # whether to measure an index of vectors that are not the images'
    store: Path | None  # an existing one, which is only queried
    what: str  # the data, in words

    def unsuited(self, peer: str) -> tuple[str, str] | None:
        """A peer's tier, and the reason why these data do not suit it; None if they do."""
        if peer in IDENTICAL_PEERS and (self.images is None or self.spec.get("folder")):
            return "identical", "it is measured beside random bit images only"
        if peer in NEAR_PEERS and self.images is None:
            return "near", "it looks for images, and these are vectors"
        if peer in SIMILAR_PEERS and not self.similar:
            return (
                "similar",
                "indexes are compared over made vectors, or those of --dataset FILE.npy",
            )
        if peer == LANCEDB and not self.unit:
            return "similar", "it is asked by cosine, and the vectors are not of unit length"
        return None

    def settings(self) -> dict[str, Any]:
        """The settings to run it again."""
        return {
            "n": self.sizes[-1] if self.sizes else 0,
            "sizes": list(self.sizes),
            "seed": self.seed,
            "memory_bytes": self.memory,
            "memory_limit_bytes": self.limit or 0,
            "embed": self.embed,
            "peers": list(self.peers),
            "data": self.what,
        }


def plan(
    n: int | None,
    *,
    folder: Path,
    steps: int | None,
    seed: int,
    memory: str | None,
    limit: str,
    embed: str,
    peers: str,
    dataset: str,
    store: str,
) -> Plan:
    """Check all arguments; ``folder`` is where stores will be made. Raises ``UsageError``.

    ``n`` None means 1e6, or as many images or vectors as the data set has. ``steps`` None means 4,
    and an empty ``embed`` means "sample".
    """
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    if embed and embed not in EMBED:
        raise UsageError(f"embed is one of {', '.join(EMBED)}, not {embed!r}")
    if store:
        for name, is_given in (
            ("--dataset", dataset),
            ("--n", n is not None),
            ("--steps", steps is not None),
            ("--embed", embed),
            ("--peers", peers not in ("", "none")),
        ):
            if is_given:
                raise UsageError(f"--store asks a store as it is: leave {name} out")
    if dataset.endswith(".npy") and embed:
        raise UsageError(f"{dataset} has vectors and no images to embed: leave --embed out")
    steps, embed = 4 if steps is None else steps, embed or "sample"
    bound, budget = _memory(memory, limit)
    base = Plan(
        sizes=(),
        seed=seed,
        memory=budget,
        limit=bound,
        embed=embed,
        peers=parse_peers(peers),
        images=None,
        spec={},
        vectors=None,
        unit=True,
        similar=False,
        store=None,
        what="",
    )
    if store:
        if not Path(store).is_dir():
            raise UsageError(f"{store} is no store: name a folder that engine ingest has made")
        return replace(base, store=Path(store), what=f"the store {store}")
    if dataset.endswith(".npy"):
        return _of_vectors(base, n, steps, dataset, folder)
    if dataset:
        return _of_pictures(base, n, steps, dataset, folder)
    return _of_bits(base, n, steps, folder)


def _memory(memory: str | None, limit: str) -> tuple[int | None, int]:
    """The limit of all memory, if there is one, and the memory of a store; bytes."""
    bound = parse_memory(limit).total if limit else None
    budget = parse_memory(memory).total
    if bound is not None:
        if bound < _MIN_LIMIT:
            raise UsageError(
                f"--memory-limit must be at least {_MIN_LIMIT >> 20}M, not {limit}: half of it is for "
                f"the rest of the process beside its store"
            )
        # The engine needs more than its budget: the interpreter, the libraries, mapped files.
        budget = min(budget, max(128 << 20, bound // 2))
    return bound, budget


def _of_vectors(base: Plan, n: int | None, steps: int, dataset: str, folder: Path) -> Plan:
    rows = open_array(Path(dataset))
    most = len(rows) - QUERIES
    if most < 1:
        raise UsageError(f"{dataset} has {len(rows):,} rows: {QUERIES} are queries, more is needed")
    sizes = steps_up_to(_at_most(n, most, dataset), steps)
    each = (VECTOR_BYTES + _PEER_BYTES) * rows.shape[1] // 128 + 64
    check_disk(sizes[-1], folder, each, "vectors")
    unit = _of_unit_length(rows, 0, sizes[-1], Path(dataset))
    unit &= _of_unit_length(rows, most, len(rows), Path(dataset))
    return replace(
        base,
        sizes=tuple(sizes),
        vectors=Path(dataset).absolute(),
        unit=unit,
        similar=True,
        what=f"the vectors of {dataset}",
    )


def _of_pictures(base: Plan, n: int | None, steps: int, dataset: str, folder: Path) -> Plan:
    if not Path(dataset).is_dir():
        raise UsageError(
            f"{dataset} is no data set: name a folder of pictures or a .npy of vectors, or leave "
            f"it out for random bit images"
        )
    files = FileSet(dataset, base.seed, "none" if base.embed == "none" else "simclr")
    sizes = steps_up_to(_at_most(n, len(files.files), dataset), steps)
    check_disk(sizes[-1], folder, 4096)
    spec = {
        "folder": str(Path(dataset).absolute()),
        "seed": base.seed,
        "encoder": files.encoder,
    }
    return replace(base, sizes=tuple(sizes), images=files, spec=spec, what=files.name)


def _of_bits(base: Plan, n: int | None, steps: int, folder: Path) -> Plan:
    bits = BitSet(base.seed, "simclr" if base.embed == "all" else "none")
    sizes = steps_up_to(check_n(1_000_000 if n is None else n), steps)
    each = max(STORE_BYTES + 600 * (base.embed == "all"), VECTOR_BYTES + _PEER_BYTES)
    check_disk(sizes[-1], folder, each)
    return replace(
        base,
        sizes=tuple(sizes),
        images=bits,
        spec={"seed": base.seed, "encoder": bits.encoder},
        similar=base.embed == "sample",
        what=bits.name,
    )


def _of_unit_length(rows: Vectors, first: int, end: int, file: Path) -> bool:
    """Whether all rows have unit length; ``UsageError`` if one is NaN or infinite, a store's reject."""
    unit = True
    for block in blocks(rows[first:end]):
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(wrong):
            raise UsageError(
                f"row {first + int(wrong[0]):,} of {file} has NaN or infinities: leave such rows out"
            )
        first += len(block)
        with np.errstate(over="ignore"):  # an infinite length is not 1 either
            unit = unit and bool((np.abs(np.linalg.norm(block, axis=1) - 1) < _UNIT).all())
    return unit


def _at_most(n: int | None, most: int, dataset: str) -> int:
    if n is None:
        return most
    if check_n(n) > most:
        raise UsageError(f"{dataset} has {most:,} to measure, fewer than {n:,}: ask for fewer")
    return n


def place(out: Path | None) -> Path:
    """The folder for stores: beside the results, or the system's folder for temporary files."""
    return out if out is not None else Path(tempfile.gettempdir())
