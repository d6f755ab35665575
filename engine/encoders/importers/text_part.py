"""Writes the text tower of an imported model: its ONNX file, its tokenizer, and their description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from engine.encoders.importers.agreement import (
    MIN_COSINE,
    OUTPUT,
    Vectors,
    min_cosine,
    open_model,
    unit,
)
from engine.encoders.importers.folder import work_folder
from engine.encoders.importers.request import ImportRequest
from engine.encoders.importers.tower import write_onnx
from engine.encoders.tokenizer import Tokenizer
from engine.errors import EncoderError

MODEL, TOKENIZER = "text.onnx", "tokenizer.json"
_INPUT = "ids"
# Texts that are compared: of one word and of many, of several scripts, with signs.
TEXTS = (
    "a red bicycle",
    "Cat",
    "A photo of two dogs, and a cat's bowl.",
    "don't: 3.50 €, 100% (maybe)",
    "“quotes” – a café, naïve",
    "ein großer Löwe",
    "猫の写真",
    "красный велосипед",
    "🙂 smile",
    "a long description of a scene in a city " * 20,
)
# In a tokenizer.json, what big_vision does to each text of SigLIP.
CANONICAL: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    {
        "type": "Replace",
        "pattern": {"Regex": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]\^`{|}~]"""},
        "content": "",
    },
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": True, "strip_right": True},
)

LibraryIds = Callable[[Sequence[str]], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class TextPart:
    """The text tower for ``TowerFacts``: a field of ``encoder.json``, and the files that it names."""

    more: Mapping[str, Any]
    files: Mapping[str, Path]


def write_text_part(
    request: ImportRequest,
    tower: nn.Module,
    tokenizer: bytes,
    *,
    context: int,
    pad_id: int,
    library_ids: LibraryIds,
) -> TextPart:
    """Write ``tower``, (n, context) int64 → (n, d), and its ``tokenizer.json``.

    The ids of some texts are compared with ``library_ids``, and their vectors with those of ``tower``.
    ``EncoderError`` if they differ, or if the tower cannot be exported.
    """
    work = work_folder(request.out)
    try:
        loaded = Tokenizer(tokenizer, Path(TOKENIZER), context=context, pad_id=pad_id)
        ids, _ = loaded.ids(TEXTS)
    except EncoderError as error:
        raise EncoderError(f"the tokenizer of {request.spec}: {error}") from None
    for text, own, wanted in zip(TEXTS, ids, library_ids(TEXTS), strict=True):
        if not np.array_equal(own, wanted):
            raise EncoderError(
                f"the tokenizer of {request.spec} cannot be written as {TOKENIZER}: the text "
                f"{text[:40]!r} has other ids"
            )
    tower = tower.float().cpu().eval().requires_grad_(False)
    model = work / MODEL
    example = torch.from_numpy(ids[:2].copy())
    try:
        write_onnx(tower, model, example=example, input_name=_INPUT)
    except EncoderError as error:
        raise EncoderError(f"the text tower of {request.spec} {error}") from None
    cosine = _compared(request, tower, model, ids, loaded.max_id)
    (work / TOKENIZER).write_bytes(tokenizer)
    described = {
        "path": MODEL,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "tokenizer": {"path": TOKENIZER, "sha256": hashlib.sha256(tokenizer).hexdigest()},
        "context": context,
        "pad_id": pad_id,
        "parity": {"fp32_torch_min_cosine": cosine},
    }
    return TextPart({"text": described}, {name: work / name for name in (MODEL, TOKENIZER)})


def with_canonical_texts(tokenizer: bytes) -> bytes:
    """The ``tokenizer.json`` with the steps of ``CANONICAL`` before its own."""
    body = json.loads(tokenizer)
    own = body.get("normalizer")
    steps = [*CANONICAL, *([own] if own else [])]
    body["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _compared(
    request: ImportRequest,
    tower: nn.Module,
    model: Path,
    ids: npt.NDArray[np.int64],
    max_id: int,
) -> float:
    """The least cosine between the vectors of the tower and of the ONNX file."""
    with torch.inference_mode():
        made = tower(torch.from_numpy(ids))
    wanted = unit(made.float().numpy())
    if wanted.ndim != 2 or not np.isfinite(wanted).all():
        raise EncoderError(
            f"the text tower of {request.spec} does not return vectors of numbers: its weights may be "
            f"damaged"
        )
    session = open_model(model)

    def run(some: npt.NDArray[np.int64]) -> Vectors:
        return unit(session.run([OUTPUT], {_INPUT: some})[0])

    try:
        alone = np.concatenate([run(row[None]) for row in ids])
        cosine = min(min_cosine(run(ids), wanted), min_cosine(alone, wanted))
    # ONNX Runtime has no error class of its own.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"the text tower of {request.spec} cannot be run: {why}") from None
    if not cosine >= MIN_COSINE:
        raise EncoderError(
            f"the ONNX file of {request.spec}'s text tower and the network disagree (cosine "
            f"{cosine:.5f}, {MIN_COSINE} is needed): report the versions of torch and onnxruntime"
        )
    try:
        run(np.full((1, ids.shape[1]), max_id, np.int64))
    except Exception:
        raise EncoderError(
            f"the tokenizer of {request.spec} has more tokens than its text tower: it may be of "
            f"another model"
        ) from None
    return cosine
