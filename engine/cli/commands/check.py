"""``engine check``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from engine.api import Store
from engine.cli import render
from engine.cli.options import JsonOption, StoreOption, WaitOption
from engine.cli.output import show_line
from engine.cli.status import DONE, NOT_FOUND
from engine.config import default_store
from engine.errors import UsageError


def check(
    store: StoreOption = "",
    fix: Annotated[
        bool, typer.Option("--fix", help="Rebuild derived data, and set aside what is lost.")
    ] = False,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Read everything in a store and verify it. Status 1 if damage remains.

    --fix reads the sources of damaged images again. Mount their disks first. Damage stays, and is
    reported, while the disk of a source may be away. It is given up if the source is gone.

    \b
    Example:
      engine check --store photos.store
      engine check --fix --wait 60 --store photos.store
    """
    if wait and not fix:
        raise UsageError("--wait goes with --fix: leave it out, or add --fix")
    report = Store.check_at(store or default_store(), fix=fix, wait=wait)
    show_line(
        render.line(asdict(report) | {"ok": report.ok})
        if as_json
        else render.check_text(report, fix=fix)
    )
    raise typer.Exit(DONE if report.ok else NOT_FOUND)
