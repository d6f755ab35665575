"""Makes an int8 model of an fp32 one, with ranges from calibration images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from engine.encoders.importers.agreement import (
    INPUT,
    MIN_OVERLAP,
    Vectors,
    agreement,
    batch_of,
    in_batches,
    run_model,
)
from engine.encoders.importers.request import Images

PERCENTILE = 99.999
METHODS = ("MinMax", "Percentile")
# Of a convolutional network all operators but the normalisation of the input, which stays float.
_CONVOLUTIONAL = [
    *("Add", "Clip", "Conv", "Gemm", "GlobalAveragePool"),
    *("MatMul", "MaxPool", "ReduceMean", "Relu"),
]
# Of a transformer the layers with weights. Their outputs, the attention, the normalisations and the
# activations between them stay float: outliers there would lose too much.
_TRANSFORMER = ["Gemm", "MatMul"]
_TRANSFORMER_SIGNS = {"LayerNormalization", "Softmax", "SkipLayerNormalization", "Erf"}


def prepare(fp32: Path, prepared: Path) -> None:
    """Write ``fp32`` with shapes inferred and nodes fused, as ``quantise`` takes it."""
    with _quiet():
        shape_inference.quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)


def quantise(
    prepared: Path,
    path: Path,
    calibration: Images,
    method: str,
    *,
    input_name: str,
    batch: int = 32,
    float_layers: int = 0,
) -> None:
    """Write the int8 model of ``prepared`` to ``path``: static, per channel, u8 activations, i8 weights.

    ``calibration`` is (n, S, S, 3) uint8, run ``batch`` at a time, and ``method`` (of ``METHODS``) is
    the way to find the ranges.

    The first ``float_layers`` convolutions stay float: in some networks, their few channels have
    ranges so different that 8 bits lose much. The last layer stays float, because 8 bits would round
    its output, the embedding, once more.
    ``reduce_range`` limits weights to 7 bits. x86 CPUs without VNNI add two products in 16 bits, which
    8-bit weights would saturate.
    """
    graph = onnx.load(prepared, load_external_data=False).graph
    is_transformer = any(node.op_type in _TRANSFORMER_SIGNS for node in graph.node)
    kinds = _TRANSFORMER if is_transformer else _CONVOLUTIONAL
    excluded = _last_layers(graph, kinds) | set(_convolutions(graph)[:float_layers])
    # A stride of one batch, so that not the activations of all images are in memory at once.
    options: dict[str, Any] = {"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1}
    if is_transformer:
        excluded |= _without_weights(graph)
        options["OpTypesToExcludeOutputQuantization"] = _TRANSFORMER
    with _quiet():
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Calibration(calibration, input_name, batch),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
            nodes_to_exclude=sorted(excluded),
            extra_options=options,
        )
    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    # The quantizer imports every opset that it knows.
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _convolutions(graph: Any) -> list[str]:
    return [node.name for node in graph.node if node.op_type == "Conv"]


def _last_layers(graph: Any, kinds: list[str]) -> set[str]:
    """The nodes whose results reach the output through no other node that would be quantised."""
    made_by = {output: node for node in graph.node for output in node.output}
    ends: set[str] = set()
    seen: set[str] = set()
    waiting = [output.name for output in graph.output]
    while waiting:
        value = waiting.pop()
        node = made_by.get(value)
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type in kinds:
            ends.add(node.name)
        else:
            waiting += node.input
    return ends


def _without_weights(graph: Any) -> set[str]:
    """The products of two activations, as in attention."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {
        output for node in graph.node if node.op_type == "Constant" for output in node.output
    }
    return {
        node.name
        for node in graph.node
        if node.op_type in _TRANSFORMER and node.input[1] not in constants
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's prints and advice off standard output and the logs."""
    root = logging.getLogger()
    root.addFilter(_is_error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibration images in batches, within the range of ``set_range``."""

    def __init__(self, images: Images, input_name: str, batch: int) -> None:
        self._input_name = input_name
        self._all = in_batches(images, batch)
        self._rest = iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start over with the batches from ``start_index`` up to ``end_index``."""
        self._rest = iter(self._all[start_index:end_index])

    def get_next(self) -> dict[str, Images] | None:
        """The next batch, or None at the end."""
        batch = next(self._rest, None)
        return None if batch is None else {self._input_name: batch}


@dataclass(frozen=True, slots=True)
class Int8:
    """An int8 model, and how well it agrees with the fp32 one."""

    method: str  # that found its ranges, in small letters
    mean_cosine: float
    overlap: float  # of the ten nearest
    float_layers: int  # first layers that stayed float


def write_int8(
    fp32: Path,
    int8: Path,
    calibration: Images,
    test: Images,
    reference: Vectors,
    *,
    batch: int = 0,
    float_layers: Sequence[int] = (0,),
) -> Int8:
    """Quantise ``fp32`` with each method of finding ranges; keep the one that agrees best with it.

    ``calibration`` and ``test`` are (n, S, S, 3) uint8. ``reference``, (n, dim) of unit length, is what
    ``fp32`` makes of ``test``. ``batch``: how many images the model takes at a time, if it is fixed.
    ``float_layers``: numbers of first layers to leave float, tried in order until one agrees well
    enough. Temporary files lie beside ``int8``.
    """
    batch = batch or batch_of(calibration.shape[1])
    prepared = int8.with_name("prepared.onnx")
    prepare(fp32, prepared)
    has_convolutions = len(_convolutions(onnx.load(prepared).graph)) > max(float_layers)
    best: Int8 | None = None
    for kept in float_layers if has_convolutions else (0,):
        for method in METHODS:
            path = int8.with_name(f"{method}.onnx")
            settings: dict[str, Any] = {"input_name": INPUT, "batch": batch, "float_layers": kept}
            quantise(prepared, path, calibration, method, **settings)
            cosine, overlap = agreement(reference, run_model(path, test, batch))
            if best is None or (cosine, overlap) > (best.mean_cosine, best.overlap):
                best = Int8(method.lower(), cosine, overlap, kept)
                path.replace(int8)
            path.unlink(missing_ok=True)
        if best is not None and best.overlap >= MIN_OVERLAP:
            break
    prepared.unlink()
    assert best is not None
    return best
