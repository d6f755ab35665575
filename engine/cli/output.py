"""What the command writes: results on standard output, remarks on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from engine.cli import streams
from engine.cli.shell_words import in_options
from engine.cli.text import printable

_MAX_LISTED = 50


def warn(message: str) -> None:
    """One line on standard error; where that cannot be written, the work goes on without."""
    with contextlib.suppress(OSError, ValueError):
        print("engine: " + one_line(message), file=sys.stderr)


def one_line(message: str) -> str:
    """A message of the library as one line for people at a terminal."""
    return printable(" ".join(in_options(message).split()))


def show_line(text: str) -> bool:
    """A result on standard output, at once: somebody may be reading it line by line.

    False if the reader has had enough. What the work came to, its status, is not changed by that.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        streams.discard_output()
        return False
    return True


def show_bytes(data: bytes) -> bool:
    """Bytes on standard output, at once, such as names that are no text; as ``show_line``."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        streams.discard_output()
        return False
    return True


def warn_each(messages: Sequence[str]) -> None:
    """Warn of each, up to ``_MAX_LISTED``, and say how many more there are."""
    for message in messages[:_MAX_LISTED]:
        warn(message)
    if len(messages) > _MAX_LISTED:
        warn(f"and {len(messages) - _MAX_LISTED} more (--json lists them)")
