"""Shell completion for the values of options: tiers, recipes and encoders by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

_MAX_LOOKED_AT = 10_000  # files of a folder

TIERS = ("identical", "near", "similar")
RECIPES = ("report", "small", "large")
BASELINES = ("pixels", "pdq", "untrained")


def one_of(*names: str) -> Callable[[str], list[str]]:
    """A function that completes one of ``names``."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, names)

    return complete


def tiers(incomplete: str) -> list[str]:
    """Complete the last tier of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    left = [tier for tier in TIERS if tier not in named]
    return [before + comma + tier for tier in _beginning(last, left)]


def encoders(*others: str, suffix: str = "") -> Callable[[str], list[str]]:
    """A function that completes installed encoders, folders that hold one, and ``others``.

    Files that end in ``suffix`` are encoders too.
    """

    def complete(incomplete: str) -> list[str]:
        from engine.encoders import registry

        names = _beginning(incomplete, [*registry.names(), *others])
        return names + _encoder_paths(incomplete, registry.DESCRIPTION, suffix)

    return complete


def _encoder_paths(incomplete: str, description: str, suffix: str) -> list[str]:
    """Folders with an encoder, files that are one, and other folders with a trailing slash."""
    before, slash, last = incomplete.rpartition("/")
    folder = Path(before + slash)
    found = []
    try:
        for path in islice(folder.iterdir(), _MAX_LOOKED_AT):
            if not path.name.startswith(last) or (path.name[0] == "." and not last):
                continue
            named = before + slash + path.name
            if path.is_dir():
                found.append(named if (path / description).is_file() else f"{named}/")
            elif suffix and path.suffix == suffix:
                found.append(named)
    except OSError:
        return []
    return sorted(found)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
