"""How a script of the benchmarks takes its arguments and ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from engine.errors import EngineError

DONE, MISSED, FAILED, INTERRUPTED = 0, 1, 2, 130


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
