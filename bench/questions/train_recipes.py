"""Which recipe suits a few images, and what do a queue, hard negatives and other views add?

Every run starts from scratch on the same images and is evaluated alike (``engine eval``). Copies of
photographs that none of them saw, distorted in eleven ways, have to find their original among
distractors. The last lines show the worth of decoding once: the time to read the images, which a
training without a cache spends in every epoch.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..harness import script
from ..harness.machine import machine, versions
from ..report.tables import Target, align, targets
from .training_runs import Run, Trained, sample, train_all

REPORT, LONGER, SMALL = "report", "longer", "small"


def runs(images: int, image_size: int, epochs: int) -> list[Run]:
    """The recipe report; it with more epochs; that with one addition each; then the recipe small."""
    from engine.training import RECIPES

    sized = {"image_size": image_size}
    long = {**sized, "epochs": epochs or RECIPES["small"]["epochs"], "precision": "bf16"}
    small = RECIPES["small"]
    more: dict[str, dict[str, Any]] = {
        "queue": {"method": "moco", "queue": 512, "momentum": 0.95},
        "hard negatives": _of(small, "hard_negatives"),
        "grey and erased views": _of(small, "grey", "erase"),
        "cosine": _of(small, "schedule", "warmup", "weight_decay"),
    }
    return [
        Run(REPORT, images, "report", sized),
        Run(LONGER, images, "report", long),
        *(
            Run(f"{LONGER}, {name}", images, "report", {**long, **one})
            for name, one in more.items()
        ),
        Run(SMALL, images, "small", long),
    ]


def _of(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names}


def main() -> bool:
    """Train, ask and print; true if the recipe small finds more than the recipe report."""
    parser = script.parser(__doc__)
    parser.add_argument("photos", type=Path, nargs="+", help="folders of images to train on")
    parser.add_argument(
        "--queries", type=Path, required=True, help="photographs outside these folders"
    )
    parser.add_argument(
        "--distractors", type=Path, nargs="*", default=[], help="more to be lost in"
    )
    parser.add_argument("--images", type=int, default=128, help="to train on  [128]")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side  [64]")
    parser.add_argument("--epochs", type=int, default=0, help="of all but report  [those of small]")
    parser.add_argument("--count", type=int, default=300, help="queries  [300]")
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each, whose means are printed  [1]"
    )
    parser.add_argument("--only", default="", help="runs of these names, divided by /")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    files = sample(arguments.photos, arguments.images, seed=0)
    chosen = [
        run
        for run in runs(arguments.images, arguments.image_size, arguments.epochs)
        if not arguments.only or any(run.name == name.strip() for name in arguments.only.split("/"))
    ]
    found = [
        train_all(
            chosen,
            files,
            arguments.queries,
            arguments.distractors,
            count=arguments.count,
            seed=seed,
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for seed in range(arguments.seeds)
    ]
    means = {
        run.name: statistics.mean(one[i].mean for one in found) for i, run in enumerate(chosen)
    }
    wanted = []
    if REPORT in means and SMALL in means:
        what = "recall@1, small - report"
        gain = means[SMALL] - means[REPORT]
        wanted.append(Target(what, 0.0, gain, digits=3, at_least=True))
    if arguments.json:
        said = {
            "machine": machine(),
            "versions": versions(),
            "seeds": [[{**asdict(run), "mean": run.mean} for run in one] for one in found],
        }
        print(json.dumps(said, indent=1))
    else:
        print(table(found), end="\n\n")
        print(reading(found[0][-1]))
        print(targets(wanted))
    return all(one.met for one in wanted)


def table(found: Sequence[Sequence[Trained]]) -> str:
    """A line for each run: recall@1 over the seeds, and what it cost."""
    kinds = list(found[0][0].recall)
    lines = [("recall@1", "mean", *kinds, "steps", "seconds")]
    for trained in zip(*found, strict=True):
        lines.append(
            (
                trained[0].run.name,
                f"{statistics.mean(one.mean for one in trained):.3f}",
                *(f"{statistics.mean(one.recall[kind] for one in trained):.2f}" for kind in kinds),
                f"{trained[0].steps:,}",
                f"{statistics.mean(one.train_seconds for one in trained):.0f}",
            )
        )
    return align(lines, left=(0,))


def reading(one: Trained) -> str:
    """The cost of decoding again in every epoch."""
    epochs = one.run.settings.get("epochs", 1)
    each = one.train_seconds / epochs
    return (
        f"decoded once in {one.read_seconds:.1f} s; an epoch of {each:.1f} s would take "
        f"{(each + one.read_seconds) / each:.2f} times as long if it decoded them again"
    )


if __name__ == "__main__":
    script.exit_with(main)
