"""Parquet files: every row in order and once, which column holds the images, what is said of them."""

import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine import Store
from engine.errors import SourceError, UsageError
from engine.sources.items import Member, Reject
from engine.sources.query import open_images
from engine.sources.skip_notes import WITHOUT_METADATA
from engine.sources.source_stream import Sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from engine.sources import parquet_footer, parquet_pages  # noqa: E402
from engine.sources.parquet_table import ParquetTable  # noqa: E402

RNG = np.random.default_rng(5)
MOST = 1 << 20
SLOW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(side: int = 6) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGES = [png() for _ in range(10)]
HUGGING = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)]


def a_table(path: Path, columns: dict, query: str = "", metadata=None, **options) -> ParquetTable:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)
    return ParquetTable(path, query)


def read(table: ParquetTable, start: int = 0, most: int = MOST) -> list:
    return list(table.members(start, most))


def until(path: Path, most: int = MOST) -> tuple[list, str]:
    """What a table yields before it breaks off, and why: one line, or nothing."""
    found: list = []
    try:
        for item in ParquetTable(path).members(0, most):
            found.append(item)
    except (SourceError, UsageError) as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return found, str(error)
    return found, ""


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pa.array(HUGGING),
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array([{"bytes": data} for data in IMAGES]),
        pa.array([{"bytes": d, "width": 6} for d in IMAGES]),
    ],
    ids=["hugging", "binary", "large", "bytes-alone", "more"],
)
def test_each_row_is_an_image(tmp_path, column):
    path = tmp_path / "a.parquet"
    table = a_table(path, {"label": list(range(10)), "photo": column}, row_group_size=4)
    assert table.count == 10
    found = read(table)
    status = path.stat()
    for number, item in enumerate(found):
        assert item.name == os.fsencode(path) + b"#%d" % number
        assert item.data == IMAGES[number]
        assert (item.mtime_ns, item.size) == (status.st_mtime_ns, status.st_size)
        assert item.metadata["label"] == number
        (query,) = open_images(os.fsdecode(item.name), MOST)
        assert query.data == item.data
    assert len(found) == 10


@pytest.mark.slow
@given(start=st.integers(0, 12), most=st.sampled_from([1, 200, MOST]), group=st.integers(1, 12))
@SLOW
def test_a_table_is_read_on_from_any_row(tmp_path, start, most, group):
    path = tmp_path / f"{group}.parquet"
    if not path.exists():
        a_table(path, {"image": HUGGING, "label": list(range(10))}, row_group_size=group)
    table = ParquetTable(path)
    whole = read(table)
    assert read(table, start) == whole[start:]
    assert [item.name for item in read(table, start, most)] == [i.name for i in whole[start:]]


def test_other_columns_are_its_metadata(tmp_path):
    day = datetime.date(2026, 11, 22)
    zone = datetime.UTC
    columns = {
        "image": HUGGING[:2],
        "whole": [1, None],
        "small": pa.array([3, 4], pa.uint8()),
        "real": [0.5, float("nan")],
        "half": pa.array(np.array([0.5, np.inf], np.float16)),
        "truth": [True, False],
        "text": ["a cät", ""],
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "day": [day, None],
        "time": [datetime.time(1, 2, 3), None],
        "moment": [datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=zone), None],
        "nano": pa.array([1, 1_500_000_000], pa.timestamp("ns")),
        "list": [[1], [2]],
        "nested": [{"a": 1}, {"a": 2}],
    }
    first, second = read(a_table(tmp_path / "a.parquet", columns))
    assert first.metadata == {
        "path": "0.png",
        "whole": 1,
        "small": 3,
        "real": 0.5,
        "half": 0.5,
        "truth": True,
        "text": "a cät",
        "kind": "x",
        "day": "2026-11-22",
        "time": "01:02:03",
        "moment": "2026-01-02T03:04:05+00:00",
        "nano": "1970-01-01T00:00:00",
    }
    assert second.metadata == {
        "path": "1.png",
        "small": 4,
        "truth": False,
        "text": "",
        "kind": "y",
        "nano": "1970-01-01T00:00:01.500000",
    }


