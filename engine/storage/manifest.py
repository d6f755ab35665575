"""MANIFEST.json: the list of a store's live files. An atomic rename replaces it as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.config import FORMAT_VERSION, MIN_READER, MIN_WRITER, StructuralSettings
from engine.errors import StoreDamagedError, StoreFormatError, StoreNotFoundError
from engine.images import hashing
from engine.storage import file_names, nofollow
from engine.storage.durable import replace_file
from engine.storage.json_values import MAX_64, items, loads, members, number, real, text, truth
from engine.storage.vector_space import (
    IMAGE_VECTORS,
    IMPORTED_VECTORS,
    EncoderEntry,
    VectorSpace,
)

NAME = file_names.MANIFEST
INDEX_FOLDER = file_names.INDEX
_MAGIC = "image-index-engine store"
# The feature of a store whose encoder is being replaced, from the commit before to the manifest after.
INCOMING = "incoming-encoder"
_KNOWN_FEATURES: frozenset[str] = frozenset({IMPORTED_VECTORS, IMAGE_VECTORS, INCOMING})
_MAX_BYTES = 64 << 20
_UUID_BYTES = 16
_MAX_DIM = 1 << 24
_MAX_LISTS = 1 << 24
# The candidates of one query: arrays of this length are allocated.
_MAX_RERANK_DEPTH = 1 << 20
_NAME_ANOTHER = "name a store, or an empty or new folder for one, with path="


class DamagedManifestError(StoreFormatError):
    """The manifest of an otherwise valid store is missing or unreadable. It can be rebuilt."""


@dataclass(frozen=True, slots=True)
class QuantizerEntry:
    """A quantizer, which defines the lists and codes of segments; trained on one encoder generation."""

    number: int
    generation: int
    nlist: int
    trained_on: int  # number of vectors at training
    closeness: float  # mean inner product of a vector with its centroid, at training
    bytes: int
    xxh64: int


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """An index segment. Its rows are numbered within ``ranges``, one range after another.

    A range is (extent of vectors, first row in it, rows). The segment is live if all are committed.
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
        """Return its number of rows."""
        return sum(rows for _, _, rows in self.ranges)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How far a search looks, and the recall measured with that."""

    nprobe: int  # lists, at most
    rerank_depth: int  # candidates that are compared in full
    recall: float
    recall_lower_bound: float  # the lower end of its confidence interval (95 %, one-sided)
    # Skip lists more than this many times as far away as the nearest; None: skip none.
    probe_radius: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; its names are part of the format."""
        return {
            "nprobe": self.nprobe,
            "depth": self.rerank_depth,
            "recall": self.recall,
            "surely": self.recall_lower_bound,
            "reach": self.probe_radius,
        }


@dataclass(frozen=True, slots=True)
class RandomPairs:
    """How alike random pairs of a store's vectors are.

    ``quantiles`` are pairs (share, score), both ascending: that share of the pairs has a lower score.
    """

    pairs: int  # number of pairs that were measured
    quantiles: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; its names are part of the format."""
        return {"pairs": self.pairs, "quantiles": self.quantiles}


@dataclass(frozen=True, slots=True)
class Measured:
    """Recall measured on a sample of a store's own vectors, and the default target."""

    target: float
    quantizer: int = 0
    rows: int = 0  # number of vectors at the measurement
    sample: int = 0  # number of vectors used as queries
    points: tuple[tuple[int, tuple[OperatingPoint, ...]], ...] = ()  # by k; the cheapest first
    random_pairs: RandomPairs | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; its names are part of the format."""
        return {
            "target": self.target,
            "quantizer": self.quantizer,
            "rows": self.rows,
            "sample": self.sample,
            "points": [[k, [point.to_json() for point in points]] for k, points in self.points],
            "random_pairs": self.random_pairs.to_json() if self.random_pairs else None,
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest. It names files; the keys say how many rows of them are committed."""

    uuid: str
    settings: StructuralSettings
    encoder: EncoderEntry | None = None  # as in the file; ``space`` interprets it
    extents: dict[str, list[int]] = field(default_factory=dict)  # family → extent numbers
    segments: tuple[SegmentEntry, ...] = ()
    quantizers: tuple[QuantizerEntry, ...] = ()
    measured: Measured | None = None
    # The encoder that the next commit switches to. ``State.manifest_of`` says whether it has.
    incoming: EncoderEntry | None = None

    @property
    def space(self) -> VectorSpace:
        """Return the vector space of the store."""
        return VectorSpace.of(self.encoder)

    @property
    def spaces(self) -> tuple[VectorSpace, ...]:
        """Return the vector space of the store, and the one that it is being switched to."""
        return tuple(
            VectorSpace.of(one) for one in (self.encoder, self.incoming) if one is not None
        )

    def with_extent(self, family: str, number: int) -> Manifest:
        """Return a manifest that names one more extent."""
        extents = {**self.extents, family: [*self.extents.get(family, []), number]}
        return replace(self, extents=extents)

    def only(self, live: Iterable[tuple[str, int]]) -> Manifest:
        """Return a manifest without extents that are not ``live``: (family, number) of each."""
        kept = set(live)
        extents = {
            family: [number for number in numbers if (family, number) in kept]
            for family, numbers in self.extents.items()
        }
        return replace(self, extents={family: left for family, left in extents.items() if left})

    def with_index(
        self, live: Iterable[SegmentEntry], measured: Measured | None = None
    ) -> Manifest:
        """Return a manifest with these segments, and only the quantizers that they use."""
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
        """Return the files of segments and quantizers."""
        folder = store / INDEX_FOLDER
        return {folder / file_names.segment(entry.number) for entry in self.segments} | {
            folder / file_names.quantizer(entry.number) for entry in self.quantizers
        }

    def dump(self) -> bytes:
        """Return the file's contents."""
        body = {
            "what": _MAGIC,
            "format": FORMAT_VERSION,
            "min_reader": MIN_READER,
            "min_writer": MIN_WRITER,
            "features": self._features(),
            "uuid": self.uuid,
            "settings": self.settings.to_dict(),
            "encoder": asdict(self.encoder) if self.encoder else None,
            "extents": self.extents,
            "segments": [asdict(segment) for segment in self.segments],
            "quantizers": [asdict(entry) for entry in self.quantizers],
            "measured": self.measured.to_json() if self.measured else None,
        }
        if self.incoming is not None:
            body["incoming"] = asdict(self.incoming)
        body["xxh64"] = _checksum(body)
        return (json.dumps(body, indent=1) + "\n").encode()

    def _features(self) -> list[str]:
        return self.space.features + ([INCOMING] if self.incoming is not None else [])

    def save(self, store: Path) -> None:
        """Write the manifest durably."""
        replace_file(store / NAME, self.dump(), store)


