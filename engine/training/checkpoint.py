"""Checkpoints: a network's weights in one safetensors file, with the settings that made them.

``CHECKPOINT`` is the best network of a run, and ``LAST`` is everything that the run needs to resume.
Nothing is pickled, so opening a checkpoint from elsewhere runs no code from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import TrainingError
from engine.training.model import SimCLR
from engine.training.settings import TrainSettings

CHECKPOINT = "checkpoint.safetensors"
LAST = "last.safetensors"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The description of a checkpoint; each value is JSON in the file's metadata."""

    name: str
    settings: TrainSettings
    epoch: int  # epochs finished, 0 before the first
    loss: float | None  # mean over the last epoch
    data: dict[str, Any]  # count, fingerprint, description
    engine_version: str
    score: float | None = None  # on the held-out images, if any
    licence: str = ""  # of the weights, in the words of their author
    created: str = ""  # ISO 8601 date


@dataclass(frozen=True, slots=True)
class RunPosition:
    """The position of a run: what it needs to resume, besides its tensors."""

    step: int  # steps taken
    losses: float  # sum of the losses in the current epoch
    loss: float | None  # mean over the last complete epoch
    best_epoch: int  # of the best network, 0 before the first
    best_score: float | None


def today() -> str:
    """The date in UTC, in ISO 8601, as checkpoints store it."""
    return datetime.now(UTC).date().isoformat()


def engine_version() -> str:
    """The version of the running engine, installed or not."""
    # Imported late, because the top package imports every other.
    from engine import __version__

    return __version__


def save_checkpoint(folder: Path, weights: dict[str, Tensor], provenance: Provenance) -> None:
    """Replace the folder's checkpoint atomically; ``weights`` are a network's ``state_dict``."""
    write_tensors(folder / CHECKPOINT, weights, _fields(provenance))


def load_checkpoint(folder: Path) -> tuple[SimCLR, Provenance]:
    """The folder's network, on the CPU and in eval mode, and its description."""
    path = folder / CHECKPOINT
    tensors, raw = read_tensors(path)
    with fitting(path):
        provenance = _provenance(raw)
        network = SimCLR(provenance.settings.hidden, provenance.settings.dim)
        network.load_state_dict(tensors)
    return network.eval(), provenance


def save_last(
    folder: Path, tensors: dict[str, Tensor], provenance: Provenance, position: RunPosition
) -> None:
    """Replace the state from which the folder's run resumes, atomically."""
    fields = _fields(provenance) | {"place": json.dumps(asdict(position))}
    write_tensors(folder / LAST, tensors, fields)


def load_last(folder: Path) -> tuple[dict[str, Tensor], Provenance, RunPosition]:
    """Load what ``save_last`` wrote: tensors, description and position."""
    path = folder / LAST
    tensors, raw = read_tensors(path)
    with fitting(path):
        position = RunPosition(**json.loads(raw["place"]))
        numbers = (position.step, position.best_epoch)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"an invalid position, {position}")
        return tensors, _provenance(raw), position


def last_provenance(folder: Path) -> Provenance:
    """The description of the run that ``load_last`` would resume; reads no tensors."""
    path = folder / LAST
    with _opened(path) as file, fitting(path):
        return _provenance(file.metadata() or {})


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn errors about the contents of ``path`` into ``TrainingError``."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{path} is not a checkpoint of this engine: {reason}") from None


def _fields(provenance: Provenance) -> dict[str, str]:
    values = {field.name: getattr(provenance, field.name) for field in fields(provenance)}
    values["settings"] = provenance.settings.to_dict()
    return {name: json.dumps(value) for name, value in values.items()}


def _provenance(raw: dict[str, str]) -> Provenance:
    values = {field.name: json.loads(raw[field.name]) for field in fields(Provenance)}
    return Provenance(**{**values, "settings": TrainSettings.from_dict(values["settings"])})


def write_tensors(path: Path, tensors: dict[str, Tensor], fields: dict[str, str]) -> None:
    """Write a safetensors file durably beside ``path``, and rename it to ``path``."""
    beside = path.with_name(f".{path.name}.new")
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        save_file(plain, beside, metadata=fields)
        # safetensors lets only the owner read it.
        beside.chmod(0o644)
        replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} cannot be written ({error}): make room there and continue with resume=, or "
            f"choose another folder"
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise TrainingError(f"{path} is missing: train into {path.parent} first")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from None


def replace(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``, durably: sync the file first, then its folder."""
    _sync(new)
    new.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_finite(weights: dict[str, Tensor]) -> bool:
    """Whether every weight and running statistic is finite."""
    return all(bool(torch.isfinite(value).all()) for value in weights.values())