def test_columns_are_chosen(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"image": HUGGING, "thumb": IMAGES[::-1], "a": list(range(10)), "b": ["x"] * 10}
    a_table(path, columns)
    assert read(ParquetTable(path, "metadata=b"))[3].metadata == {"b": "x"}
    assert read(ParquetTable(path, "metadata=path,a"))[3].metadata == {"path": "3.png", "a": 3}
    assert read(ParquetTable(path, "metadata="))[3].metadata is None
    other = read(ParquetTable(path, "image=thumb&metadata="))[3]
    assert other.data == IMAGES[6]
    assert other.name == os.fsencode(path) + b"?image=thumb&metadata=#3"
    (query,) = open_images(os.fsdecode(other.name), MOST)
    assert query.data == IMAGES[6]


def test_labels_of_hugging_face_have_names(tmp_path):
    path = tmp_path / "a.parquet"
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    columns = {"image": HUGGING[:3], "label": [1, 0, 7]}
    found = [item.metadata for item in read(a_table(path, columns, "metadata=label", said))]
    assert found == [
        {"label": 1, "label_name": "dog"},
        {"label": 0, "label_name": "cat"},
        {"label": 7},
    ]
    for broken in (b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 3}}}'):
        table = a_table(path, columns, "metadata=label", {b"huggingface": broken})
        assert read(table)[0].metadata == {"label": 1}


BYTES = pa.array(IMAGES[:3], pa.binary())
PATHS = pa.array(["a/1.png", None, "größe.png"])
ONE_SIZE = pa.array([IMAGES[0]] * 3, pa.binary(len(IMAGES[0])))


