"""Writes an encoder folder from a torch module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from engine.encoders.importers.agreement import (
    INPUT,
    MIN_COSINE,
    OUTPUT,
    Vectors,
    min_cosine,
    run_model,
    unit,
)
from engine.encoders.importers.calibration import compared_images
from engine.encoders.importers.folder import FP32, ModelFacts, work_folder, write_folder
from engine.encoders.importers.request import Images, ImportReport, ImportRequest
from engine.errors import EncoderError
from engine.images.preprocessing import Preprocessing

OPSET = 18
# Networks have parts called "embedding" too, so the output gets its name after the export.
_MADE = "made_by_the_tower"


@dataclass(frozen=True, slots=True)
class TowerFacts:
    """What an importer knows of a tower. ``mean`` and ``std`` are for channel values from 0 to 1.

    The other fields are those of ``ModelFacts``.
    """

    name: str
    preprocessing: Preprocessing
    mean: Sequence[float]
    std: Sequence[float]
    source: dict[str, Any]
    licence: str
    notes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


class _FromPixels(nn.Module):
    """A tower that takes 8-bit pixels: casts, scales and normalises them itself."""

    scale: Tensor
    offset: Tensor

    def __init__(self, tower: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.tower = tower
        deviation = torch.tensor(list(std), dtype=torch.float32).view(1, 3, 1, 1)
        middle = torch.tensor(list(mean), dtype=torch.float32).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("offset", middle / deviation)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 RGB → (n, d) float32."""
        x = pixels.permute(0, 3, 1, 2).float() * self.scale - self.offset
        made: Tensor = self.tower(x)
        return made


def write_encoder(request: ImportRequest, tower: nn.Module, facts: TowerFacts) -> ImportReport:
    """Write the encoder of ``tower``, (n, 3, S, S) float32 normalised → (n, d), into ``request.out``.

    The written model is compared with ``tower``, for one picture at a time and for several.
    ``EncoderError`` if they differ, or if the tower cannot be exported.
    """
    # Weights in half precision are common, and run as float32 on CPUs.
    tower = copy.deepcopy(tower).float().cpu().eval().requires_grad_(False)
    size = facts.preprocessing.size
    path = work_folder(request.out) / FP32
    try:
        write_onnx(_FromPixels(tower, facts.mean, facts.std).eval(), path, size)
    except EncoderError as error:
        raise EncoderError(f"{request.spec} {error}") from None
    some = compared_images(facts.preprocessing)
    wanted = run_tower(tower, some, facts.mean, facts.std)
    if wanted.ndim != 2 or not np.isfinite(wanted).all():
        raise EncoderError(
            f"{request.spec} returned {wanted.shape} for {len(some)} pictures, or values that are no "
            f"numbers: choose another layer=, or check the weights"
        )
    cosine = min(_cosine(path, some, wanted), _cosine(path, some[:1], wanted[:1]))
    if not cosine >= MIN_COSINE:
        raise EncoderError(
            f"the ONNX file of {request.spec} and the network disagree (cosine {cosine:.5f}, "
            f"{MIN_COSINE} is needed): report the versions of torch and onnxruntime"
        )
    return write_folder(
        request,
        path,
        ModelFacts(
            facts.name,
            facts.preprocessing,
            facts.source,
            facts.licence,
            notes=facts.notes,
            more=facts.more,
            files=facts.files,
        ),
        {"fp32_torch_min_cosine": cosine},
    )


def run_tower(
    tower: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]
) -> Vectors:
    """(n, S, S, 3) uint8 → (n, d) float32 of unit length, by the tower itself."""
    middle, deviation = (np.asarray(values, np.float32) for values in (mean, std))
    x = torch.from_numpy(
        ((images.astype(np.float32) / 255 - middle) / deviation).transpose(0, 3, 1, 2)
    )
    with torch.inference_mode():
        made = tower(x.contiguous())
    if not isinstance(made, Tensor):
        raise EncoderError(f"the network returned {type(made).__name__}, not a tensor of vectors")
    found = made.float().numpy()
    return unit(found) if found.ndim == 2 else found


def write_onnx(
    module: nn.Module,
    path: Path,
    size: int = 0,
    *,
    example: Tensor | None = None,
    input_name: str = INPUT,
) -> None:
    """Write a module of one input as an ONNX file whose first dimension is free.

    The input is ``example``, or (n, size, size, 3) uint8. ``EncoderError`` if torch cannot export it.
    """
    if example is None:
        example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        model = _exported(module, example, input_name)
    _name_batch(model.graph)
    _name_output(model.graph)
    # Remove the Python source lines from the nodes.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    try:
        onnx.checker.check_model(model)
        onnx.save(model, path)
    except (ValueError, onnx.checker.ValidationError) as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"cannot be saved as one ONNX file: {why}") from None


def _exported(module: nn.Module, example: Tensor, input_name: str) -> Any:
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
        )
        made = torch.onnx.export(
            program,
            (),
            input_names=[input_name],
            output_names=[_MADE],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    # torch raises many kinds of errors for code that it cannot trace.
    except Exception as error:
        why = " ".join(str(error.__cause__ or error).split())[:300]
        raise EncoderError(f"cannot be exported to ONNX: {why}") from None
    if made is None:
        raise EncoderError("cannot be exported to ONNX: update torch and onnxscript")
    return made.model_proto


def _name_batch(graph: Any) -> None:
    """Call the free dimension "n", which torch names by a number."""
    old = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if old and dimension.dim_param == old:
                dimension.dim_param = "n"


def _name_output(graph: Any) -> None:
    """Call the output "embedding", and give other values of that name another."""
    names = {OUTPUT: f"{OUTPUT}_inside", _MADE: OUTPUT}
    for value in (*graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _cosine(path: Path, images: Images, wanted: Vectors) -> float:
    try:
        return min_cosine(run_model(path, images), wanted)
    # ONNX Runtime has no error class of its own.
    except Exception:
        return float("nan")
