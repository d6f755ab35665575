"""What a run goes on from, and the checks that it is the same run."""

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

# What a run that goes on may have otherwise: none of it changes what is learned from a batch.
_MAY_DIFFER = ("recipe", "epochs", "device", "workers")


def saved_run(out: str | Path) -> Provenance:
    """Name, settings and data of the run that ``train(resume=True)`` would go on with."""
    folder = Path(out)
    if not (folder / LAST).is_file():
        raise UsageError(
            f"{folder} holds no {LAST}, so there is no training to go on with: start one without "
            f"resume="
        )
    return last_provenance(folder)


def check_settings(before: TrainSettings, now: TrainSettings, folder: Path) -> None:
    """``UsageError`` where a run would go on with settings that change what is learned."""
    for name in (each.name for each in dataclasses.fields(TrainSettings)):
        if name not in _MAY_DIFFER and getattr(before, name) != getattr(now, name):
            raise UsageError(
                f"{name} is {getattr(now, name)!r}, and the training in {folder} began with "
                f"{getattr(before, name)!r}: leave it as it was, or train into another folder"
            )


def restore(folder: Path, now: Provenance, trainer: Trainer, total: int) -> RunPosition:
    """Load into ``trainer`` what the run in the folder left; ``total`` is the steps there will be.

    ``UsageError`` where ``now`` has other images, or the run has gone further already.
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
