"""Opens an ONNX model in a single file, to run on CPUs with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import cpu_count
from engine.encoders.external_data import has_external_data
from engine.errors import EncoderError


def open_session(content: bytes, model: Path, *, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` for ``content``, the bytes of ``model``; all cores by default.

    ``EncoderError`` if it is not a model, or keeps weights in another file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait double the CPU time of a lookup, and take it from threads that
    # decode. They would make a single lookup 2 to 4 % faster, and lookups in batches 5 % slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena would keep the memory of the largest batch. Batches here are small and of equal size.
    options.enable_cpu_mem_arena = False
    # Do not log errors, which are also raised.
    options.log_severity_level = 4
    try:
        external = has_external_data(content)
    except EncoderError as error:
        raise EncoderError(f"{model} cannot be loaded: {error}") from None
    if external:
        raise EncoderError(
            f"{model} keeps weights in another file, which is not read: save it as one file "
            f"(onnx.save with save_as_external_data=False)"
        )
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has no error class of its own.
    except Exception as error:
        raise EncoderError(f"{model} cannot be loaded: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())
