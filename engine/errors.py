"""The errors, all under one base. Each is one sentence that says what happened and what to do.

EngineError
├── UsageError             an argument is invalid; nothing was changed
│   └── UnknownImageError      the store has no image with that id
├── SourceError            a source of images cannot be read at all
│   └── MissingError           most files of a folder are gone: its disk may be offline
├── ImageError             one image cannot be read; an ingest records it and continues
├── EncoderError           an encoder cannot be loaded or used
│   └── TrainingError      a training run cannot start or continue
└── StoreError             something about one store
    ├── StoreNotFoundError     there is no store at that path
    ├── StoreFormatError       it is not a store, or one that this version cannot read
    ├── StoreLockedError       another process writes to it
    └── StoreDamagedError      its files contradict each other
"""

from __future__ import annotations

from typing import Literal

Extra = Literal[
    "train", "import", "eval", "text", "parquet", "test", "docs", "peers", "bench", "all"
]


def shortened(value: object) -> str:
    """A caller's value in one short line, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def how_to_install(extra: Extra) -> str:
    """Return the commands that install an extra, for users of the package and of a clone."""
    return f"pip install 'image-index-engine[{extra}]', or in a clone: pip install -e '.[{extra}]'"


class EngineError(Exception):
    """The base of every error that the engine raises on purpose; ``str(error)`` is one line."""


class UsageError(EngineError, ValueError):
    """An argument is invalid; nothing was changed."""


class UnknownImageError(UsageError, KeyError):
    """The store has no image with that id; a ``KeyError`` too, as callers of ``store[id]`` expect."""

    # A KeyError shows the repr of its key; this error shows a sentence.
    __str__ = Exception.__str__


class SourceError(EngineError):
    """A source of images cannot be read, or not to its end; ``retryable`` as for ``ImageError``."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class MissingError(SourceError):
    """Most files of a folder are gone, as if its disk were offline; nothing was removed."""


class ImageError(EngineError):
    """One image cannot be read; an ingest records it and continues.

    ``retryable``: another try may succeed, with more memory or after an obstacle is removed. Otherwise
    the image's bytes are the reason, and an ingest tries again when they have changed.
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class EncoderError(EngineError):
    """An encoder cannot be loaded or used."""


class TrainingError(EncoderError):
    """A training run cannot start or continue."""


class StoreError(EngineError):
    """Something about one store."""


class StoreNotFoundError(StoreError):
    """There is no store at that path."""


class StoreFormatError(StoreError):
    """It is not a store, or it is one that this version cannot read."""


class StoreLockedError(StoreError):
    """Another process writes to the store."""


class StoreDamagedError(StoreError):
    """The files of a store contradict each other; ``engine check`` says where."""
