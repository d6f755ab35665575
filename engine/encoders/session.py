"""Opens an ONNX model that is whole in one file, to be run on CPUs by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import cpu_count
from engine.encoders.external_data import has_external_data
from engine.errors import EncoderError


def open_session(content: bytes, model: Path, *, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` of the bytes of ``model``, on all cores by default.

    ``EncoderError`` where it is no model, or keeps weights in another file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.inter_op_num_threads = 1
    # The arena keeps the largest batch's memory for ever; batches here are small and alike.
    options.enable_cpu_mem_arena = False
    # Errors are raised too, and reported in one line.
    options.log_severity_level = 4
    try:
        external = has_external_data(content)
    except EncoderError as error:
        raise EncoderError(f"{model} cannot be loaded: {error}") from None
    if external:
        raise EncoderError(
            f"{model} keeps weights in another file, which is not read: save it as one "
            f"file (onnx.save with save_as_external_data=False)"
        )
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no error class of its own to name here
        raise EncoderError(f"{model} cannot be loaded: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())
