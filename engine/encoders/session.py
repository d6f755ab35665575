"""Opens an ONNX model in a single file, to run with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import cpu_count
from engine.encoders.external_data import has_external_data
from engine.errors import EncoderError, UsageError

DEVICES = ("auto", "cpu", "cuda")
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def check_device(device: str) -> str:
    """The device; ``UsageError`` if it is none of ``DEVICES``."""
    if device not in DEVICES:
        raise UsageError(f"device= is one of {', '.join(DEVICES)}, not {device!r:.60}")
    return device


def open_session(
    content: bytes, model: Path, *, threads: int | None = None, device: str = "cpu"
) -> Any:
    """An ``onnxruntime.InferenceSession`` for ``content``, the bytes of ``model``; all cores by default.

    ``device``: "cpu", "cuda" for a GPU of Nvidia, or "auto" for that if it can be used. ``EncoderError``
    if it is not a model, keeps weights in another file, or if the device cannot be used.
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
    # On a GPU it is tried first, because "auto" falls back to the CPU.
    if device != "cpu":
        found = _on_gpu(content, options)
        if found is not None:
            return found
        if device == "cuda":
            raise EncoderError(f"device= cuda cannot be used: {_why_no_gpu()}")
    try:
        return onnxruntime.InferenceSession(content, options, providers=[_CPU])
    # ONNX Runtime has no error class of its own.
    except Exception as error:
        raise EncoderError(f"{model} cannot be loaded: {one_line(error)}") from None


def _on_gpu(content: bytes, options: Any) -> Any:
    """A session on the GPU; None if there is none that can be used."""
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return None
    try:
        found = onnxruntime.InferenceSession(content, options, providers=[_CUDA, _CPU])
    # ONNX Runtime has no error class of its own. What is wrong with a model, the CPU says.
    except Exception:
        return None
    # ONNX Runtime leaves a device out that it cannot start.
    return found if _CUDA in found.get_providers() else None


def _why_no_gpu() -> str:
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return (
            "the installed onnxruntime has no support for it: pip install onnxruntime-gpu instead of "
            "onnxruntime, or use device= cpu"
        )
    return "ONNX Runtime cannot start it: check the driver and CUDA's libraries, or use device= cpu"


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())
