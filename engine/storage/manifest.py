"""MANIFEST.json: which files of the store are live. Replaced whole, by an atomic rename."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import digest
from engine.config import FORMAT_VERSION, MIN_READER, MIN_WRITER, StructuralSettings
from engine.errors import StoreFormatError, StoreNotFoundError
from engine.storage.files import replace_file

NAME = "MANIFEST.json"
INDEX_FOLDER = "index"
_MAGIC = "image-index-engine store"
GIVEN = (
    "vectors"  # the name of the encoder, and the feature, of a store of vectors that were brought
)
_KNOWN_FEATURES: frozenset[str] = frozenset({GIVEN})
_MOST_BYTES = 64 << 20
_NAME_ANOTHER = "name a store, or an empty or new folder for one, with --store"


class DamagedManifestError(StoreFormatError):
    """The manifest of what is a store otherwise is gone or unreadable: it can be made anew."""


@dataclass(frozen=True, slots=True)
class QuantizerEntry:
    """What the lists and codes of segments mean: trained on vectors of one encoder generation."""

    number: int
    generation: int
    nlist: int
    trained_on: int  # vectors that there were then
    closeness: float  # mean inner product of a vector with its centroid, then
    bytes: int
    xxh64: int


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One index segment; its rows are labelled by their number within ``ranges``, one after another.

    It is live if all of these are committed: (extent of vectors, first row in it, rows).
    """

    number: int
    generation: int
    quantizer: int
    ranges: tuple[tuple[int, int, int], ...]
    ordered: bool  # whether its rows lie in the order of its lists
    bytes: int
    xxh64: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(rows for _, _, rows in self.ranges)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How far a search looks, and the recall that was measured of it."""

    nprobe: int  # lists, at most
    depth: int  # candidates that are compared in full
    recall: float
    surely: float  # the lower end of its confidence interval (95 %, one-sided)
    reach: float | None = None  # times as far as the nearest list, beyond which lists are left out


@dataclass(frozen=True, slots=True)
class Measured:
    """Recall as measured on a sample of a store's own vectors, and what is wanted by default."""

    target: float
    quantizer: int = 0
    rows: int = 0  # vectors that there were then
    sample: int = 0  # vectors that were looked for
    points: tuple[tuple[int, tuple[OperatingPoint, ...]], ...] = ()  # by k; the cheapest first


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """The encoder that made generation ``generation`` of the vectors; its files lie in the store.

    Vectors that somebody brought have an entry too, without files.
    """

    name: str
    generation: int
    dim: int
    fingerprint: str  # hex SHA-256 of the model file
    file: str  # relative to the store; empty where the vectors were given
    normalized: bool = False  # given ones were divided by their length, and queries are

    @property
    def given(self) -> bool:
        """Whether the vectors were brought, and not made of images."""
        return not self.file


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest. It names files; how many rows of them count, the keys say."""

    uuid: str
    settings: StructuralSettings
    encoder: EncoderEntry | None = None
    extents: dict[str, list[int]] = field(default_factory=dict)  # family → extent numbers
    segments: tuple[SegmentEntry, ...] = ()
    quantizers: tuple[QuantizerEntry, ...] = ()
    measured: Measured | None = None

    def with_extent(self, family: str, number: int) -> Manifest:
        """The manifest that names one more extent."""
        extents = {**self.extents, family: [*self.extents.get(family, []), number]}
        return replace(self, extents=extents)

    def only(self, live: Iterable[tuple[str, int]]) -> Manifest:
        """The manifest without the extents that are not ``live``: (family, number) of each."""
        kept = set(live)
        extents = {
            family: [number for number in numbers if (family, number) in kept]
            for family, numbers in self.extents.items()
        }
        return replace(self, extents={family: left for family, left in extents.items() if left})

    def with_index(
        self, live: Iterable[SegmentEntry], measured: Measured | None = None
    ) -> Manifest:
        """The manifest with these segments, and the quantizers that they use, and no others."""
        segments = tuple(live)
        used = {entry.quantizer for entry in segments}
        quantizers = tuple(entry for entry in self.quantizers if entry.number in used)
        return replace(
            self,
            segments=segments,
            quantizers=quantizers,
            measured=measured or self.measured,
        )

    def index_files(self, store: Path) -> set[Path]:
        """The files of segments and quantizers."""
        folder = store / INDEX_FOLDER
        return {folder / f"{entry.number:08d}.ivf" for entry in self.segments} | {
            folder / f"{entry.number:08d}.quantizer" for entry in self.quantizers
        }

    def dump(self) -> bytes:
        """The file's contents."""
        body = {
            "what": _MAGIC,
            "format": FORMAT_VERSION,
            "min_reader": MIN_READER,
            "min_writer": MIN_WRITER,
            "features": [GIVEN] if self.encoder and self.encoder.given else [],
            "uuid": self.uuid,
            "settings": self.settings.to_dict(),
            "encoder": asdict(self.encoder) if self.encoder else None,
            "extents": self.extents,
            "segments": [asdict(segment) for segment in self.segments],
            "quantizers": [asdict(entry) for entry in self.quantizers],
            "measured": asdict(self.measured) if self.measured else None,
        }
        body["xxh64"] = _checksum(body)
        return (json.dumps(body, indent=1) + "\n").encode()

    def save(self, store: Path) -> None:
        """Write it, durably."""
        replace_file(store / NAME, self.dump())


