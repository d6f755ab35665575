"""Finds an encoder by name or path and says what it is, without loading it.

An encoder is a folder with ``encoder.json`` and ONNX files beside it, as ``engine train`` writes it.
The model takes ``pixels`` (n, S, S, 3) uint8 and gives ``embedding`` (n, dim) float32 of unit length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import digest
from engine.errors import EncoderError

_BUILT_IN = Path(__file__).parent / "models"
DESCRIPTION = "encoder.json"


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


def read(folder: Path, contents: Callable[[str], bytes] | None = None) -> EncoderFiles:
    """The encoder in ``folder``, checked against its checksum.

    ``contents`` reads a file of the folder, where a plain open would trust what lies there too much.
    """
    contents = contents or (lambda name: (folder / name).read_bytes())
    try:
        body = json.loads(contents(DESCRIPTION))
        files = body["files"]
        chosen = files[body.get("default") or ("int8" if "int8" in files else "fp32")]
        model = folder / Path(chosen["path"]).name  # a name, whatever the description says
        content = contents(model.name)
        sha256 = digest.file_hash(content).hex()
        name, dim, side = str(body["name"]), int(body["dim"]), int(body["image_size"])
        found = EncoderFiles(name, dim, side, model, sha256, body, content)
    except OSError as error:
        raise EncoderError(f"{folder} cannot be read: {error.strerror}: {error.filename}") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise EncoderError(f"{folder / DESCRIPTION} is not an encoder's ({error})") from None
    if sha256 != chosen.get("sha256"):
        raise EncoderError(f"{model} is not the file that {DESCRIPTION} describes: copy it again")
    return found
