"""What a notebook shows of results and records: tables with pictures, whatever files are called."""

import base64
import io
import os
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encoded, mask, picture, save
from PIL import Image

from engine import IdenticalHit, LookupResult, NearHit, SimilarHit, Store

HOSTILE = "<script>alert(1)</script> & \"'><img src=http:x onerror=alert(1)>"


class Page(HTMLParser):
    """The elements of a table, and the text in them."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(table)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[Image.Image]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                source = attributes["src"]
                assert source is not None and source.startswith("data:image/png;base64,")
                data = base64.b64decode(source.partition(",")[2], validate=True)
                found.append(Image.open(io.BytesIO(data)))
        return found


def page(shown: Any) -> Page:
    """What a notebook shows of it: a table of a few elements, and nothing of the network."""
    table = shown._repr_html_()
    table.encode()
    found = Page(table)
    assert {tag for tag, _ in found.tags} <= {"table", "tr", "td", "th", "br", "img"}
    names = {name for _, attributes in found.tags for name in attributes}
    assert names <= {"src", "alt", "colspan"}
    return found


def hit(id_: int, *sources: str, **more: Any) -> IdenticalHit:
    return IdenticalHit(id_, sources, len(sources), "bytes", **more)


def test_a_result_is_a_table_with_pictures_of_sources(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0, 20, 200))
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / "a.png")
        found = page(store.lookup(tmp_path / "a.png"))
    query, same = found.pictures()
    assert query.size == same.size == (96, 10)
    assert f"{tmp_path}/a.png" in found.text
    assert "identical" in found.text


def test_each_tier_says_how_close_a_hit_is() -> None:
    near = NearHit(2, 17, None, (), 0)
    like = SimilarHit(3, 0.91234, (), 0, metadata={"label": "cat"})
    result = LookupResult("q", (), (hit(1),), (near,), 1, (like,))
    text = page(result).text
    for part in ("same pixels", "17 of 256 bits", "0.912", "{'label': 'cat'}"):
        assert part in text


def test_whatever_holds_one_image_has_a_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.stack([mask(0), mask(1)]))
    data = encoded(picture(0))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("b.png")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    (tmp_path / "c#d.png").write_bytes(data)
    for name in ("rows.npy#1", "a.tar#b.png", "c#d.png"):
        assert len(page(LookupResult("q", (), (hit(1, f"{tmp_path}/{name}"),))).pictures()) == 1


def test_the_first_source_that_can_be_read_has_the_picture(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0))
    result = LookupResult("q", (), (hit(1, f"{tmp_path}/gone.png", f"{tmp_path}/a.png"),))
    assert len(page(result).pictures()) == 1


def test_what_cannot_be_read_is_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("no image")
    np.save(tmp_path / "vectors.npy", np.ones((2, 3), np.float32))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "image").write_bytes(encoded(picture(0)))  # as an array in memory is called
    save(tmp_path / "folder.d" / "a.png", picture(0))
    with (tmp_path / "large.tar").open("wb") as file:
        file.truncate(17 << 20)
    monkeypatch.chdir(tmp_path)
    names = ["gone.png", "broken.png", "notes.txt", "vectors.npy#0", "pipe.png", "folder.d"]
    names = [*(f"{tmp_path}/{name}" for name in (*names, "large.tar#a.png", "a\0b.png"))]
    names += ["memory:a", "image", "-", "", "#7", "http://localhost/a.png", "x" * 5000 + "/a.png"]
    for name in names:
        found = page(LookupResult(name, (), (hit(1, name),)))
        assert (name[:50], found.pictures()) == (name[:50], [])
        assert found.text.count("—") >= 2


def test_there_are_few_pictures_and_rows_however_many_hits(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0))
    hits = tuple(hit(i, f"{tmp_path}/a.png") for i in range(1, 201))
    found = page(LookupResult(f"{tmp_path}/a.png", (), hits))
    assert len(found.pictures()) == 20
    assert [tag for tag, _ in found.tags].count("tr") == 53
    assert "… and 150 more" in found.text
    # Images that cannot be read count too, and sources that are gone do not.
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, count in (("broken.png", 0), ("gone.png", 1)):
        hits = tuple(hit(i, f"{tmp_path}/{name}") for i in range(1, 30))
        found = page(LookupResult("q", (), (*hits, hit(30, f"{tmp_path}/a.png"))))
        assert len(found.pictures()) == count
    gone = [f"{tmp_path}/gone{i}.png" for i in range(3)]
    assert not page(LookupResult("q", (), (hit(1, *gone, f"{tmp_path}/a.png"),))).pictures()


def test_every_text_is_escaped(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", ":") + "\n\x1b[2J\u202e\udc80.png"
    save(tmp_path / "a.png", picture(0)).rename(tmp_path / name)
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest(tmp_path / name)
        store.update(1, metadata={HOSTILE: HOSTILE})
        found = page(store.lookup(tmp_path / name))
        assert len(found.pictures()) == 2
        assert HOSTILE.replace("/", ":") in found.text
        assert not re.search("[\n\x1b\u202e]", found.text)
        assert HOSTILE in page(store[1]).text.replace("\\'", "'")
    failed = page(LookupResult(HOSTILE, error=HOSTILE))
    assert failed.text.count(HOSTILE) == 2


def test_a_long_name_is_cut() -> None:
    text = page(LookupResult("q", (), (hit(1, "/" + "x" * 5000),))).text
    assert len(text) < 500


def test_a_result_that_found_nothing_says_so() -> None:
    assert "nothing found" in page(LookupResult("q", ("identical",))).text


def test_a_record_is_a_table_of_its_fields(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest([("a", picture(0), {"label": "cat"})])
        found = page(store[1])
        assert found.pictures() == []
        for part in ("height", "8", "u8", store[1].proof.hex(), "{'label': 'cat'}"):
            assert part in found.text