class _Extension(pa.ExtensionType):
    """A type that some library has registered."""

    def __init__(self, storage: pa.DataType = None) -> None:
        super().__init__(storage or pa.binary(), "engine.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls(storage)


def extension(of: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(_Extension(of.type), of)


@pytest.fixture(params=[False, True], ids=["unknown", "registered"])
def extensions(request):
    if request.param:
        pa.register_extension_type(_Extension())
    yield
    if request.param:
        pa.unregister_extension_type("engine.test")


BYTES_AS = {
    "binary": BYTES,
    "large_binary": BYTES.cast(pa.large_binary()),
    "binary_view": BYTES.cast(pa.binary_view()),
    "dictionary": BYTES.dictionary_encode(),
    "fixed_size_binary": ONE_SIZE,
    "extension": extension(BYTES),
}
PATHS_AS = {
    "string": PATHS,
    "large_string": PATHS.cast(pa.large_string()),
    "string_view": PATHS.cast(pa.string_view()),
    "dictionary": PATHS.dictionary_encode(),
    "binary": PATHS.cast(pa.binary()),
    "extension": extension(PATHS),
}


def struct(data: pa.Array, paths: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([data, paths], ["bytes", "path"])


TYPES = {f"{name}-string": struct(data, PATHS) for name, data in BYTES_AS.items()}
TYPES |= {f"binary-{name}": struct(BYTES, paths) for name, paths in PATHS_AS.items()}
TYPES["extension of both"] = extension(struct(BYTES, PATHS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_bytes_and_paths_may_be_of_any_type(tmp_path, extensions, kind):
    path, column = tmp_path / "a.parquet", TYPES[kind]
    images = [row.as_py()["bytes"] for row in column]
    for query in ("", "metadata=path"):
        table = a_table(path, {"image": column, "other": PATHS_AS["string"]}, query)
        found = read(table)
        assert [item.data for item in found] == images
        assert [(item.metadata or {}).get("path") for item in found] == PATHS.to_pylist()
        assert table.read(b"2", MOST) == images[2]
    assert read(ParquetTable(path, "metadata="))[0].metadata is None


@pytest.mark.parametrize("kind", BYTES_AS)
def test_a_column_of_bytes_may_be_of_any_type(tmp_path, extensions, kind):
    column = BYTES_AS[kind]
    columns = {"data": column, "path": PATHS_AS["string_view"], "label": PATHS.dictionary_encode()}
    columns["price"] = pa.array([1.5, None, 2.25]).cast(pa.decimal128(9, 2))
    found = read(a_table(tmp_path / "a.parquet", columns))
    assert [item.data for item in found] == [value.as_py() for value in column]
    assert found[0].metadata == {"path": "a/1.png", "label": "a/1.png", "price": 1.5}
    assert [item.metadata is None for item in found] == [False, True, False]


def test_a_checksum_beside_the_images_is_no_image(tmp_path):
    sums = pa.array([bytes(32)] * 3, pa.binary(32))
    path = tmp_path / "a.parquet"
    assert read(a_table(path, {"data": BYTES, "sha256": sums}))[0].data == IMAGES[0]
    assert read(ParquetTable(path, "image=sha256"))[0].data == bytes(32)


@pytest.mark.parametrize("columns", [{"image": BYTES}, {"image": [{"bytes": IMAGES[0]}] * 3}])
def test_a_path_that_is_asked_for_and_not_there_is_a_usage_error(tmp_path, columns):
    with pytest.raises(UsageError, match="'path' is not a column of"):
        a_table(tmp_path / "a.parquet", columns, "metadata=path")


def test_several_images_a_row_are_not_read_and_it_says_so(tmp_path):
    several = pa.array([IMAGES[:2]] * 3, pa.list_(pa.binary()))
    with pytest.raises(UsageError, match="no column of image files, one per row"):
        a_table(tmp_path / "a.parquet", {"images": several})
    with pytest.raises(UsageError, match="the column 'images' holds no image files"):
        a_table(tmp_path / "a.parquet", {"images": several, "image": BYTES}, "image=images")


def test_rows_without_an_image_are_problems(tmp_path):
    rows = [HUGGING[0], None, {"bytes": None, "path": "elsewhere.png"}, HUGGING[1]]
    found = read(a_table(tmp_path / "a.parquet", {"image": rows}))
    assert [type(item) for item in found] == [Member, Reject, Reject, Member]
    assert found[1].reason == found[2].reason == "has no image bytes"


def test_a_row_over_the_limit_is_a_problem(tmp_path):
    rows = [IMAGES[0], bytes(5000), IMAGES[1]]
    found = read(a_table(tmp_path / "a.parquet", {"image": rows}), most=4000)
    assert "5,000 bytes are over the limit of 4,000" in found[1].reason
    assert (found[1].mtime_ns, found[1].size) == (0, 0)
    assert found[2].data == IMAGES[1]


def test_metadata_that_cannot_be_kept_is_lost_and_not_the_image(tmp_path):
    path = tmp_path / "a.parquet"
    text = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"\xff\xfe", b"good", b"x" * 20_000], pa.binary()).buffers()
    )
    found = read(a_table(path, {"image": HUGGING[:3], "text": text}))
    assert [item.data for item in found] == [row["bytes"] for row in HUGGING[:3]]
    assert "cannot be read" in found[0].note and found[0].metadata is None
    assert (found[1].metadata["text"], found[1].note) == ("good", "")
    assert "over the limit" in found[2].note and found[2].metadata is None
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(path)
        assert (report.added, report.rejected) == (3, 0)
        assert report.notes == {WITHOUT_METADATA: 2}
    assert len(read(ParquetTable(path, "metadata="))) == 3


def test_a_table_is_told_by_its_suffix_or_first_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "a.PQ", "no-suffix", "hf.pqt"):
        a_table(Path(name), {"image": HUGGING})
        (item,) = Sources([name])
        assert isinstance(item, ParquetTable)
        assert Sources([name]).count() == 10
    a_table(Path("a.png"), {"image": HUGGING})
    assert not isinstance(next(iter(Sources(["a.png"]))), ParquetTable)


def test_a_path_need_not_be_utf_8(tmp_path):
    a_table(tmp_path / "a.parquet", {"image": HUGGING})
    path = (tmp_path / "a.parquet").rename(tmp_path / os.fsdecode(b"\xff.parquet"))
    assert len(read(ParquetTable(path))) == 10


# --- which column ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["only"], "only"),
        (["other", "image"], "image"),
        (["mask", "jpg"], "jpg"),
        (["a", "b"], None),
        (["image", "png"], None),
    ],
)
def test_the_column_of_images_is_found_or_asked_for(tmp_path, columns, chosen):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({**dict.fromkeys(columns, IMAGES), "label": list(range(10))}), path)
    if chosen is not None:
        assert ParquetTable(path)._image == chosen
        return
    with pytest.raises(UsageError) as caught:
        ParquetTable(path)
    assert "a.parquet?image=COLUMN" in str(caught.value) and "label (int64)" in str(caught.value)
    for name in columns:
        assert f"{name} (binary)" in str(caught.value)
        assert len(read(ParquetTable(path, f"image={name}"))) == 10


