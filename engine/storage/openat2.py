"""Linux's openat2(2): opens a folder below another one without following links."""

from __future__ import annotations

import ctypes
import os
import sys


class _How(ctypes.Structure):
    """The struct open_how of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class OpenBeneath:
    """Calls openat2(2): Linux resolves a whole path below a folder, and refuses links and escapes."""

    _NUMBER = 437  # of the system call, on all machines that Python runs on except Alpha
    _NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall

    def __call__(self, fd: int, name: str, flags: int) -> int | None:
        """Open the folder ``name``; return None if the caller has to open it step by step."""
        how = _How(flags, 0, self._BENEATH | self._NO_LINKS | self._NO_MAGIC_LINKS)
        found = self._call(
            ctypes.c_long(self._NUMBER),
            ctypes.c_int(fd),
            ctypes.c_char_p(os.fsencode(name)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        return int(found) if found >= 0 else None


open_beneath: OpenBeneath | None = OpenBeneath() if sys.platform == "linux" else None
