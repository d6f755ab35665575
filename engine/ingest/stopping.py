"""Whether a run is to stop, and what it still finishes then."""

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
        """``finishing_seconds``: that a run which is to stop goes on to encode what is prepared."""
        self._stop = Stop(stop)
        self._finishing_seconds = finishing_seconds
        self._stopped_at: float | None = None  # when it was seen that the run is to stop

    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self._stop.asked()

    def ready(self, future: Future[Any]) -> bool:
        """Wait for a worker. Once the run is to stop: whether it is done already."""
        while not future.done():
            if self.asked():
                future.cancel()
                return False
            wait([future], _SOON)
        return True

    def late(self) -> bool:
        """Whether the run is to stop, and has had its time to encode what is prepared."""
        if not self.asked():
            return False
        now = time.monotonic()
        self._stopped_at = now if self._stopped_at is None else self._stopped_at
        return now - self._stopped_at >= self._finishing_seconds
