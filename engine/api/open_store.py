"""An open store: its session, its encoder, and the rule of one writing call at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

from engine.api.encoder_files import install
from engine.api.paths import folder_named
from engine.config import (
    DEFAULT_ENCODER,
    Limits,
    check_wait,
    parse_memory,
)
from engine.encoders import named, registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.encoders.session import check_device
from engine.encoders.text import TextEncoder
from engine.encoders.text_tower import TextTower
from engine.errors import EncoderError, UsageError
from engine.index.open import OpenIndex
from engine.search.filters import SearchedIn
from engine.search.lookup import Lookup
from engine.search.where import WhereMetadata
from engine.storage import swaps
from engine.storage.create import create as make_store
from engine.storage.extent_reader import MovedError
from engine.storage.session import Session
from engine.storage.vector_space import EncoderEntry

NO_ENCODER = "none"
# Examples for those who look up a text in a store whose encoder takes none.
ENCODERS_OF_TEXTS = (
    "such as hf:openai/clip-vit-base-patch32 or open-clip:ViT-B-32/laion2b_s34b_b79k"
)
_TRIES = 10  # tries of a read while another process moves what it reads

T = TypeVar("T")


class OpenStore:
    """The base of ``Store``: the open session, the encoder, and one writing call at a time."""

    def __init__(self, files: Session, device: str = "auto") -> None:
        """Use ``Store.open``."""
        self._session = files
        self._device = device
        self._index = OpenIndex(files)
        self._encoder: OnnxEncoder | None = None
        self._text_encoder: TextEncoder | None = None
        self._encoder_entry: EncoderEntry | None = None  # of ``_encoder``
        self._text_encoder_entry: EncoderEntry | None = None  # of ``_text_encoder``
        self._last_lookup: Lookup | None = None
        self._last_lookup_key: object = None
        self._last_sources: SearchedIn | None = None
        self._last_where: WhereMetadata | None = None
        self._writing = ""  # the writing call that is running
        self._refresh_lock = Lock()  # held while the session moves to a newer commit

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        read_only: bool = False,
        encoder: str | None = None,
        memory: str | int | None = None,
        wait: float = 0.0,
        device: str = "auto",
        limits: Limits | None = None,
    ) -> Self:
        """Open the store at ``path``.

        ``create``: create a missing store with ``encoder``: "simclr" or "lite0", the path of an
        encoder's folder, a model to import such as "timm:vit_small_patch14_dinov2" (see
        ``import_encoder``; it is imported once, into the user's cache), or "none". ``device``: where
        the encoder runs, "cpu", "cuda" (a GPU of Nvidia, with the package onnxruntime-gpu) or "auto",
        which is the GPU if there is one that can be used. ``memory``: a limit of anonymous memory such
        as "2G" (binary units, default 1G, at least 128M). ``wait``: how many seconds a writing call
        waits for another process that writes, before it raises ``StoreLockedError``. A call with
        ``stop`` polls it while it waits. Reading calls never wait. ``limits``: how much is handled at a
        time; the default suits every store.

        Raises ``UsageError``, ``StoreNotFoundError``, ``StoreFormatError``, ``StoreDamagedError``,
        ``EncoderError``, or ``StoreError`` if the store cannot be created or read.
        """
        budget, wait = parse_memory(memory), check_wait(wait)
        check_device(device)
        folder = folder_named(path)
        if create and not (folder / "MANIFEST.json").exists():
            if read_only:
                raise UsageError("a store cannot be both created and read-only")
            chosen = None if encoder == NO_ENCODER else encoder_named(encoder or DEFAULT_ENCODER)
            if chosen is not None:
                # Refuse an encoder without room before anything is written.
                budget.encoder_batch(chosen.name, chosen.needs)
            put = (lambda made: install(made, chosen)) if chosen else None
            make_store(folder, budget, put, wait)
        return cls(Session(folder, budget, read_only=read_only, limits=limits, wait=wait), device)

    def close(self) -> None:
        """Close the store. Everything committed is already durable."""
        self._index.close()
        self._session.close()
        self._encoder = None
        self._text_encoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(
        self,
    ) -> tuple[Callable[..., OpenStore], tuple[type[OpenStore], str, bool, int, float, str]]:
        """Pickle how to open the store again; ``StoreError`` if closed or opened by another process."""
        _ = self._session.snapshot.keys
        session, path = self._session, str(self.path.absolute())
        total, wait = session.memory.total, session.wait
        return _reopen, (type(self), path, session.read_only, total, wait, self._device)

    def __repr__(self) -> str:
        """One line: the path, the counts of the open commit, and whether it writes.

        It does not read the disk, so a debugger may show it at any time, even in a forked child.
        """
        path = str(self.path)
        if not self._session.is_open:
            return f"<Store {path!r}: closed>"
        state = self._session.snapshot.state
        does = "writing" if self._session.is_writer else "reading"
        if self._session.read_only:
            does = "read-only"
        return f"<Store {path!r}: {state.images:,} images, {state.live_vectors:,} vectors, {does}>"

    def refresh(self) -> None:
        """Move to the newest commit of any process; reading methods do so by themselves."""
        self._session.refresh()

    @property
    def session(self) -> Session:
        """The open session, for code that inspects the store's internals."""
        return self._session

    @property
    def index(self) -> OpenIndex:
        """The index over the vectors, for code that inspects the store's internals."""
        return self._index

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._session.path

    @property
    def has_encoder(self) -> bool:
        """Whether ingested images get vectors, unless ``encoder="none"`` is passed."""
        return self._session.snapshot.space.has_encoder

    @property
    def has_given_vectors(self) -> bool:
        """Whether the vectors were imported, rather than computed from images."""
        return self._session.snapshot.space.is_imported

    def __len__(self) -> int:
        """The number of images."""
        self._session.follow()
        return self._session.snapshot.state.images

    @contextmanager
    def _alone(self, call: str) -> Iterator[None]:
        """Allow one writing call at a time, so that no call changes what another has looked up."""
        if self._writing:
            raise UsageError(f"{call} was called during {self._writing} of the same store")
        self._writing = call
        try:
            yield
        finally:
            self._writing = ""

    def _again(self, ask: Callable[[], T]) -> T:
        """Call ``ask``; after a ``MovedError``, call it again on a newer snapshot."""
        for _ in range(_TRIES):
            try:
                return ask()
            except MovedError:
                with self._refresh_lock:
                    self._session.refresh()
        return ask()

    def _own_encoder(self) -> OnnxEncoder:
        """The encoder of the snapshot's vectors, loaded when it is first needed.

        ``MovedError`` if a newer commit has replaced it.
        """
        snapshot = self._session.snapshot
        entry = snapshot.space.encoder
        if entry is None:
            raise UsageError(f"{self.path} has no encoder")
        if self._encoder is None or self._encoder_entry != entry:
            folder = (self.path / entry.file).parent
            with self._still_there(folder):
                found = registry.read(folder, snapshot.encoder_file)
                if (found.sha256, found.dim) != (entry.fingerprint, entry.dim):
                    raise EncoderError(f"{self.path / entry.file} is not the encoder of this store")
                memory = self._session.memory
                self._encoder = OnnxEncoder(found, device=self._device, memory=memory)
                self._encoder_entry = entry
        return self._encoder

    def _own_text_encoder(self) -> TextEncoder:
        """What encodes texts; loads no encoder of images. ``MovedError`` as of ``_own_encoder``."""
        snapshot = self._session.snapshot
        space = snapshot.space
        if self._text_encoder is None or self._text_encoder_entry != space.encoder:
            tower = self._text_tower()
            if tower is None:
                which = (
                    f"its encoder, {space.name}, takes none"
                    if space.has_encoder
                    else "it has no encoder"
                )
                raise UsageError(
                    f"{self.path} cannot look up texts, because {which}: make a store with an "
                    f"encoder that does, or change to one with 'engine reembed', "
                    f"{ENCODERS_OF_TEXTS}"
                )
            with self._still_there(tower.folder):
                self._text_encoder = TextEncoder(tower, snapshot.encoder_file)
                self._text_encoder_entry = space.encoder
        return self._text_encoder

    def _text_tower(self) -> TextTower | None:
        """The text tower of the store's encoder; None if it has none. ``MovedError`` if replaced."""
        snapshot = self._session.snapshot
        entry = snapshot.space.encoder
        if entry is None:
            return None
        folder = (self.path / entry.file).parent
        with self._still_there(folder):
            tower, fingerprint = registry.read_text(folder, snapshot.encoder_file)
            if fingerprint != entry.fingerprint:
                raise EncoderError(f"{folder} is not the encoder of this store")
        return tower

    @contextmanager
    def _still_there(self, folder: Path) -> Iterator[None]:
        """Turn an ``EncoderError`` into ``MovedError`` if a newer commit may have replaced the files."""
        try:
            yield
        except EncoderError:
            if self._session.is_behind():
                raise MovedError(f"{folder} was replaced; ask again") from None
            raise

    def _chosen_encoder(self, wanted: str | None) -> EncoderFiles | None:
        """The encoder that an ingest names; ``UsageError`` if the store cannot use it."""
        if wanted is None or wanted == NO_ENCODER:
            return None
        chosen = encoder_named(wanted)
        self._require_suits(chosen, wanted)
        self._session.memory.encoder_batch(chosen.name, chosen.needs)
        return chosen

    def _require_suits(self, chosen: EncoderFiles, wanted: str) -> None:
        space = self._session.snapshot.space
        if space.is_imported:
            raise UsageError(
                f"{self.path} holds imported vectors, which cannot be compared with those of "
                f"{wanted}: leave encoder= out, or create another store"
            )
        if space.exists and chosen.sha256 != space.fingerprint:
            raise UsageError(
                f"{self.path} was created with the encoder {space.name}, and {wanted} is another one: "
                f"leave encoder= out, or replace it with 'engine reembed'"
            )

    def _encoder_for(self, wanted: str | None, chosen: EncoderFiles | None) -> OnnxEncoder | None:
        """The encoder of an ingest: the store's own, after the writer adopts ``chosen`` if it may."""
        if wanted == NO_ENCODER or (wanted is None and not self.has_encoder):
            return None
        if wanted is not None and chosen is not None:
            # Check again: another process may have given the store an encoder.
            self._require_suits(chosen, wanted)
            swaps.adopt_encoder(
                self._session.writer,
                lambda folder, generation: install(folder, chosen, generation),
            )
        return self._own_encoder()


def encoder_named(wanted: str) -> EncoderFiles:
    """The encoder with this name, in this folder, or of this model, which is imported if it is new.

    Raises ``EncoderError`` or ``UsageError``.
    """
    if named.model_named(str(wanted)) is None:
        folder_named(wanted)
    return named.find(str(wanted))


def _reopen(
    cls: type[OpenStore],
    path: str,
    read_only: bool,
    memory: int,
    wait: float = 0.0,
    device: str = "auto",
) -> OpenStore:
    return cls.open(path, read_only=read_only, memory=memory, wait=wait, device=device)
