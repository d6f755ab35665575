"""Runs an encoder on CPUs with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import cpu_count
from engine.encoders.external import has_external_data
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError
from engine.pixels import squash

_SOON = 0.1  # seconds


class EncodingStoppedError(Exception):
    """Whoever asked for vectors does not want them any more."""


class OnnxEncoder:
    """A loaded encoder: pictures (H, W, 3) uint8 of any size to (n, dim) float32 unit vectors."""

    def __init__(self, files: EncoderFiles, *, threads: int | None = None) -> None:
        import onnxruntime

        self.dim = files.dim
        self.image_size = files.image_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpu_count()
        options.inter_op_num_threads = 1
        # The arena keeps the largest batch's memory for ever; batches here are small and alike.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            external = has_external_data(files.content)
        except EncoderError as error:
            raise EncoderError(f"{files.model} cannot be loaded: {error}") from None
        if external:
            raise EncoderError(
                f"{files.model} keeps weights in another file, which is not read: save it as one "
                f"file (onnx.save with save_as_external_data=False)"
            )
        try:
            self._session: Any = onnxruntime.InferenceSession(
                files.content, options, providers=["CPUExecutionProvider"]
            )
            inputs = [(i.name, i.shape[1:]) for i in self._session.get_inputs()]
            outputs = [(o.name, o.shape[1:]) for o in self._session.get_outputs()]
        except Exception as error:  # ONNX Runtime has no error class of its own to name here
            reason = " ".join(str(error).split())
            raise EncoderError(f"{files.model} cannot be loaded: {reason}") from None
        side = files.image_size
        if inputs != [("pixels", [side, side, 3])] or outputs != [("embedding", [self.dim])]:
            raise EncoderError(
                f"{files.model} is not what encoder.json says: an encoder of {side} × {side} "
                f"pixels to {self.dim} dimensions"
            )

    def encode(
        self, pictures: Sequence[npt.NDArray[np.uint8]], stop: Callable[[], bool] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed pictures; returns (len(pictures), dim) float32, each row of unit length.

        ``stop`` is asked now and then while the model runs; raises ``EncodingStoppedError`` once it
        says so.
        """
        if not pictures:
            return np.empty((0, self.dim), np.float32)
        batch = np.stack([squash(picture, self.image_size) for picture in pictures])
        vectors: npt.NDArray[np.float32] = self._run(batch, stop)[0]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or (norms == 0).any():
            raise EncoderError("the encoder gave a vector that is zero or not finite")
        unit: npt.NDArray[np.float32] = vectors / norms
        return unit

    def _run(self, batch: npt.NDArray[np.uint8], stop: Callable[[], bool] | None) -> Any:
        if stop is None:
            return self._session.run(["embedding"], {"pixels": batch})
        import onnxruntime

        # A model may loop for ever. Another thread can end its run between two of its nodes.
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # that it was ended is no error
        with ThreadPoolExecutor(1, thread_name_prefix="engine-encode") as pool:
            running = pool.submit(self._session.run, ["embedding"], {"pixels": batch}, options)
            try:
                while not running.done():
                    wait([running], _SOON)
                    if not running.done() and stop():
                        raise EncodingStoppedError
            finally:
                options.terminate = True
        return running.result()
