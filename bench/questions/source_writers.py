"""The same images in every kind of source: a folder, archives, a table, an array."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from engine.errors import UsageError
from engine.sources import files
from engine.sources.decompress import zstd
from engine.sources.items import FileItem

from ..data import bit_images

FOLDER, TAR, BITS, BITS_ARRAY = "folder", "tar", "folder of bits", "npy"
_LARGEST = 64 << 10  # bytes of a small image, at most
_SIDE = 48  # pixels of a made image


def made_images(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Images of coarse noise, PNG and JPEG in turn: suffix and bytes."""
    draw = np.random.default_rng(seed)
    for number in range(n):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        picture = coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG" if number % 2 else "PNG")
        yield ".jpg" if number % 2 else ".png", file.getvalue()


def found_images(folder: Path, n: int) -> Iterator[tuple[str, bytes]]:
    """The first ``n`` small images below a folder."""
    left = n
    for item in files.walk(folder, recursive=True):
        if left and isinstance(item, FileItem) and item.size <= _LARGEST:
            left -= 1
            yield item.path.suffix.lower(), item.path.read_bytes()
    if left == n:
        raise UsageError(f"there is no image of up to {_LARGEST >> 10} KiB below {folder}")


def bit_pngs(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Random bits, as PNG."""
    for number in range(n):
        file = io.BytesIO()
        Image.fromarray(bit_images.unpacked(seed, number, 1)[0] * np.uint8(255)).save(file, "PNG")
        yield ".png", file.getvalue()


def write_folder(folder: Path, images: Iterator[tuple[str, bytes]]) -> int:
    """The images as files, a thousand a folder; returns how many."""
    number = -1
    for number, (suffix, content) in enumerate(images):
        place = folder / f"{number // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}{suffix}").write_bytes(content)
    return number + 1


def listed(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder in the order of their names: name and bytes."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), path.read_bytes()


def said_of(number: int) -> dict[str, object]:
    """The metadata beside an image, in sources that have some."""
    return {"label": number % 10, "caption": f"image number {number}"}


def write_tar(path: Path, folder: Path, mode: str = "w", *, described: bool = False) -> None:
    """A tar; ``described`` with a JSON file beside each image, as WebDataset has it."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for number, (name, content) in enumerate(listed(folder)):
            _add(archive, name, content)
            if described:
                side = json.dumps(said_of(number)).encode()
                _add(archive, name.rpartition(".")[0] + ".json", side)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_tar_zst(path: Path, folder: Path) -> None:
    """A tar, compressed with zstd at its usual level."""
    with zstd().open(path, "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for name, content in listed(folder):
            _add(archive, name, content)


def write_zip(path: Path, folder: Path) -> None:
    """A zip of stored members, which suits images best."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in listed(folder):
            archive.writestr(name, content)


def write_parquet(path: Path, folder: Path) -> None:
    """A table in the form of Hugging Face data sets: 1,000 rows a group."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    fields = [("image", image), ("label", arrow.int64()), ("caption", arrow.string())]
    schema = arrow.schema(fields)
    rows: list[dict[str, object]] = []
    with parquet.ParquetWriter(path, schema) as writer:
        for number, (name, content) in enumerate(listed(folder)):
            rows.append({"image": {"bytes": content, "path": name}, **said_of(number)})
            if len(rows) == 1000:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def write_array(path: Path, n: int, seed: int) -> None:
    """Bit images as rows of one array."""
    rows = np.lib.format.open_memmap(path, "w+", np.uint8, (n, *bit_images.SHAPE))
    for first in range(0, n, bit_images.CHUNK):
        rows[first : first + bit_images.CHUNK] = bit_images.unpacked(
            seed, first, min(bit_images.CHUNK, n - first)
        )
    rows.flush()


WRITERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    TAR: ("a.tar", write_tar),
    "tar.gz": ("a.tar.gz", lambda path, folder: write_tar(path, folder, "w:gz")),
    "tar.zst": ("a.tar.zst", write_tar_zst),
    "zip": ("a.zip", write_zip),
    "webdataset": ("w.tar", lambda path, folder: write_tar(path, folder, described=True)),
    "parquet": ("a.parquet", write_parquet),
}


def write_all(
    work: Path,
    images: Iterator[tuple[str, bytes]],
    bits: int,
    seed: int,
    kinds: Collection[str] = tuple(WRITERS),
) -> dict[str, tuple[str, Path, int]]:
    """Every kind of source: its folder for comparison, its path, its number of images."""
    n = write_folder(work / "images", images)
    made = {FOLDER: (FOLDER, work / "images", n)}
    for kind, (name, write) in WRITERS.items():
        if kind not in kinds or (kind == "parquet" and find_spec("pyarrow") is None):
            continue
        write(work / name, work / "images")
        made[kind] = (FOLDER, work / name, n)
    if bits:
        write_folder(work / "bits", bit_pngs(bits, seed))
        write_tar(work / "bits.tar", work / "bits")
        write_array(work / "bits.npy", bits, seed)
        made[BITS] = (BITS, work / "bits", bits)
        made["tar of bits"] = (BITS, work / "bits.tar", bits)
        made[BITS_ARRAY] = (BITS, work / "bits.npy", bits)
    return made
