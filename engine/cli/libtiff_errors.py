"""Counts what libtiff complains of, which it would write to standard error from C, a line each.

One damaged TIFF can make hundreds of lines, none of which names the file; the reject does. libtiff's
handler of errors is one for the process, and belongs to the program: so the command sets it, for as long
as it runs, and the library never does. (Pillow itself switches off the handler of warnings.) The
alternative, a pipe in place of descriptor 2, would catch what others write there, and a crash would
lose it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import _imaging

MAX_COUNTED = 1000
"""Beyond this nothing is counted: each call waits for the interpreter's lock."""

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class Complaints:
    """How often libtiff has complained, at most ``MAX_COUNTED``."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def line(self) -> str:
        """The count in words; nothing if there were none."""
        if not self.count:
            return ""
        more = "more than " if self.count >= MAX_COUNTED else ""
        times = "once" if self.count == 1 else f"{more}{self.count:,} times"
        return (
            f"libtiff complained {times} of TIFF files; those that could not be read are rejected"
        )


@contextmanager
def complaints() -> Iterator[Complaints]:
    """Inside, libtiff writes nothing; what it would have written is counted."""
    found = Complaints()
    setter = _setter()
    if setter is None:
        yield found
        return

    def handle(module: bytes, text: bytes, values: int) -> None:
        found.count += 1
        if found.count >= MAX_COUNTED:
            setter(None)

    # Named, so that it lives until the one before is back.
    handler = _HANDLER(handle)
    before = setter(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield found
    finally:
        setter(before)


def _setter() -> Any:
    """libtiff's function that sets the handler and returns the one before; None if out of reach."""
    try:
        # Symbols are looked for in what Pillow's own module is linked with: the very libtiff it uses.
        setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError, TypeError):  # another build of Pillow, or of the platform
        return None
    setter.restype = ctypes.c_void_p
    setter.argtypes = [ctypes.c_void_p]
    return setter