def load(store: Path, *, writing: bool = False) -> Manifest:
    """Read a store's manifest, to read the store or for ``writing`` to it.

    Raises ``StoreNotFoundError`` if nothing is there, and ``StoreFormatError`` for anything that is not
    a store or has a format that this version cannot read.
    """
    path = store / NAME
    try:
        found = nofollow.read_file(store, NAME, _MAX_BYTES)
    except FileNotFoundError:
        if not store.exists():
            raise StoreNotFoundError(
                f"there is no store at {store}: make one with create=True, or name another with path="
            ) from None
        # A repair builds the keys in MENDED, so KEYS may be missing: see engine.storage.rocks.rebuild.
        if any(nofollow.is_folder(store, name) for name in (file_names.KEYS, file_names.MENDED)):
            raise DamagedManifestError(
                f"{store}: its {NAME} is missing; 'engine check --fix' rebuilds it"
            ) from None
        raise StoreFormatError(
            f"{store} is not a store (it has no {NAME}): {_NAME_ANOTHER}"
        ) from None
    except NotADirectoryError:
        raise StoreFormatError(f"{store} is a file, not a store: {_NAME_ANOTHER}") from None
    except OSError as error:
        raise StoreFormatError(f"{path} cannot be read: {error.strerror}") from None
    return parse(store, found, writing=writing)


def parse(store: Path, dumped: bytes, *, writing: bool = False) -> Manifest:
    """Parse what ``dump`` wrote; raise ``StoreFormatError`` if it is malformed."""
    try:
        return _parse(store, members(loads(dumped)), writing)
    except RecursionError:
        what = "it is nested too deep"
    except KeyError as error:
        what = f"it has no {error}"
    except (ValueError, StoreDamagedError) as error:
        what = str(error)
    raise DamagedManifestError(
        f"{store / NAME} cannot be read ({what}): "
        f"it is damaged or not a store's manifest; 'engine check --fix' rebuilds a damaged one"
    )


def _parse(store: Path, body: dict[str, Any], writing: bool) -> Manifest:
    if body["what"] != _MAGIC:
        raise ValueError("it belongs to something else")
    if number(body["min_reader"]) > FORMAT_VERSION:
        raise StoreFormatError(
            f"{store} has format version {number(body['format'])}, this engine reads up to "
            f"{FORMAT_VERSION}: install a newer image-index-engine"
        )
    if number(body["min_writer"]) > FORMAT_VERSION and writing:
        raise StoreFormatError(
            f"{store} has format version {number(body['format'])}, which this engine can "
            f"read but not write: install a newer image-index-engine"
        )
    unknown = {text(feature) for feature in items(body["features"])} - _KNOWN_FEATURES
    if unknown:
        raise StoreFormatError(
            f"{store} uses {', '.join(sorted(unknown))}, which this engine does not know: "
            f"install a newer image-index-engine"
        )
    # Early stores have no checksum.
    if body.get("xxh64", _checksum(body)) != _checksum(body):
        raise ValueError("its checksum is wrong")
    try:
        settings = StructuralSettings.from_dict(members(body["settings"]))
    except StoreFormatError as error:
        raise ValueError(str(error)) from None
    encoder, incoming = body["encoder"], body.get("incoming")
    return Manifest(
        uuid=_uuid(body["uuid"]),
        settings=settings,
        encoder=parse_encoder(members(encoder)) if encoder is not None else None,
        incoming=parse_encoder(members(incoming)) if incoming is not None else None,
        extents={
            file_names.family(name): _numbers(found)
            for name, found in members(body["extents"]).items()
        },
        segments=tuple(_segment(members(segment)) for segment in items(body["segments"])),
        quantizers=tuple(_quantizer(members(entry)) for entry in items(body["quantizers"])),
        measured=_measured(members(body["measured"])) if body["measured"] is not None else None,
    )


