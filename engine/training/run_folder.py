"""The folder of a training run: locks it for one run, and turns its errors into advice."""

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
    """Create the folder if it is missing; ``UsageError`` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be created as a folder for the encoder: {error.strerror}"
        ) from None


def check_fresh(folder: Path) -> None:
    """``UsageError`` if the folder holds files of an earlier training."""
    for file in (ENCODER, CHECKPOINT, LAST):
        if (folder / file).exists():
            raise UsageError(
                f"{folder} already holds {file} of an earlier training: choose another folder, "
                f"remove it, or continue that training with resume="
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other runs; the kernel unlocks it when the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another training writes into {folder}: wait for it, end it, or choose another "
                f"folder"
            ) from None
        # The file system has no locks.
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of writing logs, sheets or models into ``TrainingError`` with advice."""
    try:
        yield
    # The reader of the progress output has closed it.
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written ({error.strerror or error}): make room there and continue "
            f"with resume=, or choose another folder"
        ) from None
