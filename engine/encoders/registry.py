"""Finds an encoder by name or path and says what it is, without loading it.

An encoder is a folder with ``encoder.json`` and ONNX files beside it, as ``engine train`` writes it.
The model takes ``pixels`` (n, S, S, 3) uint8 and gives ``embedding`` (n, dim) float32 of unit length.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import EncoderError
from engine.images import hashing

_BUILT_IN = Path(__file__).parent / "models"
DESCRIPTION = "encoder.json"
_MAX_MODEL = (1 << 31) - 1  # bytes of a model: ONNX has no larger ones in one file
_MAX_DESCRIBED = 1 << 20  # bytes of a description
_MAX_DIM = 1 << 16  # dimensions
_MAX_SIDE = 2048  # pixels
_MAX_NAME = 100  # characters


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """A described encoder, with the model that its description says is to run.

    Where it says nothing that is the int8 one if there is one, else the float32 one.
    """

    name: str
    dim: int
    image_size: int
    model: Path
    sha256: str  # of the model file, hex
    description: dict[str, Any]
    content: bytes = field(repr=False, compare=False)  # of the model file


def names() -> list[str]:
    """The encoders that come with the engine."""
    return sorted(path.parent.name for path in _BUILT_IN.glob(f"*/{DESCRIPTION}"))


def comes_along(files: EncoderFiles) -> bool:
    """Whether an encoder is one of the engine's own."""
    return files.model.parent.parent == _BUILT_IN


def find(name_or_path: str) -> EncoderFiles:
    """The encoder of that name, or the one in that folder.

    Raises ``EncoderError`` where there is none, or its files are not what its description says.
    """
    if name_or_path in names():
        return read(_BUILT_IN / name_or_path)
    path = Path(name_or_path)
    if path.is_file() and path.name == DESCRIPTION:
        path = path.parent
    if not (path / DESCRIPTION).is_file():
        raise EncoderError(
            f"no encoder {name_or_path!r}: give one of {', '.join([*names(), 'none'])}, "
            f"or a folder that 'engine train --out' wrote"
        )
    return read(path)


def read(folder: Path, contents: Callable[[str, int], bytes] | None = None) -> EncoderFiles:
    """The encoder in ``folder``, checked against its checksum.

    ``contents`` reads a file of the folder that has at most so many bytes, where a plain open would
    trust what lies there too much.
    """
    contents = contents or (lambda name, most: _contents(folder / name, most))
    try:
        body = _description(contents(DESCRIPTION, _MAX_DESCRIBED))
        files = body["files"]
        chosen = files[body.get("default") or ("int8" if "int8" in files else "fp32")]
        model = folder / Path(chosen["path"]).name  # a name, whatever the description says
        dim, side = _size(body, "dim", _MAX_DIM), _size(body, "image_size", _MAX_SIDE)
        name = _name(body["name"])
        content = contents(model.name, _MAX_MODEL)
        sha256 = hashing.file_hash(content).hex()
        found = EncoderFiles(name, dim, side, model, sha256, body, content)
    except OSError as error:
        raise EncoderError(f"{folder} cannot be read: {error.strerror}: {error.filename}") from None
    except RecursionError:
        raise EncoderError(
            f"{folder / DESCRIPTION} is not an encoder's (nested too deep)"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EncoderError(f"{folder / DESCRIPTION} is not an encoder's ({error})") from None
    if sha256 != chosen.get("sha256"):
        raise EncoderError(f"{model} is not the file that {DESCRIPTION} describes: copy it again")
    return found


def _contents(path: Path, most: int) -> bytes:
    if not path.is_file():  # a pipe is not waited for
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.stat().st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return path.read_bytes()


def _description(text: bytes) -> dict[str, Any]:
    body = json.loads(text.decode("utf-8"))
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def _size(body: dict[str, Any], name: str, most: int) -> int:
    value = body[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is a whole number of 1 to {most:,}")
    return value


def _name(value: object) -> str:
    """The name with control characters escaped: it is shown on terminals and in reports."""
    if not isinstance(value, str):
        raise ValueError("name is text")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value[:_MAX_NAME])
