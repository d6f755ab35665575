"""Loads the state from which a run resumes, and checks that it is the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine.errors import UsageError
from engine.training.checkpoint import (
    LAST,
    Provenance,
    RunPosition,
    fitting,
    last_provenance,
    load_last,
)
from engine.training.settings import TrainSettings
from engine.training.trainer import Trainer

# Settings that may differ in a resumed run, because they do not change what a batch teaches.
_MAY_DIFFER = ("recipe", "epochs", "device", "workers")


def saved_run(out: str | Path) -> Provenance:
    """Name, settings and data of the run that ``train(resume=True)`` would resume."""
    folder = Path(out)
    if not (folder / LAST).is_file():
        raise UsageError(
            f"{folder} holds no {LAST}, so there is no training to resume: start one without "
            f"resume="
        )
    return last_provenance(folder)


def check_settings(before: TrainSettings, now: TrainSettings, folder: Path) -> None:
    """``UsageError`` if a run would resume with settings that change what it learns."""
    for name in (each.name for each in dataclasses.fields(TrainSettings)):
        if name not in _MAY_DIFFER and getattr(before, name) != getattr(now, name):
            raise UsageError(
                f"{name} is {getattr(now, name)!r}, but the training in {folder} began with "
                f"{getattr(before, name)!r}: keep that, or train into another folder"
            )


def restore(folder: Path, now: Provenance, trainer: Trainer, total: int) -> RunPosition:
    """Load the saved state of the run in ``folder`` into ``trainer``; ``total`` is its number of steps.

    ``UsageError`` if ``now`` has other images, or the run has already taken more steps.
    """
    tensors, before, position = load_last(folder)
    for name, what in (("fingerprint", "train"), ("held_out_fingerprint", "held out")):
        if before.data.get(name) != now.data[name]:
            raise UsageError(
                f"the images ({what}) are not those that the training in {folder} began "
                f"with: name the same sources, unchanged, or train into another folder"
            )
    if position.step > total:
        raise UsageError(
            f"epochs is {now.settings.epochs}: the training in {folder} has already gone beyond it"
        )
    with fitting(folder / LAST):
        trainer.load(tensors)
    return position
