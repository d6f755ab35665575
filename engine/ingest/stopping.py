"""Decides whether a run is to stop, and how long it may still finish prepared images."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from engine.stop import Stop

_SOON = 0.1  # seconds


class Stopping:
    """Asks the caller often whether the run is to stop."""

    def __init__(self, stop: Callable[[], bool] | None, finishing_seconds: float) -> None:
        """``finishing_seconds``: how long a run that is to stop may go on encoding."""
        self._stop = Stop(stop)
        self._finishing_seconds = finishing_seconds
        self._stopped_at: float | None = None  # when ``late`` first saw that the run is to stop

    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self._stop.asked()

    def ready(self, future: Future[Any]) -> bool:
        """Wait for a worker; False if the run is to stop and the worker has not finished."""
        while not future.done():
            if self.asked():
                future.cancel()
                return False
            wait([future], _SOON)
        return True

    def late(self) -> bool:
        """Whether the run is to stop, and its time for finishing is over."""
        if not self.asked():
            return False
        now = time.monotonic()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        return now - self._stopped_at >= self._finishing_seconds
