"""Makes an int8 model of an fp32 one, with ranges from calibration images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization

PERCENTILE = 99.999
# All operators but the normalisation of the input, which stays float.
QUANTIZED = ["Add", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "ReduceMean", "Relu"]
_BATCH = 32

Images = npt.NDArray[np.uint8]


def quantise(
    prepared: Path, path: Path, calibration: Images, method: str, *, input_name: str
) -> None:
    """Write the int8 model of ``prepared`` to ``path``: static, per channel, u8 activations, i8 weights.

    ``calibration`` is (n, S, S, 3) uint8, and ``method`` is the way to find the ranges.

    The last layer stays float, because 8 bits would round its output, the embedding, once more.
    ``reduce_range`` limits weights to 7 bits. x86 CPUs without VNNI add two products in 16 bits, which
    8-bit weights would saturate.
    """
    with _quiet():
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Calibration(calibration, input_name),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
            nodes_to_exclude=[_last_layer(prepared)],
            # A stride of one batch, so that not the activations of all images are in memory at once.
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1},
        )
    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    # The quantizer imports every opset that it knows.
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _last_layer(path: Path) -> str:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return str([node.name for node in nodes if node.op_type == "Gemm"][-1])


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

    def __init__(self, images: Images, input_name: str) -> None:
        self._input_name = input_name
        self._all = in_batches(images)
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


def in_batches(images: Images) -> list[Images]:
    """The images in batches."""
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
