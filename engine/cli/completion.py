"""What a shell offers for the values of options: tiers, recipes and encoders by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

_MAX_LOOKED_AT = 10_000  # files of a folder

TIERS = ("identical", "near", "similar")
RECIPES = ("report", "small", "large")
BASELINES = ("pixels", "pdq", "untrained")


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Completes one of some names."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, names)

    return complete


def tiers(incomplete: str) -> list[str]:
    """Completes the last of some tiers, which have commas between them."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    left = [tier for tier in TIERS if tier not in named]
    return [before + comma + tier for tier in _beginning(last, left)]


def encoders(*others: str) -> Callable[[str], list[str]]:
    """Completes the encoders that come with the engine, folders that hold one, and ``others``."""

    def complete(incomplete: str) -> list[str]:
        from engine.encoders import registry

        names = _beginning(incomplete, [*registry.names(), *others])
        return names + _encoder_folders(incomplete, registry.DESCRIPTION)

    return complete


def _encoder_folders(incomplete: str, description: str) -> list[str]:
    """Folders with an encoder, and, to go on with, the others with a slash behind."""
    before, slash, last = incomplete.rpartition("/")
    folder = Path(before + slash)
    found = []
    try:
        for path in islice(folder.iterdir(), _MAX_LOOKED_AT):
            if path.name.startswith(last) and (last or path.name[0] != ".") and path.is_dir():
                is_encoder = (path / description).is_file()
                found.append(before + slash + path.name + ("" if is_encoder else "/"))
    except OSError:
        return []
    return sorted(found)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
