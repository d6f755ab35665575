"""Copies the files of an encoder into a store."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from engine.encoders import registry, text
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.registry import EncoderFiles
from engine.errors import EncoderError, StoreError
from engine.storage import file_names, nofollow
from engine.storage.durable import fsync_dir, replace_file
from engine.storage.vector_space import EncoderEntry


def installed_bytes(chosen: EncoderFiles) -> int:
    """Bytes that an encoder takes in a store."""
    return sum((chosen.model.parent / name).stat().st_size for name in chosen.files)


def install(store: Path, chosen: EncoderFiles, generation: int = 1) -> EncoderEntry:
    """Copy an encoder into a store, so that the store does not depend on the original.

    ``generation`` numbers the encoders of a store.
    """
    folder = store / file_names.ENCODER / str(generation)
    for name in chosen.files:
        if not file_names.may_be_model(name):
            raise EncoderError(f"a file of the encoder is called {name!r}: rename it")
    try:
        nofollow.make_folder(store, file_names.ENCODER)
        nofollow.make_folder(store, f"{file_names.ENCODER}/{generation}")
        for name in chosen.files:
            replace_file(folder / name, (chosen.model.parent / name).read_bytes(), store)
        for parent in (folder.parent, store):
            fsync_dir(parent)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        # Run the copy: it fails if the model needs files that were not copied with it.
        if not registry.comes_along(chosen):
            copied = registry.read(folder)
            OnnxEncoder(copied).try_out()
            if copied.text is not None:
                text.verify(copied.text)
    except BaseException:
        _remove(store, f"{file_names.ENCODER}/{generation}", chosen.files)
        raise
    file = (folder / chosen.model.name).relative_to(store)
    return EncoderEntry(chosen.name, generation, chosen.dim, chosen.sha256, str(file))


def _remove(store: Path, folder: str, files: Sequence[str]) -> None:
    """Remove an encoder's files, and nothing else in their folder."""
    with contextlib.suppress(OSError, StoreError):
        for name in files:
            nofollow.remove(store, f"{folder}/{name}")
        nofollow.remove_folder(store, folder)
