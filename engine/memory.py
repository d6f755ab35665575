"""How much memory this process uses: anonymous (ours) apart from resident (with mapped pages).

And a gate that lets as many images be decoded at a time as memory allows.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Keeps the peak of anonymous memory, which the kernel does not, from samples."""

    def __init__(self) -> None:
        self.anonymous = 0
        self.sample()

    def sample(self) -> None:
        """Look once; cheap enough for every chunk."""
        self.anonymous = max(self.anonymous, _field("RssAnon"))

    @property
    def resident(self) -> int:
        """Peak resident set in bytes, mapped pages included, since the process began."""
        peak = _field("VmHWM")
        if peak:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MemoryGate:
    """Lets images be decoded at a time as memory allows; one always gets through."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until there is room for ``count`` bytes, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + count <= self._most)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()


def _field(name: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none (not Linux)."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
