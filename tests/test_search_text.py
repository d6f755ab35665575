"""Text queries: what a store with a text tower answers, from Python and from the command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import save
from hypothesis import given
from hypothesis import strategies as st
from two_towers import COLOURS, NOTHING, add_text_tower, colour, describe

from engine import Store
from engine.cli.app import main
from engine.config import Limits
from engine.errors import EncoderError, ImageError, StoreError, UsageError
from engine.records import LookupResult

NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_text_tower(shutil.copytree(tiny_encoder, tmp_path_factory.mktemp("towers") / "tiny"))


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of colours, ``in/red.png``, and a store of them."""
    made = tmp_path_factory.mktemp("colours")
    for name in NAMES:
        save(made / "in" / f"{name}.png", colour(name))
    limits = Limits(exact_rows=2)
    with Store.open(made / "store", create=True, encoder=str(encoder), limits=limits) as store:
        store.ingest(made / "in")
    return made


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with Store.open(folder / "store", read_only=True) as opened:
        yield opened


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    return shutil.copytree(folder / "store", tmp_path / "store")


def best(result: LookupResult) -> str:
    return Path(result.similar[0].sources[0]).stem


def untimed(result: LookupResult) -> LookupResult:
    return replace(result, milliseconds={})


# --- in Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_text_finds_the_picture_that_it_names(store: Store, name: str) -> None:
    result = store.lookup(text=f"a {name} picture")
    assert result.query == f"a {name} picture"
    assert (result.searched, result.error) == (("similar",), None)
    assert (result.identical, result.near, result.near_count) == ((), (), 0)
    assert best(result) == name
    assert len(result.similar) == len(NAMES)
    assert {"load", "encode", "similar"} == result.milliseconds.keys()


@given(st.lists(st.sampled_from([*NOTHING[3:5], *NAMES]), min_size=1, max_size=9))
def test_a_text_finds_what_its_vector_finds(store: Store, words: list[str]) -> None:
    text = " ".join(words)
    vector = store.encode_text([text])
    assert (vector.shape, vector.dtype) == ((1, 16), np.float32)
    if not vector.any():
        with pytest.raises(ImageError, match="no vector"):
            store.lookup(text=text)
        return
    scores, ids = store.search_vectors(vector, k=3)
    hits = store.lookup(text=text, k=3).similar
    assert [hit.id for hit in hits] == ids[0].tolist()
    assert np.allclose([hit.score for hit in hits], scores[0], atol=1e-6)


def test_many_texts_come_after_the_images(store: Store, folder: Path) -> None:
    texts = ["red", "of nothing", "blue"]
    image, *found = store.lookup_many([folder / "in" / "red.png"], texts=texts)
    assert image.identical
    assert [result.query for result in found] == texts
    assert [result.error for result in found] == [None, "the encoder gives no vector for it", None]
    assert [best(result) for result in found[::2]] == ["red", "blue"]
    assert [untimed(r) for r in store.lookup_many(texts=texts[:1])] == [
        untimed(store.lookup(text="red"))
    ]
    assert list(store.lookup_many()) == []


def test_settings_of_the_similar_tier_are_obeyed(store: Store, folder: Path) -> None:
    assert len(store.lookup(text="red", k=2).similar) == 2
    assert len(store.lookup(text="red", tiers=["identical", "similar"]).similar) == len(NAMES)
    everything = store.lookup(text="red", recall=1).similar
    assert store.lookup(text="red", min_score=everything[1].score - 1e-4).similar == everything[:2]
    some = store.lookup(text="red", source=folder / "in" / "blue.png")
    assert [Path(hit.sources[0]).stem for hit in some.similar] == ["blue"]
    ids = [hit.id for hit in everything[1:3]]
    assert {hit.id for hit in store.lookup(text="red", ids=ids).similar} == set(ids)
    assert store.lookup(text="red", ids=[]).similar == ()
    assert store.lookup(text="red", max_sources=0).similar[0].sources == ()


def test_conditions_on_metadata_are_obeyed(encoder: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(encoder)) as store:
        store.ingest((name, colour(name), {"label": name}) for name in NAMES[:3])
        hits = store.lookup(text="red", where={"label": "blue"}).similar
        assert [hit.metadata for hit in hits] == [{"label": "blue"}]


@pytest.mark.parametrize("tiers", [["identical"], ["near"], ["identical", "near"]])
def test_other_tiers_take_no_texts(store: Store, tiers: list[str]) -> None:
    with pytest.raises(UsageError, match="similar tier only"):
        store.lookup(text="red", tiers=tiers)
    with pytest.raises(UsageError, match="similar tier only"):
        store.lookup_many(texts=["red"], tiers=tiers)


