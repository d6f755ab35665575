"""The command ``engine``: its commands in modules of their own, and how all of them fail."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from engine import __version__
from engine.cli import interrupts, libtiff_errors, logs, streams
from engine.cli.commands.backup import backup
from engine.cli.commands.bench import bench
from engine.cli.commands.check import check
from engine.cli.commands.evaluate import evaluate
from engine.cli.commands.export import export
from engine.cli.commands.info import info
from engine.cli.commands.ingest import ingest
from engine.cli.commands.lookup import lookup
from engine.cli.commands.optimize import optimize
from engine.cli.commands.remove import remove
from engine.cli.commands.train import train
from engine.cli.output import warn
from engine.cli.status import DONE, FAILED, INTERRUPTED
from engine.errors import EngineError, UsageError
from engine.storage.durable import MORE_FILES

_NO_MEMORY = (
    "there is not enough memory, or no room for another thread: lower --memory or --workers, or raise "
    "the limits of this process (ulimit -v, ulimit -u)"
)

app = typer.Typer(
    name="engine",
    # Plain help, and no rich: importing it would cost every lookup a tenth of a second.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    ingest, lookup, info, check, remove, optimize, backup, export, train, bench,
):  # fmt: skip
    app.command()(logs.takes_verbose(command))
# The function is not called as Python's own is.
app.command("eval")(logs.takes_verbose(evaluate))


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: logs.VerboseOption = 0,
) -> None:
    """An embedded, disk-backed index for images: is this very image here, and what looks like it?

    \b
    Example:
      engine ingest photos/ --store photos.store
      engine lookup query.jpg --store photos.store
    """
    if version:
        print(f"engine {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise UsageError("name a command: 'engine --help' lists them")
    logs.raise_verbosity(verbose)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Every failure is one line on standard error."""
    streams.open_closed()
    logs.start()
    # Pillow warns of odd metadata in files that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that are not UTF-8 must not stop a listing
            stream.reconfigure(errors="backslashreplace")
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(interrupts.raising())
            except OSError as error:  # no descriptors are left for the pipe that tells of signals
                return _fail(f"signals cannot be handled: {error.strerror}; {MORE_FILES}")
            return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = _called(arguments)
        sys.stdout.flush()
        if interrupts.raised():  # Typer makes a status of it, and says nothing
            return _interrupted()
        return status if isinstance(status, int) else DONE
    except EngineError as error:
        return _fail(str(error))
    except typer.Abort as error:  # Typer's word for EOFError, in old versions KeyboardInterrupt too
        if isinstance(error.__cause__, EOFError):
            return _unexpected(error.__cause__)
        return _interrupted()
    except BrokenPipeError:  # the reader of our output has had enough
        streams.discard_output()
        return DONE
    except SystemExit as leaving:  # the same, where Click saw it first: its status 1 is taken
        if isinstance(leaving.__context__, BrokenPipeError):
            return DONE
        raise
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        status = _fail(f"{error.strerror or error}{name}")
        try:
            sys.stdout.flush()
        except OSError:  # what it still holds would fail at the end again
            streams.discard_output()
        return status
    except MemoryError as error:
        return _fail(str(error) or _NO_MEMORY)
    except Exception as error:
        # Of ONNX Runtime, and of Python where the limits allow no more threads.
        if "bad_alloc" in str(error) or "can't start new thread" in str(error):
            return _fail(_NO_MEMORY)
        # Typer's own errors (an unknown option, say) have this method; which class they are of
        # depends on its version.
        if not hasattr(error, "format_message"):
            return _unexpected(error)
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "engine"
        return _fail(f"{error.format_message()} (see '{command} --help')")


def _called(arguments: Sequence[str] | None) -> object:
    """What the command that was typed returns: a status, or nothing."""
    try:
        with libtiff_errors.complaints() as found:
            status = app(args=arguments, prog_name="engine", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ != "NoArgsIsHelpError" or not hasattr(error, "format_message"):
            raise
        print(error.format_message())
        return FAILED
    if found.line:
        warn(found.line)
    return status


def _unexpected(error: BaseException) -> int:
    if os.environ.get("ENGINE_DEBUG"):
        raise error
    return _fail(
        f"unexpected {type(error).__name__}: {error}; this is a bug or a broken machine, and "
        f"ENGINE_DEBUG=1 shows where"
    )


def _fail(message: str) -> int:
    if interrupts.raised():  # a library made another error of KeyboardInterrupt
        return _interrupted()
    warn(message)
    return FAILED


def _interrupted() -> int:
    warn(interrupts.LINE)
    return INTERRUPTED