def _uuid(value: object) -> str:
    found = bytes.fromhex(text(value))
    if len(found) != _UUID_BYTES:
        raise ValueError("its uuid is malformed")
    return found.hex()


def _file_number(value: object) -> int:
    return number(value, 1, file_names.MAX_NUMBER)


def _generation(value: object) -> int:
    return number(value, 1, file_names.MAX_GENERATION)


def _numbers(value: object) -> list[int]:
    found = [number(one, 1, file_names.MAX_EXTENT) for one in items(value)]
    if len(set(found)) < len(found):
        raise ValueError("an extent is named twice")
    return found


def parse_encoder(body: dict[str, Any]) -> EncoderEntry:
    """Parse the entry of an encoder; raise ``ValueError``, ``KeyError`` or ``StoreDamagedError``."""
    entry = EncoderEntry(
        name=text(body["name"]),
        generation=_generation(body["generation"]),
        dim=number(body["dim"], 1, _MAX_DIM),
        fingerprint=text(body["fingerprint"]),
        file=text(body["file"]),
        normalized=truth(body.get("normalized", False)),
        of_images=truth(body.get("of_images", False)),
    )
    if not entry.is_imported:
        if entry.of_images:
            raise ValueError("the vectors of an encoder are not imported")
        file_names.encoder_folder(entry.file, entry.generation)
    return entry


def _segment(body: dict[str, Any]) -> SegmentEntry:
    ranges = []
    for extent, first, rows in map(items, items(body["ranges"])):
        ranges.append((number(extent, 1, file_names.MAX_EXTENT), number(first), number(rows, 1)))
    if not ranges:
        raise ValueError("a segment covers no vectors")
    return SegmentEntry(
        number=_file_number(body["number"]),
        generation=_generation(body["generation"]),
        quantizer=_file_number(body["quantizer"]),
        ranges=tuple(ranges),
        ordered=truth(body["ordered"]),
        bytes=number(body["bytes"]),
        xxh64=number(body["xxh64"], 0, MAX_64),
    )


def _quantizer(body: dict[str, Any]) -> QuantizerEntry:
    return QuantizerEntry(
        number=_file_number(body["number"]),
        generation=_generation(body["generation"]),
        nlist=number(body["nlist"], 1, _MAX_LISTS),
        trained_on=number(body["trained_on"], 1),
        closeness=real(body["closeness"]),
        bytes=number(body["bytes"]),
        xxh64=number(body["xxh64"], 0, MAX_64),
    )


def _measured(body: dict[str, Any]) -> Measured:
    points, pairs = [], body.get("random_pairs")
    for k, found in map(items, items(body["points"])):
        points.append((number(k, 1), tuple(_point(members(point)) for point in items(found))))
    quantizer = number(body["quantizer"])
    return Measured(
        target=real(body["target"]),
        quantizer=quantizer,
        rows=number(body["rows"], 1 if quantizer else 0),
        sample=number(body["sample"]),
        points=tuple(points),
        random_pairs=_random_pairs(members(pairs)) if pairs is not None else None,
    )


def _random_pairs(body: dict[str, Any]) -> RandomPairs:
    found = map(items, items(body["quantiles"]))
    quantiles = tuple((real(share), real(score)) for share, score in found)
    if not quantiles:
        raise ValueError("the scores of random pairs are missing")
    shares, scores = zip(*quantiles, strict=True)
    ascending = list(shares) == sorted(shares) and list(scores) == sorted(scores)
    if not ascending or shares[0] < 0 or shares[-1] >= 1:
        raise ValueError("the scores of random pairs are out of order")
    return RandomPairs(number(body["pairs"], 1), quantiles)


def _point(body: dict[str, Any]) -> OperatingPoint:
    radius = body.get("reach")
    point = OperatingPoint(
        nprobe=number(body["nprobe"], 1, _MAX_LISTS),
        rerank_depth=number(body["depth"], 1, _MAX_RERANK_DEPTH),
        recall=real(body["recall"]),
        recall_lower_bound=real(body["surely"]),
        probe_radius=None if radius is None else real(radius),
    )
    if point.probe_radius is not None and point.probe_radius < 1:
        raise ValueError("a measured recall is out of range")
    return point


def _checksum(body: dict[str, Any]) -> int:
    """Compute the content's checksum, without the versions, which any engine must be able to read."""
    parts = ("uuid", "settings", "encoder", "extents", "segments", "quantizers", "measured")
    said = [body[name] for name in parts]
    # Most manifests have none, and then the same checksum as before there was one.
    said += [body["incoming"]] if "incoming" in body else []
    return hashing.checksum(json.dumps(said, sort_keys=True).encode())
