"""The command ``engine``: collects its subcommands and turns every failure into one line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engine import __version__
from engine.cli import interrupts, libtiff_errors, logs, streams
from engine.cli.commands.backup import backup
from engine.cli.commands.bench import bench
from engine.cli.commands.check import check
from engine.cli.commands.encoders import encoders
from engine.cli.commands.evaluate import evaluate
from engine.cli.commands.export import export
from engine.cli.commands.import_encoder import import_encoder
from engine.cli.commands.info import info
from engine.cli.commands.ingest import ingest
from engine.cli.commands.lookup import lookup
from engine.cli.commands.optimize import optimize
from engine.cli.commands.reembed import reembed
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


class _GroupedByTask(TyperGroup):
    """Lists the commands in ``engine --help`` under the task of each, its ``rich_help_panel``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per task, all with the same column widths."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        longest = max(len(name) for name, _ in commands)
        room = formatter.width - longest - 4  # two spaces before the name, two behind it
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands:
            task = getattr(command, "rich_help_panel", None) or "Commands"
            row = (name.ljust(longest), command.get_short_help_str(room))
            sections.setdefault(task, []).append(row)
        for task, rows in sections.items():
            with formatter.section(task):
                formatter.write_dl(rows)


app = typer.Typer(
    name="engine",
    cls=_GroupedByTask,
    # Plain help without rich: importing rich would cost every lookup a tenth of a second.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_TASKS = {
    "Look up": (lookup, info),
    "Fill and change": (ingest, remove),
    "Look after a store": (check, optimize, backup, export),
    "Encoders and measurements": (encoders, import_encoder, train, reembed, evaluate, bench),
}
for task, commands in _TASKS.items():
    for command in commands:
        # The function has another name so that it does not hide Python's own eval.
        name = "eval" if command is evaluate else command.__name__.replace("_", "-")
        app.command(name, rich_help_panel=task)(logs.takes_verbose(command))


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: logs.VerboseOption = 0,
) -> None:
    """An embedded, disk-backed index for images: finds the same image and similar ones.

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
    """Run the command and return its exit status. Every failure is one line on standard error."""
    streams.open_closed()
    logs.start()
    # Pillow warns about odd metadata in files that it can read.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        # A name that is not UTF-8 must not stop a listing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(interrupts.raising())
            # No descriptors are left for the pipe that reports signals.
            except OSError as error:
                return _fail(f"signals cannot be handled: {error.strerror}; {MORE_FILES}")
            return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = _called(arguments)
        sys.stdout.flush()
        # Typer turns KeyboardInterrupt into a status without a message.
        if interrupts.raised():
            return _interrupted()
        return status if isinstance(status, int) else DONE
    except EngineError as error:
        return _fail(str(error))
    # Typer raises Abort for EOFError, and in old versions for KeyboardInterrupt.
    except typer.Abort as error:
        if isinstance(error.__cause__, EOFError):
            return _unexpected(error.__cause__)
        return _interrupted()
    # The reader of standard output has closed it.
    except BrokenPipeError:
        streams.discard_output()
        return DONE
    # Click saw the broken pipe first and turned it into an exit with status 1.
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):
            return DONE
        raise
    except OSError as error:
        name = f": {error.filename}" if error.filename else ""
        status = _fail(f"{error.strerror or error}{name}")
        try:
            sys.stdout.flush()
        # The buffered output would fail again when Python exits.
        except OSError:
            streams.discard_output()
        return status
    except MemoryError as error:
        return _fail(str(error) or _NO_MEMORY)
    except Exception as error:
        # ONNX Runtime raises the first; Python raises the second when it may not start more threads.
        if "bad_alloc" in str(error) or "can't start new thread" in str(error):
            return _fail(_NO_MEMORY)
        # Typer's own errors, such as an unknown option, have this method. Their class depends on
        # Typer's version.
        if not hasattr(error, "format_message"):
            return _unexpected(error)
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "engine"
        return _fail(f"{error.format_message()} (see '{command} --help')")


def _called(arguments: Sequence[str] | None) -> object:
    """Run the typed command and return its status, or None."""
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
    # A library may have turned KeyboardInterrupt into another error.
    if interrupts.raised():
        return _interrupted()
    warn(message)
    return FAILED


def _interrupted() -> int:
    warn(interrupts.LINE)
    return INTERRUPTED
