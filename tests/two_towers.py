"""An encoder with a text tower, for tests: words for colours, close to pictures of that colour."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder

CONTEXT = 8  # tokens
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "yellow": (210, 210, 40),
    "white": (250, 250, 250),
}
# Zero vectors: the pad, the start and the end of a text, words of no meaning, and the rest.
NOTHING = ("[pad]", "[start]", "[end]", "a", "picture", "[unknown]")


def colour(name: str, size: int = 32) -> np.ndarray:
    """A picture of about one colour, (size, size, 3) uint8."""
    noise = np.random.default_rng(len(name)).integers(-8, 9, (size, size, 3))
    return np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


def add_text_tower(folder: Path, **changes: Any) -> Path:
    """Give the encoder in ``folder`` a text tower, for which a text is the sum of its colours.

    ``changes`` override fields of the entry in ``encoder.json``. Returns ``folder``.
    """
    encoder = OnnxEncoder(registry.read(folder), threads=1)
    vectors = encoder.encode([encoder.preprocessing.resize(colour(name)) for name in COLOURS])
    table = np.concatenate([np.zeros((len(NOTHING), encoder.dim), np.float32), vectors])
    model, tokenizer = text_model(table), json.dumps(tokenizer_of([*NOTHING, *COLOURS])).encode()
    (folder / "text.onnx").write_bytes(model)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    text = {
        "path": "text.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "tokenizer": {"path": "tokenizer.json", "sha256": hashlib.sha256(tokenizer).hexdigest()},
        "context": CONTEXT,
        "pad_id": 0,
    }
    describe(folder, text=text | changes)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    """Change fields of ``encoder.json``."""
    path = folder / registry.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text_model(table: np.ndarray, context: int | str = CONTEXT, batch: int | str = "n") -> bytes:
    """A model that sums up the rows of ``table``, (words, dim) float32, for the ids of a text."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("ReduceSum", ["words", "over"], ["embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, context])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, table.shape[1]])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "over"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


def tokenizer_of(words: list[str]) -> dict[str, Any]:
    """A ``tokenizer.json`` of whole words in small letters, with a start and an end."""
    ids = {word: id_ for id_, word in enumerate(words)}
    around = {
        name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("[start]", "[end]")
    }
    single = [
        {"SpecialToken": {"id": "[start]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[end]", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": around,
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "[unknown]"},
    }
