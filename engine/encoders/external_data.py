"""Finds out whether an ONNX model keeps weights in other files.

A model in a store must be one file. The names of other files may point anywhere, and older versions of
ONNX Runtime follow them. The check reads only the protobuf fields that lead to tensors, and skips the
content of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import EncoderError

_MAX_DEEP = 64  # nested messages
_VARINT, _EIGHT_BYTES, _PARCEL, _FOUR_BYTES = 0, 1, 2, 5
# For each message of onnx.proto, its fields that may hold tensors, with their messages.
_WITHIN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
_KEY, _VALUE, _LOCATION = 1, 2, b"location"  # of a text entry of one


def has_external_data(model: bytes) -> bool:
    """Whether a tensor of the model is in another file; ``EncoderError`` if it is not an ONNX model."""
    try:
        return next(_places(memoryview(model), "model", 0), None) is not None
    except (IndexError, ValueError):
        raise EncoderError("it is not an ONNX model") from None


def external_files(model: bytes) -> set[str]:
    """The files that a model names for its weights; ``EncoderError`` if it is not an ONNX model."""
    try:
        return {name for name in _places(memoryview(model), "model", 0) if name}
    except (IndexError, ValueError):
        raise EncoderError("it is not an ONNX model") from None


def _places(message: memoryview, kind: str, deep: int) -> Iterator[str]:
    """The file of each tensor that is in another one, or "" for other facts of such a tensor."""
    if deep > _MAX_DEEP:
        raise ValueError("nested too deeply")
    for field, value in _fields(message):
        if kind == "tensor":
            if field == _EXTERNAL_DATA and isinstance(value, memoryview):
                entry = dict(_fields(value))
                key, name = entry.get(_KEY), entry.get(_VALUE)
                is_name = isinstance(key, memoryview) and bytes(key) == _LOCATION
                yield bytes(name).decode() if is_name and isinstance(name, memoryview) else ""
            elif field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value):
                yield ""
        elif isinstance(value, memoryview):
            inner = _WITHIN[kind].get(field)
            if inner is not None:
                yield from _places(value, inner, deep + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The number and value of each field of a protobuf message, in order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if wire == _PARCEL:
            length, at = _varint(message, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError("an unknown kind of field")
        if length > len(message) - at:
            raise ValueError("cut short")
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
