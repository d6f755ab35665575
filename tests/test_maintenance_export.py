"""An export says everything that the store says, in files that other tools read; or nothing is there."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import FailingDisk
from helpers import picture
from PIL import Image

from engine import Store, StoreDamagedError, StoreError, UsageError
from engine.cli.app import main
from engine.config import Limits
from engine.maintenance import export
from engine.storage import extents, scan
from engine.storage.disk import using

Row = dict[str, Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Files with odd names, rows in runs of every kind, metadata, images with and without vectors."""
    folder = tmp_path_factory.mktemp("full")
    photos = folder / "photos"
    photos.mkdir()
    names = [b"a,b.png", b'c"d.png', b"e\nf.png", b"=1+1.png", b"\xff\xfe.png", "é.png".encode()]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed)).save(Path(os.fsdecode(os.fsencode(photos) + b"/" + name)))
    rows = [picture(i) for i in (1, 20, 21, 22, 22, 22, 3, 20, 21)]
    np.save(folder / "rows.npy", np.stack(rows))
    with Store.open(folder / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.ingest(photos)
        store.ingest(folder / "rows.npy")
        store.ingest("synthetic:bits?n=300", encoder="none")
        store.ingest([("=cmd", picture(30), {"label": "é", "n": 1.5}), ("x", picture(31))])
        store.ingest("synthetic:bits?seed=1&n=150", "synthetic:bits?n=20&seed=0")
    return folder


def read_csv(folder: Path, name: str) -> list[Row]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        found: list[Row] = list(csv.DictReader(file, strict=True))
    numbers = {n for n, kind in (export.IMAGES | export.SOURCES).items() if kind is int}
    return [{n: int(v) if n in numbers else v or None for n, v in row.items()} for row in found]


def read_parquet(folder: Path, name: str) -> list[Row]:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[Row] = parquet.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


READ: dict[str, Callable[[Path, str], list[Row]]] = {"csv": read_csv, "parquet": read_parquet}


def source_of(row: Row) -> str:
    if row["source_hex"] is None:
        return str(row["source"])
    return os.fsdecode(bytes.fromhex(row["source_hex"]))


def fingerprint(store: Store, id_: int) -> bytes:
    family = extents.FINGERPRINTS
    extent, row = divmod(id_ - 1, store.session.limits.extent_rows)
    data = family.path(store.path, extent + 1).read_bytes()
    return data[extents.HEADER_BYTES + 32 * row :][:32]


def compare(store: Store, dest: Path, format: str = "csv") -> None:
    """All that was exported is what the store says."""
    images = READ[format](dest, "images")
    records = list(store.records())
    assert [row["id"] for row in images] == [record.id for record in records]
    sources: dict[int, list[str]] = {}
    for row in READ[format](dest, "sources"):
        sources.setdefault(row["id"], []).append(source_of(row))
    ids = {record.id for record in records}
    assert set(sources) <= ids
    for row, record in zip(images, records, strict=True):
        metadata = json.loads(row.pop("metadata") or "null")
        assert metadata == record.metadata
        of = sources.get(record.id, [])
        assert sorted(of) == sorted(store.sources(record.id))
        assert row == {
            "id": record.id,
            "kind": record.kind.name.lower(),
            "width": record.width,
            "height": record.height,
            "channels": record.channels,
            "frames": record.frames,
            "container": record.container,
            "file_bytes": record.file_bytes,
            "key": record.key.hex(),
            "proof": record.proof.hex(),
            "file_hash": record.file_hash.hex() or None,
            "fingerprint": fingerprint(store, record.id).hex(),
            "quality": record.quality,
            "source_count": len(of),
        }
    if (dest / "vectors.npy").exists():
        found = np.load(dest / "vectors.npy", mmap_mode="r")
        named = np.load(dest / "vector_ids.npy")
        assert (found.dtype, named.dtype) == (np.float32, np.int64)
        assert found.shape == (len(named), 16)
        assert set(named.tolist()) <= ids
        index = store.index.current
        assert index is not None
        every = index.vectors.ids(np.arange(index.vectors.rows))
        rows = np.array([row for row, id_ in enumerate(every.tolist()) if id_ in ids], np.int64)
        assert np.array_equal(named, every[rows])
        assert np.array_equal(found, index.vectors.gather(rows))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("place", ["new", "new/below", "empty"])
def test_an_export_says_what_the_store_says(
    full: Path, tmp_path: Path, format: str, place: str
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    dest = tmp_path / place
    if place == "empty":
        dest.mkdir()
    told: list[tuple[int, int | None]] = []
    groups = Limits(table_rows=100)
    with Store.open(full / "store", read_only=True, limits=groups) as store:
        report = store.export(
            dest, format=format, progress=lambda done, total: told.append((done, total))
        )
        info = store.info()
        assert (report.images, report.sources) == (info.images, info.sources)
        assert report.vectors == info.vectors < info.images
        compare(store, dest, format)
    files = [f"images.{format}", f"sources.{format}", "vector_ids.npy", "vectors.npy"]
    assert sorted(path.name for path in dest.iterdir()) == files
    assert report.bytes == sum(path.stat().st_size for path in dest.iterdir())
    assert told[-1] == (info.images, info.images)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_edges_of_buckets_extents_and_batches(
    full: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    """The same with extents of 100 rows, more images than a bucket has, and gaps everywhere."""
    limits = Limits(extent_rows=1000, read_records=300)
    path, encoder = tmp_path / "store", str(tiny_encoder)
    with Store.open(path, create=True, encoder=encoder, limits=limits) as store:
        store.ingest("synthetic:bits?n=50")
        store.ingest(full / "rows.npy")  # runs of one image, in the first bucket
        store.ingest("synthetic:bits?n=6000", encoder="none")
        store.ingest(
            "synthetic:bits?n=6000&seed=0", (full / "photos"), "synthetic:bits?seed=3&n=3000"
        )
        store.ingest(full / "rows.npy")
        before = store.info().vectors
        removed = [3, 52, 53, 54, 700, *range(4090, 4100), 4200, 6006, 6007, 9000, len(store)]
        assert store.remove(ids=removed).images == len(removed)
        store.remove(sources=["synthetic:bits?seed=3#1000", full / "photos" / "=1+1.png"])
        store.export(tmp_path / "out")
        compare(store, tmp_path / "out")
        assert len(read_csv(tmp_path / "out", "images")) > 2 * scan.BUCKET
        assert len(np.load(tmp_path / "out" / "vector_ids.npy")) < before


@pytest.mark.slow
def test_a_store_without_vectors_has_none_and_one_may_leave_them_out(
    full: Path, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        assert store.export(tmp_path / "empty").images == 0
        assert read_csv(tmp_path / "empty", "images") == []
        store.ingest("synthetic:bits?n=5")
        report = store.export(tmp_path / "five")
        assert (report.images, report.sources, report.vectors) == (5, 5, 0)
        assert not (tmp_path / "five" / "vectors.npy").exists()
    with Store.open(full / "store") as store:
        assert store.export(tmp_path / "without", vectors=False).vectors == 0
        assert not (tmp_path / "without" / "vectors.npy").exists()


def test_vectors_of_nothing_are_an_array_of_none(tmp_path: Path, tiny_encoder: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder=str(tiny_encoder)) as store:
        store.export(tmp_path / "out")
    assert np.load(tmp_path / "out" / "vectors.npy").shape == (0, 16)
    assert np.load(tmp_path / "out" / "vector_ids.npy").shape == (0,)


@pytest.mark.slow
def test_csv_is_what_other_tools_expect(full: Path, tmp_path: Path) -> None:
    with Store.open(full / "store") as store:
        store.export(tmp_path / "out")
    for name, columns in (("images", export.IMAGES), ("sources", export.SOURCES)):
        data = (tmp_path / "out" / f"{name}.csv").read_bytes()
        text = data.decode("utf-8")
        assert not data.startswith(b"\xef\xbb\xbf")
        assert text.startswith(",".join(columns) + "\r\n")
        assert text.endswith("\r\n")
        for row in csv.reader(text.splitlines(keepends=True)):
            assert len(row) == len(columns)
            # What a spreadsheet would take for a formula.
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)
    rows = read_csv(tmp_path / "out", "sources")
    odd = [row for row in rows if row["source_hex"]]
    assert [row["source"] for row in odd] == [f"{full}/photos/��.png"]
    assert Path(source_of(odd[0])).exists()
    assert any(row["source"] == f"{full}/photos/e\nf.png" for row in rows)


@pytest.mark.slow
def test_an_export_is_of_one_commit(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = export.live, []
    path = tmp_path / "store"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=5000")

    def meanwhile(*arguments: Any) -> Any:
        if not turns:
            turns.append(1)
            with Store.open(path) as writer:
                writer.ingest("synthetic:bits?n=9000", full / "photos")
        return real(*arguments)

    monkeypatch.setattr(export, "live", meanwhile)
    with Store.open(path) as store:
        report = store.export(tmp_path / "out")
        assert (report.images, report.sources) == (5000, 5000)
        assert len(store) == 9006
    assert len(read_csv(tmp_path / "out", "sources")) == 5000


# --- nothing or all -------------------------------------------------------------------------------

SLOW = """
import sys, time
from engine import Store
from engine.config import Limits
from engine.maintenance import export
real = export._image_row
def slow(*arguments):
    print("row", flush=True)
    time.sleep(0.01)
    return real(*arguments)
export._image_row = slow
with Store.open(sys.argv[1]) as store:
    store.export(sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_a_killed_export_leaves_nothing_and_the_next_one_cleans_up(
    full: Path, tmp_path: Path, there: bool
) -> None:
    dest = tmp_path / "out"
    if there:
        dest.mkdir()
    command = [sys.executable, "-c", SLOW, str(full / "store"), str(dest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        for _ in range(20):
            assert run.stdout.readline() == b"row\n"
        run.send_signal(signal.SIGKILL)
    assert not list(tmp_path.glob("out/[a-z]*"))
    assert len(list((dest if there else tmp_path).glob(".out.export-*.new"))) == 1
    with Store.open(full / "store") as store:
        store.export(dest)
        compare(store, dest)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    full: Path, tmp_path: Path, format: str
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    code = (
        "import resource, signal, sys\n"
        "from engine.cli.app import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["export", str(tmp_path / "out"), "--store", str(full / "store")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--format", format],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "out cannot be made: File too large; nothing was left there" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_in_the_end_leaves_nothing(full: Path, tmp_path: Path) -> None:
    failed = pytest.raises(StoreError, match="cannot be made: No space left on device")
    with Store.open(full / "store") as store, using(FailingDisk("fsync")), failed:
        store.export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_makes_no_sense_is_refused(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with Store.open(full / "store") as store:
        for dest, named, says in (
            (tmp_path / "mine", {}, "is not empty"),
            (tmp_path / "mine" / "file", {}, "is a file"),
            (full / "store" / "out", {}, "inside of the store"),
            (tmp_path / "out", {"format": "xls"}, "csv, parquet, not 'xls'"),
        ):
            with pytest.raises(UsageError, match=says):
                store.export(dest, **named)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install -e '\.\[parquet\]'; or take"):
            store.export(tmp_path / "out", format="parquet")
    with pytest.raises(StoreError, match="is closed"):
        store.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_store_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=50")
        (tmp_path / "store" / "fingerprints" / "00000001.pdq").unlink()
        with pytest.raises(StoreDamagedError, match=r"00000001\.pdq is gone"):
            store.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_exports_and_says_what(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(full / "store")]
    assert main(["export", str(tmp_path / "a"), *store]) == 0
    assert f"written to {tmp_path / 'a'}" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "b"), "--no-vectors", "--json", *store]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"path", "images", "sources", "vectors", "bytes", "seconds"}
    assert report["vectors"] == 0
    assert main(["export", str(tmp_path / "b"), *store]) == 2
    assert "is not empty" in capsys.readouterr().err
