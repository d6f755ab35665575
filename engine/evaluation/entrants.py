"""The entrants of an evaluation, by name: encoders, networks and baselines, which make unit vectors.

simclr, a folder, a model    an encoder, as 'engine ingest --encoder' takes it: also a FILE.onnx
pixels, pdq, untrained       see ``baselines``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.encoders import named, registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.text import TextEncoder
from engine.encoders.text_tower import TextTower
from engine.errors import EncoderError, UsageError, how_to_install
from engine.evaluation import baselines
from engine.evaluation.baselines import Vectors
from engine.evaluation.pictures import Array


@dataclass(frozen=True, slots=True)
class Entrant:
    """One entrant. ``encode``: n pictures (H, W, 3) uint8 → (n, dim), of unit length or zero."""

    name: str
    what: str  # a description for the report
    dim: int
    encode: Callable[[Sequence[Array]], Vectors]
    # n texts → (n, dim), of unit length or zero; None without a text tower.
    encode_texts: Callable[[Sequence[str]], Vectors] | None = None


@dataclass(frozen=True, slots=True)
class AbsentEntrant:
    """An entrant that cannot take part on this machine, and the reason."""

    name: str
    reason: str


def find(spec: str, *, seed: int, device: str = "auto") -> Entrant | AbsentEntrant:
    """The entrant that ``spec`` names; ``EncoderError`` if there is none."""
    if spec == baselines.PIXELS:
        side = baselines.PIXELS_SIDE
        what = f"{side} × {side} pixels, colour and grey"
        return Entrant(spec, what, baselines.PIXELS_DIM, baselines.pixel_vectors)
    if spec == baselines.PDQ:
        what = "PDQ fingerprints, Hamming distance"
        return Entrant(spec, what, baselines.PDQ_DIM, baselines.pdq_vectors)
    if spec == baselines.UNTRAINED:
        return _untrained(seed)
    return _encoder(spec, device)


def find_all(
    specs: Sequence[str], *, seed: int, device: str = "auto"
) -> tuple[list[Entrant], list[AbsentEntrant]]:
    """All named entrants, with distinct names; ``UsageError`` if none can take part."""
    entrants: list[Entrant] = []
    absent: list[AbsentEntrant] = []
    for spec in dict.fromkeys(specs):
        found = find(spec, seed=seed, device=device)
        if isinstance(found, AbsentEntrant):
            absent.append(found)
            continue
        name, number = found.name, 2
        while name in {other.name for other in entrants}:
            name, number = f"{found.name}-{number}", number + 1
        entrants.append(replace(found, name=name))
    if not entrants:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in absent)
        raise UsageError(f"nothing to evaluate: {reasons or 'name at least one encoder'}")
    return entrants, absent


def _untrained(seed: int) -> Entrant | AbsentEntrant:
    try:
        dim, encode = baselines.untrained_network(seed)
    except ImportError as error:
        return AbsentEntrant(baselines.UNTRAINED, f"needs {error.name}: {how_to_install('train')}")
    size = baselines.UNTRAINED_SIZE
    what = f"ResNet-18 before training, {size} × {size} pixels"
    return Entrant(baselines.UNTRAINED, what, dim, encode)


def _encoder(spec: str, device: str) -> Entrant:
    model = named.model_named(spec)
    try:
        files = named.find(spec)
    except EncoderError as error:
        if Path(spec).is_dir() and not (Path(spec) / registry.DESCRIPTION).exists():
            raise EncoderError(
                f"{spec} holds no {registry.DESCRIPTION}: name a folder that 'engine train --out' "
                f"wrote in a finished training"
            ) from None
        if model is not None or Path(spec).exists():
            raise
        raise EncoderError(
            f"there is no encoder {spec!r}: name one of {', '.join(registry.names())}, a folder that "
            f"'engine train --out' wrote, a model to import such as a FILE.onnx, or a baseline: "
            f"{', '.join(baselines.BASELINES)}"
        ) from error
    encoder = OnnxEncoder(files, device=device)
    # The path of an encoder that ships says only where the engine is installed.
    what = f"{files.model.name}, shipped" if spec in registry.names() else str(files.model)
    if model is not None:
        what = f"{spec}, {files.description.get('default')}"
    resize = encoder.preprocessing.resize
    return Entrant(
        files.name,
        what,
        files.dim,
        lambda pictures: encoder.encode([resize(each) for each in pictures]),
        None if files.text is None else _text_encoder(files.text),
    )


def _text_encoder(tower: TextTower) -> Callable[[Sequence[str]], Vectors]:
    """A function that loads a text tower when it is called."""
    return lambda texts: TextEncoder(tower).encode(texts)
