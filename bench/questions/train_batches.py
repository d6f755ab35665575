"""Do larger batches help, or more images? SimCLR with the recipe "report", everything else equal.

Each run sees the same number of images, repeating them if it has few, so no run trains longer than
another. Then copies of photographs that none of them saw have to find their original among distractors
(``engine eval``). A batch has at most as many images as the set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..harness import script
from ..harness.machine import machine, versions
from ..harness.sizes import parse_count
from ..report.tables import align
from .training_runs import Run, Trained, sample, train_all


def runs(images: Sequence[int], batches: Sequence[int], image_size: int, seen: int) -> list[Run]:
    """A run for each set and each batch that it can fill."""
    made = []
    for count in images:
        for batch in sorted({min(batch, count) for batch in batches}):
            steps = count // batch
            made.append(
                Run(
                    f"batch {batch}",
                    count,
                    "report",
                    {
                        "image_size": image_size,
                        "batch": batch,
                        "epochs": max(1, round(seen / (steps * batch))),
                        "precision": "bf16",
                    },
                )
            )
    return made


def main() -> bool:
    """Train, ask and print; there is no target."""
    parser = script.parser(__doc__)
    parser.add_argument("photos", type=Path, nargs="+", help="folders of images to train on")
    parser.add_argument(
        "--queries", type=Path, required=True, help="photographs outside these folders"
    )
    parser.add_argument(
        "--distractors", type=Path, nargs="*", default=[], help="more to be lost in"
    )
    parser.add_argument("--images", default="128,1000,10000", help="sets  [128,1000,10000]")
    parser.add_argument("--batch", default="64,256,512", help="images a step  [64,256,512]")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side  [32]")
    parser.add_argument("--seen", type=int, default=60_000, help="images a run sees  [60000]")
    parser.add_argument("--count", type=int, default=300, help="queries  [300]")
    parser.add_argument("--seed", type=int, default=0, help="of everything random  [0]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    counts = sorted({parse_count(text) for text in arguments.images.split(",")})
    batches = sorted({parse_count(text) for text in arguments.batch.split(",")})
    found = train_all(
        runs(counts, batches, arguments.image_size, arguments.seen),
        sample(arguments.photos, counts[-1], seed=0),
        arguments.queries,
        arguments.distractors,
        count=arguments.count,
        seed=arguments.seed,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if arguments.json:
        said = {
            "machine": machine(),
            "versions": versions(),
            "runs": [asdict(one) for one in found],
        }
        print(json.dumps(said, indent=1))
    else:
        print(table(found))
    return True


def table(found: Sequence[Trained]) -> str:
    """A line for each run: recall@1, and what it cost."""
    lines = [("images", "batch", "recall@1", "steps", "epochs", "loss", "seconds")]
    for one in found:
        lines.append(
            (
                f"{one.run.images:,}",
                str(one.run.settings["batch"]),
                f"{one.mean:.3f}",
                f"{one.steps:,}",
                str(one.run.settings["epochs"]),
                "-" if one.loss is None else f"{one.loss:.2f}",
                f"{one.train_seconds:.0f}",
            )
        )
    return align(lines)


if __name__ == "__main__":
    script.exit_with(main)
