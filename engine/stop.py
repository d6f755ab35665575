"""Checks whether the caller of a long operation wants it to stop."""

from __future__ import annotations

from collections.abc import Callable


class StoppedError(Exception):
    """The caller stopped the operation; everything committed so far stays."""


class Stop:
    """Calls a caller's ``stop``, and remembers a yes, since it may say so only once."""

    def __init__(self, stop: Callable[[], bool] | None = None) -> None:
        """``stop`` returns whether to stop; without it, the operation never stops."""
        self._stop = stop
        self._asked = False

    def asked(self) -> bool:
        """Return whether to stop."""
        if not self._asked and self._stop is not None:
            self._asked = bool(self._stop())
        return self._asked

    def require(self) -> None:
        """Raise ``StoppedError`` if the operation is to stop."""
        if self.asked():
            raise StoppedError
