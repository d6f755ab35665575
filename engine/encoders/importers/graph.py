"""Changes ONNX graphs: pixels in, one vector a picture out, and any number of pictures at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.encoders.importers import layers
from engine.encoders.importers.agreement import INPUT, OUTPUT
from engine.encoders.importers.specs import Three
from engine.errors import EncoderError

_OWN = "engine_"  # prefix of the names of added values
_MIN_OPSET = 7  # from which on operators broadcast
_REDUCE_BY_INPUT = 18  # from which on ReduceMean takes its axes as an input
_QUANTISED = {
    "QuantizeLinear",
    "QLinearConv",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
}


@dataclass(frozen=True, slots=True)
class PictureInput:
    """The input of a model, (n, 3, S, S) or (n, S, S, 3)."""

    name: str
    kind: int  # of ``TensorProto``
    channels_last: bool
    size: int | None  # pixels a side; None if free
    batch: int  # 0 if free

    @property
    def is_float(self) -> bool:
        """Whether it takes floats, rather than pixels as they are."""
        return self.kind != TensorProto.UINT8


def inputs_of(model: Any) -> list[tuple[str, int, list[int | str]]]:
    """Name, type and shape of each input that is not a weight. A free dimension is a text."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape: list[int | str] = [
            each.dim_value if each.HasField("dim_value") else each.dim_param or "?"
            for each in tensor.shape.dim
        ]
        found.append((value.name, tensor.elem_type, shape))
    return found


def type_name(kind: int) -> str:
    """The name of a type of ``TensorProto``."""
    names = TensorProto.DataType
    return names.Name(kind).lower() if kind in names.values() else str(kind)


def values_of(model: Any) -> set[str]:
    """The names of all values that the nodes of the graph make."""
    return {name for node in model.graph.node for name in node.output if name}


def is_quantised(model: Any) -> bool:
    """Whether a model has int8 layers already."""
    return any(node.op_type in _QUANTISED for node in model.graph.node)


def tensors_of(model: Any) -> Iterator[Any]:
    """Each tensor of a model, wherever it is kept."""

    def of_graph(found: Any) -> Iterator[Any]:
        yield from found.initializer
        for sparse in found.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in found.node:
            yield from of_node(node)

    def of_node(node: Any) -> Iterator[Any]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from of_graph(attribute.g)
            for inner in attribute.graphs:
                yield from of_graph(inner)

    yield from of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from of_node(node)


