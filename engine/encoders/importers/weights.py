"""Reads weights from files that are not trusted, and puts them into a network that they fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.errors import EncoderError

MAX_FILE = 8 << 30  # bytes: a model of an ONNX file's limit, 2 GiB, with the state of its optimiser
_SAFETENSORS, _PICKLES = ".safetensors", (".pt", ".pth", ".bin", ".ckpt", ".tar")
# Where checkpoints of training runs keep the weights, the averaged ones first.
_INNER = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# Prefixes that wrappers of a network add to all names.
_WRAPPERS = ("module.", "_orig_mod.", "backbone.", "model.")
_COUNTERS = "num_batches_tracked"

Tensors = dict[str, Tensor]


def read_weights(path: Path) -> Tensors:
    """The tensors of a .safetensors file, or of a PyTorch checkpoint, without running code in it."""
    try:
        if not path.is_file():
            raise EncoderError(f"{path}: no such file of weights")
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from None
    if size > MAX_FILE:
        raise EncoderError(
            f"{path} is too large: files of weights of up to {MAX_FILE >> 30} GiB are read"
        )
    if path.suffix.lower() == _SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix.lower() in _PICKLES:
        return _read_checkpoint(path)
    raise EncoderError(
        f"{path} is not a file of weights that can be read: it must end in {_SAFETENSORS}, or in "
        f"{', '.join(_PICKLES)} for a PyTorch checkpoint"
    )


def describe(path: Path) -> dict[str, str]:
    """The origin of weights for ``encoder.json``: the file's name and SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"file": path.name, "sha256": digest.hexdigest()}


def _read_safetensors(path: Path) -> Tensors:
    try:
        found: Tensors = safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{path} is not a whole .safetensors file: {_line(error)}") from None
    return found


def _read_checkpoint(path: Path) -> Tensors:
    try:
        body = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise EncoderError(f"{path} takes more memory than there is") from None
    # torch raises errors of many kinds for damaged files.
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported global" in str(error):
            raise EncoderError(
                f"{path} holds code or objects other than tensors, which are not loaded: save its "
                f"state_dict() with safetensors"
            ) from None
        raise EncoderError(f"{path} is not a whole PyTorch checkpoint: {_line(error)}") from None
    tensors = _inner(body)
    if not tensors:
        raise EncoderError(f"{path} holds no tensors by name: save a network's state_dict()")
    return tensors


def _inner(body: Any) -> Tensors:
    """The tensors of a state dict, or of the one inside a checkpoint."""
    for _ in range(3):
        if not isinstance(body, Mapping):
            return {}
        inside = next((body[key] for key in _INNER if isinstance(body.get(key), Mapping)), None)
        if inside is None:
            break
        body = inside
    return {
        name: value
        for name, value in body.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def fit(
    network: nn.Module,
    tensors: Tensors,
    *,
    what: str,
    heads: Sequence[str] = (),
    adapt: Callable[[Tensors], Tensors] | None = None,
) -> str | None:
    """Put ``tensors`` into ``network``; returns a note if they were matched by order, else None.

    ``what`` names the weights and the architecture in messages. ``heads`` are prefixes of tensors for
    classes, which may be in excess. ``adapt`` converts names of another library. ``EncoderError`` names
    the first tensor that differs.
    """
    wanted = network.state_dict()
    candidates = [tensors, *(_unwrapped(tensors, prefix) for prefix in _WRAPPERS)]
    for given in candidates:
        if given and _difference(wanted, given, heads) is None:
            _load(network, given, what)
            return None
    converted = _adapted(tensors, adapt)
    if converted is not None and _difference(wanted, converted, heads) is None:
        _load(network, converted, what)
        return None
    ordered = _in_order(wanted, tensors)
    if ordered is not None:
        _load(network, ordered, what)
        return (
            f"{len(ordered)} tensors were matched by their order, because their names differ from the "
            f"architecture's; every shape is the same"
        )
    raise EncoderError(f"{what}: {_difference(wanted, tensors, heads)}")


def _unwrapped(tensors: Tensors, prefix: str) -> Tensors:
    if not all(name.startswith(prefix) for name in tensors):
        return {}
    return {name[len(prefix) :]: value for name, value in tensors.items()}


def _adapted(tensors: Tensors, adapt: Callable[[Tensors], Tensors] | None) -> Tensors | None:
    if adapt is None:
        return None
    try:
        return adapt(dict(tensors))
    # Conversions of a library assume the names of one kind of checkpoint.
    except Exception:
        return None


def _difference(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], heads: Sequence[str]
) -> str | None:
    """The first tensor that differs, in words; None if all fit."""
    for name, tensor in wanted.items():
        if name not in given:
            if name.endswith(_COUNTERS):
                continue
            return (
                f"the architecture has a tensor {name} of shape {_shape(tensor)}, which is missing"
            )
        if given[name].shape != tensor.shape:
            return (
                f"the tensor {name} has the shape {_shape(given[name])}, and the architecture wants "
                f"{_shape(tensor)}"
            )
    for name, tensor in given.items():
        if (
            name not in wanted
            and not name.startswith(tuple(heads))
            and not name.endswith(_COUNTERS)
        ):
            return f"the tensor {name} of shape {_shape(tensor)} has no place in the architecture"
    return None


def _in_order(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensors | None:
    """``given`` under the names of ``wanted``, if the shapes are the same one after another.

    A linear layer for classes may follow.
    """
    rest = list(given.values())[len(wanted) :]
    if len(given) < len(wanted) or [value.ndim for value in rest] not in ([], [2], [2, 1]):
        return None
    pairs = list(zip(wanted.items(), given.values(), strict=False))
    if any(tensor.shape != value.shape for (_, tensor), value in pairs):
        return None
    return {name: value for (name, _), value in pairs}


def _load(network: nn.Module, tensors: Tensors, what: str) -> None:
    kept = {name: value for name, value in tensors.items() if name in network.state_dict()}
    for name, value in kept.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise EncoderError(f"{what}: the tensor {name} holds values that are no numbers")
    network.load_state_dict(kept, strict=False)


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "one number"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
