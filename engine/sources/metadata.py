"""What is said of an image beside its pixels: JSON, checked before it is kept."""

from __future__ import annotations

import json
from typing import Any

from engine.errors import ImageError

METADATA_LIMIT = 16 << 10  # bytes as JSON: it is read with every record
# Fields of metadata that say of which class an image is; the first that is there counts.
LABELS = ("label", "cls", "class", "category")
_DEEPEST = 32  # levels of objects and lists in metadata: readers go down them one by one


def checked_metadata(value: object) -> dict[str, Any] | None:
    """What is said of an image, as it is kept: a JSON object, at most 16 KiB; None if it is empty.

    Raises ``ImageError`` for anything else, for numbers that are not finite and text that is not
    Unicode.
    """
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ImageError("its metadata is not a JSON object with text for keys")
    try:
        text = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()  # no half of a character, as JSON may hold
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
