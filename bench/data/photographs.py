"""Finds photographs below folders, and draws them in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.errors import UsageError
from engine.images.pil_images import from_image
from engine.records import Kind

from ..harness.process import ROOT

PHOTOS = ROOT / "scripts" / "photos"  # in a checkout; an installed package has none
MIN_SIDE = 96  # pixels of a photograph
_MAX_PIXELS = 1 << 25
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def listed(folder: Path) -> list[Path]:
    """The photographs in a folder, by name; ``UsageError`` if there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one of photographs")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise UsageError(f"there is no photograph in {folder}: name another folder")
    return found


def sample(folders: Sequence[Path], most: int, seed: int) -> list[Path]:
    """A seeded sample of up to ``most`` opaque, 8-bit, large enough pictures below the folders."""
    found: list[Path] = []
    for path in shuffled(folders, seed):
        if len(found) == most:
            break
        if path.is_file() and _is_photograph(path):
            found.append(path)
    if not found:
        raise UsageError("there is no photograph in these folders: give others with --photos")
    return found


def shuffled(folders: Sequence[Path], seed: int) -> Iterator[Path]:
    """Every file below the folders with a picture's suffix, each once, in a seeded order."""
    every = sorted(
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES
    )
    return (every[i] for i in np.random.default_rng(seed).permutation(len(every)))


def _is_photograph(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            if min(image.size) < MIN_SIDE or image.width * image.height > _MAX_PIXELS:
                return False
            return not image.has_transparency_data and from_image(image).kind is Kind.U8
    except Exception:  # an unreadable file is not a photograph
        return False
