"""The width and colours that standard output allows a table."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

BOLD, RED, GREEN, YELLOW, CYAN = "1", "31", "32", "33", "36"


@dataclass(frozen=True, slots=True)
class Look:
    """How a table looks. The defaults are for a file or a pipe: whole names and no colours."""

    width: int | None = None  # characters per line; None means no limit
    colour: bool = False

    @classmethod
    def of_output(cls) -> Look:
        """The look for the current standard output."""
        if not sys.stdout.isatty():
            return cls()
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        return cls(shutil.get_terminal_size((80, 24)).columns, colour)

    def paint(self, text: str, style: str) -> str:
        """``text`` in a style, or unchanged without colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour else text
