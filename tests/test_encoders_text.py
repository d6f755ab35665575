"""Text towers: texts to unit vectors, and files that do not fit or are hostile."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_towers import (
    COLOURS,
    CONTEXT,
    NOTHING,
    add_text_tower,
    colour,
    describe,
    text_model,
    tokenizer_of,
)

from engine import Store
from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.text import TextEncoder, require_text
from engine.encoders.tokenizer import MAX_CHARACTERS
from engine.errors import EncoderError, EngineError, UsageError

DIM = 16


@pytest.fixture(scope="module")
def towers(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder with a text tower."""
    return add_text_tower(shutil.copytree(tiny_encoder, tmp_path_factory.mktemp("towers") / "tiny"))


@pytest.fixture
def folder(towers: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(towers, tmp_path / "encoder")


@pytest.fixture(scope="module")
def encoder(towers: Path) -> TextEncoder:
    return loaded(towers)


def loaded(folder: Path) -> TextEncoder:
    found = registry.read(folder).text
    assert found is not None
    return TextEncoder(found, threads=1)


def refused(folder: Path) -> str:
    """What is wrong with a text tower, in one line; it may show when it is tried out."""
    with pytest.raises(EncoderError) as caught:
        loaded(folder).try_out()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def put(folder: Path, name: str, content: bytes, **changes: Any) -> None:
    """Replace a file of the text tower, and its checksum."""
    (folder / name).write_bytes(content)
    text = json.loads((folder / registry.DESCRIPTION).read_text())["text"]
    entry = text if name == text["path"] else text["tokenizer"]
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    describe(folder, text=text | changes)


# --- texts to vectors -----------------------------------------------------------------------------


def test_a_text_becomes_a_unit_vector_near_the_pictures_that_it_names(
    encoder: TextEncoder, towers: Path
) -> None:
    of_texts = encoder.encode([f"A picture, {name.upper()}" for name in COLOURS])
    assert (of_texts.shape, of_texts.dtype) == ((len(COLOURS), DIM), np.float32)
    assert np.allclose(np.linalg.norm(of_texts, axis=1), 1, atol=1e-6)
    pictures = OnnxEncoder(registry.read(towers), threads=1)
    of_pictures = pictures.encode([pictures.preprocessing.resize(colour(n)) for n in COLOURS])
    assert ((of_texts @ of_pictures.T).argmax(1) == np.arange(len(COLOURS))).all()


def test_no_texts_give_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, DIM)


def test_many_texts_give_what_each_gives_alone(encoder: TextEncoder) -> None:
    texts = [" ".join(np.random.default_rng(i).choice(list(COLOURS), 3)) for i in range(70)]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.allclose(encoder.encode(texts), alone, atol=1e-6)


def test_a_text_without_a_vector_has_a_zero_row(encoder: TextEncoder) -> None:
    assert not encoder.encode(["of what nobody has heard"]).any()


