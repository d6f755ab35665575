"""The exit statuses of the command. Scripts rely on them."""

from __future__ import annotations

DONE = 0
NOT_FOUND = 1
FAILED = 2
SOME_REJECTED = 3
INTERRUPTED = 130
