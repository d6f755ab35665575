"""``layer=``: an intermediate result of a network as the vector, such as "9" or "9:mean"."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import UsageError

TOKEN, MEAN = "token", "mean"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer by name or number, and how its result becomes one vector; None: as is usual for it."""

    name: str
    pool: str | None = None  # TOKEN, the class token; or MEAN, of the patches or of all places

    @property
    def number(self) -> int:
        """The layer's number; ``UsageError`` if it is not one."""
        try:
            return int(self.name)
        except ValueError:
            raise UsageError(
                f"layer= {self.name!r:.60} is not a number: write it like 9 or 9:mean"
            ) from None


def parse(text: str) -> Layer:
    """The layer that ``text`` names. Other colons than those before a pooling belong to the name."""
    name, colon, pool = text.rpartition(":")
    return Layer(name, pool) if colon and pool in (TOKEN, MEAN) else Layer(text)
