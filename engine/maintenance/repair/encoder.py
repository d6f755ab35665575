"""Copies the files of the encoder again from the package, if it is the same encoder."""

from __future__ import annotations

from engine.encoders import registry
from engine.errors import EncoderError
from engine.storage import file_names, nofollow
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.session import Session


def restore_encoder(store: Session) -> None:
    """Put the encoder's files back, durably; do nothing if the package does not have them."""
    entry = store.snapshot.space.encoder
    assert entry is not None
    try:
        files = registry.find(entry.name)
    except EncoderError:
        return
    if files.sha256 != entry.fingerprint:
        return
    inner = file_names.encoder_folder(entry.file, entry.generation)
    nofollow.make_folder(store.path, file_names.ENCODER)
    nofollow.make_folder(store.path, inner)
    for name in files.files:
        data = (files.model.parent / name).read_bytes()
        replace_file(store.path / inner / name, data, store.path)
    for parent in (store.path / file_names.ENCODER, store.path):
        fsync_dir(parent)