def test_wrong_texts_are_refused_at_the_call(store: Store, folder: Path) -> None:
    for texts in ("red", 7, None, ["red", " "], ["red", 7]):
        with pytest.raises(UsageError, match="text"):
            store.lookup_many([folder / "in" / "red.png"], texts=texts)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="text"):
            store.encode_text(texts)  # type: ignore[arg-type]
    for text in ("", " \n", 7):
        with pytest.raises(UsageError, match="text"):
            store.lookup(text=text)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not both"):
        store.lookup("a.png", text="red")
    with pytest.raises(UsageError, match="a query is a path"):
        store.lookup()
    assert store.encode_text([]).shape == (0, 16)


def test_an_encoder_without_a_text_tower_names_some_that_have_one(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    def refused(store: Store) -> str:
        with pytest.raises(UsageError) as caught:
            store.lookup(text="red")
        with pytest.raises(UsageError, match="open-clip:"):
            store.lookup_many(texts=["red"])
        with pytest.raises(UsageError, match="open-clip:"):
            store.encode_text(["red"])
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    with Store.open(tmp_path / "tiny", create=True, encoder=str(tiny_encoder)) as store:
        assert "its encoder, tiny, takes none" in refused(store)
        assert "hf:" in refused(store)
    with Store.open(tmp_path / "none", create=True, encoder="none") as store:
        assert "it has no encoder" in refused(store)
        store.ingest(np.ones((3, 16), np.float32), name="vectors")
        assert "it has no encoder" in refused(store)


def test_an_empty_store_finds_nothing(encoder: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(encoder)) as store:
        result = store.lookup(text="red")
        assert (result.searched, result.similar) == (("similar",), ())


def test_images_are_looked_up_without_the_text_tower(copy: Path, folder: Path) -> None:
    for name in ("text.onnx", "tokenizer.json"):
        (copy / "encoder" / "1" / name).unlink()
    with Store.open(copy, read_only=True) as store:
        assert best(store.lookup(folder / "in" / "red.png", tiers=["similar"])) == "red"
        with pytest.raises(EncoderError, match=r"tokenizer\.json cannot be read"):
            store.lookup(text="red")


def test_texts_are_looked_up_without_the_encoder_of_images(copy: Path) -> None:
    (copy / "encoder" / "1" / "model.onnx").unlink()
    with Store.open(copy, read_only=True) as store:
        assert best(store.lookup(text="red")) == "red"


# --- the store's files ----------------------------------------------------------------------------


def test_info_says_whether_texts_are_taken(
    store: Store, copy: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    found = store.info()
    assert found.encoder is not None
    assert found.encoder["text"] is True
    with Store.open(tmp_path / "tiny", create=True, encoder=str(tiny_encoder)) as other:
        assert (other.info().encoder or {})["text"] is False
    (copy / "encoder" / "1" / "encoder.json").write_text("{")
    with Store.open(copy, read_only=True) as damaged:
        assert (damaged.info().encoder or {})["text"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_check_finds_a_damaged_tower_and_says_what_to_copy(
    copy: Path, encoder: Path, name: str, damage: str
) -> None:
    path = copy / "encoder" / "1" / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    with Store.open(copy) as store:
        (problem,) = store.check(fix=True).problems
        assert (problem.part, problem.fixed) == ("encoder/1", False)
        assert name in problem.what
        assert f"copy the files of the encoder 'tiny' to {copy}/encoder/1" in problem.what
    path.unlink(missing_ok=True)
    shutil.copy(encoder / name, path)
    with Store.open(copy) as store:
        assert store.check().ok
        assert best(store.lookup(text="red")) == "red"


def test_a_backup_takes_the_tower_along(store: Store, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    with Store.open(tmp_path / "backup") as opened:
        assert opened.check().ok
        assert untimed(opened.lookup(text="red")) == untimed(store.lookup(text="red"))


@pytest.mark.parametrize("way", ["../../../in/{}", "/{}", "..", "."])
def test_a_store_that_somebody_sent_leads_nowhere(copy: Path, tmp_path: Path, way: str) -> None:
    path = copy / "encoder" / "1"
    outside = tmp_path / "outside"
    outside.mkdir()
    (path / "text.onnx").rename(outside / "text.onnx")
    text = json.loads((path / "encoder.json").read_text())["text"]
    describe(path, text=text | {"path": way.replace("{}", str(outside / "text.onnx"))})
    with Store.open(copy, read_only=True) as store, pytest.raises(EncoderError) as caught:
        store.lookup(text="red")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["text.onnx", "tokenizer.json"])
def test_a_link_in_a_store_is_not_followed(copy: Path, encoder: Path, name: str) -> None:
    path = copy / "encoder" / "1" / name
    path.unlink()
    path.symlink_to(encoder / name)
    with Store.open(copy, read_only=True) as store, pytest.raises(StoreError) as caught:
        store.lookup(text="red")
    assert f"{name} is a symbolic link" in str(caught.value)


def test_a_description_of_another_encoder_is_not_used(copy: Path) -> None:
    path = copy / "encoder" / "1"
    files = json.loads((path / "encoder.json").read_text())["files"]
    describe(path, files={"fp32": files["fp32"] | {"sha256": "0" * 64}})
    refusal = pytest.raises(EncoderError, match="not the encoder of this store")
    with Store.open(copy, read_only=True) as store, refusal:
        store.lookup(text="red")


# --- the command ----------------------------------------------------------------------------------

Engine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def engine(capsys: pytest.CaptureFixture[str], folder: Path) -> Engine:
    """Looks up in the store, in this process: status, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        typed = ["lookup", *map(str, arguments), "--store", str(folder / "store")]
        return main(typed), *capsys.readouterr()

    return run


def test_the_command_looks_texts_up(engine: Engine, folder: Path) -> None:
    status, out, err = engine("--text", "a red picture", "-k", 2)
    assert (status, err) == (0, "")
    title, first, *_ = out.splitlines()
    assert title.startswith("a red picture  (")
    assert "red.png" in first
    # Words such as "very close" are of two images.
    assert "close" not in out
    status, out, _ = engine("--text", "red", "--text", "blue", "--json", "--tier", "similar")
    found = [json.loads(line) for line in out.splitlines()]
    assert (status, [one["query"] for one in found]) == (0, ["red", "blue"])
    assert [Path(one["similar"][0]["sources"][0]).stem for one in found] == ["red", "blue"]
    assert found[0]["searched"] == ["similar"]
    assert found[0]["near"] == found[0]["identical"] == []


def test_the_command_looks_images_and_texts_up(engine: Engine, folder: Path) -> None:
    status, out, _ = engine(folder / "in" / "green.png", "--text", "yellow", "-q", "-k", 1)
    assert status == 0
    assert Path(out.splitlines()[0]).stem == "green"
    assert "yellow" in out
    status, out, _ = engine("--text", "yellow", "--csv", "-k", 1)
    assert out.splitlines()[1].startswith("yellow,similar,")
    status, out, _ = engine("--text", "yellow", "--text", "white", "-l")
    assert out.splitlines() == ["yellow", "white"]


def test_options_of_the_similar_tier_are_obeyed_by_the_command(
    engine: Engine, folder: Path
) -> None:
    status, out, _ = engine("--text", "red", "--json", "--source", folder / "in" / "blue.png")
    assert [Path(hit["sources"][0]).stem for hit in json.loads(out)["similar"]] == ["blue"]
    status, out, _ = engine("--text", "red", "--json", "--min-score", "0.99999", "--recall", 1)
    assert [Path(hit["sources"][0]).stem for hit in json.loads(out)["similar"]] == ["red"]
    status, _, err = engine("--text", "red", "--where", "label=cat")
    assert (status, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", ""], "is empty"),
        (["--text", " "], "is empty"),
        (["--text", "red", "--exact"], "similar tier only"),
        (["--text", "red", "--tier", "near"], "leave --tier and --exact out"),
    ],
)
def test_wrong_text_is_one_line(engine: Engine, arguments: list[str], says: str) -> None:
    status, out, err = engine(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_text_without_a_vector_is_an_error_among_others(engine: Engine) -> None:
    status, out, _ = engine("--text", "unheard", "--text", "red", "--json")
    first, second = map(json.loads, out.splitlines())
    assert (status, first) == (3, {"query": "unheard", "error": first["error"]})
    assert second["similar"]


def test_control_characters_do_not_act_on_a_terminal(engine: Engine) -> None:
    status, out, _ = engine("--text", "red\x1b[31m \r\nblue")
    assert status == 0
    assert "\x1b" not in out
    assert "\r" not in out


IMPORTED = """
import sys
from engine.cli.app import main
status = main(["lookup", "--text", "red", "--json", "--store", sys.argv[1]])
print(status, [name for name in ("torch", "transformers", "open_clip", "onnx") if name in sys.modules])
"""


@pytest.mark.slow
def test_no_torch_is_loaded(folder: Path) -> None:
    command = [sys.executable, "-c", IMPORTED, str(folder / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
