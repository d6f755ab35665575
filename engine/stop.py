"""Whether the caller of long work wants no more of it."""

from __future__ import annotations

from collections.abc import Callable


class StoppedError(Exception):
    """The caller wants no more of the work; what was committed by then stays."""


class Stop:
    """Asks a caller's ``stop``, and remembers that it said yes: it may say so only once."""

    def __init__(self, stop: Callable[[], bool] | None = None) -> None:
        """``stop`` returns whether the work is to end; without it, it never is."""
        self._stop = stop
        self._asked = False

    def asked(self) -> bool:
        """Whether the work is to end."""
        if not self._asked and self._stop is not None:
            self._asked = bool(self._stop())
        return self._asked

    def require(self) -> None:
        """``StoppedError`` if the work is to end."""
        if self.asked():
            raise StoppedError
