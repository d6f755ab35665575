"""What the scripts share: their photographs, and failures as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError, UsageError

from .process import ROOT

DONE, MISSED, FAILED, INTERRUPTED = 0, 1, 2, 130
PHOTOS = ROOT / "scripts" / "photos"  # in a checkout; an installed package has none
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def photos(folder: Path) -> list[Path]:
    """The photographs in a folder, by name; ``UsageError`` if there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one of photographs")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise UsageError(f"there is no photograph in {folder}: name another folder")
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of arguments that describes the script with its docstring."""
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=shape)


def exit_with(work: Callable[[], bool]) -> None:
    """End the process: 0 if ``work`` says its target is met, 1 if not, 2 if it failed."""
    try:
        status = DONE if work() else MISSED
    except EngineError as error:
        print(f"bench: {error}", file=sys.stderr)
        status = FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
