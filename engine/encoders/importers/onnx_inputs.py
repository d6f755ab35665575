"""Names the files that an ONNX model is made of, without the library onnx."""

from __future__ import annotations

from pathlib import Path

from engine.encoders.external_data import external_files
from engine.encoders.registry import MAX_MODEL
from engine.errors import EncoderError

OPTIONS = ".toml"
"""The suffix of the file beside a model that says how its input is made."""


def inputs(model: str) -> list[Path]:
    """The model's file, the files of its weights in the same folder, and the options beside it.

    ``EncoderError`` if there is no such model.
    """
    path = Path(model)
    try:
        # Do not open a pipe, which would wait for a writer.
        if not path.is_file():
            raise EncoderError(f"{path}: no such file")
        if path.stat().st_size > MAX_MODEL:
            raise EncoderError(f"{path} is too large: at most {MAX_MODEL:,} bytes are read")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    try:
        named = external_files(content)
    except EncoderError as error:
        raise EncoderError(f"{path} cannot be loaded: {error}") from None
    # Other names are refused when the model is read.
    others = [path.parent / name for name in sorted(named) if name == Path(name).name]
    found = [path, path.with_suffix(OPTIONS), *others]
    return [each for each in found if each.is_file()]