@pytest.mark.parametrize(
    ("columns", "shown"), [({"label": [1]}, "it has label (int64)"), ({}, "it has no columns")]
)
def test_a_table_without_images_says_what_it_has(tmp_path, columns, shown):
    with pytest.raises(UsageError, match="no column of image files") as caught:
        a_table(tmp_path / "a.parquet", columns)
    assert str(caught.value).endswith(shown)
    with pytest.raises(UsageError, match="has no column 'x': it has "):
        a_table(tmp_path / "a.parquet", columns, "image=x")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("image=gone", "has no column 'gone'"),
        ("image=label", "holds no image files"),
        ("image=image.bytes", "has no column"),
        ("metadata=gone", "'gone' is not a column"),
        ("metadata=list", "'list' is not a column"),
        ("kind=8bit", "is not known"),
        ("image=image&image=image", "is not known"),
        ("&&", "is not known"),
    ],
)
def test_a_column_that_is_not_there_is_a_usage_error(tmp_path, query, why):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": HUGGING, "label": list(range(10)), "list": [[1]] * 10})
    for make in (lambda: ParquetTable(path, query), lambda: Sources([f"{path}?{query}"])):
        with pytest.raises(UsageError) as caught:
            make()
        assert why in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_columns_of_one_name_are_not_chosen_from(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.Table.from_arrays([pa.array(IMAGES)] * 2, names=["image", "image"])
    pq.write_table(table, path)
    with pytest.raises(UsageError):
        ParquetTable(path)


@pytest.mark.slow
def test_without_pyarrow_it_says_what_to_install(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from engine.sources.source_stream import Sources\n"
        "from engine.errors import UsageError\n"
        f"try: Sources([{str(tmp_path / 'a.parquet')!r}])\n"
        "except UsageError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'image-index-engine[parquet]'" in ran.stdout


# --- damage and lies ------------------------------------------------------------------------------


def test_what_is_no_table_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", b"text" * 100, b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(data)
        found, why = until(path)
        assert not found and why
    for claim in (0x7FFFFFFF, 70 << 20):
        with path.open("wb") as file:
            file.write(b"PAR1")
            file.seek(80 << 20)
            file.write(claim.to_bytes(4, "little") + b"PAR1")
        assert f"a footer of {claim:,} bytes" in until(path)[1]


@pytest.mark.slow
@given(data=st.data())
@SLOW
def test_damaged_tables_end_in_one_line_or_in_images(tmp_path, data):
    path = tmp_path / "a.parquet"
    compression = data.draw(st.sampled_from(["none", "snappy", "zstd"]))
    dictionary = data.draw(st.booleans())
    columns = {"image": HUGGING, "label": list(range(10))}
    a_table(path, columns, compression=compression, use_dictionary=dictionary, row_group_size=5)
    damaged = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged) - 1))]
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged:
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    found, _ = until(path)
    assert all(len(item.data) <= MOST for item in found if isinstance(item, Member))


