"""The part of a batch's lookups that needs no store: the work of each query, then the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from threading import Lock
from time import perf_counter

from engine.encoders.onnx import OnnxEncoder
from engine.errors import EncoderError
from engine.search.query_work import QueryWork
from engine.storage.vector_space import VectorSpace


class BatchWork:
    """The work of some queries. What was not done ahead is done when it is first needed."""

    def __init__(
        self,
        works: Sequence[QueryWork],
        ahead: Sequence[QueryWork],
        encoder: OnnxEncoder | None,
        space: VectorSpace,
    ) -> None:
        """``works`` are those of all queries; ``start`` does the ``ahead`` ones, with ``encoder``.

        ``space`` is the vector space of the encoder's vectors.
        """
        self.works = works
        self._ahead = ahead
        self._encoder = encoder
        self._space = space
        self._futures: list[Future[None]] = []
        self._left = len(ahead)
        self._lock = Lock()

    def start(self, workers: Executor) -> None:
        """Let ``workers`` do the work, unless they do already."""
        if not self._futures:
            self._futures = [workers.submit(self._do, work) for work in self._ahead]

    def wait(self) -> None:
        """Wait for the work that ``start`` began; raises its errors, except those of images."""
        for future in self._futures:
            future.result()

    def suit(self, space: VectorSpace) -> None:
        """Drop vectors that are not of ``space``; call it after ``wait``."""
        if space != self._space:
            for work in self.works:
                work.forget_encoding()
            self._space = space

    def _do(self, work: QueryWork) -> None:
        work.ahead()
        with self._lock:
            self._left -= 1
            is_last = not self._left
        # The thread that comes last encodes, so that none has to wait for the others.
        if is_last and self._encoder is not None:
            self._encode(self._encoder)

    def _encode(self, encoder: OnnxEncoder) -> None:
        """Encode all pictures at once; if that fails, each query encodes its own and reports it."""
        able = [work for work in self._ahead if work.has_picture]
        if not able:
            return
        started = perf_counter()
        try:
            vectors = encoder.encode([work.picture(encoder.preprocessing) for work in able])
        except EncoderError:
            return
        each = (perf_counter() - started) * 1e3 / len(able)
        for work, vector in zip(able, vectors, strict=True):
            work.vector = vector[None]
            work.spent["encode"] = work.spent.get("encode", 0.0) + each
