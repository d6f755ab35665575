"""The exit statuses of the command: the contract that scripts rely on."""

from __future__ import annotations

DONE = 0
NOT_FOUND = 1
FAILED = 2
SOME_REJECTED = 3
INTERRUPTED = 130
