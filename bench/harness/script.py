"""How a script of the benchmarks takes its arguments and ends."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import EngineError, UsageError

DONE, MISSED, FAILED, INTERRUPTED = 0, 1, 2, 130


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of arguments that describes the script with its docstring."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=shape)


@contextlib.contextmanager
def work_folder(folder: Path | None, keep: bool = False) -> Iterator[Path]:
    """The folder for stores: the given folder if they are kept, else a temporary one inside it.

    The folder is created if needed; None is the system's folder for temporary files.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if keep and folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="engine-bench-", dir=folder) as work:
        yield Path(work)


def empty_folder(out: Path) -> None:
    """Make a folder for results; ``UsageError`` if it cannot be made or is not empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty: name a new folder, so that no result is lost")
    except OSError as error:
        raise UsageError(f"{out} cannot be used: {error.strerror}") from None


def exit_with(work: Callable[[], bool]) -> None:
    """End the process: with 0 if ``work`` meets its target, 1 if it misses it, 2 if it failed.

    By itself Python ends with 1 after an unexpected error, which would mean that the target was missed.
    """
    try:
        status = DONE if work() else MISSED
    except EngineError as error:
        print(f"bench: {error}", file=sys.stderr)
        status = FAILED
    except Exception:
        traceback.print_exc()
        status = FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
