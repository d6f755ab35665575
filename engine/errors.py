"""The errors, all under one base, each with one sentence that says what happened and what to do.

EngineError
├── UsageError             an argument makes no sense; nothing was touched
│   └── UnknownImageError      the store has no image of that id
├── SourceError            a source of images cannot be read at all
│   └── MissingError           most of what a folder held is gone: its disk may be away
├── ImageError             one image cannot be read; an ingest reports it as a row and goes on
├── EncoderError           an encoder cannot be loaded or used
│   └── TrainingError      a training run cannot start or go on
└── StoreError             something about one store
    ├── StoreNotFoundError     there is no store at that path
    ├── StoreFormatError       it is not a store, or one that this version cannot read
    ├── StoreLockedError       another process writes to it
    └── StoreDamagedError      what is on disk contradicts itself
"""

from __future__ import annotations

from typing import Literal

Extra = Literal["train", "eval", "parquet", "test", "peers", "bench", "all"]


def how_to_install(extra: Extra) -> str:
    """What to type for what an error misses, as a user of the package and in a clone of its source."""
    return f"pip install 'image-index-engine[{extra}]', or in a clone: pip install -e '.[{extra}]'"


class EngineError(Exception):
    """The base of every error the engine raises on purpose; ``str(error)`` is one line."""


class UsageError(EngineError, ValueError):
    """An argument makes no sense; nothing was touched."""


class UnknownImageError(UsageError, KeyError):
    """The store has no image of that id; a ``KeyError`` too, as ``store[id]`` is expected to raise."""

    # A KeyError shows the repr of its key; this is a sentence.
    __str__ = Exception.__str__


class SourceError(EngineError):
    """A source of images cannot be read, or not to its end; ``retryable`` as of ``ImageError``."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class MissingError(SourceError):
    """Most of what a folder held is gone, as if its disk were away; nothing was removed."""


class ImageError(EngineError):
    """One image cannot be read; an ingest reports it as a row and goes on.

    ``retryable``: another try may succeed, with more memory or once somebody has mended what is in the
    way; else the image's bytes themselves are why, and an ingest tries again when they have changed.
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class EncoderError(EngineError):
    """An encoder cannot be loaded or used."""


class TrainingError(EncoderError):
    """A training run cannot start or go on."""


class StoreError(EngineError):
    """Something about one store."""


class StoreNotFoundError(StoreError):
    """There is no store at that path."""


class StoreFormatError(StoreError):
    """It is not a store, or it is one that this version cannot read."""


class StoreLockedError(StoreError):
    """Another process writes to the store."""


class StoreDamagedError(StoreError):
    """What is on disk contradicts itself; ``engine check`` says where."""
