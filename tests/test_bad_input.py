"""What people get wrong: each input through the command, with the line or the result that it gives."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from engine import Store, address_space
from engine.cli.app import main
from engine.config import FORMAT_VERSION


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a failure."""
        (line,) = self.err.splitlines()
        assert line.startswith("engine: ")
        return line


Engine = Callable[..., Ran]


@pytest.fixture
def engine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


def ingest(engine: Engine, *sources: object) -> tuple[Ran, dict[str, Any]]:
    ran = engine("ingest", *sources, "--encoder", "none", "--store", "a.store", "--json")
    return ran, json.loads(ran.out)


def reject_reason(engine: Engine, source: object) -> str:
    """Why one source is rejected; the run ends with status 3."""
    ran, report = ingest(engine, source)
    assert (ran.status, report["added"], report["rejected"]) == (3, 0, 1)
    assert ran.err == ""
    (line,) = Path(report["rejects_file"]).read_text().splitlines()
    row = json.loads(line)
    assert row["source"] == str(Path(str(source)).absolute())
    return str(row["reason"])


def identical(engine: Engine, *images: object) -> list[list[int]]:
    """The ids of the images that are identical to each query."""
    ran = engine("lookup", *images, "--tier", "identical", "--json", "--store", "a.store")
    found = [json.loads(line).get("identical", []) for line in ran.out.splitlines()]
    return [[hit["id"] for hit in hits] for hits in found]


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    """A PNG of any header (colour 0: grey, 2: RGB) and rows of samples."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(body)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


# --- arguments ------------------------------------------------------------------------------------


def test_no_arguments(engine: Engine) -> None:
    ran = engine()
    assert ran.status == 2
    assert "Usage: engine" in ran.out + ran.err
    for command in ("ingest", "lookup"):
        ran = engine(command)
        assert ran.status == 2
        assert "name at least one" in ran.line


def test_a_missing_path(engine: Engine, tmp_path: Path) -> None:
    ran = engine("ingest", "phtoos/", "--store", "a.store")
    assert (ran.status, ran.line) == (2, "engine: phtoos/: no such file or folder")
    assert list(tmp_path.iterdir()) == []  # no store is made for a slip of the pen
    ingest(engine, "synthetic:bits?n=1")
    ran = engine("lookup", "qurey.jpg", "--store", "a.store")
    assert ran.status == 3
    assert "qurey.jpg\n  error: no such file" in ran.out


def test_an_empty_folder(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = engine("ingest", "empty", "--encoder", "none", "--store", "a.store")
    assert ran.status == 0
    assert ran.line == "engine: there is nothing to ingest in empty"
    assert "0 images" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1(engine: Engine, k: int) -> None:
    ingest(engine, "synthetic:bits?n=1")
    ran = engine("lookup", "synthetic:bits?seed=0#0", "-k", k, "--store", "a.store")
    assert (ran.status, ran.line) == (2, f"engine: k must be 1 or more, not {k}")


@pytest.mark.slow
def test_k_larger_than_the_store(engine: Engine, tiny_encoder: Path) -> None:
    engine("ingest", "synthetic:bits?n=3", "--encoder", tiny_encoder, "--store", "a.store")
    ran = engine("lookup", "synthetic:bits?seed=0#9", "-k", 10**9, "--json", "--store", "a.store")
    assert ran.status == 0
    assert len(json.loads(ran.out)["similar"]) == 3


def test_an_empty_store(engine: Engine, tmp_path: Path, tiny_encoder: Path) -> None:
    Store.open(tmp_path / "a.store", create=True, encoder=str(tiny_encoder)).close()
    query = ("lookup", "synthetic:bits?seed=0#0", "--json", "--store", "a.store")
    ran = engine(*query)
    found = json.loads(ran.out)
    assert ran.status == 0
    assert (found["identical"], found["near"], found["similar"]) == ([], [], [])
    assert engine(*query, "--exact").status == 1
    assert engine("info", "--store", "a.store").status == 0
    assert engine("check", "--store", "a.store").status == 0


# --- stores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a folder with other files", "a file"])
def test_a_store_that_is_not_one(engine: Engine, tmp_path: Path, what: str) -> None:
    other = tmp_path / "other"
    if what == "a file":
        other.write_text("mine")
    else:
        other.mkdir()
        (other / "notes.txt").write_text("mine")
    for command in ("lookup synthetic:bits#0", "info", "check"):
        ran = engine(*command.split(), "--store", "other")
        assert ran.status == 2
        assert "not a store" in ran.line
    ran = engine("ingest", "synthetic:bits?n=1", "--encoder", "none", "--store", "other")
    assert ran.status == 2
    assert "an empty or new folder for one, with --store" in ran.line
    assert [path.name for path in tmp_path.rglob("*")] == (
        ["other"] if what == "a file" else ["other", "notes.txt"]
    )


def test_a_store_of_another_format_version(engine: Engine, tmp_path: Path) -> None:
    Store.open(tmp_path / "a.store", create=True, encoder="none").close()
    path = tmp_path / "a.store" / "MANIFEST.json"
    newer = {"format": FORMAT_VERSION + 8, "min_reader": FORMAT_VERSION + 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | newer))
    for command in ("lookup synthetic:bits#0", "info", "check", "ingest synthetic:bits?n=1"):
        ran = engine(*command.split(), "--store", "a.store")
        assert ran.status == 2
        assert f"format version {FORMAT_VERSION + 8}" in ran.line
        assert "install a newer image-index-engine" in ran.line


# --- files that claim to be images ----------------------------------------------------------------


def test_a_text_file_named_jpg(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("this is not a picture\n" * 10)
    assert reject_reason(engine, "a.jpg") == "not an image in a known format"


def test_a_truncated_jpeg(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(picture(0, 200, 200)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert reject_reason(engine, "a.jpg").startswith("broken image: ")


def test_a_file_of_0_bytes(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert reject_reason(engine, "a.png") == "the file is empty (0 bytes)"


def test_a_png_that_claims_50000_times_50000_pixels(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(50_000, 50_000))
    reason = reject_reason(engine, "a.png")
    assert "pixels" in reason
    assert "limit" in reason


@pytest.mark.slow
def test_a_broken_file_among_good_ones(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])
    ran, report = ingest(engine, "photos")
    assert (ran.status, report["added"], report["rejected"]) == (3, 3, 1)
    assert identical(engine, *sorted(folder.iterdir())) == [[1], [2], [], [3]]
    ran = engine("lookup", folder / "2.png", "--store", "a.store")
    assert ran.status == 3
    assert "error: broken image" in ran.out


# --- unusual images -------------------------------------------------------------------------------


def test_a_palette_image_is_its_colours(engine: Engine, tmp_path: Path) -> None:
    palette = Image.fromarray(picture(0, 16, 24)).quantize(16)
    palette.save(tmp_path / "palette.png")
    palette.convert("RGB").save(tmp_path / "rgb.png")
    ingest(engine, "palette.png")
    assert identical(engine, "rgb.png") == [[1]]


def test_a_cmyk_image_is_found_by_its_file_and_its_decoded_pixels(
    engine: Engine, tmp_path: Path
) -> None:
    Image.fromarray(picture(0, 16, 24)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    with Image.open(tmp_path / "cmyk.jpg") as image:
        image.convert("RGB").save(tmp_path / "rgb.png")
    ingest(engine, "cmyk.jpg")
    assert identical(engine, "cmyk.jpg", "rgb.png") == [[1], [1]]


def test_a_grey_image_is_rgb_with_equal_channels(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(picture(0, 16, 24)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(picture(0, 16, 24)[..., :1], 3, axis=2)).save(tmp_path / "rgb.png")
    ingest(engine, "grey.png")
    assert identical(engine, "rgb.png") == [[1]]


def test_alpha_counts_where_something_is_not_opaque(engine: Engine, tmp_path: Path) -> None:
    image = Image.fromarray(picture(0, 16, 24))
    image.save(tmp_path / "rgb.png")
    image.putalpha(255)
    image.save(tmp_path / "opaque.png")
    image.putalpha(254)
    image.save(tmp_path / "glassy.png")
    ingest(engine, "rgb.png", "glassy.png")
    assert identical(engine, "rgb.png", "opaque.png", "glassy.png") == [[1], [1], [2]]


def test_an_animation_is_its_first_frame_and_their_number(engine: Engine, tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(i, 16, 24)) for i in range(3)]
    for name, others in (("two.png", [1]), ("again.png", [2]), ("three.png", [1, 2])):
        frames[0].save(tmp_path / name, save_all=True, append_images=[frames[i] for i in others])
    frames[0].save(tmp_path / "still.png")
    ran, report = ingest(engine, "two.png", "again.png", "three.png", "still.png")
    assert (ran.status, report["added"], report["duplicates"]) == (0, 3, 1)
    assert identical(engine, "two.png", "again.png", "three.png", "still.png") == [
        [1],
        [1],
        [2],
        [3],
    ]


def test_an_exif_rotated_jpeg_is_the_upright_picture(engine: Engine, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture(0, 16, 24)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(picture(0, 16, 24)).save(tmp_path / "as-it-lies.jpg")
    with Image.open(tmp_path / "as-it-lies.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    ingest(engine, "turned.jpg")
    assert identical(engine, "turned.jpg", "upright.png", "as-it-lies.jpg") == [[1], [1], []]


@pytest.mark.slow
@pytest.mark.parametrize("colour", [0, 2])
def test_16_bit_images_that_differ_below_8_bits_are_never_identical(
    engine: Engine, tmp_path: Path, colour: int
) -> None:
    samples = 8 * (3 if colour else 1)
    values = np.random.default_rng(0).integers(0, 1 << 16, (8, samples)).astype(">u2")
    for name, rows in (("a", values), ("b", values ^ 1), ("c", values)):
        body = b"".join(b"\0" + row.tobytes() for row in rows)
        (tmp_path / f"{name}.png").write_bytes(png(8, 8, depth=16, colour=colour, body=body))
    with Image.open(tmp_path / "a.png") as image:
        image.convert("RGB").save(tmp_path / "reduced.png")
    ran, report = ingest(engine, "a.png", "b.png", "c.png", "reduced.png")
    assert (ran.status, report["added"], report["duplicates"]) == (0, 3, 1)
    assert identical(engine, "a.png", "b.png", "c.png", "reduced.png") == [[1], [2], [1], [3]]


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8,), (8, 8), (2, 8, 8, 4), (2, 2, 8, 8, 3), (2, 0, 8, 3), ()])
def test_an_array_of_the_wrong_shape(
    engine: Engine, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    assert reject_reason(engine, "a.npy") == (
        f"has shape {shape}: images are (N, H, W, 3) or (N, H, W)"
    )


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
def test_an_array_of_python_objects_is_never_unpickled(engine: Engine, tmp_path: Path) -> None:
    caught = tmp_path / "caught"
    np.save(tmp_path / "a.npy", np.array([Trap(caught)], dtype=object), allow_pickle=True)
    assert "never loaded" in reject_reason(engine, "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap(caught)))
    ingest(engine, "b.npy")
    ran = engine("lookup", "a.npy", "a.npy#0", "b.npy", "--store", "a.store")
    assert ran.status == 3
    assert not caught.exists()


def test_an_array_of_another_dtype(engine: Engine, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8, 3), np.float64))
    reason = "has dtype float64 and shape (2, 8, 8, 3): images are uint8 or bool, vectors are"
    assert reject_reason(engine, "a.npy").startswith(reason)


# --- permissions ----------------------------------------------------------------------------------

AS_NOBODY = """
import contextlib, io, os, sys
import numpy.ma, numpy.random, pdqhash
from PIL import Image
from engine.cli.app import main
Image.init()
with contextlib.redirect_stderr(io.StringIO()):
    main(["ingest", "gone"])  # what is imported late may not be readable to nobody
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def others() -> Iterator[Path]:
    """A folder that belongs to whom ``AS_NOBODY`` runs as; pytest's own are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="engine-test-"))
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


def as_nobody(folder: Path, *arguments: str) -> Ran:
    ran = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.slow
def test_a_folder_without_permission(others: Path) -> None:
    for name in ("open", "closed"):
        (others / "photos" / name).mkdir(parents=True)
        Image.fromarray(picture(len(name))).save(others / "photos" / name / "a.png")
    Image.fromarray(picture(1)).save(others / "photos" / "closed.png")
    (others / "photos" / "closed").chmod(0)
    (others / "photos" / "closed.png").chmod(0)
    ran = as_nobody(others, "ingest", "photos", "--encoder", "none", "--store", "a.store", "--json")
    report = json.loads(ran.out)
    assert (ran.status, report["added"], report["rejected"]) == (3, 1, 2)
    lines = (others / "a.store" / "rejects.jsonl").read_text().splitlines()
    assert {row["source"]: row["reason"] for row in map(json.loads, lines)} == {
        f"{others}/photos/closed.png": "cannot be read: Permission denied",
        f"{others}/photos/closed": "the folder cannot be listed: Permission denied",
    }


@pytest.mark.slow
def test_a_store_that_may_not_be_written_can_be_read(others: Path) -> None:
    where = others / "a.store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
    for path in [where, *where.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(where.rglob("*"))
    query = "synthetic:bits?seed=0#2"
    ran = as_nobody(others, "lookup", query, "--exact", "--json", "--store", "a.store")
    assert (ran.status, ran.err) == (0, "")
    assert as_nobody(others, "check", "--store", "a.store").status == 0
    ran = as_nobody(others, "ingest", "synthetic:bits?n=5", "--store", "a.store")
    assert ran.status == 2
    assert "cannot be written: Permission denied; it can still be read" in ran.line
    assert sorted(where.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["keys/CURRENT", "keys/MANIFEST-*", "keys", "MANIFEST.json", "pixels/*"]
)
def test_what_may_not_be_read_is_said_to_be_so(others: Path, name: str) -> None:
    where = others / "a.store"
    with Store.open(where, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
    (closed,) = where.glob(name)
    closed.chmod(0)
    ran = as_nobody(others, "check", "--store", str(where))
    assert ran.status == 2
    assert f"{closed} cannot be read: Permission denied" in ran.line


@pytest.mark.slow
def test_a_place_where_no_store_can_be_made(others: Path) -> None:
    others.chmod(0o555)
    ran = as_nobody(
        others, "ingest", "synthetic:bits?n=1", "--encoder", "none", "--store", "a.store"
    )
    assert ran.status == 2
    assert "a.store cannot be made: Permission denied" in ran.line


# --- limits of the process, and what libraries write of their own -----------------------------------


def command(*arguments: object, **options: Any) -> Ran:
    """The command in a process of its own, in the folder that is current."""
    ran = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that is kept")
@pytest.mark.parametrize("mebibytes", [64, 300])
def test_a_limit_on_address_space_that_is_too_low(tmp_path: Path, mebibytes: int) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    ran = command("info", cwd=tmp_path, preexec_fn=limit)
    assert (ran.status, ran.out) == (2, "")
    assert f"the limit on address space is {mebibytes} MiB" in ran.line
    assert "ulimit -v" in ran.line


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that is kept")
@pytest.mark.parametrize("memory", [("--memory", "128M"), ()], ids=["least", "default"])
def test_the_least_address_space_is_enough(tmp_path: Path, memory: tuple[str, ...]) -> None:
    """The memory allocator must not reserve what the stacks of RocksDB's threads need.

    Where no memory is asked for, it is what the limit leaves.
    """
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space.least(), address_space.least()))

    name = "synthetic:bits?n=2000&seed=0"
    options = ("--store", "a.store", *memory, "--json")
    ran = command("ingest", name, "--encoder", "none", *options, cwd=tmp_path, preexec_fn=limit)
    assert (ran.status, ran.err) == (0, "")
    ran = command("lookup", f"{name}#17", "--exact", *options, cwd=tmp_path, preexec_fn=limit)
    assert (ran.status, ran.err) == (0, "")
    ran = command("optimize", *options, cwd=tmp_path, preexec_fn=limit)
    assert (ran.status, ran.err) == (0, "")


@pytest.mark.slow
def test_what_pillow_logs_of_a_file_is_not_shown(tmp_path: Path) -> None:
    """It names no file; the reject does."""
    (tmp_path / "photos").mkdir()
    stream = io.BytesIO()
    Image.fromarray(picture(0, 20, 30)).save(stream, "TIFF")
    samples = struct.pack("<HHI", 277, 3, 1)
    assert stream.getvalue().count(samples) == 1
    data = stream.getvalue().replace(samples + struct.pack("<H", 3), samples + b"\xff\xff")
    (tmp_path / "photos" / "a.tif").write_bytes(data)
    ran = command("ingest", "photos", "--encoder", "none", "--store", "a.store", cwd=tmp_path)
    assert (ran.status, ran.err) == (3, "")


@pytest.mark.slow
def test_what_libtiff_writes_is_counted_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture(0, 200, 300)).save(tmp_path / "whole.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "whole.tif").read_bytes())
    for at in range(1000, len(data) - 5000, 97):
        data[at] ^= 0x5A
    for name in ("a.tif", "b.tif"):
        (tmp_path / "photos" / name).write_bytes(data + name.encode())
    ran = command(
        "ingest", "photos", "--encoder", "none", "--store", "a.store", "--json", cwd=tmp_path
    )
    assert (ran.status, json.loads(ran.out)["rejected"]) == (3, 2)
    assert ran.line.startswith("engine: libtiff complained ")
    reasons = (tmp_path / "a.store" / "rejects.jsonl").read_text()
    assert "broken image: " in reasons
    assert "decoder error" not in reasons
