"""Writes the library's log to standard error: warnings, with -v each step, with -vv details."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from engine.cli.output import one_line

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

VerboseOption = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        metavar="",
        show_default=False,
        help="Log each step to standard error; -vv logs details and the time. Also after COMMAND.",
    ),
]
_HiddenVerboseOption = Annotated[
    int, typer.Option("-v", "--verbose", count=True, hidden=True, show_default=False)
]


class _StandardError(logging.Handler):
    """Writes to the current standard error, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, and ignore a failure to write it."""
        try:
            print(self.format(record), file=sys.stderr)
        except (OSError, ValueError):
            return


class _Lines(logging.Formatter):
    """One line per record: "engine: message". It has a level below warnings, and a time with -vv."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line for one record."""
        level = f"{record.levelname.lower()}: " if record.levelno < logging.WARNING else ""
        time = f"{self.formatTime(record)} " if self._with_time else ""
        return f"engine: {time}{level}{one_line(record.message)}"


_engine = logging.getLogger("engine")
_handler = _StandardError()


def start() -> None:
    """Log warnings only. A program with log handlers of its own keeps those instead."""
    logging.basicConfig(handlers=[_handler], level=logging.WARNING)
    _engine.setLevel(logging.NOTSET)
    _handler.setFormatter(_Lines(with_time=False))
    # Pillow logs why it cannot read a file, but does not name the file. The reject does.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def raise_verbosity(steps: int) -> None:
    """Raise the log level: one step logs what the engine does, two steps log the details."""
    if not steps:
        return
    now = _LEVELS.index(_engine.level) if _engine.level in _LEVELS else 0
    level = _LEVELS[min(now + steps, len(_LEVELS) - 1)]
    _engine.setLevel(level)
    _handler.setFormatter(_Lines(with_time=level == logging.DEBUG))


def is_verbose() -> bool:
    """Whether -v was typed."""
    return logging.NOTSET < _engine.level <= logging.INFO


def takes_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option -v, hidden, because ``engine --help`` documents it."""

    @functools.wraps(command)
    def run(*, verbose: int, **typed: Any) -> None:
        raise_verbosity(verbose)
        command(**typed)

    signature = inspect.signature(command, eval_str=True)
    verbose = inspect.Parameter(
        "verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=_HiddenVerboseOption
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), verbose]
    )
    return run
