"""Opens one directory, recovers it, and owns the only commit point.

    photos.store/
      MANIFEST.json    which files are live (engine.storage.manifest)
      LOCK             the one writer's lock (engine.storage.lock)
      keys/            RocksDB: images, records, sources (engine.storage.keys, .rows)
      pixels/          kept pixels          ┐
      fingerprints/    32 bytes an image    ├ append-only extents (engine.storage.extents)
      vectors/GEN/     float32 and ids      ┘
      encoder/GEN/     the encoder that made them, so that a store can be moved and outlive upgrades
      index/           immutable IVF segments (engine.storage.segments)
      rejects.jsonl    what could not be ingested, and why

A commit is: append to the extents, fdatasync them, then one synced RocksDB batch with everything
else and the new committed lengths. Rows past those lengths do not exist; the next writer cuts them.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine.config import SOURCES_SHOWN, MemoryBudget, StructuralSettings
from engine.errors import StoreDamagedError, StoreError, UsageError
from engine.records import Buffer, ImageRecord, Pixels, Place
from engine.storage import extents, keys, manifest, segments
from engine.storage.extents import Append, ExtentReader, ExtentWriter, Family
from engine.storage.files import fsync_dir
from engine.storage.index import VectorIndex
from engine.storage.keys import Batch, Keys
from engine.storage.lock import WriterLock
from engine.storage.manifest import EncoderEntry, Manifest, SegmentEntry
from engine.storage.rows import ONE, ArrayRow, ImageRow, NameRow, RecordRow, Run, bucket_prefix, u64
from engine.storage.vectors import Vectors

REJECTS = "rejects.jsonl"


@dataclass(slots=True)
class State:
    """What is committed, as of one commit: the row ``meta/state``."""

    commit: int = 0
    next_id: int = 1
    next_array: int = 1
    images: int = 0
    sources: int = 0
    removed: int = 0
    vectors: dict[str, int] = field(default_factory=dict)  # generation → rows
    extents: dict[str, list[list[int]]] = field(default_factory=dict)  # family → [number, bytes]

    def pack(self) -> bytes:
        """The row's value."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> State:
        """The state that ``pack`` wrote."""
        return cls(**json.loads(value))

    def last_extent(self, family: Family) -> tuple[int, int]:
        """Number and committed data bytes of a family's newest extent; (0, 0) if it has none."""
        numbers = self.extents.get(family.name)
        return (numbers[-1][0], numbers[-1][1]) if numbers else (0, 0)


@dataclass(slots=True)
class NewImage:
    """An image that a chunk adds. Its id is the store's ``next_id`` plus its place in the chunk."""

    pixels: Pixels
    key: bytes
    proof: bytes
    container: str
    decoder: str
    file_bytes: int
    file_hash: bytes
    fingerprint: bytes
    quality: int
    keep: Buffer | None  # what to keep of it: canonical bytes of a bit image, else the file
    first: ImageRow | None = None  # the stored image that has the same key, and is another one


@dataclass(slots=True)
class NewName:
    """A file that is, from now on, image ``id``; ``before`` is what its name stood for."""

    name: bytes
    id: int
    mtime_ns: int
    size: int
    file_hash: bytes
    before: NameRow | None = None


@dataclass(slots=True)
class Chunk:
    """Everything of one commit."""

    images: list[NewImage] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] | None = None  # (images, dim), or none for all of them
    names: list[NewName] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    arrays: list[tuple[bytes, ArrayRow]] = field(default_factory=list)
    rejects: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.images or self.names or self.runs or self.arrays or self.rejects)


