"""An encoder of a few bytes, for measurements that are not about the encoder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import UsageError

TINY = "tiny"


def write_tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Write an encoder of a few bytes, in the form that ``engine train`` does; returns its folder.

    Its weights depend on ``seed``.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UsageError("the package onnx makes the tiny encoder: install it, or --encoder none")
    from onnx import TensorProto, helper, numpy_helper

    size, dim = 8, 16
    weights = np.random.default_rng(seed).standard_normal((size * size * 3, dim)).astype(np.float32)
    constants: dict[str, npt.NDArray[Any]] = {
        "weights": weights,
        "bias": np.ones((1, dim), np.float32),  # so that black is not the zero vector
        "across": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["shifted"]),
        helper.make_node("ReduceL2", ["shifted", "across"], ["length"], keepdims=1),
        helper.make_node("Div", ["shifted", "length"], ["embedding"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", size, size, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [pixels], [embedding], tensors)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    files = {"fp32": {"path": "model.onnx", "sha256": hashlib.sha256(model).hexdigest()}}
    body = {"name": TINY, "dim": dim, "image_size": size, "files": files}
    (folder / "encoder.json").write_text(json.dumps(body))
    return folder
