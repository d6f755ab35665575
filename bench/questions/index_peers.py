"""Which index of vectors answers how fast, at which recall, and at what cost? The engine and others.

Each index gets the same vectors, and is searched with the same queries at one setting after the
other. It is timed at the cheapest setting that finds the wanted share of the true neighbours. Each
has processes of its own, so that its memory can be measured. The engine and hnswlib take turns.
Without --vectors, clustered vectors are made.
"""

from __future__ import annotations

from pathlib import Path

from engine.config import parse_memory
from engine.errors import UsageError

from ..data import clustered_vectors
from ..data.arrays import open_array, write_array
from ..harness import script
from ..harness.sizes import check_disk, parse_count
from ..peers.vector_indexes import INDEXES, PEERS
from ..report.tables import targets
from .index_report import table, targets_of, write
from .index_rounds import Bench, measure

QUERIES = 5_000  # made together with the vectors
_DISK = 3_000  # bytes a vector: the engine twice, hnswlib, and one other index


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--vectors", type=Path, help=".npy of float32 (n, d), unit length")
    parser.add_argument("--queries", type=Path, help=".npy of the same kind, beside --vectors")
    parser.add_argument("--n", default="1e6", help="vectors to make without --vectors  [1e6]")
    every = ",".join(PEERS)
    parser.add_argument("--peers", default=every, help=f"which; none: the engine  [{every}]")
    parser.add_argument("--recall", type=float, default=0.97, help="wanted recall at 10  [0.97]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--builds", type=int, default=1, help="of the engine and hnswlib  [1]")
    parser.add_argument("--memory", default="1G", help="the memory of the engine  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of what is made or drawn  [0]")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument(
        "--dir", type=Path, help="folder for the indexes, which are removed at the end"
    )
    arguments = parser.parse_args()
    peers = _peers(arguments.peers)
    if (arguments.vectors is None) != (arguments.queries is None):
        raise UsageError("--vectors and --queries go together")
    if not 0 < arguments.recall < 1:
        raise UsageError(f"recall is above 0 and below 1, not {arguments.recall}")
    script.empty_folder(arguments.out)
    n = (
        parse_count(arguments.n)
        if arguments.vectors is None
        else len(open_array(arguments.vectors))
    )
    check_disk(n, arguments.dir, _DISK)
    with script.work_folder(arguments.dir) as folder:
        work = folder.absolute()
        vectors, queries = arguments.vectors, arguments.queries
        if vectors is None:
            vectors, queries = work / "vectors.npy", work / "queries.npy"
            write_array(
                vectors, clustered_vectors.blocks(arguments.seed, 0, n), n, clustered_vectors.DIM
            )
            write_array(
                queries,
                [clustered_vectors.queries(arguments.seed, QUERIES)],
                QUERIES,
                clustered_vectors.DIM,
            )
        bench = Bench(
            vectors.absolute(),
            queries.absolute(),
            work,
            arguments.out / "results.jsonl",
            memory=parse_memory(arguments.memory).total,
            k=10,
            seed=arguments.seed,
        )
        found = measure(
            bench,
            peers,
            wanted=arguments.recall,
            rounds=max(1, arguments.rounds),
            builds=max(1, arguments.builds),
        )
    write(arguments.out, found)
    print(table(found, arguments.recall), end="\n\n")
    wanted = targets_of(found, arguments.recall)
    print(targets(wanted))
    return all(one.met for one in wanted)


def _peers(text: str) -> list[str]:
    names = [] if text in ("", "none") else text.split(",")
    wrong = [name for name in names if name not in PEERS]
    if wrong:
        raise UsageError(f"there is no peer called {wrong[0]!r}: {', '.join(PEERS)}")
    for name in names:
        INDEXES[name].check()
    return names


if __name__ == "__main__":
    script.exit_with(main)
