"""``engine backup``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.options import JsonOption, StoreOption
from engine.cli.output import show_line
from engine.cli.progress import Progress
from engine.config import default_store


def backup(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A new or empty folder.")],
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Copy a store while other processes read it and write to it.

    The copy is a complete store as of one commit. An interrupted backup leaves nothing at DEST.

    \b
    Example:
      engine backup photos.backup --store photos.store
    """
    with (
        Store.open(store or default_store(), read_only=True) as opened,
        Progress("backup", "bytes") as progress,
    ):
        report = opened.backup(dest, progress=progress)
    show_line(render.line(asdict(report)) if as_json else render.backup_text(report))
