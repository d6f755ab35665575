"""MANIFEST.json: which files of the store are live. Replaced whole, by an atomic rename."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import digest
from engine.config import FORMAT_VERSION, MIN_READER, MIN_WRITER, StructuralSettings
from engine.errors import StoreFormatError, StoreNotFoundError
from engine.storage.files import replace_file

NAME = "MANIFEST.json"
_MAGIC = "image-index-engine store"
_KNOWN_FEATURES: frozenset[str] = frozenset()
_MOST_BYTES = 64 << 20
_NAME_ANOTHER = "name a store, or an empty or new folder for one, with --store"


class DamagedManifestError(StoreFormatError):
    """The manifest of what is a store otherwise is gone or unreadable: it can be made anew."""


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One live index segment: rows ``[first_row, first_row + rows)`` of an encoder generation."""

    number: int
    generation: int
    first_row: int
    rows: int
    nlist: int
    bytes: int
    xxh64: int


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """The encoder that made generation ``generation`` of the vectors; its files lie in the store."""

    name: str
    generation: int
    dim: int
    fingerprint: str  # hex SHA-256 of the model file
    file: str  # relative to the store


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest. It names files; how many rows of them count, the keys say."""

    uuid: str
    settings: StructuralSettings
    encoder: EncoderEntry | None = None
    extents: dict[str, list[int]] = field(default_factory=dict)  # family → extent numbers
    segments: tuple[SegmentEntry, ...] = ()

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

    def dump(self) -> bytes:
        """The file's contents."""
        body = {
            "what": _MAGIC,
            "format": FORMAT_VERSION,
            "min_reader": MIN_READER,
            "min_writer": MIN_WRITER,
            "features": [],
            "uuid": self.uuid,
            "settings": self.settings.to_dict(),
            "encoder": _as_dict(self.encoder) if self.encoder else None,
            "extents": self.extents,
            "segments": [_as_dict(segment) for segment in self.segments],
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
    )


def _encoder(body: dict[str, Any]) -> EncoderEntry:
    entry = EncoderEntry(
        name=str(body["name"]),
        generation=int(body["generation"]),
        dim=int(body["dim"]),
        fingerprint=str(body["fingerprint"]),
        file=str(body["file"]),
    )
    parts = Path(entry.file).parts
    if entry.dim < 1 or entry.generation < 1 or ".." in parts or Path(entry.file).is_absolute():
        raise ValueError("its encoder makes no sense")
    return entry


def _segment(body: dict[str, Any]) -> SegmentEntry:
    entry = SegmentEntry(**{name: int(body[name]) for name in SegmentEntry.__dataclass_fields__})
    if min(entry.rows, entry.nlist, entry.number) < 1 or min(entry.first_row, entry.bytes) < 0:
        raise ValueError("a segment makes no sense")
    return entry


def _checksum(body: dict[str, Any]) -> int:
    """Over what is said of the store; not over the versions, which any engine has to be able to read."""
    said = [body[name] for name in ("uuid", "settings", "encoder", "extents", "segments")]
    return digest.checksum(json.dumps(said, sort_keys=True).encode())


def _as_dict(entry: SegmentEntry | EncoderEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__dataclass_fields__}
