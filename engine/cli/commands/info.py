"""``engine info``."""

from __future__ import annotations

from dataclasses import asdict

from engine.api import Store
from engine.cli import render
from engine.cli.options import JsonOption, StoreOption
from engine.cli.output import show_line
from engine.config import default_store


def info(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show what is in a store and how much disk each part takes.

    \b
    Example:
      engine info --store photos.store
    """
    with Store.open(store or default_store(), read_only=True) as opened:
        found = opened.info()
    show_line(render.line(asdict(found)) if as_json else render.info_text(found))
