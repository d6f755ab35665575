"""What an importer is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.errors import Extra

PRECISIONS = ("auto", "int8", "fp32")

MAX_PICTURES = 256  # that calibrate an encoder

Images = npt.NDArray[np.uint8]  # (n, S, S, 3)
Picture = npt.NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Pictures of any size for the ranges of int8, and the words of ``encoder.json`` for them."""

    pictures: tuple[Picture, ...]
    described: str


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """One model to import; None is the model's own setting."""

    spec: str  # as the user names it, without "?" and what follows
    model: str  # the same without the prefix
    out: Path  # an empty folder to write into
    weights: Path | None = None
    layer: str | None = None
    precision: str = "auto"  # one of ``PRECISIONS``
    calibration: Calibration | None = None  # None: generated pictures
    image_size: int | None = None  # pixels a side
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: str | None = None  # as in ``encoder.json``, such as "crop-bicubic-antialias"
    shorter_side: int | None = None  # pixels
    name: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import wrote: the encoder in ``out``, and how well it agrees with the original model."""

    out: str
    name: str
    dim: int
    image_size: int  # pixels a side
    precision: str  # "int8" or "fp32": what runs
    reason: str  # why it is this one
    bytes: int  # of the model's file
    licence: str
    # As in ``encoder.json``: cosines and the overlap of neighbours, in the order they were measured.
    parity: dict[str, float | int | str] = field(default_factory=dict)
    # What a user should know, such as tensors that were matched by order.
    notes: tuple[str, ...] = ()


Import = Callable[[ImportRequest], ImportReport]


@dataclass(frozen=True, slots=True)
class Importer:
    """Models of one library, named ``PREFIX:MODEL``.

    ``load`` imports the library and returns the function that imports a model. ``libraries`` are the
    modules that must be installed, with the name of each package to ask pip for if no ``extra`` of the
    engine brings it.
    """

    what: str  # one line for the list of encoders
    example: str
    load: Callable[[], Import]
    libraries: tuple[str, ...] = ()
    extra: Extra | None = None  # of the engine, such as "import"
    text: bool = False  # whether its models also encode texts
    # The files of this machine that a MODEL is made of. It loads no library. None: no files.
    inputs: Callable[[str], Sequence[Path]] | None = None
