"""The common part of comparisons of trainings: runs on subsets of the same images, scored alike."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UsageError

from ..data import photographs


@dataclass(frozen=True, slots=True)
class Run:
    """One training: its name, its number of images, its recipe, and the settings that override it."""

    name: str
    images: int
    recipe: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """The cost of a run, and its recall for copies of photographs that it never saw."""

    run: Run
    steps: int
    read_seconds: float  # until its images were decoded
    train_seconds: float  # from then to the last step, with scores and checkpoints
    loss: float | None  # of the last epoch
    recall: dict[str, float]  # recall@1 by distortion

    @property
    def mean(self) -> float:
        """The mean recall over all distortions."""
        return sum(self.recall.values()) / len(self.recall)


def sample(folders: Sequence[Path], most: int, seed: int) -> list[str]:
    """Photographs of folders in an order that the seed draws; the first n form the set of n."""
    found = [str(path) for folder in folders for path in photographs.listed(folder)]
    if len(found) < most:
        raise UsageError(
            f"{len(found):,} images are fewer than the {most:,} to train on: name more folders"
        )
    random.Random(seed).shuffle(found)
    return found[:most]


def train_all(
    runs: Sequence[Run],
    files: Sequence[str],
    queries: Path,
    distractors: Sequence[Path],
    *,
    count: int,
    seed: int,
    log: Callable[[str], None],
) -> list[Trained]:
    """Train one after the other, then evaluate all on copies of ``count`` of the ``queries``."""
    from engine.evaluation import EvalSettings, evaluate
    from engine.training import TrainProgress, resolve, train

    costs = []
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(runs))]
        for number, (run, folder) in enumerate(zip(runs, folders, strict=True)):
            settings = resolve({**run.settings, "seed": seed}, recipe=run.recipe)
            ended = {"start": time.perf_counter()}
            said = 0

            def watch(now: TrainProgress, run: Run = run, number: int = number) -> None:
                nonlocal said
                if now.warning:  # a warning may come at any time
                    return
                ended[now.phase] = time.perf_counter()  # noqa: B023 (it is called in this round only)
                if now.phase == "train" and 10 * now.done // now.total > said:
                    said = 10 * now.done // now.total
                    log(
                        f"{number + 1} of {len(runs)}: {run.name}, {run.images:,} images, epoch "
                        f"{now.epoch} of {now.epochs}, {now.images_per_second:.0f} images/s"
                    )

            report = train(files[: run.images], folder, settings, progress=watch)
            read, trained = ended["read"] - ended["start"], ended["train"] - ended["read"]
            costs.append((report.steps, read, trained, report.loss))
            for (
                path
            ) in folder.iterdir():  # the exported model is a twentieth of the training's files
                if path.suffix == ".safetensors":
                    path.unlink()
                elif path.is_dir():
                    shutil.rmtree(path)
        asked = evaluate(
            [str(folder) for folder in folders],
            images=[str(queries)],
            distractors=[str(one) for one in distractors],
            settings=EvalSettings(queries=count, seed=seed),
        )
    return [
        Trained(run, *cost, dict(result.recall_at_1))
        for run, cost, result in zip(runs, costs, asked.results, strict=True)
    ]