def with_output(model: Any, name: str) -> Any:
    """A copy of the model whose only output is this value."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    found = [each for each in made.graph.output if each.name == name]
    output = copy.deepcopy(found[0]) if found else onnx.ValueInfoProto(name=name)
    del made.graph.output[:]
    made.graph.output.append(output)
    return made


@dataclass(frozen=True, slots=True)
class Surgeon:
    """Makes encoders of a model: ``pixels`` (n, S, S, 3) uint8 → ``embedding`` (n, d) float32."""

    picture: PictureInput
    size: int
    mean: Three
    std: Three
    output: str
    pool: str | None
    rank: int  # of the output, for which pooling depends on it
    dim: int  # of the vector

    def with_free_batch(self, model: Any, reshapes: bool) -> Any:
        """An encoder of any number of pictures. ``reshapes``: no reshape keeps a batch of one."""
        return self._encoder(model, "n", reshapes)

    def with_batch_of_one(self, model: Any) -> Any:
        """An encoder of exactly one picture at a time."""
        return self._encoder(model, 1, False)

    def _encoder(self, model: Any, batch: int | str, reshapes: bool) -> Any:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        graph = made.graph
        opset = next(
            (each.version for each in made.opset_import if each.domain in ("", "ai.onnx")), 0
        )
        if opset < _MIN_OPSET:
            raise EncoderError(f"its opset is {opset}: export it for {_MIN_OPSET} or later")
        for name in (INPUT, OUTPUT):
            _rename(graph, name, f"{_OWN}inner_{name}")
        renamed = {name: f"{_OWN}inner_{name}" for name in (INPUT, OUTPUT)}
        inner = renamed.get(self.picture.name, self.picture.name)
        output = renamed.get(self.output, self.output)
        weights = [each for each in graph.input if each.name != inner]
        # Shapes that were inferred for another batch or size would contradict the new ones.
        del graph.input[:], graph.output[:], graph.value_info[:]
        shape = [batch, self.size, self.size, 3]
        graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
        graph.input.extend(weights)
        before = self._before(inner)
        nodes = [*before, *graph.node, *self._after(output, opset)]
        del graph.node[:]
        graph.node.extend(nodes)
        shape = [batch, self.dim]
        graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape))
        self._add_constants(graph, opset)
        if reshapes:
            _free_reshapes(graph)
        return made

    def _before(self, inner: str) -> list[Any]:
        """Nodes from the pixels to the model's own input."""
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if self.picture.is_float:
            steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
        if not self.picture.channels_last:
            steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
        if self.picture.is_float:
            steps.append(("Mul", [f"{_OWN}scale"], {}))
            steps.append(("Sub", [f"{_OWN}offset"], {}))
        if self.picture.kind == TensorProto.FLOAT16:
            steps.append(("Cast", [], {"to": TensorProto.FLOAT16}))
        return _chain(steps or [("Identity", [], {})], INPUT, inner, f"{_OWN}in")

    def _after(self, output: str, opset: int) -> list[Any]:
        """Nodes from the model's own output to the vector."""
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Cast", [], {"to": TensorProto.FLOAT}),
        ]
        if self.pool == layers.TOKEN:
            steps.append(("Gather", [f"{_OWN}first"], {"axis": 1}))
        elif self.pool == layers.MEAN:
            axes = [1] if self.rank == 3 else [2, 3]
            by_input = opset >= _REDUCE_BY_INPUT
            inputs, attributes = ([f"{_OWN}axes"], {}) if by_input else ([], {"axes": axes})
            steps.append(("ReduceMean", inputs, {**attributes, "keepdims": 0}))
        steps.append(("Flatten", [], {"axis": 1}))
        return _chain(steps, output, OUTPUT, f"{_OWN}out")

    def _add_constants(self, graph: Any, opset: int) -> None:
        shape = (1, 1, 1, 3) if self.picture.channels_last else (1, 3, 1, 1)
        mean, std = (np.array(each, np.float32).reshape(shape) for each in (self.mean, self.std))
        constants: dict[str, Any] = {}
        if self.picture.is_float:
            constants |= {"scale": 1 / (255 * std), "offset": mean / std}
        if self.pool == layers.TOKEN:
            constants["first"] = np.array(0, np.int64)
        if self.pool == layers.MEAN and opset >= _REDUCE_BY_INPUT:
            constants["axes"] = np.array([1] if self.rank == 3 else [2, 3], np.int64)
        for name, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(value, f"{_OWN}{name}"))


def _chain(
    steps: list[tuple[str, list[str], dict[str, Any]]], first: str, last: str, prefix: str
) -> list[Any]:
    """Nodes that follow one another, from the value ``first`` to the value ``last``."""
    nodes, value = [], first
    for number, (kind, others, attributes) in enumerate(steps):
        result = last if number == len(steps) - 1 else f"{prefix}_{number}"
        nodes.append(
            helper.make_node(
                kind, [value, *others], [result], name=f"{prefix}_{kind}_{number}", **attributes
            )
        )
        value = result
    return nodes


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a value everywhere in a graph, inner graphs included."""
    for each in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if each.name == old:
            each.name = new
    for node in graph.node:
        for values in (node.input, node.output):
            for number, name in enumerate(values):
                if name == old:
                    values[number] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)
            for inner in attribute.graphs:
                _rename(inner, old, new)


def _free_reshapes(graph: Any) -> None:
    """Let each reshape to (1, …) keep the first dimension of what it is given instead."""
    targets = {
        node.input[1]
        for node in graph.node
        if node.op_type == "Reshape" and len(node.input) > 1
        if not any(each.name == "allowzero" and each.i for each in node.attribute)
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    for name in targets & set(constants):
        tensor = constants[name]
        shape = numpy_helper.to_array(tensor).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1:
            shape[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
