"""``engine encoders``."""

from __future__ import annotations

from dataclasses import asdict

from engine.cli import render
from engine.cli.options import JsonOption
from engine.cli.output import show_line


def encoders(as_json: JsonOption = False) -> None:
    """List encoders, and the kinds of models to import.

    The speed is that of this machine's CPU. It is measured once for each encoder, within a second or so.

    \b
    Example:
      engine encoders
    """
    from engine.cli import render_encoders
    from engine.encoders.overview import list_encoders

    found = list_encoders()
    show_line(render.line(asdict(found)) if as_json else render_encoders.encoders_text(found))
