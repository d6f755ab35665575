"""The folder that a training run writes into: one run at a time, and errors that say what to do."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import TrainingError, UsageError
from engine.training.checkpoint import CHECKPOINT, LAST
from engine.training.export import ENCODER


def make_folder(folder: Path) -> None:
    """Make it if it is not there; ``UsageError`` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made a folder for the encoder: {error.strerror}"
        ) from None


def check_fresh(folder: Path) -> None:
    """``UsageError`` where an earlier training left something."""
    for file in (ENCODER, CHECKPOINT, LAST):
        if (folder / file).exists():
            raise UsageError(
                f"{folder} already holds {file} of an earlier training: choose another folder, "
                f"or remove it, or go on with that training with resume="
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder: two runs would mix their checkpoints. The kernel unlocks it if we die."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another training writes into {folder}: wait for it or end it, or choose another "
                f"folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Say what to do where logs, sheets or models cannot be written: ``TrainingError``."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads what a run tells
        raise
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written ({error.strerror or error}): make room there, after which "
            f"a training goes on with resume=, or choose another folder"
        ) from None