class StoreFiles:
    """One store directory: reads what is committed, and as its one writer commits chunks."""

    def __init__(self, path: Path, memory: MemoryBudget, *, read_only: bool) -> None:
        self.path = path
        self.memory = memory
        self.read_only = read_only
        self._lock = WriterLock(path)
        self._writers: dict[str, ExtentWriter] = {}
        self._keys: Keys | None = None
        self._failed: str | None = None
        self._open_reader()

    # --- opening, recovering, closing -------------------------------------------------------------

    @classmethod
    def create(
        cls, path: Path, memory: MemoryBudget, encoder: Callable[[Path], EncoderEntry] | None
    ) -> None:
        """Make an empty store at ``path``, which must not exist or be an empty folder.

        ``encoder`` puts the encoder's files into the folder it is given and says what they are.
        """
        there = path.exists()
        if there and (not path.is_dir() or any(path.iterdir())):
            manifest.load(path)  # says what it is instead
            return
        # Made aside and renamed: a crash leaves a stray folder, never half a store. An empty folder
        # that is there is filled and not replaced: it may be a mount, or where somebody stands.
        parent = path if there else path.resolve().parent
        made = parent / f".{path.resolve().name}.{uuid.uuid4().hex[:8]}.new"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            made.mkdir()
            settings = StructuralSettings.new()
            entry = encoder(made) if encoder else None
            first = Manifest(uuid.uuid4().hex, settings, entry)
            table = keys.create(made, memory)
            batch = Batch()
            batch.put("meta", b"settings", json.dumps(settings.to_dict()).encode())
            batch.put("meta", b"state", State().pack())
            table.commit(batch)
            table.close()
            (made / "LOCK").touch()
            first.save(made)
            fsync_dir(made)
            if there:
                parts = sorted(made.iterdir(), key=lambda part: part.name == manifest.NAME)
                for part in parts:  # the manifest last: with it, it is a store
                    part.rename(path / part.name)
            else:
                made.rename(path.resolve())
            fsync_dir(parent)
        except OSError as error:
            if (path / manifest.NAME).exists():
                return  # another process was faster, and made the same
            raise StoreError(f"{path} cannot be made: {error.strerror or error}") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _open_reader(self) -> None:
        self.manifest = manifest.load(self.path)
        self._keys = keys.open_reader(self.path, self.memory)
        self._load()

    def _load(self) -> None:
        table = self.keys
        state, settings = table.get("meta", b"state"), table.get("meta", b"settings")
        if state is None or settings is None:
            raise StoreDamagedError(f"{self.path}: its keys have no state; run 'engine check'")
        if json.loads(settings) != self.manifest.settings.to_dict():
            raise StoreDamagedError(f"{self.path}: manifest and keys belong to different stores")
        self.state = State.unpack(state)
        self._pixels = ExtentReader(self.path, extents.PIXELS)
        self._index: VectorIndex | None = None

    def refresh(self) -> None:
        """As a reader, see what has been committed since this store was opened."""
        if not self._lock.held:
            self._close_files()
            self._open_reader()

    def become_writer(self) -> None:
        """Take the writer's lock, recover what a crash left, and open the keys for writing."""
        self._require_healthy()
        if self._lock.held:
            return
        if self.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        self._lock.acquire()
        try:
            self._close_files()
            self.manifest = manifest.load(self.path, writing=True)
            self._keys = keys.open_writer(self.path, self.memory)
            self._load()
            self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> None:
        """Cut rows past the committed lengths; forget files that the manifest does not name."""
        committed = self._committed_extents()  # before anything is cut or deleted
        live = {self.path / manifest.NAME}
        for name, numbers in self.manifest.extents.items():
            family = self._family(name)
            for number in numbers:
                path = family.path(self.path, number)
                live.add(path)
                end = extents.HEADER_BYTES + committed.get((name, number), 0)
                if path.exists() and path.stat().st_size > end:
                    with path.open("r+b") as file:
                        file.truncate(end)
        live |= {segments.path_of(self.path, entry.number) for entry in self.manifest.segments}
        for folder in ("pixels", "fingerprints", "vectors", segments.FOLDER):
            for path in (self.path / folder).rglob("*"):
                if path.is_file() and path not in live:
                    path.unlink()
        for path in self.path.glob(".*.new"):
            path.unlink(missing_ok=True)

    def _committed_extents(self) -> dict[tuple[str, int], int]:
        """The committed data bytes of each extent, all of which are named and there.

        The keys are what counts. Where the manifest or a file has less, the store was damaged or
        put together from copies of different age, and writing on would lose what is left.
        """
        committed = {}
        for name, pairs in self.state.extents.items():
            for number, size in pairs:
                committed[name, number] = size
                path = self._family(name).path(self.path, number)
                there = path.stat().st_size if path.exists() else 0
                if number not in self.manifest.extents.get(name, []):
                    what = f"{manifest.NAME} does not name {path.name}, which holds committed data"
                elif there < extents.HEADER_BYTES + size:
                    what = f"{path} is gone or cut short"
                else:
                    continue
                raise StoreDamagedError(
                    f"{self.path} cannot be written: {what}; 'engine check' says what is lost"
                )
        return committed

    def close(self) -> None:
        """Give everything back. What was committed is durable already."""
        self._close_files()
        self._lock.release()

    def _close_files(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._keys is not None:
            self._keys.close()
            self._keys = None
            self._pixels.close()
            if self._index:
                self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def keys(self) -> Keys:
        """The open tables."""
        if self._keys is None:
            raise StoreError(f"{self.path} is closed" if not self._failed else self._failed)
        return self._keys

    @property
    def settings(self) -> StructuralSettings:
        """What the store was made with."""
        return self.manifest.settings

    def _require_healthy(self) -> None:
        if self._failed:
            raise StoreError(self._failed)
        if self._keys is None:
            raise StoreError(f"{self.path} is closed")

    # --- reading ----------------------------------------------------------------------------------

    def images_of(self, wanted: list[bytes]) -> list[list[ImageRow]]:
        """For each key, the rows of all images that have it (nearly always none or one)."""
        found: list[list[ImageRow]] = []
        for key, value in zip(wanted, self.keys.get_many("images", wanted), strict=True):
            if value is None:
                found.append([])
                continue
            first = ImageRow.unpack(value)
            rows = [first]
            if first.shared:
                more = self.keys.scan("images", key)
                rows += [ImageRow.unpack(row) for name, row in more if len(name) > len(key)]
            found.append(rows)
        return found

    def record(self, id_: int) -> RecordRow | None:
        """What is known of image ``id_``, or None if there is none."""
        value = self.keys.get("records", u64(id_)) if 0 < id_ < 1 << 63 else None
        return RecordRow.unpack(value) if value is not None else None

    def get(self, id_: int) -> ImageRecord:
        """The record of image ``id_``; ``UsageError`` if the store has no such image."""
        record = self.record(id_)
        if record is None:
            raise UsageError(f"{self.path} has no image {id_}")
        for row in self.images_of([record.key])[0]:
            if row.id == id_:
                return record.with_image(row)
        raise StoreDamagedError(f"image {id_} has a record and no key; run 'engine check'")

    def kept(self, place: Place) -> bytes:
        """The bytes kept at ``place``."""
        return self._pixels.read(place)

    def sources_of(self, id_: int, most: int = SOURCES_SHOWN) -> tuple[list[bytes], int]:
        """The first ``most`` places where image ``id_`` was seen, and how many there are."""
        names: list[bytes] = []
        count = 0
        for key, _ in self.keys.scan("sources", u64(id_)):
            count += 1
            if len(names) < most:
                names.append(key[8:])
        for run in self._runs_of(id_):
            rows = run.rows_of(id_)
            count += len(rows)
            if rows and len(names) < most:
                base = self.keys.get("arrays", b"#" + run.array.to_bytes(4, "big"))
                if base is None:
                    raise StoreDamagedError(f"array {run.array} has no name; run 'engine check'")
                names += [b"%s#%d" % (base, row) for row in rows[: most - len(names)]]
        return names, count

    def _runs_of(self, id_: int) -> Iterator[Run]:
        """The runs that image ``id_`` is in, and those that end before it in the same bucket."""
        for key, value in self.keys.scan("runs", ONE + u64(id_)):
            yield Run.from_id(key, value)
        for key, value in self.keys.scan("runs", bucket_prefix(id_)):
            run = Run.from_id(key, value)
            if run.id > id_:
                return
            yield run

    def names(self, wanted: list[bytes]) -> list[NameRow | None]:
        """What each file name stood for when it was last read."""
        values = self.keys.get_many("names", wanted)
        return [NameRow.unpack(value) if value is not None else None for value in values]

    def files(self, hashes: list[bytes]) -> list[int | None]:
        """The image of each file, by the file's SHA-256."""
        values = self.keys.get_many("files", hashes)
        return [int.from_bytes(value, "big") if value is not None else None for value in values]

    def array(self, name: bytes) -> ArrayRow | None:
        """How far an array source is committed."""
        value = self.keys.get("arrays", b"n" + name)
        return ArrayRow.unpack(value) if value is not None else None

    def rejected(self, name: bytes) -> dict[str, Any] | None:
        """What was recorded of a source that could not be read."""
        value = self.keys.get("rejects", name)
        return json.loads(value) if value is not None else None

    @property
    def vector_rows(self) -> int:
        """Committed vectors of the live encoder."""
        encoder = self.manifest.encoder
        return self.state.vectors.get(str(encoder.generation), 0) if encoder else 0

    @property
    def index(self) -> VectorIndex | None:
        """The vectors with their segments; None for a store without an encoder."""
        encoder = self.manifest.encoder
        if self._keys is None:
            raise StoreError(self._failed or f"{self.path} is closed")
        if encoder is None:
            return None
        if self._index is None:
            if not all(segments.path_of(self.path, e.number).exists() for e in self._segments()):
                # The writer may have merged them since this reader opened the store.
                self.manifest = manifest.load(self.path)
            vectors = Vectors(self.path, encoder.generation, encoder.dim, self.vector_rows)
            self._index = VectorIndex(self.path, vectors, self._segments())
        return self._index

    def _segments(self) -> list[SegmentEntry]:
        """The live segments, without those over rows that this reader's keys do not have yet."""
        encoder, rows = self.manifest.encoder, self.vector_rows
        return [
            entry
            for entry in self.manifest.segments
            if encoder is not None
            and entry.generation == encoder.generation
            and entry.first_row + entry.rows <= rows
        ]

    def unindexed_from(self, least: int) -> int | None:
        """The row to index from, if at least ``least`` vectors are in no segment; else None.

        Segments no larger than what they would be merged with are indexed again together with it,
        so that n vectors lie in O(log n) segments and each is indexed O(log n) times.
        """
        entries = sorted(self._segments(), key=lambda entry: entry.first_row)
        first = entries[-1].first_row + entries[-1].rows if entries else 0
        if self.vector_rows - first < least:
            return None
        while entries and entries[-1].rows <= self.vector_rows - first:
            first = entries.pop().first_row
        return first

    # --- writing ----------------------------------------------------------------------------------

    def commit(self, chunk: Chunk) -> None:
        """Make a chunk durable and visible, whole or not at all.

        Any failed write closes the store: RocksDB takes no more writes after one, and what was
        appended is cut when the store is next opened for writing.
        """
        self._require_healthy()
        if not self._lock.held:
            raise StoreError(f"{self.path} is not open for writing")
        if chunk.empty:
            return
        try:
            self._commit(chunk)
        except BaseException as error:
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = what or type(error).__name__
            self._failed = (
                f"{self.path} could not be written: {what}; what was committed before is safe: "
                f"mend the cause and run the command again"
            )
            self.close()
            if isinstance(error, OSError | StoreError):
                raise StoreError(self._failed) from None
            raise

    def _commit(self, chunk: Chunk) -> None:
        state = replace(
            self.state,
            commit=self.state.commit + 1,
            vectors=dict(self.state.vectors),
            extents={name: [list(pair) for pair in v] for name, v in self.state.extents.items()},
        )
        batch = Batch()
        appends: list[Append] = []
        first_id = state.next_id

        kept = [image.keep for image in chunk.images if image.keep is not None]
        places = iter(self._append(extents.PIXELS, kept, appends))
        prints = b"".join(image.fingerprint for image in chunk.images)
        self._append_rows(extents.FINGERPRINTS, prints, appends)
        encoder = self.manifest.encoder
        if chunk.vectors is not None and encoder is not None and len(chunk.vectors):
            block = np.ascontiguousarray(chunk.vectors, np.float32)
            ids = np.arange(first_id, first_id + len(block), dtype=np.int64)
            generation = encoder.generation
            family = extents.vectors(generation, encoder.dim)
            self._append_rows(family, block.tobytes(), appends)
            self._append_rows(extents.vector_ids(generation), ids.tobytes(), appends)
            rows = state.vectors.get(str(generation), 0)
            state.vectors[str(generation)] = rows + len(block)
        for writer in self._writers.values():
            writer.sync()
        for append in appends:
            numbers = state.extents.setdefault(append.family, [])
            if not numbers or numbers[-1][0] != append.extent:
                numbers.append([append.extent, 0])
            numbers[-1][1] = append.offset + append.length

        self._put_images(batch, chunk.images, first_id, places)
        state.next_id += len(chunk.images)
        state.images += len(chunk.images)
        state.sources += self._put_sources(batch, chunk)
        state.next_array = max([state.next_array, *(row.number + 1 for _, row in chunk.arrays)])
        for name, reject in chunk.rejects:
            batch.put("rejects", name, json.dumps(reject).encode())
        if appends:
            parts = [[a.family, a.extent, a.offset, a.length, a.xxh64] for a in appends]
            batch.put("commits", u64(state.commit), json.dumps(parts).encode())
        batch.put("meta", b"state", state.pack())
        self.keys.commit(batch)

        self.state = state
        if self._index is not None:
            self._index.close()
            self._index = None

    def _put_images(
        self, batch: Batch, images: Sequence[NewImage], first_id: int, places: Iterator[Place]
    ) -> None:
        firsts: dict[bytes, ImageRow] = {}
        for id_, image in enumerate(images, first_id):
            place = next(places) if image.keep is not None else None
            row = ImageRow(id_, image.proof, place)
            first = firsts.get(image.key) or image.first
            if first is None:
                firsts[image.key] = row
                batch.put("images", image.key, row.pack())
            else:
                # Another image with this key: a collision. Both live on.
                firsts[image.key] = replace(first, shared=True)
                batch.put("images", image.key, firsts[image.key].pack())
                batch.put("images", image.key + u64(id_), row.pack())
            pixels = image.pixels
            record = RecordRow(
                pixels.kind,
                pixels.height,
                pixels.width,
                pixels.channels,
                pixels.frames,
                image.quality,
                image.file_bytes,
                image.key,
                image.file_hash,
                image.container,
                image.decoder,
            )
            batch.put("records", u64(id_), record.pack())
            if image.file_hash:
                batch.put("files", image.file_hash, u64(id_))

    def _put_sources(self, batch: Batch, chunk: Chunk) -> int:
        """Put names, runs and arrays; returns by how much the number of sources grows."""
        grown = 0
        for new in chunk.names:
            if new.before is None:
                grown += 1
            elif new.before.id != new.id:
                batch.delete("sources", u64(new.before.id) + new.name)
            batch.put("names", new.name, NameRow(new.id, new.mtime_ns, new.size).pack())
            batch.put("sources", u64(new.id) + new.name, new.file_hash)
            if new.file_hash:
                batch.put("files", new.file_hash, u64(new.id))
            batch.delete("rejects", new.name)
        for name, array in chunk.arrays:
            before = self.array(name)
            if before is not None and before.number != array.number:
                grown -= self._forget_runs(batch, before.number)
            batch.put("arrays", b"n" + name, array.pack())
            batch.put("arrays", b"#" + array.number.to_bytes(4, "big"), name)
            batch.delete("rejects", name)
        for run in chunk.runs:
            grown += run.count
            for piece in run.pieces():
                batch.put("runs", *piece.by_row)
                batch.put("runs", *piece.by_id)
        return grown

    def _forget_runs(self, batch: Batch, array: int) -> int:
        """Remove the rows of an array that has changed since; returns how many there were."""
        gone = 0
        for key, value in self.keys.scan("runs", b"r" + array.to_bytes(4, "big")):
            run = Run.from_row(key, value)
            batch.delete("runs", key)
            batch.delete("runs", run.by_id[0])
            gone += run.count
        batch.delete("arrays", b"#" + array.to_bytes(4, "big"))
        return gone

    # --- appending --------------------------------------------------------------------------------

    def _writer(self, family: Family) -> ExtentWriter:
        writer = self._writers.get(family.name)
        if writer is None:
            last, end = self.state.last_extent(family)
            writer = ExtentWriter(self.path, family, last, end)
            self._writers[family.name] = writer
        if writer.full:
            # The file first, then the manifest that names it, then the rows that use it.
            number = writer.number + 1
            writer.sync()
            extents.create(self.path, family, number, bytes.fromhex(self.manifest.uuid))
            if number not in self.manifest.extents.get(family.name, []):
                self.manifest = self.manifest.with_extent(family.name, number)
                self.manifest.save(self.path)
            writer.begin(number)
        return writer

    def _append(
        self, family: Family, blobs: Sequence[Buffer], appends: list[Append]
    ) -> list[Place]:
        if not blobs:
            return []
        done, places = self._writer(family).append(blobs)
        appends.append(done)
        return places

    def _append_rows(self, family: Family, rows: Buffer, appends: list[Append]) -> None:
        view = memoryview(rows)
        while view:
            writer = self._writer(family)
            part = view[: writer.room]
            appends.append(writer.append([part])[0])
            view = view[len(part) :]

    def _family(self, name: str) -> Family:
        families = [extents.PIXELS, extents.FINGERPRINTS]
        if self.manifest.encoder:
            entry = self.manifest.encoder
            families.append(extents.vectors(entry.generation, entry.dim))
            families.append(extents.vector_ids(entry.generation))
        for family in families:
            if family.name == name:
                return family
        raise StoreDamagedError(f"{self.path / manifest.NAME} names unknown extents {name!r}")

    def adopt_encoder(self, install: Callable[[Path], EncoderEntry]) -> None:
        """Give a store that was made without an encoder its first one."""
        self.become_writer()  # reads the manifest again: another process may have been faster
        if self.manifest.encoder is None:
            self.manifest = replace(self.manifest, encoder=install(self.path))
            self.manifest.save(self.path)

    # --- derived data -----------------------------------------------------------------------------

    def build_segment(self, first_row: int) -> None:
        """Index rows from ``first_row`` on; segments that begin there or later are replaced."""
        encoder = self.manifest.encoder
        if encoder is None:
            return
        rows = self.vector_rows
        vectors = Vectors(self.path, encoder.generation, encoder.dim, rows)
        entries = self.manifest.segments
        number = max((entry.number for entry in entries), default=0) + 1
        built = segments.build(
            self.path, number, vectors, encoder.generation, first_row, rows - first_row, self.memory
        )
        vectors.close()
        kept = tuple(entry for entry in entries if entry.first_row < first_row)
        self.manifest = replace(self.manifest, segments=(*kept, built))
        self.manifest.save(self.path)
        for entry in entries:
            if entry not in kept:  # readers that have it mapped keep it until they let go
                segments.path_of(self.path, entry.number).unlink(missing_ok=True)
        if self._index is not None:
            self._index.close()
            self._index = None

    def log_rejects(self, lines: Sequence[dict[str, Any]]) -> Path:
        """Append to ``rejects.jsonl``; the table ``rejects`` is what counts, this is for people."""
        path = self.path / REJECTS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise StoreError(f"{path} could not be written: {error.strerror or error}") from None
        return path

    def families(self) -> list[Family]:
        """The families of extents that the manifest names."""
        return [self._family(name) for name in self.manifest.extents]

    def header_problem(self, family: Family, number: int) -> str | None:
        """What is wrong with an extent's header, or None."""
        return extents.header_problem(self.path, family, number, bytes.fromhex(self.manifest.uuid))
