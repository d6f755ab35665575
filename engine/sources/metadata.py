"""Checks the metadata of images, JSON objects, before it is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from engine.errors import ImageError

METADATA_LIMIT = 16 << 10  # bytes as JSON, small because it is read with every record
# Fields of metadata that name an image's class; the first one present counts.
LABELS = ("label", "cls", "class", "category")
# Fields with an image's caption; the first one present counts.
CAPTIONS = ("caption", "captions", "text", "txt")
_DEEPEST = 32  # levels of objects and lists; readers recurse into them


def checked_metadata(value: object) -> dict[str, Any] | None:
    """The metadata to store: a JSON object of at most 16 KiB; None if it is empty.

    Raises ``ImageError`` for anything else, for numbers that are not finite and for text that is not
    valid Unicode.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ImageError("its metadata is not a JSON object with text for keys")
    try:
        text = json.dumps(value, allow_nan=False, default=_plain)
        # This fails for lone surrogates, which JSON may hold.
        json.dumps(value, ensure_ascii=False, default=_plain).encode()
        if len(text) > METADATA_LIMIT:
            raise ImageError(
                f"its metadata of {len(text):,} bytes is over the limit of {METADATA_LIMIT:,}"
            )
        found: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"its metadata is not a JSON object: {error}") from None
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        inside = [part.values() if isinstance(part, dict) else part for part in level]
        level = [part for parts in inside for part in parts if isinstance(part, dict | list)]
    if level:
        raise ImageError(f"its metadata has more than {_DEEPEST} levels")
    return found or None


def _plain(value: object) -> object:
    """A NumPy number as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
