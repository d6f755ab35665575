"""``import_encoder``: makes an encoder's folder from a model of another library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.api.paths import folder_named, source_names
from engine.config import cpu_count
from engine.encoders.importers import specs
from engine.encoders.importers.request import MAX_PICTURES, Calibration, ImportReport
from engine.encoders.importers.run import import_model
from engine.encoders.importers.specs import ImportSettings
from engine.errors import UsageError
from engine.evaluation.pictures import Stream, choose

_SEED = 0


def import_encoder(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    precision: str = "auto",
    calibrate: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: str | None = None,
    shorter_side: int | None = None,
    name: str | None = None,
    licence: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> ImportReport:
    """Make the encoder of a model of another library, in ``out``, a new or empty folder.

    ``model`` is "timm:NAME", "torchvision:NAME" or a FILE.onnx. Other packages may add prefixes.
    ``weights``: a file of weights, .safetensors, or a PyTorch checkpoint, of which no code is run; else
    the library downloads them. ``layer``: an inner layer as the vector, such as "9" or "9:mean", for
    the class token or the mean of the patches. ``precision``: "int8", "fp32", or "auto", which is int8
    if that is faster and finds nine of the ten nearest pictures that fp32 finds. ``calibrate``: sources
    of pictures that show the ranges for int8, and are compared; by default they are generated.

    The other arguments replace the model's own: ``image_size`` in pixels a side, ``mean`` and ``std`` of
    red, green and blue for channel values from 0 to 1, ``resize`` such as "crop-bicubic" or
    "squash-bilinear", and ``shorter_side``, the pixels to which the shorter side is resized before the
    middle is cut out. ``name`` and ``licence`` are what the encoder says of itself.

    ``progress(done, total)`` is called as calibration pictures are read. Raises ``EncoderError`` if the
    model cannot be imported, and ``UsageError``.
    """
    text = _path_or_text(model, "model=")
    spec = specs.parse(text)
    if spec is None:
        raise UsageError(
            f"{text!r:.80} is not a model to import: write timm:NAME, torchvision:NAME or FILE.onnx"
        )
    file = None if weights is None else _path_or_text(weights, "weights=")
    settings = ImportSettings(
        weights=None if file is None else os.path.abspath(file),  # noqa: PTH100
        layer=layer,
        precision=precision,
        image_size=image_size,
        mean=None if mean is None else specs.three(mean, "mean="),
        std=None if std is None else specs.three(std, "std="),
        resize=resize,
        shorter_side=shorter_side,
        name=name,
        licence=licence,
    )
    folder = folder_named(out)
    pictures = None if calibrate is None else _calibration(source_names(calibrate), progress)
    return import_model(specs.merged(spec, settings), folder, pictures)


def _path_or_text(value: object, name: str) -> str:
    try:
        found = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if not isinstance(found, str) or "\0" in found:
        raise UsageError(f"{name} must be a text or a path, not {value!r:.60}")
    return found


def _calibration(
    names: list[str], progress: Callable[[int, int | None], None] | None
) -> Calibration:
    """Some pictures of the sources; unreadable ones are left out."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        stream = Stream(names, pool)
        chosen = choose(stream.names(), MAX_PICTURES, _SEED)
        found = []
        for done, picture in enumerate(stream(chosen.__contains__), 1):
            if picture.rgb is not None:
                found.append(picture.rgb)
            if progress is not None:
                progress(done, len(chosen))
    if not found:
        raise UsageError(f"calibrate= {', '.join(names)} holds no pictures that can be read")
    # The places of other people's pictures are nobody's business.
    described = ", ".join(Path(each).name or each for each in names)
    return Calibration(tuple(found), f"{len(found)} pictures of {described}")
