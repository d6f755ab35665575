"""Copies the files of an encoder into a store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.encoders import registry
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError, StoreError
from engine.storage import file_names, nofollow
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.vector_space import EncoderEntry


def installed_bytes(chosen: EncoderFiles) -> int:
    """Bytes that an encoder takes in a store."""
    files = (chosen.model, chosen.model.parent / registry.DESCRIPTION)
    return sum(file.stat().st_size for file in files)


def install(store: Path, chosen: EncoderFiles) -> EncoderEntry:
    """Copy an encoder into a store, so that the store does not depend on the original."""
    generation = 1
    folder = store / file_names.ENCODER / str(generation)
    if not file_names.may_be_model(chosen.model.name):
        raise EncoderError(f"the model's file is called {chosen.model.name!r}: rename it")
    try:
        nofollow.make_folder(store, file_names.ENCODER)
        nofollow.make_folder(store, f"{file_names.ENCODER}/{generation}")
        replace_file(folder / chosen.model.name, chosen.model.read_bytes(), store)
        replace_file(
            folder / registry.DESCRIPTION,
            (chosen.model.parent / registry.DESCRIPTION).read_bytes(),
            store,
        )
        for parent in (folder.parent, store):
            fsync_dir(parent)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        # Run the copy: it fails if the model needs files that were not copied with it.
        if not registry.comes_along(chosen):
            OnnxEncoder(registry.read(folder)).try_out()
    except BaseException:
        _remove(store, f"{file_names.ENCODER}/{generation}", chosen.model.name)
        raise
    file = (folder / chosen.model.name).relative_to(store)
    return EncoderEntry(chosen.name, generation, chosen.dim, chosen.sha256, str(file))


def _remove(store: Path, folder: str, model: str) -> None:
    """Remove an encoder's files, and nothing else in their folder."""
    with contextlib.suppress(OSError, StoreError):
        for name in (model, registry.DESCRIPTION):
            nofollow.remove(store, f"{folder}/{name}")
        nofollow.remove_folder(store, folder)
