"""What do the same images cost in an archive or a table, beside the folder of them?

The images of a folder are put into each kind of source, and each is ingested into a new store, in a
process of its own and without an encoder; in rounds, each of which begins with another kind. What is
compared with the folder is compared with that of the same round. The same for bit images, which an
array holds too. A tar is to reach 0.85 of the folder's speed, with no more memory.
"""

from __future__ import annotations

import io
import json
import statistics
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from engine.config import parse_memory
from engine.errors import UsageError
from engine.sources import files
from engine.sources.decompress import zstd
from engine.sources.items import FileItem

from ..data import bit_images
from ..harness import script
from ..harness.errors import BenchError
from ..harness.machine import machine, versions
from ..harness.process import run_child
from ..harness.sizes import check_disk, parse_count
from ..report.tables import Target, align, targets

FOLDER, TAR, BITS, BITS_ARRAY = "folder", "tar", "folder of bits", "npy"
TARGET_SPEED = 0.85  # of a folder's
TARGET_MEMORY = 1.1  # times a folder's
_LARGEST = 64 << 10  # bytes: what counts as a small image
_SIDE = 48  # pixels of a made image
_EACH = 60_000  # bytes of disk an image, all kinds together


@dataclass(frozen=True, slots=True)
class Taken:
    """One ingest."""

    kind: str
    beside: str  # the folder that it is compared with
    images: int
    added: int
    seconds: float
    peak_bytes: int  # of anonymous memory, seen from outside
    reported_peak_bytes: int  # the same, as the ingest's report has it

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


# --- the images -----------------------------------------------------------------------------------


def made_images(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """PNG and JPEG in turn, of coarse noise: suffix and bytes."""
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


# --- the same in other places ---------------------------------------------------------------------


def listed(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder in the order of their names: name and bytes."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), path.read_bytes()


def said_of(number: int) -> dict[str, object]:
    """What stands beside an image where something does."""
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
    """A zip of stored members, as zips of images are best."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in listed(folder):
            archive.writestr(name, content)


def write_parquet(path: Path, folder: Path) -> None:
    """A table as Hugging Face data sets have it: 1,000 rows a group."""
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
    """Every kind of source: what it is compared with, where it is, how many images it has."""
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


# --- measuring ------------------------------------------------------------------------------------


def measure(
    made: Mapping[str, tuple[str, Path, int]], rounds: int, memory: int, work: Path
) -> list[Taken]:
    """Every kind once a round, each round beginning with another one."""
    kinds = list(made)
    taken: list[Taken] = []
    for number in range(rounds):
        for i in range(len(kinds)):
            kind = kinds[(number + i) % len(kinds)]
            beside, source, images = made[kind]
            spec = {"source": str(source), "work": str(work), "memory_bytes": memory}
            finished = run_child("questions.source_kinds_child", spec)
            found = finished.result
            if found["seen"] != images:
                raise BenchError(f"{kind}: {found['seen']:,} of {images:,} images were seen")
            taken.append(
                Taken(
                    kind,
                    beside,
                    images,
                    found["added"],
                    found["seconds"],
                    max(finished.anonymous_peak, found["peak"]),
                    found["peak"],
                )
            )
    for one in taken:
        if one.added != of(taken, one.beside)[0].added:
            raise BenchError(f"{one.kind}: other images than in the {one.beside} were added")
    return taken


def of(taken: Sequence[Taken], kind: str) -> list[Taken]:
    """The ingests of one kind, by round."""
    return [one for one in taken if one.kind == kind]


def speed(taken: Sequence[Taken], kind: str) -> float:
    """How fast one kind is beside its folder: the median of the rounds' ratios."""
    mine = of(taken, kind)
    other = of(taken, mine[0].beside)
    return statistics.median(a.rate / b.rate for a, b in zip(mine, other, strict=True))


def peak(taken: Sequence[Taken], kind: str) -> float:
    """The median of its peaks, in bytes."""
    return statistics.median(one.peak_bytes for one in of(taken, kind))


def wanted_of(taken: Sequence[Taken]) -> list[Target]:
    """The targets, with what was measured."""
    memory = peak(taken, TAR) / peak(taken, FOLDER)
    return [
        Target("tar, of the folder's images/s", TARGET_SPEED, speed(taken, TAR), True, 2),
        Target("tar, times the folder's peak memory", TARGET_MEMORY, memory, digits=2),
    ]


def table(taken: Sequence[Taken]) -> str:
    """The ingests as aligned columns: medians over the rounds; MB are 10^6 bytes."""
    lines = [("source", "images", "images/s", "slowest", "fastest", "of its folder's", "peak MB")]
    for kind in dict.fromkeys(one.kind for one in taken):
        rates = [one.rate for one in of(taken, kind)]
        lines.append(
            (
                kind,
                f"{of(taken, kind)[0].images:,}",
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f}",
                f"{max(rates):,.0f}",
                f"{speed(taken, kind):.2f}",
                f"{peak(taken, kind) / 1e6:,.0f}",
            )
        )
    return align(lines, left=(0,))


def main() -> bool:
    """Measure and print; true if a tar is about as fast as a folder and takes no more memory."""
    parser = script.parser(__doc__)
    parser.add_argument("--n", default="100000", help="images  [100000]")
    parser.add_argument("--bits", default="20000", help="bit images; 0 leaves them out  [20000]")
    every = ",".join(WRITERS)
    parser.add_argument("--kinds", default=every, help=f"beside the folder; tar always  [{every}]")
    parser.add_argument("--images", type=Path, help="a folder of small images; else some are made")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken  [3]")
    parser.add_argument("--memory", default="1G", help="the store's bound  [1G]")
    parser.add_argument("--seed", type=int, default=0, help="of made images  [0]")
    parser.add_argument("--dir", type=Path, help="where everything is made, and removed again")
    parser.add_argument("--json", action="store_true", help="every ingest, as one object")
    given = parser.parse_args()
    n = parse_count(given.n)
    bits = 0 if given.bits == "0" else parse_count(given.bits)
    check_disk(n + bits, given.dir or Path(tempfile.gettempdir()), _EACH)
    if given.dir is not None:
        given.dir.mkdir(parents=True, exist_ok=True)
    images = made_images(n, given.seed) if given.images is None else found_images(given.images, n)
    with tempfile.TemporaryDirectory(prefix="engine-bench-", dir=given.dir) as folder:
        work = Path(folder).absolute()
        kinds = {TAR, *given.kinds.split(",")}
        made = write_all(work, images, bits, given.seed, kinds)
        memory = parse_memory(given.memory).total
        taken = measure(made, max(1, given.rounds), memory, work)
    wanted = wanted_of(taken)
    if given.json:
        about = {"machine": machine(), "versions": versions(), "memory_bytes": memory}
        print(json.dumps(about | {"ingests": [asdict(one) for one in taken]}))
    else:
        print(table(taken), end="\n\n")
        print(targets(wanted))
    return all(one.met for one in wanted)


if __name__ == "__main__":
    script.exit_with(main)
