"""``where=``: searches among images by their metadata."""

import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, save
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Store, UsageError
from engine.cli.app import main
from engine.cli.where_option import where_of
from engine.search.where import WhereMetadata

SAID: list[dict[str, Any] | None] = [
    {"label": "cat", "year": 1999},
    {"label": "dog", "year": 2000, "good": True},
    {"label": "cat", "year": 2001.5},
    {"label": 1, "year": "2000"},
    {"label": True, "good": False},
    {"label": None, "tags": ["cat"]},
    None,
    {"label": "1", "year": -3},
    {"label": "cats", "nul": "a\0b"},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Images with metadata of all kinds, and rows of an array that have none."""
    folder = tmp_path_factory.mktemp("where")
    with Store.open(folder / "store", create=True, encoder="none") as made:
        made.ingest([(str(i), picture(i), said) for i, said in enumerate(SAID, 1)])
        made.ingest(np.stack([picture(100 + i) for i in range(3)]), name="rows")
        yield made


def found(store: Store, where: Any) -> list[int]:
    return WhereMetadata(where).ids(store.session).ids().tolist()


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"label": "cat"}, [1, 3]),
        ({"label": ("==", "cat")}, [1, 3]),
        ({"label": 1}, [4]),
        ({"label": 1.0}, [4]),
        ({"label": True}, [5]),
        ({"label": "1"}, [8]),
        ({"year": (">", 1999)}, [2, 3]),
        ({"year": (">=", np.int64(1999))}, [1, 2, 3]),
        ({"year": ("<", 2000)}, [1, 8]),
        ({"year": ("<=", 2000)}, [1, 2, 8]),
        ({"year": [(">", 1998), ("<=", 2000)]}, [1, 2]),
        ({"label": "cat", "year": (">", 1999)}, [3]),
        ({"label": (">", "cat")}, [2, 9]),
        ({"good": False}, [5]),
        ({"nul": "a\0b"}, [9]),
        ({"label": "mouse"}, []),
    ],
)
def test_images_are_found_by_what_is_said_of_them(store: Store, where: Any, ids: list[int]) -> None:
    assert found(store, where) == ids
    for id_, said in enumerate(SAID, 1):
        result = store.lookup(picture(id_), where=where)
        assert [hit.id for hit in result.identical] == ([id_] if id_ in ids else []), said
    many = list(store.lookup_many([picture(i) for i in range(1, len(SAID) + 1)], where=where))
    assert [hit.id for result in many for hit in result.identical] == ids


COMPARE = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBERS = [None, -2, -0.5, 0, 1, 1.5, 2, 1e300, 1 << 80, None, 0.0, 3]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Images of which some have a number."""
    folder = tmp_path_factory.mktemp("numbered")
    with Store.open(folder / "store", create=True, encoder="none") as made:
        made.ingest([(str(i), picture(i), {"n": n, "m": 0}) for i, n in enumerate(NUMBERS)])
        yield made


@given(
    asked=st.lists(
        st.tuples(st.sampled_from(sorted(COMPARE)), st.sampled_from(NUMBERS[1:9])),
        min_size=1,
        max_size=3,
    )
)
@settings(deadline=None)
def test_numbers_compare_as_in_python(numbered: Store, asked: list[tuple[str, Any]]) -> None:
    truth = [
        id_
        for id_, n in enumerate(NUMBERS, 1)
        if n is not None and all(COMPARE[how](n, value) for how, value in asked)
    ]
    assert found(numbered, {"n": asked}) == truth


@pytest.mark.parametrize("where", [{"lable": "cat"}, {"label": 1, "year": True}, {"tags": "cat"}])
def test_a_field_that_no_image_has_is_said_to_be_none(store: Store, where: Any) -> None:
    for call in (
        lambda: store.lookup(picture(1), where=where),
        lambda: store.lookup_many([picture(1)], where=where),
    ):
        with pytest.raises(UsageError, match="has no image whose metadata has") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


WRONG: list[Any] = [
    {},
    "label=cat",
    [("label", "cat")],
    {1: "cat"},
    {"label": None},
    {"label": []},
    {"label": ["cat", "dog"][0:0]},
    {"label": {"a": 1}},
    {"label": ("~", "cat")},
    {"label": ("=", "cat", 1)},
    {"label": ([], 1)},
    {"year": float("nan")},
    {"year": (">", float("inf"))},
    {"good": (">", True)},
    {"year": [(">", i) for i in range(101)]},
]


@pytest.mark.parametrize("where", WRONG, ids=range(len(WRONG)))
def test_what_is_no_condition_is_refused_at_the_call(store: Store, where: Any) -> None:
    for call in (
        lambda: store.lookup(picture(1), where=where),
        lambda: store.lookup_many([picture(1)], where=where),
        lambda: store.search_vectors(np.ones((1, 4)), where=where),
    ):
        with pytest.raises(UsageError, match="where=") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


def test_it_is_restricted_by_source_and_ids_too(store: Store) -> None:
    where = {"label": "cat"}
    assert store.lookup(picture(1), where=where, ids=[1, 2]).identical
    assert not store.lookup(picture(3), where=where, ids=[1, 2]).identical
    assert store.lookup(picture(1), where=where, source="memory:1").identical
    assert not store.lookup(picture(1), where=where, source="memory:rows").identical


def test_what_changes_is_seen_with_the_next_commit(tmp_path: Path) -> None:
    path, where = tmp_path / "store", {"label": "cat"}
    with Store.open(path, create=True, encoder="none") as store, Store.open(path) as reader:
        store.ingest([(str(i), picture(i), {"label": "cat"}) for i in (1, 2, 3)])
        for one in (store, reader):
            assert one.lookup(picture(1), where=where).identical
        store.update(1, metadata={"label": "dog"})
        store.remove(ids=[2])
        for one in (store, reader):
            assert [bool(one.lookup(picture(i), where=where).identical) for i in (1, 2, 3)] == [
                False,
                False,
                True,
            ]
            assert one.lookup(picture(1), where={"label": "dog"}).identical


@pytest.mark.slow
def test_more_images_than_are_gathered_at_a_time(tmp_path: Path) -> None:
    count = 4300
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(
            (str(i), np.array([[[i >> 8, i & 255, 9]]], np.uint8), {"n": i}) for i in range(count)
        )
        ids = found(store, {"n": (">=", 100)})
        assert ids == [r.id for r in store if r.metadata is not None and r.metadata["n"] >= 100]  # type: ignore[operator]
        assert len(ids) == count - 100


@pytest.mark.slow
def test_vectors_are_searched_among_those(tmp_path: Path, tiny_encoder: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest([(str(i), picture(i, 16, 16), {"even": i % 2 == 0}) for i in range(20)])
        queries = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
        _, ids = store.search_vectors(queries, 20, where={"even": True}, recall=1)
        truth = store.search_vectors(queries, 20, ids=range(1, 21, 2), recall=1)[1]
        assert ids.tolist() == truth.tolist()
        assert {*ids.reshape(-1).tolist()} == {-1, *range(1, 21, 2)}


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["label=cat"], {"label": [("==", "cat")]}),
        (["label==cat"], {"label": [("==", "cat")]}),
        (["year>1999"], {"year": [(">", 1999)]}),
        ([" year >= 19.5 "], {"year": [(">=", 19.5)]}),
        (["year>1", "year<=5"], {"year": [(">", 1), ("<=", 5)]}),
        (['label="3"'], {"label": [("==", "3")]}),
        (["a b<-3"], {"a b": [("<", -3)]}),
        (["good=true"], {"good": [("==", True)]}),
        (["x=null"], {"x": [("==", "null")]}),
        (["x=NaN"], {"x": [("==", "NaN")]}),
        (["x=1e999"], {"x": [("==", "1e999")]}),
        (["x=a=b>c"], {"x": [("==", "a=b>c")]}),
        (["x="], {"x": [("==", "")]}),
        (["x=[1]"], {"x": [("==", "[1]")]}),
        (["x=" + "9" * 5000], {"x": [("==", "9" * 5000)]}),
        (["x=" + "[" * 99999], {"x": [("==", "[" * 99999)]}),
    ],
    ids=range(16),
)
def test_an_option_is_a_condition(options: list[str], where: Any) -> None:
    read = where_of(options)
    assert read == where
    types = [type(value) for pairs in read.values() for _, value in pairs]
    assert types == [type(value) for pairs in where.values() for _, value in pairs]


@pytest.mark.parametrize("option", ["label", "", "=cat", ">3", "  =3"])
def test_an_option_that_is_no_condition_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="write FIELD=VALUE"):
        where_of([option])


def test_the_command_looks_among_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "store")
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest([(str(i), picture(i), {"label": "cat", "year": 1999 + i}) for i in range(3)])
    queries = [str(save(tmp_path / f"{i}.png", picture(i))) for i in range(3)]
    lookup = ["lookup", *queries, "--json", "--store", path, "--where", "label=cat"]
    assert main([*lookup, "--where", "year>1999", "--where", "year<=2000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(json.loads(line)["identical"]) for line in lines] == [0, 1, 0]
    for wrong, says in (("year", "write FIELD=VALUE"), ("yaer=1", "has no image whose metadata")):
        assert main([*lookup, "--where", wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


@pytest.mark.parametrize("asked", [["cat", "dog"], [("==", "cat"), "dog"]])
def test_a_list_holds_comparisons_and_no_values(asked: list[object]) -> None:
    with pytest.raises(UsageError, match="a list holds comparisons"):
        WhereMetadata({"label": asked})  # type: ignore[dict-item]
