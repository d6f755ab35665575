"""``engine export``."""

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


def export(
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A new or empty folder.")],
    format: Annotated[
        str,
        typer.Option(metavar="csv|parquet", help="Format of the tables; parquet needs pyarrow."),
    ] = "csv",
    vectors: Annotated[
        bool, typer.Option(help="Also write vectors.npy and vector_ids.npy.")
    ] = True,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Write a store's data as tables and arrays for other tools.

    images.csv has a row for each image, and sources.csv a row for each of its sources. An
    interrupted export leaves nothing at DEST.

    \b
    Example:
      engine export photos.tables --store photos.store
    """
    with (
        Store.open(store or default_store(), read_only=True) as opened,
        Progress("export") as progress,
    ):
        report = opened.export(dest, format=format, vectors=vectors, progress=progress)
    show_line(render.line(asdict(report)) if as_json else render.export_text(report))
