"""How much memory this process uses: anonymous (ours) apart from resident (with mapped pages).

And a gate that lets as many images be decoded at a time as memory allows.
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
_SAMPLE_SECONDS = 0.05
_LARGE = 16 << 20  # bytes from which on what an image leaves in the heap is looked at


class PeakMemory:
    """Keeps the peak of anonymous memory, which the kernel does not, from samples.

    The kernel does keep the peak of all resident memory. Where that has risen since the sample before,
    it was reached in between, and what it has beyond the mapped pages (of which there are hardly more
    or fewer at that moment than at the two samples) was anonymous. So a peak counts that came and went
    while C code held the interpreter's lock, when no thread of ours could look.
    """

    def __init__(self) -> None:
        self.anonymous = 0
        self._lock = threading.Lock()
        self._risen = self._mapped = 0
        self._take()
        self.anonymous = _field("RssAnon")  # what was before is not this one's

    def sample(self) -> None:
        """Look once; cheap enough for every chunk."""
        with self._lock:
            self._take()

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Inside, a thread looks twenty times a second."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_SAMPLE_SECONDS):
                self.sample()

        thread = threading.Thread(target=look, name="engine-memory", daemon=True)
        try:
            # Where no more threads can be had, the samples of each chunk have to do.
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
        """Peak resident set in bytes, mapped pages included, since the process began."""
        peak = _field("VmHWM")
        if peak:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MemoryGate:
    """Lets images be decoded at a time as memory allows; one always gets through.

    What images leave in the heap when they are freed counts too: a large image is let in, and out,
    only after it has been given back to the kernel, if it is much.
    """

    def __init__(self, most: int, *, crowded: Callable[[bool], None] | None = None) -> None:
        """``crowded`` is called when more than half of ``most`` bytes are held, and when no longer."""
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
        """From now on ``count`` bytes are taken by something else, so fewer images get in at a time."""
        with self._changed:
            self._beside = count
            self._changed.notify_all()

    def _say(self) -> None:
        """Call ``crowded`` if it is another answer by now; what it raises keeps nobody waiting."""
        with self._changed:
            crowded = self._held > self._most // 2
            if self._crowded is not None and crowded != self._is_crowded:
                self._is_crowded = crowded
                self._crowded(crowded)

    def _tidy(self, allowed: int) -> None:
        """Give freed memory back if the process has more than what is held and ``allowed`` bytes."""
        # What is held has not been taken yet, or is free again: this is a guess, and errs to give back.
        if _field("RssAnon") - self._empty > max(allowed, _LARGE):
            give_back()


def give_back() -> None:
    """Have the C library give all memory that is free back to the kernel, where it can."""
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
    """A field of /proc/self/status in bytes; 0 where there is none (not Linux)."""
    return _fields().get(name, 0)


def _fields() -> dict[str, int]:
    """What /proc/self/status says of memory, in bytes."""
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
