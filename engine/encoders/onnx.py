"""Runs an encoder with ONNX Runtime, and checks its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import MemoryBudget
from engine.encoders.registry import EncoderFiles
from engine.encoders.session import one_line, open_session
from engine.encoders.unit_rows import unit_rows
from engine.errors import EncoderError
from engine.forking import abandon_in_child, keep_for_ever

_BATCH_BYTES = 32 << 20  # of pictures in one run of the model
_SOON = 0.1  # seconds
_TRIED = 3  # blank pictures in a trial; a number that is no model's own batch size


class EncodingStoppedError(Exception):
    """The caller asked to stop before the vectors were complete."""


class OnnxEncoder:
    """A loaded encoder: n inputs (size, size, 3) uint8 → (n, dim) float32 unit vectors."""

    def __init__(
        self,
        files: EncoderFiles,
        *,
        threads: int | None = None,
        device: str = "cpu",
        memory: MemoryBudget | None = None,
    ) -> None:
        """``device``: as for ``open_session``. ``memory``: it runs few enough pictures at a time.

        ``EncoderError`` if the encoder does not fit into the memory.
        """
        self.name = files.name
        self.dim = files.dim
        self.preprocessing = files.preprocessing  # makes its inputs
        self.needs = files.needs
        self._most = None if memory is None else memory.encoder_batch(files.name, files.needs)
        self._session: Any = open_session(
            files.content, files.model, threads=threads, device=device
        )
        try:
            inputs = [(i.name, i.type, i.shape[1:]) for i in self._session.get_inputs()]
            outputs = [(o.name, o.type, o.shape[1:]) for o in self._session.get_outputs()]
            batches = [one.shape[0] for one in self._session.get_inputs() if one.shape]
        # ONNX Runtime has no error class of its own.
        except Exception as error:
            raise EncoderError(f"{files.model} cannot be loaded: {one_line(error)}") from None
        side = files.preprocessing.size
        if inputs != [("pixels", "tensor(uint8)", [side, side, 3])] or outputs != [
            ("embedding", "tensor(float)", [self.dim])
        ]:
            raise EncoderError(
                f"{files.model} is not what encoder.json describes, an encoder of {side} × {side} "
                f"pixels (uint8) to {self.dim} dimensions (float32): copy both files again"
            )
        self._one_at_a_time = files.batch == 1
        if isinstance(batches[0], int) and not (self._one_at_a_time and batches[0] == 1):
            raise EncoderError(
                f"{files.model} takes exactly {batches[0]} pictures at a time: export it with a "
                f"dynamic first dimension"
            )
        abandon_in_child(self)

    def encode(
        self, pictures: Sequence[npt.NDArray[np.uint8]], stop: Callable[[], bool] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed inputs that ``preprocessing`` made; returns (n, dim) float32, each row of unit length.

        A row is zero if the model returns a vector that is zero or not finite; that picture has no
        vector. ``EncoderError`` if the model fails, or returns an array of another shape or type.
        ``stop()`` is polled while the model runs; once it is true, ``EncodingStoppedError`` is raised.
        """
        if not pictures:
            return np.empty((0, self.dim), np.float32)
        return self._vectors(pictures, stop)

    def _vectors(
        self, pictures: Sequence[npt.NDArray[np.uint8]], stop: Callable[[], bool] | None = None
    ) -> npt.NDArray[np.float32]:
        step = max(1, _BATCH_BYTES // (3 * self.preprocessing.size**2))
        if self._most is not None:
            step = min(step, self._most)
        if self._one_at_a_time:
            step = 1
        parts = [
            self._run(np.stack(pictures[at : at + step]), stop)
            for at in range(0, len(pictures), step)
        ]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def try_out(self) -> None:
        """Run the encoder on blank pictures; ``EncoderError`` if it cannot be used."""
        side = self.preprocessing.size
        try:
            self._vectors([np.zeros((side, side, 3), np.uint8)] * _TRIED)
        except MemoryError:
            raise EncoderError(
                f"the encoder {self.name!r} takes more memory than there is"
            ) from None

    def _run(
        self, batch: npt.NDArray[np.uint8], stop: Callable[[], bool] | None = None
    ) -> npt.NDArray[np.float32]:
        if self._session is None:
            raise EncoderError(
                f"the encoder {self.name!r} was loaded before this process was forked: load it here"
            )
        try:
            vectors = self._outputs(batch, stop)[0]
        except (EncodingStoppedError, MemoryError):
            raise
        # ONNX Runtime has no error class of its own.
        except Exception as error:
            raise EncoderError(f"the encoder {self.name!r} failed: {one_line(error)}") from None
        return unit_rows(vectors, (len(batch), self.dim), self.name, "pictures")

    def _outputs(self, batch: npt.NDArray[np.uint8], stop: Callable[[], bool] | None) -> Any:
        if stop is None:
            return self._session.run(["embedding"], {"pixels": batch})
        import onnxruntime

        # A model may loop for ever. Another thread can end its run between two of its nodes.
        options = onnxruntime.RunOptions()
        # ONNX Runtime would log the end of the run as an error.
        options.log_severity_level = 4
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

    def abandon(self) -> None:
        """Drop the session in a forked child, where ending it would wait for threads that are gone."""
        keep_for_ever(self._session)
        self._session = None
