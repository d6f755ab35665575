"""Writes results to standard output and warnings to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from engine.cli import streams
from engine.cli.shell_words import in_options
from engine.cli.text import printable

_MAX_LISTED = 50


def warn(message: str) -> None:
    """Write one line to standard error, and ignore a failure to write it."""
    with contextlib.suppress(OSError, ValueError):
        print("engine: " + one_line(message), file=sys.stderr)


def one_line(message: str) -> str:
    """A message of the library as one line, with options in place of arguments."""
    return printable(" ".join(in_options(message).split()))


def show_line(text: str) -> bool:
    """Write a line to standard output and flush it, because a program may read line by line.

    Returns False if the reader has closed the output, which does not change the command's status.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        streams.discard_output()
        return False
    return True


def show_bytes(data: bytes) -> bool:
    """Write bytes, such as names that are not UTF-8, to standard output; like ``show_line``."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        streams.discard_output()
        return False
    return True


def warn_each(messages: Sequence[str]) -> None:
    """Write up to ``_MAX_LISTED`` warnings, and then the number of those left out."""
    for message in messages[:_MAX_LISTED]:
        warn(message)
    if len(messages) > _MAX_LISTED:
        warn(f"and {len(messages) - _MAX_LISTED} more (--json lists them)")