def test_a_damaged_page_breaks_off_after_what_is_whole(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [RNG.bytes(3000) for _ in range(40)]
    a_table(path, {"image": rows}, row_group_size=10, compression="zstd", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    at = chunk.data_page_offset
    data[at + 200 : at + 400] = bytes(200)
    path.write_bytes(data)
    found, why = until(path)
    if why:  # zeros may also unpack to other bytes
        assert len(found) == 20 and "row 20" in why


@pytest.mark.slow
def test_a_page_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": [bytes(64 << 20)]}, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 20
    found, why = until(path)
    assert not found and "has a page of 67,1" in why and "raise memory=" in why
    assert len(read(ParquetTable(path), most=1 << 27)) == 1


@pytest.mark.parametrize("query", ["", "metadata=m0"])
def test_pages_that_unpack_to_much_only_together_are_not_unpacked(tmp_path, query):
    path = tmp_path / "a.parquet"
    columns = {"image": [b"an image"], **{f"m{at}": ["x" * (3 << 20)] for at in range(4)}}
    a_table(path, columns, compression="zstd", use_dictionary=False)
    found = ParquetTable(path, query)
    if query:
        assert len(read(found)) == 1
    else:
        with pytest.raises(SourceError, match=r"pages of .* up to m[0-9]: raise memory=") as caught:
            read(found)
        assert caught.value.retryable
        assert len(read(found, most=1 << 27)) == 1


def varint(number: int) -> bytes:
    head = b""
    while number > 127:
        head, number = head + bytes([number & 127 | 128]), number >> 7
    return head + bytes([number])


def listing(kind: int, count: int, elements: bytes = b"") -> bytes:
    return bytes([0xF0 | kind]) + varint(count) + elements


def a_footer(schema: bytes, row_groups: bytes) -> bytes:
    """A file of nothing but a footer: version 2, a schema, no rows, row groups."""
    footer = b"\x15\x04\x19" + schema + b"\x16\0\x19" + row_groups + b"\0"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def element(name: bytes, children: int = 0) -> bytes:
    if children:
        return b"\x48" + varint(len(name)) + name + b"\x15" + varint(2 * children) + b"\0"
    return b"\x15\x0c\x25\x02\x18" + varint(len(name)) + name + b"\0"


SCHEMA = listing(12, 2, element(b"s", 1) + element(b"image"))
COLUMN = b"\x26\0\0"  # three bytes that take some 700
MANY = b"\x19" + listing(12, 60_000, COLUMN * 60_000) + b"\x16\0\x16\0\0"
BOMBS = {
    "columns of row groups": a_footer(SCHEMA, listing(12, 10, MANY * 10)),
    "columns": a_footer(
        listing(12, 60_001, element(b"s", 60_000) + element(b"image") * 60_000), listing(12, 0)
    ),
    "row groups": a_footer(SCHEMA, listing(12, 60_000, b"\x19\x0c\x16\0\x16\0\0" * 60_000)),
    "a list of which nothing is there": a_footer(
        SCHEMA, listing(12, 1, b"\x19" + listing(12, 900_000))
    ),
    "texts": a_footer(
        SCHEMA, listing(12, 1, b"\xf9" + listing(8, 2_000_000, bytes(2_000_000)) + b"\0")
    ),
    "structs inside each other": a_footer(SCHEMA, listing(12, 1, b"\x1c" * 300_000)),
    "an end that is missing": a_footer(
        SCHEMA, listing(12, 1, b"\x18\xff\xff\xff\x7f" + b"x" * 300_000)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_a_footer_that_takes_much_more_than_its_length_is_not_read(tmp_path, kind):
    (tmp_path / "a.parquet").write_bytes(BOMBS[kind])
    code = (
        "import resource, sys, pyarrow.parquet\n"
        "from pathlib import Path\n"
        "from engine.errors import SourceError\n"
        "from engine.sources.parquet_table import ParquetTable\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: ParquetTable(Path(sys.argv[1]))\n"
        "except SourceError as error: print(error)\n"
        "else: print('read')\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    why, taken = ran.stdout.splitlines()
    assert "footer" in why or "thrift" in why
    assert int(taken) < 32 << 10  # KiB


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "2.6"])
def test_the_footers_of_large_tables_are_read(tmp_path, version):
    path = tmp_path / "a.parquet"
    columns = {"image": HUGGING[:2], **{f"{i}": [1.5, float(i)] for i in range(5)}}
    columns |= {f"t{i}": ["a text", datetime.datetime(2020, 1, 1).isoformat()] for i in range(4)}
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema, version=version) as writer:
        for _ in range(1000):
            writer.write_table(table)
    length = int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert (
        length * parquet_footer._LARGEST_GROWTH > parquet_footer._MAX_UNPACKED
    )  # it is gone through
    found = read(ParquetTable(path), 1998)
    assert [item.data for item in found] == IMAGES[:2]


def test_a_footer_is_gone_through_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_footer, "_LARGEST_GROWTH", 1 << 40)
    columns = {
        "image": HUGGING,
        "when": [datetime.datetime(2020, 1, 1)] * 10,
        "list": [[{"deep": [[1.5]]}]] * 10,
        "label": pa.array(["a", "b"] * 5).dictionary_encode(),
        "nothing": [None] * 10,
    }
    for options in (
        {"compression": "zstd", "row_group_size": 3},
        {"write_page_index": True, "write_page_checksum": True},
        {"sorting_columns": [pq.SortingColumn(2)], "store_schema": False},
        {"write_statistics": False, "version": "1.0", "data_page_version": "2.0"},
    ):
        path = tmp_path / "a.parquet"
        table = a_table(
            path, columns, "metadata=when,label", metadata={"huggingface": "?"}, **options
        )
        assert len(read(table)) == 10


def test_page_headers_are_gone_through_as_they_are(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [RNG.bytes(1000) for _ in range(1000)]
    for version in ("1.0", "2.0"):
        for dictionary in (False, True):
            a_table(
                path,
                {"image": rows},
                data_page_version=version,
                use_dictionary=dictionary,
                data_page_size=20_000,
                write_page_checksum=True,
                write_statistics=True,
            )
            told = pq.ParquetFile(path).metadata.row_group(0).column(0)
            with path.open("rb") as file:
                footer = parquet_footer.read_footer(file, path.stat().st_size)
                ((count, (chunk,)),) = parquet_footer.row_groups(footer)
                found = parquet_pages.walk(file, chunk)
            assert (count, chunk.path) == (1000, "image")
            assert chunk.size == told.total_compressed_size
            assert bool(found.dictionary) == dictionary
            assert 10_000 < found.largest < 2_000_000
            if not dictionary:
                assert 1000 <= found.row < 1100


def chunks_of(path: Path) -> list[parquet_footer.ColumnChunk]:
    with path.open("rb") as file:
        ((_, chunks),) = parquet_footer.row_groups(
            parquet_footer.read_footer(file, path.stat().st_size)
        )
    return chunks


def test_row_groups_are_where_pyarrow_finds_them(tmp_path):
    path = tmp_path / "a.parquet"
    table = {"image": HUGGING, "text": ["a"] * 10, "deep": [[{"x": [1, 2]}]] * 10}
    a_table(path, table, row_group_size=3, use_dictionary=["text"])
    told = pq.ParquetFile(path).metadata
    with path.open("rb") as file:
        found = list(
            parquet_footer.row_groups(parquet_footer.read_footer(file, path.stat().st_size))
        )
    assert [rows for rows, _ in found] == [3, 3, 3, 1]
    for group, (_, chunks) in enumerate(found):
        for i, chunk in enumerate(chunks):
            column = told.row_group(group).column(i)
            first = column.data_page_offset
            if column.has_dictionary_page:
                first = min(first, column.dictionary_page_offset)
            assert (chunk.at, chunk.size) == (first, column.total_compressed_size)
            assert chunk.path == column.path_in_schema


@pytest.mark.slow
def test_no_byte_of_a_footer_ends_the_process(tmp_path):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": IMAGES[:2]}, store_schema=False)
    whole = path.read_bytes()
    first = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    images = damaged = 0
    for at in range(first, len(whole) - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found, why = until(path)
        except UsageError:  # the name of the column
            continue
        images += len(found) == 2
        damaged += bool(why)
    assert images and damaged


@pytest.mark.slow
def test_rows_of_very_different_size_are_read_few_at_a_time(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [b"x"] * 5000 + [RNG.bytes(1 << 20) for _ in range(12)] + [b"x"] * 5000
    options = {"data_page_size": 1000, "write_batch_size": 1}
    a_table(path, {"image": rows}, use_dictionary=False, row_group_size=20_000, **options)
    with path.open("rb") as file:
        assert parquet_pages.batch_rows(file, chunks_of(path), 1 << 26) <= 8
    assert len(read(ParquetTable(path), 5000, 1 << 21)) == 5012


@pytest.mark.slow
def test_values_that_many_rows_share_are_read_few_at_a_time(tmp_path):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": [RNG.bytes(1 << 20)] * 500}, row_group_size=500)
    with path.open("rb") as file:
        assert parquet_pages.batch_rows(file, chunks_of(path), 1 << 22) <= 4
    assert len(read(ParquetTable(path), 490)) == 10


def test_a_table_that_changes_meanwhile_is_to_be_read_again(tmp_path):
    path = tmp_path / "a.parquet"
    table = a_table(path, {"image": HUGGING}, row_group_size=2)
    rows = table.members(0, MOST)
    next(rows)
    os.utime(path, ns=(5, 5))
    with pytest.raises(SourceError, match="changed while it was read"):
        list(rows)


@pytest.mark.parametrize("row", ["10", "-1", "x", "", "9" * 5000, "١"])
def test_a_row_that_is_not_there_is_a_problem(tmp_path, row):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": HUGGING})
    (found,) = open_images(f"{path}#{row}", MOST)
    assert isinstance(found, Reject) and "has rows 0 to 9" in found.reason


# --- through the store ----------------------------------------------------------------------------


def test_a_table_is_ingested_looked_up_and_unchanged(tmp_path):
    path = tmp_path / "a.parquet"
    a_table(path, {"image": [*HUGGING, None], "label": list(range(11))}, row_group_size=4)
    with Store.open(tmp_path / "s", create=True, encoder="none") as store:
        report = store.ingest(str(path))
        assert (report.added, report.rejected) == (10, 1)
        again = store.ingest(str(path))
        assert (again.added, again.unchanged, again.rejected) == (0, 10, 1)
        result = store.lookup(f"{path}#3")
        assert result.identical[0].sources == (f"{path}#3",)
        assert store.get(result.identical[0].id).metadata == {"label": 3, "path": "3.png"}
        found = list(store.lookup_many([str(path)]))
        assert [hit.identical[0].id for hit in found[:10]] == list(range(1, 11))
        assert found[10].error == "has no image bytes"
