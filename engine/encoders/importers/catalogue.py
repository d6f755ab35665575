"""The importers by prefix: those of the engine, and those of other packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import util
from typing import TYPE_CHECKING, cast

from engine.encoders.importers import onnx_inputs
from engine.encoders.importers.request import Import, Importer
from engine.errors import EncoderError, how_to_install

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "engine.encoders"
"""The group of entry points with importers of other packages."""


def _lazily(module: str, name: str) -> Callable[[], Import]:
    """A function that imports a module of this folder, and returns its function ``name``."""
    return lambda: cast(
        Import, getattr(importlib.import_module(f"engine.encoders.importers.{module}"), name)
    )


_TORCH = ("torch", "onnx", "onnxscript", "safetensors")

IMPORTERS: dict[str, Importer] = {
    "torchvision": Importer(
        "classification networks of torchvision, without their last layer",
        "torchvision:resnet50",
        _lazily("torchvision_models", "import_torchvision"),
        (*_TORCH, "torchvision"),
        "import",
    ),
    "timm": Importer(
        "networks of timm: DINOv2, DINOv3, DeiT, Swin, ViT, EfficientNet, MobileNet and many others",
        "timm:vit_small_patch14_dinov2",
        _lazily("timm_models", "import_timm"),
        (*_TORCH, "timm"),
        "import",
    ),
    "open-clip": Importer(
        "CLIP, SigLIP and others of open_clip, for pictures and texts",
        "open-clip:ViT-B-32/laion2b_s34b_b79k",
        _lazily("open_clip_models", "import_open_clip"),
        (*_TORCH, "open_clip", "tokenizers"),
        "import",
        text=True,
    ),
    "hf": Importer(
        "CLIP and SigLIP for pictures and texts, and DINOv2, from the hub or a folder in its layout",
        "hf:openai/clip-vit-base-patch32",
        _lazily("hf_models", "import_hf"),
        (*_TORCH, "transformers", "tokenizers"),
        "import",
        text=True,
    ),
    "onnx": Importer(
        "an ONNX file with one picture input",
        "onnx:FILE.onnx",
        _lazily("onnx_file", "import_onnx"),
        ("onnx",),
        "import",
        inputs=onnx_inputs.inputs,
    ),
}


def prefixes() -> list[str]:
    """The prefixes of all importers."""
    return [*IMPORTERS, *sorted(entry.name for entry in _plugins() if entry.name not in IMPORTERS)]


def find(prefix: str) -> Importer | None:
    """The importer of a prefix; None if there is none. ``EncoderError`` if a package's is broken."""
    if prefix in IMPORTERS:
        return IMPORTERS[prefix]
    entry = next((each for each in _plugins() if each.name == prefix), None)
    if entry is None:
        return None
    try:
        found = entry.load()
    # The package may raise anything.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"the importer {prefix}: of {entry.value} cannot be loaded: {why}"
        ) from None
    if not isinstance(found, Importer):
        raise EncoderError(f"{entry.value} is not an Importer, so {prefix}: cannot be used")
    return found


def missing_library(importer: Importer) -> str | None:
    """The first library of an importer that is not installed; None if all are."""
    return next((name for name in importer.libraries if not _is_installed(name)), None)


def how_to_get(importer: Importer) -> str | None:
    """What to install first, with the command; None if all is there."""
    name = missing_library(importer)
    if name is None:
        return None
    return f"{name}: {how_to_install(importer.extra) if importer.extra else f'pip install {name}'}"


def require_libraries(spec: str, importer: Importer) -> None:
    """``EncoderError`` that says what to install, if a library is missing."""
    missing = how_to_get(importer)
    if missing is not None:
        raise EncoderError(f"{spec} needs {missing}")


def versions(importer: Importer) -> dict[str, str]:
    """The version of each library of an importer that is installed."""
    from importlib import metadata

    found = {}
    for name in (*importer.libraries, "onnxruntime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _is_installed(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _plugins() -> list[EntryPoint]:
    # Loaded late: it takes as long as the rest of a lookup's start.
    from importlib import metadata

    return list(metadata.entry_points(group=GROUP))
