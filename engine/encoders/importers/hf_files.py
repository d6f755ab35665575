"""Reads the files of a model in the layout of the Hugging Face hub, and downloads them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from PIL import Image

from engine.encoders.importers import preprocess, weights
from engine.encoders.text_tower import plain_contents
from engine.errors import EncoderError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
_MAX_JSON = 1 << 20  # bytes of a description
_MAX_TOKENIZER = 64 << 20  # bytes
_MAX_README = 1 << 20  # bytes
_SMALL = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "README.md",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PARTS = {_SAFETENSORS: "model-*.safetensors", _PICKLES: "pytorch_model-*.bin"}
# Pillow's numbers of interpolations, in the words of ``encoder.json``.
_INTERPOLATIONS = {
    Image.Resampling.BILINEAR.value: "bilinear",
    Image.Resampling.BICUBIC.value: "bicubic",
    Image.Resampling.LANCZOS.value: "lanczos",
}


def is_name(text: str) -> bool:
    """Whether ``text`` may be the name of a model of the hub."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def download(name: str, revision: str | None) -> Path:
    """The folder with the files of a model of the hub; raises what the library raises."""
    with quiet():
        for files, parts in _PARTS.items():
            folder = Path(
                huggingface_hub.snapshot_download(
                    name, revision=revision, allow_patterns=[*_SMALL, *files, parts]
                )
            )
            if any((folder / file).exists() for file in files):
                break
    return folder


def require_weights(folder: Path, spec: str) -> None:
    """``EncoderError`` if a folder holds no weights."""
    if not any((folder / name).is_file() for name in (*_SAFETENSORS, *_PICKLES)):
        raise EncoderError(
            f"{spec} holds no weights: it needs {_SAFETENSORS[0]}, as save_pretrained() writes it"
        )


def describe(folder: Path) -> dict[str, str]:
    """The origin of the weights of a folder: the file's name and SHA-256."""
    for name in (*_SAFETENSORS, *_PICKLES):
        if (folder / name).is_file():
            return weights.describe(folder / name)
    return {}


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file; ``EncoderError`` if there is none."""
    path = folder / name
    try:
        body = json.loads(plain_contents(folder)(name, _MAX_JSON))
    except OSError as error:
        raise EncoderError(
            f"{path} cannot be read ({error.strerror}): a model in the hub's layout has this file"
        ) from None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise EncoderError(f"{path} is not a JSON object: download the model again")
    return body


def preprocessing(folder: Path) -> preprocess.Defaults:
    """What ``preprocessor_config.json`` says; ``EncoderError`` if it makes no sense."""
    body = read_json(folder, "preprocessor_config.json")
    try:
        return _defaults(body)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise EncoderError(
            f"{folder / 'preprocessor_config.json'} does not say how pictures are resized and "
            f"normalised: download the model again"
        ) from None


def _defaults(body: dict[str, Any]) -> preprocess.Defaults:
    size, crop = body["size"], body.get("crop_size")
    shorter: int | None = None
    if isinstance(size, int) or "shortest_edge" in size:
        shorter = int(size if isinstance(size, int) else size["shortest_edge"])
        squashes = isinstance(size, int) and not body.get("do_center_crop", False)
        side = shorter
        if body.get("do_center_crop", True) and crop is not None:
            side = _side(crop)
        shorter = None if squashes else max(shorter, side)
    else:
        side = _side(size)
        if body.get("do_center_crop") and crop is not None and _side(crop) != side:
            shorter, side = max(side, _side(crop)), _side(crop)
    factor = (
        float(body.get("rescale_factor", 1 / 255)) * 255 if body.get("do_rescale", True) else 255.0
    )
    if not factor > 0:
        raise ValueError("rescale_factor")
    mean, std = body.get("image_mean", (0.0,) * 3), body.get("image_std", (1.0,) * 3)
    if not body.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    return preprocess.Defaults(
        size=side,
        shorter_side=shorter,
        interpolation=_INTERPOLATIONS.get(body.get("resample", 3), "bicubic"),
        # They apply to channel values from 0 to ``factor``.
        mean=tuple(float(value) / factor for value in mean),
        std=tuple(float(value) / factor for value in std),
    )


def _side(size: Any) -> int:
    """The side of a square, written as a number or as a height and a width."""
    if isinstance(size, dict):
        height, width = int(size["height"]), int(size["width"])
        if height != width:
            raise ValueError("the input is not square")
        return height
    return int(size)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has what a fast tokenizer is made from."""
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def tokenizers(folder: Path, own: Any) -> list[bytes]:
    """The contents that may be the ``tokenizer.json``: that of the library's tokenizer, and the file."""
    found = []
    backend = getattr(own, "backend_tokenizer", None)
    if backend is not None:
        found.append(backend.to_str().encode("utf-8"))
    try:
        found.append(plain_contents(folder)("tokenizer.json", _MAX_TOKENIZER))
    except OSError as error:
        if not found:
            raise EncoderError(
                f"{folder / 'tokenizer.json'} cannot be read: {error.strerror}"
            ) from None
    return found


def licence(folder: Path) -> str | None:
    """The licence in the head of a model's README.md, if there is one."""
    try:
        text = plain_contents(folder)("README.md", _MAX_README).decode("utf-8", "replace")
    except OSError:
        return None
    head = text[3:].partition("\n---")[0] if text.startswith("---") else ""
    found = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9.+-]{1,60})", head, re.MULTILINE)
    return found[1] if found else None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and reports that the libraries print."""
    # The library's functions have no types.
    own: Any = transformers.logging
    level = own.get_verbosity()
    bars = own.is_progress_bar_enabled()
    own.set_verbosity(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()