@pytest.mark.parametrize(
    "text", ["red " * 10_000, "red" + " " * (2 * MAX_CHARACTERS), "red " + "x" * 3_000_000]
)
def test_a_long_text_is_cut_and_a_warning_says_so(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    with caplog.at_level(logging.WARNING):
        vector = encoder.encode([text])
    (record,) = caplog.records
    assert "only its beginning" in record.getMessage()
    assert f"the {CONTEXT} tokens" in record.getMessage()
    assert len(record.getMessage()) < 300
    assert np.allclose(vector, encoder.encode(["red"]), atol=1e-6)


def test_a_text_that_fits_is_not_cut(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.encode(["red " * (CONTEXT - 2)])
    assert not caplog.records
    encoder.encode(["red " * (CONTEXT - 1)])
    assert len(caplog.records) == 1


@given(st.text(st.characters(), min_size=1))
def test_any_characters_are_harmless(encoder: TextEncoder, text: str) -> None:
    assert encoder.encode([text]).shape == (1, DIM)


@pytest.mark.parametrize("text", ["", " ", "\t\n \u3000", "\x00\x1b", "\u200b", "\ud800"])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write what the images show"):
        require_text(text)


@pytest.mark.parametrize("text", [None, 7, b"red", ["red"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="must be a str"):
        require_text(text)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text.onnx", "tokenizer.json"])
def test_a_file_that_is_not_the_one_described_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert f"{name} is not the file" in refused(folder)
    (folder / name).unlink()
    assert name in refused(folder)
    (folder / name).mkdir()
    assert name in refused(folder)


def test_too_large_a_tokenizer_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert "tokenizer.json cannot be read: File too large" in refused(folder)


@pytest.mark.parametrize("which", ["model", "tokenizer"])
@pytest.mark.parametrize("way", ["../{}", "/{}", "{}/../../{}"])
def test_a_path_never_leads_out_of_the_folder(
    folder: Path, tmp_path: Path, which: str, way: str
) -> None:
    name = "text.onnx" if which == "model" else "tokenizer.json"
    (folder / name).rename(tmp_path / name)
    outside = way.replace("{}", str(tmp_path / name) if way == "/{}" else name)
    text = json.loads((folder / registry.DESCRIPTION).read_text())["text"]
    entry = text if which == "model" else text["tokenizer"]
    entry["path"] = outside
    describe(folder, text=text)
    assert f"{folder / name} cannot be read" in refused(folder)


@pytest.mark.parametrize("text", [[], "text.onnx", 7, {}, {"path": "text.onnx"}])
def test_an_entry_that_makes_no_sense_is_refused(folder: Path, text: object) -> None:
    describe(folder, text=text)
    assert "encoder.json does not describe an encoder" in refused(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", ""),
        ("path", "a\0b"),
        ("path", 7),
        ("sha256", None),
        ("sha256", "12"),
        ("tokenizer", None),
        ("tokenizer", "tokenizer.json"),
        ("context", 0),
        ("context", 1 << 20),
        ("context", True),
        ("context", "77"),
        ("pad_id", -1),
        ("pad_id", 1 << 31),
        ("pad_id", 0.5),
    ],
)
def test_a_value_out_of_range_is_refused(folder: Path, name: str, value: object) -> None:
    text = json.loads((folder / registry.DESCRIPTION).read_text())["text"]
    describe(folder, text=text | {name: value})
    assert "encoder.json does not describe an encoder" in refused(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
        b'{"model": ' + b"[" * 100_000,
    ],
    ids=["empty", "no fields", "a list", "no UTF-8", "merges without tokens", "deep"],
)
def test_a_file_that_is_no_tokenizer_is_refused(folder: Path, content: bytes) -> None:
    put(folder, "tokenizer.json", content)
    assert "tokenizer.json cannot be used as a tokenizer" in refused(folder)


def test_a_tokenizer_that_fails_on_a_text_is_one_line(folder: Path) -> None:
    body = tokenizer_of([*NOTHING, *COLOURS])
    del body["model"]["vocab"]["[unknown]"]
    put(folder, "tokenizer.json", json.dumps(body).encode())
    assert "tokenizer.json cannot be used as a tokenizer" in refused(folder)


def test_a_tokenizer_of_more_words_than_the_model_has_is_refused(folder: Path) -> None:
    words = [*NOTHING, *COLOURS, "violet"]
    put(folder, "tokenizer.json", json.dumps(tokenizer_of(words)).encode())
    assert "its tokenizer may be another model's" in refused(folder)
    # Texts without the word are encoded.
    assert loaded(folder).encode(["red"]).any()
    with pytest.raises(EncoderError, match="another model's"):
        loaded(folder).encode(["violet"])


def test_a_context_that_is_too_short_for_the_special_tokens_is_one_line(folder: Path) -> None:
    table = np.ones((len(NOTHING) + len(COLOURS), DIM), np.float32)
    put(folder, "text.onnx", text_model(table, context=1), context=1)
    assert "tokenizer.json cannot be used as a tokenizer" in refused(folder)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"", "cannot be loaded"),
        (text_model(np.ones((20, DIM), np.float32), context=CONTEXT + 1), "not what encoder.json"),
        (text_model(np.ones((20, DIM), np.float32), context="m"), "not what encoder.json"),
        (text_model(np.ones((20, DIM + 1), np.float32)), "not what encoder.json"),
        (text_model(np.ones((20, DIM), np.float32), batch=3), "exactly 3 texts"),
    ],
    ids=["empty", "another context", "a free context", "another dimension", "a fixed batch"],
)
def test_a_model_that_does_not_fit_is_refused(folder: Path, model: bytes, says: str) -> None:
    put(folder, "text.onnx", model)
    assert says in refused(folder)


def test_a_model_of_other_names_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "text.onnx")
    put(folder, "text.onnx", (folder / "text.onnx").read_bytes())
    assert "not what encoder.json describes" in refused(folder)


def test_an_infinite_vector_is_none(folder: Path) -> None:
    table = np.full((20, DIM), np.inf, np.float32)
    put(folder, "text.onnx", text_model(table))
    assert not loaded(folder).encode(["red"]).any()


# --- without the library --------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["tokenizers"] = None
from engine import Store
from engine.errors import EngineError
with Store.open(sys.argv[1], create=True, encoder=sys.argv[2]) as store:
    store.ingest("synthetic:bits?n=2", keep_pixels="no")
    assert store.check().ok
    print(len(store.lookup("synthetic:bits?n=2#1").similar))
    try:
        store.lookup(text="red")
    except EngineError as error:
        print(error)
"""


@pytest.mark.slow
def test_without_the_library_texts_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "store"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    similar, error = done.stdout.splitlines()
    assert similar == "1"
    assert "pip install 'image-index-engine[text]'" in error


def test_a_store_takes_no_encoder_whose_towers_do_not_fit(folder: Path, tmp_path: Path) -> None:
    words = [*NOTHING, *COLOURS, "violet"]
    put(folder, "tokenizer.json", json.dumps(tokenizer_of(words)).encode())
    with pytest.raises(EngineError, match="another model's"):
        Store.open(tmp_path / "store", create=True, encoder=str(folder))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", [".hidden", "a\nb"])
def test_a_store_takes_no_files_that_it_could_not_name(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / "text.onnx").rename(folder / name)
    text = json.loads((folder / registry.DESCRIPTION).read_text())["text"]
    describe(folder, text=text | {"path": name})
    with pytest.raises(EncoderError, match="rename it"):
        Store.open(tmp_path / "store", create=True, encoder=str(folder))
