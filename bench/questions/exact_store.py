"""Many bit images, exactly: how fast are they ingested, and how fast is each found?

Images of 100×100 RGB bits, packed in memory, are ingested until they are durable on disk. First
with their pixels; then their keys and proofs only, beside SQLite and LMDB. Then each store is
queried, from the packed image to the verified answer, in batches of 1,000 and one at a time. This
is repeated for growing n, beside a dict, a list and brute force.
"""

from __future__ import annotations

from pathlib import Path

from engine.cli.progress import Progress
from engine.config import parse_memory
from engine.errors import UsageError

from ..data import bit_images
from ..harness import memory, script
from ..harness.sizes import check_disk, parse_count, steps_up_to
from ..peers.methods import DICT, LIST, PIXELS
from ..report.tables import targets
from .exact_store_jobs import ASKED, JOBS, SAMPLE, Bench, ask_all, take_all
from .exact_store_report import answers_table, growth_table, taken_table, targets_of

_HEADROOM = 1.3  # times the memory of the images themselves
_SIZES = 4  # of the table of growth, each ten times the one before
# A method that holds the set in memory is measured up to the size at which it becomes too slow.
_IN_MEMORY = {DICT: 1_000_000, LIST: 100_000, PIXELS: 10_000}


def main() -> bool:
    """Measure and print; true if every target is met."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="1e6", help="images  [1e6]")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, whose medians are printed  [3]"
    )
    parser.add_argument("--memory", default="1G", help="the memory of the store  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of the images  [0]")
    parser.add_argument("--sample", default=f"{SAMPLE}", help=f"images to look up  [{SAMPLE}]")
    parser.add_argument(
        "--dir", type=Path, help="folder for the stores, which are removed at the end"
    )
    arguments = parser.parse_args()
    n, sample = parse_count(arguments.n), parse_count(arguments.sample)
    rounds = max(1, arguments.rounds)
    sizes = steps_up_to(n, _SIZES)
    check_memory(n)
    check_disk(n, arguments.dir)
    with (
        script.work_folder(arguments.dir) as work,
        Progress("exact_store", "children") as progress,
    ):
        memory_bytes = parse_memory(arguments.memory).total
        bench = Bench(work, memory=memory_bytes, seed=arguments.seed, sample=sample)
        small = len(sizes) - 1
        in_memory = sum(size <= most for size in sizes for most in _IN_MEMORY.values())
        total = rounds * (len(JOBS) + len(ASKED) * len(sizes)) + small * len(ASKED) + in_memory
        done = iter(range(total))

        def tick(what: str) -> None:
            progress.note(what)
            progress(next(done), total)

        taken = take_all(bench, n, rounds, tick)
        print(taken_table(taken), end="\n\n")
        answers = {n: ask_all(bench, n, rounds, tick)}
        print(answers_table(answers[n]), end="\n\n")
        for size in reversed(sizes[:-1]):
            for job in ASKED:
                tick(job.what)
                bench.take(job, size)
            answers[size] = ask_all(bench, size, rounds, tick)
        times_in_memory: dict[str, dict[int, float]] = {method: {} for method in _IN_MEMORY}
        for method, most in _IN_MEMORY.items():
            for size in sizes:
                if size <= most:
                    tick(method)
                    times_in_memory[method][size] = bench.ask_in_memory(method, size)
    print(growth_table(sizes, answers, times_in_memory), end="\n\n")
    wanted = targets_of(taken, answers[n])
    print(targets(wanted))
    return all(one.met for one in wanted)


def check_memory(n: int) -> None:
    """``UsageError`` unless a child can hold ``n`` packed images."""
    need, free = n * bit_images.PACKED_BYTES * _HEADROOM, memory.available()
    if free and need > free:
        raise UsageError(
            f"{n:,} packed images take about {need / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} "
            f"GB are free: measure fewer"
        )


if __name__ == "__main__":
    script.exit_with(main)
