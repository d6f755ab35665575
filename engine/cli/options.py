"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="DIR", help="The store.  [$ENGINE_STORE, else ./engine.store]"),
]
MemoryOption = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="Anonymous memory to use, at least 128M.  [1G]"),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        show_default=False,
        help="How long to wait for another process that writes to the store.  [0]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
FilesFromOption = Annotated[
    str,
    typer.Option("--files-from", metavar="FILE", help="Read more of them from FILE, one a line."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Leave files and folders out of folders, by name or by path below; may be repeated.",
    ),
]
NullOption = Annotated[
    bool,
    typer.Option(
        "-0", "--null", help="A null byte ends each name of a list, as find -print0 writes them."
    ),
]
