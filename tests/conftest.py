"""Fixtures that several test modules share."""

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Examples are bounded so that the whole suite stays quick; no test depends on how long one takes.
settings.register_profile("engine", max_examples=50, deadline=None)
settings.load_profile("engine")


# A shell without job control has SIGINT ignored in what it puts in the background, and children
# inherit that: those of the tests are to get it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small, working encoder: 16-d vectors from a picture's 4 × 4 mean colours."""
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny", dim=16, image_size=16)


def write_encoder(folder: Path, *, dim: int, image_size: int) -> Path:
    """Write an encoder in the form that ``engine.encoders.registry`` describes; returns ``folder``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    cell = image_size // 4
    weights = np.random.default_rng(0).standard_normal((48, dim)).astype(np.float32)
    constants = {
        "cells": np.array([-1, 4, cell, 4, cell, 3], np.int64),
        "inside_a_cell": np.array([2, 4], np.int64),
        "row": np.array([-1, 48], np.int64),
        "weights": weights,
        "bias": np.full((1, dim), 0.1, np.float32),  # so that grey is not the zero vector
        "across": np.array([1], np.int64),
        "white": np.array(255, np.float32),
        "grey": np.array(0.5, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["zero_to_one"]),
        helper.make_node("Sub", ["zero_to_one", "grey"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "cells"], ["grid"]),
        helper.make_node("ReduceMean", ["grid", "inside_a_cell"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "row"], ["colours"]),
        helper.make_node("MatMul", ["colours", "weights"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["shifted"]),
        helper.make_node("ReduceL2", ["shifted", "across"], ["length"], keepdims=1),
        helper.make_node("Div", ["shifted", "length"], ["embedding"]),
    ]
    shape = ["n", image_size, image_size, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)

    folder.mkdir(parents=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    files = {"fp32": {"path": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}}
    body = {"name": folder.name, "dim": dim, "image_size": image_size, "files": files}
    (folder / "encoder.json").write_text(json.dumps(body))
    return folder
