"""Logs for TensorBoard: one scalar for each figure, whose step is the number of images."""

from __future__ import annotations

import time
from pathlib import Path

from .results import Results

FOLDER = "tensorboard"


def write(results: Results, folder: Path) -> None:
    """``tensorboard/`` with the median of each figure under ``tier/method/figure``."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / FOLDER))
    now = time.time()
    try:
        for one in results.measurements:
            tag = "/".join(part.replace("/", "-") for part in (one.tier, one.method, one.figure))
            value = Summary.Value(tag=tag, simple_value=one.median)
            writer.add_event(Event(step=one.n, wall_time=now, summary=Summary(value=[value])))
    finally:
        writer.close()
