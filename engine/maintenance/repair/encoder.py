"""Copies the files of the encoder again from the package or the user's cache, if it is there."""

from __future__ import annotations

from engine.encoders import registry
from engine.encoders.importers import cache
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError
from engine.storage import file_names, nofollow
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.session import Session


def restore_encoder(store: Session) -> None:
    """Put the encoder's files back, durably; do nothing if they are not on this machine."""
    entry = store.snapshot.space.encoder
    assert entry is not None
    files = _found(entry.name, entry.fingerprint)
    if files is None:
        return
    inner = file_names.encoder_folder(entry.file, entry.generation)
    nofollow.make_folder(store.path, file_names.ENCODER)
    nofollow.make_folder(store.path, inner)
    for name in files.files:
        data = (files.model.parent / name).read_bytes()
        replace_file(store.path / inner / name, data, store.path)
    for parent in (store.path / file_names.ENCODER, store.path):
        fsync_dir(parent)


def _found(name: str, fingerprint: str) -> EncoderFiles | None:
    """The same encoder in the package, or among imported ones; None if there is none."""
    if name in registry.names():
        try:
            shipped = registry.find(name)
        except EncoderError:
            shipped = None
        if shipped is not None and shipped.sha256 == fingerprint:
            return shipped
    return next((files for files in cache.cached() if files.sha256 == fingerprint), None)
