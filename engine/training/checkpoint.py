"""Checkpoints: a network's weights in one safetensors file that names what made them.

Nothing is pickled, so a checkpoint from elsewhere can be opened without running code from it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import TrainingError, UsageError
from engine.training.model import SimCLR
from engine.training.settings import TrainSettings

CHECKPOINT = "checkpoint.safetensors"
CALIBRATION = "calibration.safetensors"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a checkpoint says of itself; each value is JSON in the file's metadata."""

    name: str
    settings: TrainSettings
    epoch: int  # epochs finished, 0 before the first
    loss: float | None  # mean over the last epoch
    data: dict[str, Any]  # count, fingerprint, description
    engine_version: str


def engine_version() -> str:
    """The version of the engine that runs, installed or not."""
    from engine import __version__  # late: the package's front imports every room

    return __version__


def save_checkpoint(folder: Path, network: SimCLR, provenance: Provenance) -> None:
    """Replace the folder's checkpoint, atomically."""
    fields = {
        "name": provenance.name,
        "settings": provenance.settings.to_dict(),
        "epoch": provenance.epoch,
        "loss": provenance.loss,
        "data": provenance.data,
        "engine_version": provenance.engine_version,
    }
    write_tensors(
        folder / CHECKPOINT,
        network.state_dict(),
        {key: json.dumps(value) for key, value in fields.items()},
    )


def load_checkpoint(folder: Path) -> tuple[SimCLR, Provenance]:
    """The folder's network, on the CPU and in eval mode, with what is known of it."""
    path = folder / CHECKPOINT
    tensors, raw = read_tensors(path)
    try:
        fields = {key: json.loads(value) for key, value in raw.items()}
        provenance = Provenance(
            name=fields["name"],
            settings=TrainSettings.from_dict(fields["settings"]),
            epoch=fields["epoch"],
            loss=fields["loss"],
            data=fields["data"],
            engine_version=fields["engine_version"],
        )
        network = SimCLR(provenance.settings.hidden, provenance.settings.dim)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{path} is not a checkpoint of this engine: {reason}") from None
    return network.eval(), provenance


def write_tensors(path: Path, tensors: dict[str, Tensor], fields: dict[str, str]) -> None:
    """Write a safetensors file beside ``path`` and rename it there once it is on the disk."""
    beside = path.with_name(f".{path.name}.new")
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        save_file(plain, beside, metadata=fields)
        beside.chmod(0o644)  # safetensors leaves it to its owner alone
        replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} cannot be written ({error}): make room there, or choose another folder"
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata."""
    if not path.is_file():
        raise TrainingError(f"{path} is missing: run a training into {path.parent} first")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise TrainingError(f"{path} cannot be read: {error}") from None


def replace(new: Path, path: Path) -> None:
    """Let ``new`` take the place of ``path``, durably: the file first, then its folder."""
    _sync(new)
    new.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_finite(network: SimCLR) -> bool:
    """Whether every weight and running statistic is a number."""
    return all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