def load(store: Path, *, writing: bool = False) -> Manifest:
    """Read a store's manifest, to read the store or for ``writing`` to it.

    Raises ``StoreNotFoundError`` where there is nothing, ``StoreFormatError`` where there is
    something else or a format this version cannot read.
    """
    path = store / NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES)
    except FileNotFoundError:
        if not store.exists():
            raise StoreNotFoundError(
                f"there is no store at {store}: make one with "
                f"'engine ingest SOURCE --store {store}', or name another with --store"
            ) from None
        if (store / "keys").is_dir():
            raise DamagedManifestError(
                f"{store}: its {NAME} is missing; 'engine check --fix' makes it anew"
            ) from None
        raise StoreFormatError(
            f"{store} is not a store (it has no {NAME}): {_NAME_ANOTHER}"
        ) from None
    except NotADirectoryError:
        raise StoreFormatError(f"{store} is a file, not a store: {_NAME_ANOTHER}") from None
    except OSError as error:
        raise StoreFormatError(f"{path} cannot be read: {error.strerror}") from None
    return parse(store, text, writing=writing)


def parse(store: Path, text: bytes, *, writing: bool = False) -> Manifest:
    """The manifest that ``dump`` wrote; ``StoreFormatError`` if it is something else."""
    path = store / NAME
    try:
        body = json.loads(text)
        return _parse(store, body, writing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedManifestError(
            f"{path} cannot be read ({type(error).__name__}: {error}): "
            f"it is damaged or not a store's manifest; 'engine check --fix' makes a damaged one anew"
        ) from None


def _parse(store: Path, body: dict[str, Any], writing: bool) -> Manifest:
    if body["what"] != _MAGIC:
        raise ValueError("it belongs to something else")
    if int(body["min_reader"]) > FORMAT_VERSION:
        raise StoreFormatError(
            f"{store} has format version {body['format']}, this engine reads up to "
            f"{FORMAT_VERSION}: install a newer image-index-engine"
        )
    if int(body["min_writer"]) > FORMAT_VERSION and writing:
        raise StoreFormatError(
            f"{store} has format version {body['format']}, which can be read and not written by "
            f"this engine: install a newer image-index-engine"
        )
    unknown = set(body["features"]) - _KNOWN_FEATURES
    if unknown:
        raise StoreFormatError(
            f"{store} uses {', '.join(sorted(unknown))}, which this engine does not know: "
            f"install a newer image-index-engine"
        )
    if body.get("xxh64", _checksum(body)) != _checksum(body):  # early stores have none
        raise ValueError("its checksum is wrong")
    try:
        settings = StructuralSettings.from_dict(body["settings"])
    except StoreFormatError as error:
        raise ValueError(str(error)) from None
    encoder = body["encoder"]
    return Manifest(
        uuid=bytes.fromhex(body["uuid"]).hex(),
        settings=settings,
        encoder=_encoder(encoder) if encoder else None,
        extents={str(k): [int(n) for n in v] for k, v in body["extents"].items()},
        segments=tuple(_segment(segment) for segment in body["segments"]),
        quantizers=tuple(_quantizer(entry) for entry in body["quantizers"]),
        measured=_measured(body["measured"]) if body["measured"] else None,
    )


def _encoder(body: dict[str, Any]) -> EncoderEntry:
    entry = EncoderEntry(
        name=str(body["name"]),
        generation=int(body["generation"]),
        dim=int(body["dim"]),
        fingerprint=str(body["fingerprint"]),
        file=str(body["file"]),
        normalized=bool(body.get("normalized", False)),
    )
    parts = Path(entry.file).parts
    if entry.dim < 1 or entry.generation < 1 or ".." in parts or Path(entry.file).is_absolute():
        raise ValueError("its encoder makes no sense")
    return entry


def _segment(body: dict[str, Any]) -> SegmentEntry:
    entry = SegmentEntry(
        number=int(body["number"]),
        generation=int(body["generation"]),
        quantizer=int(body["quantizer"]),
        ranges=tuple((int(a), int(b), int(c)) for a, b, c in body["ranges"]),
        ordered=bool(body["ordered"]),
        bytes=int(body["bytes"]),
        xxh64=int(body["xxh64"]),
    )
    good = all(extent > 0 and first >= 0 and rows > 0 for extent, first, rows in entry.ranges)
    if not good or not entry.ranges or entry.number < 1 or entry.bytes < 0:
        raise ValueError("a segment makes no sense")
    return entry


def _quantizer(body: dict[str, Any]) -> QuantizerEntry:
    names = ("number", "generation", "nlist", "trained_on", "bytes", "xxh64")
    entry = QuantizerEntry(
        **{name: int(body[name]) for name in names}, closeness=float(body["closeness"])
    )
    if min(entry.number, entry.nlist) < 1 or entry.bytes < 0:
        raise ValueError("a quantizer makes no sense")
    return entry


def _measured(body: dict[str, Any]) -> Measured:
    points = tuple((int(k), tuple(_point(point) for point in found)) for k, found in body["points"])
    return Measured(
        target=float(body["target"]),
        quantizer=int(body["quantizer"]),
        rows=int(body["rows"]),
        sample=int(body["sample"]),
        points=points,
    )


def _point(body: dict[str, Any]) -> OperatingPoint:
    reach = body.get("reach")
    point = OperatingPoint(
        nprobe=int(body["nprobe"]),
        depth=int(body["depth"]),
        recall=float(body["recall"]),
        surely=float(body["surely"]),
        reach=None if reach is None else float(reach),
    )
    if min(point.nprobe, point.depth, point.reach or 1) < 1:
        raise ValueError("a measured recall makes no sense")
    return point


def _checksum(body: dict[str, Any]) -> int:
    """Over what is said of the store; not over the versions, which any engine has to be able to read."""
    names = ("uuid", "settings", "encoder", "extents", "segments", "quantizers", "measured")
    said = [body[name] for name in names]
    return digest.checksum(json.dumps(said, sort_keys=True).encode())
