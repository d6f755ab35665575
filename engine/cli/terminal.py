"""What standard output allows a table: how wide it may be, and whether it may have colours."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

BOLD, RED, GREEN, YELLOW, CYAN = "1", "31", "32", "33", "36"


@dataclass(frozen=True, slots=True)
class Look:
    """How a table looks. Its defaults are those of a file or a pipe: whole names, and no colours."""

    width: int | None = None  # characters of a line; None: as many as it has
    colour: bool = False

    @classmethod
    def of_output(cls) -> Look:
        """That of standard output as it is now."""
        if not sys.stdout.isatty():
            return cls()
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        return cls(shutil.get_terminal_size((80, 24)).columns, colour)

    def paint(self, text: str, style: str) -> str:
        """``text`` in a style, where there are colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour else text
