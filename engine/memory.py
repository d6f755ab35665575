"""Measures this process's memory, anonymous (its own) and resident (with mapped pages).

It also has a gate that lets as many images be decoded at a time as memory allows.
"""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.05
# From this many bytes on, memory that an image leaves in the heap is checked.
_LARGE = 16 << 20


class PeakMemory:
    """Tracks the peak of anonymous memory from samples, because the kernel does not.

    The kernel does track the peak of all resident memory. If that has risen since the last sample, the
    peak was reached in between. The part of it beyond the mapped pages was anonymous, since mapped
    pages hardly change between two samples. So this also counts a peak that came and went while C
    code held the interpreter's lock, when no Python thread could take a sample.
    """

    def __init__(self) -> None:
        self.anonymous = 0
        self._lock = threading.Lock()
        self._risen = self._mapped = 0
        self._take()
        # Earlier peaks do not belong to this object.
        self.anonymous = _field("RssAnon")

    def sample(self) -> None:
        """Take a sample; cheap enough for every chunk."""
        with self._lock:
            self._take()

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Inside the block, a thread takes a sample twenty times a second."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_SAMPLE_SECONDS):
                self.sample()

        thread = threading.Thread(target=look, name="engine-memory", daemon=True)
        try:
            # If no more threads can be started, the samples of each chunk have to do.
            with suppress(RuntimeError):
                thread.start()
            yield
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()
            self.sample()

    def _take(self) -> None:
        found = _fields()
        mapped = found.get("RssFile", 0) + found.get("RssShmem", 0)
        self.anonymous = max(self.anonymous, found.get("RssAnon", 0))
        if found.get("VmHWM", 0) > self._risen:
            self._risen = found["VmHWM"]
            self.anonymous = max(self.anonymous, self._risen - max(mapped, self._mapped))
        self._mapped = mapped

    @property
    def resident(self) -> int:
        """Return the peak resident set in bytes, with mapped pages, since the process began."""
        peak = _field("VmHWM")
        if peak:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MemoryGate:
    """Lets images be decoded at a time as memory allows; one always gets through.

    Memory that freed images leave in the heap counts too. If there is much of it, the gate returns it to
    the kernel before and after each large image.
    """

    def __init__(self, most: int, *, crowded: Callable[[bool], None] | None = None) -> None:
        """``crowded`` gets True when more than half of ``most`` bytes are held, then False."""
        self._most = most
        self._held = 0
        self._beside = 0
        self._empty = _field("RssAnon")
        self._crowded = crowded
        self._is_crowded = False
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Wait until there is room for ``count`` bytes, and hold them."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._held or self._held + self._beside + count <= self._most
            )
            self._held += count
        try:
            self._say()
            if count >= _LARGE:
                self._tidy(self._most - self._held)
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()
            self._say()
            if count >= _LARGE:
                self._tidy(self._most // 2)

    def reserve(self, count: int) -> None:
        """Reserve ``count`` bytes for another use, so that fewer images get in at a time."""
        with self._changed:
            self._beside = count
            self._changed.notify_all()

    def _say(self) -> None:
        """Call ``crowded`` if its argument has changed. If it raises, no thread is left waiting."""
        with self._changed:
            crowded = self._held > self._most // 2
            if self._crowded is not None and crowded != self._is_crowded:
                self._is_crowded = crowded
                self._crowded(crowded)

    def _tidy(self, allowed: int) -> None:
        """Return freed memory to the kernel if the process has grown by more than ``allowed`` bytes."""
        # Held memory may not be allocated yet, or free again. This guess errs towards returning it.
        if _field("RssAnon") - self._empty > max(allowed, _LARGE):
            give_back()


def forget_peak() -> bool:
    """Let the kernel's peak of this process begin again; False where it cannot be done."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def give_back() -> None:
    """Make the C library return all free memory to the kernel, where it can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim  # glibc alone has it
    except (OSError, AttributeError, TypeError):
        return None
    return trim


def _field(name: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 without one (not Linux)."""
    return _fields().get(name, 0)


def _fields() -> dict[str, int]:
    """Return the memory fields of /proc/self/status, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon", "RssFile", "RssShmem"):
            found[name] = int(value.split()[0]) * 1024
    return found
