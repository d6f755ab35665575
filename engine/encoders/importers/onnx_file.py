"""Imports an ONNX file with one picture input: checks it, and lets its graph begin with 8-bit pixels.

The file's input is (n, 3, S, S) or (n, S, S, 3), of float or uint8, where n and S may be free. Floats
are (pixel / 255 - mean) / std; a uint8 input gets pixels as they are. How to make its input can be said
in options, or in a small file beside it, ``net.toml`` for ``net.onnx``:

    image_size = 224  # S, for an input that takes pictures of any size
    mean = [0.485, 0.456, 0.406]  # of red, green and blue, for channel values from 0 to 1
    std = [0.229, 0.224, 0.225]
    resize = "crop-bicubic"  # or squash; bilinear, bicubic or lanczos
    shorter_side = 256  # pixels, to which the shorter side is resized before the middle is cut out
    output = "embedding:mean"  # a name of the graph, and how it becomes one vector: as --layer

By default, the input is squashed, mean and std are those of ImageNet, and the output is the first one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from engine.encoders.external_data import has_external_data
from engine.encoders.importers import graph, layers, preprocess, weights
from engine.encoders.importers.agreement import (
    INPUT,
    MIN_COSINE,
    OUTPUT,
    Vectors,
    min_cosine,
    open_model,
    unit,
)
from engine.encoders.importers.calibration import compared_images
from engine.encoders.importers.folder import FP32, ModelFacts, work_folder, write_folder
from engine.encoders.importers.graph import PictureInput
from engine.encoders.importers.onnx_inputs import OPTIONS
from engine.encoders.importers.preprocess import Defaults
from engine.encoders.importers.request import Images, ImportReport, ImportRequest
from engine.encoders.importers.specs import Three, three
from engine.encoders.registry import MAX_MODEL, MAX_SIDE
from engine.encoders.session import one_line
from engine.errors import EncoderError, UsageError

DEFAULT_SIZE = 224
_MAX_OPTIONS = 1 << 20  # bytes
_OPTIONS = ("image_size", "mean", "std", "resize", "shorter_side", "output")


def import_onnx(request: ImportRequest) -> ImportReport:
    """Import the ONNX file ``request.model``."""
    path = Path(request.model)
    model = _read(path)
    request = _with_options(request, path.with_suffix(OPTIONS))
    found = _picture_input(path, model)
    size = _size(path, found, request)
    preprocessing, mean, std = preprocess.chosen(request, Defaults(size, None, "bilinear"))
    if not found.is_float and (request.mean or request.std):
        raise EncoderError(f"{path} takes uint8 pixels as they are: leave mean= and std= out")
    output, pool = _output(path, model, request.layer)
    some = compared_images(preprocessing)
    wanted, rank = _original(path, model, found, (output, pool), some, mean, std)
    work = work_folder(request.out) / FP32
    dim = wanted.shape[1]
    surgeon = graph.Surgeon(found, preprocessing.size, mean, std, output, pool, rank, dim)
    batch, cosine = _write(path, model, surgeon, work, some, wanted)
    facts = ModelFacts(
        request.name or path.stem,
        preprocessing,
        {
            "importer": "onnx",
            "model": weights.describe(path),
            "output": output,
            "libraries": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        },
        request.licence or "unknown",
        batch,
        ("the model takes one picture at a time",) if batch else (),
    )
    if graph.is_quantised(model):
        request = replace(request, precision="fp32")
        facts = replace(
            facts, notes=(*facts.notes, "the model was quantised before, and is as it was")
        )
    return write_folder(request, work, facts, {"onnx_original_min_cosine": cosine})


def _write(
    path: Path, model: Any, surgeon: graph.Surgeon, work: Path, some: Images, wanted: Vectors
) -> tuple[int, float]:
    """Write the model with a free batch, or else for one picture; returns its batch and a cosine."""
    ways: list[tuple[int, Callable[[], Any]]] = [(0, lambda: surgeon.with_free_batch(model, False))]
    if surgeon.picture.batch == 1:
        ways.append((0, lambda: surgeon.with_free_batch(model, True)))
        ways.append((1, lambda: surgeon.with_batch_of_one(model)))
    why = "it returns other values"
    for batch, make in ways:
        try:
            made = make()
            onnx.checker.check_model(made)
            onnx.save(made, work)
            session = open_model(work)
            alone = np.concatenate([_run(session, some[i : i + 1]) for i in range(len(some))])
            together = alone if batch else _run(session, some)
            cosine = min(min_cosine(alone, wanted), min_cosine(together, wanted))
        # ONNX Runtime has no error class of its own, and onnx raises several.
        except Exception as error:
            why = one_line(error)[:200]
            continue
        if cosine >= MIN_COSINE:
            return batch, cosine
    raise EncoderError(f"{path} cannot be given pixels as its input: {why}")


def _run(session: Any, images: Images) -> Vectors:
    found = session.run([OUTPUT], {INPUT: images})[0]
    if found.ndim != 2 or len(found) != len(images):
        raise EncoderError(f"the output is {found.shape} for {len(images)} pictures")
    return unit(found)


# --- the file -------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    """The model with all of its weights; ``EncoderError`` if it is not one, or not whole."""
    content = _contents(path, MAX_MODEL)
    try:
        external = has_external_data(content)
        model = onnx.load_model_from_string(content)
    except EncoderError as error:
        raise EncoderError(f"{path} cannot be loaded: {error}") from None
    # protobuf's errors depend on its version.
    except Exception as error:
        raise EncoderError(f"{path} cannot be loaded: {one_line(error)[:200]}") from None
    if external:
        _load_external(path, model, len(content))
    return model


def _load_external(path: Path, model: Any, size: int) -> None:
    """Put weights of files beside the model into it. Nothing outside of its folder is opened."""
    from onnx import external_data_helper

    for tensor in graph.tensors_of(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        name = told.get("location", "")
        file = path.parent / name
        plain = name and name == Path(name).name and name not in (".", "..")
        if not plain or file.is_symlink() or not file.is_file():
            raise EncoderError(
                f"{path} keeps weights in another file, {name[:100]!r}, which is not a file of the same "
                f"folder: copy both into one folder, or save it as one file"
            )
        size += file.stat().st_size if "length" not in told else _whole(path, told["length"])
        if size > MAX_MODEL:
            raise EncoderError(f"{path} is too large with its weights: at most {MAX_MODEL:,} bytes")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        # onnx raises errors of several kinds for a file that is too short, or for odd numbers.
        except Exception as error:
            raise EncoderError(
                f"the weights of {path} in {name} cannot be read: {one_line(error)[:200]}"
            ) from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _whole(path: Path, text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise EncoderError(f"{path} names a length of weights that is no number: save it again")
    return int(text)


def _contents(path: Path, most: int) -> bytes:
    try:
        # Do not open a pipe, which would wait for a writer.
        if not path.is_file():
            raise EncoderError(f"{path}: no such file")
        if path.stat().st_size > most:
            raise EncoderError(f"{path} is too large: at most {most:,} bytes are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None


# --- its input and output -------------------------------------------------------------------------


def _picture_input(path: Path, model: Any) -> PictureInput:
    """The model's only input; ``EncoderError`` if it does not take square pictures."""
    try:
        inputs = graph.inputs_of(model)
    except (IndexError, ValueError) as error:
        raise EncoderError(f"{path} cannot be loaded: {error}") from None
    name, kind, shape = inputs[0] if len(inputs) == 1 else ("", 0, [])
    first = len(shape) == 4 and shape[1] == 3
    last = len(shape) == 4 and shape[3] == 3 and not first
    types = (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    if kind not in types or not (first or last):
        found = ", ".join(f"{graph.type_name(each[1])} {each[2]}" for each in inputs)
        raise EncoderError(
            f"{path} takes {found or 'nothing'}: one input is needed, uint8 or float, of "
            f"(n, 3, S, S) or (n, S, S, 3)"
        )
    sides = shape[1:3] if last else shape[2:]
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) > 1 or not all(1 <= side <= MAX_SIDE for side in fixed):
        raise EncoderError(
            f"{path} takes pictures of {' × '.join(map(str, sides))}: they must be square, and at "
            f"most {MAX_SIDE:,} pixels a side"
        )
    batch = shape[0] if isinstance(shape[0], int) else 0
    if batch > 1:
        raise EncoderError(f"{path} takes {batch} pictures at a time: export it for n or for 1")
    return PictureInput(name, kind, last, fixed.pop() if fixed else None, batch)


def _size(path: Path, found: PictureInput, request: ImportRequest) -> int:
    if found.size is not None and request.image_size not in (None, found.size):
        raise EncoderError(
            f"{path} takes pictures of {found.size} pixels a side, not {request.image_size}: leave "
            f"image_size= out"
        )
    return found.size or request.image_size or DEFAULT_SIZE


def _output(path: Path, model: Any, layer: str | None) -> tuple[str, str | None]:
    """The name of the value that is the vector, and how it is pooled."""
    values = graph.values_of(model)
    if layer is None:
        if not model.graph.output:
            raise EncoderError(f"{path} has no output")
        return model.graph.output[0].name, None
    if layer in values:
        return layer, None
    parsed = layers.parse(layer)
    if parsed.name not in values:
        outputs = ", ".join(each.name for each in model.graph.output)
        raise EncoderError(f"{path} has no output {layer!r:.60}: its outputs are {outputs[:200]}")
    return parsed.name, parsed.pool


def _original(
    path: Path,
    model: Any,
    found: PictureInput,
    output: tuple[str, str | None],
    images: Images,
    mean: Three,
    std: Three,
) -> tuple[Vectors, int]:
    """What the unchanged model makes of some pictures: (n, d) of unit length, and its output's rank."""
    whole = graph.with_output(model, output[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        rows, rank = [], 0
        for image in images:
            x = image[None]
            if found.is_float:
                x = (x.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(
                    std, np.float32
                )
            x = x if found.channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            if found.kind == onnx.TensorProto.FLOAT16:
                x = x.astype(np.float16)
            made = session.run([output[0]], {found.name: x})[0]
            rows.append(_pooled(path, made, output[1]))
            rank = made.ndim
    except EncoderError:
        raise
    # ONNX Runtime has no error class of its own.
    except Exception as error:
        raise EncoderError(f"{path} cannot be run: {one_line(error)[:300]}") from None
    vectors = unit(np.stack(rows))
    if not np.isfinite(vectors).all():
        raise EncoderError(f"{path} returns values that are no numbers for ordinary pictures")
    return vectors, rank


def _pooled(path: Path, made: Any, pool: str | None) -> Vectors:
    good = isinstance(made, np.ndarray) and made.dtype.kind in "fiu" and made.ndim >= 1
    if not good or len(made) != 1 or (pool is not None and made.ndim not in (3, 4)):
        raise EncoderError(
            f"{path} returned {getattr(made, 'shape', type(made).__name__)} for one picture, and "
            f"numbers of (1, …) are needed: name another output with layer="
        )
    if pool == layers.TOKEN:
        made = made[:, 0]
    elif pool == layers.MEAN:
        made = made.mean(1) if made.ndim == 3 else made.mean((2, 3))
    return np.asarray(made[0].reshape(-1), np.float32)


# --- the options beside it ------------------------------------------------------------------------


def _with_options(request: ImportRequest, path: Path) -> ImportRequest:
    """The request with what the file beside the model says, where the request says nothing."""
    if not path.exists():
        return request
    try:
        body = tomllib.loads(_contents(path, _MAX_OPTIONS).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not TOML: {one_line(error)[:200]}") from None
    unknown = [name for name in body if name not in _OPTIONS]
    if unknown:
        raise EncoderError(f"{path} has {unknown[0]!r:.60}: only {', '.join(_OPTIONS)} are known")
    try:
        for name in ("image_size", "shorter_side"):
            if name in body and type(body[name]) is not int:
                raise UsageError(f"{name} must be a whole number")
        for name in ("resize", "output"):
            if name in body and not isinstance(body[name], str):
                raise UsageError(f"{name} must be text")
        for name in ("mean", "std"):
            if name in body:
                body[name] = three(body[name], name)
    except UsageError as error:
        raise EncoderError(f"{path}: {error}") from None
    if "output" in body:
        body["layer"] = body.pop("output")
    known = {name: value for name, value in body.items() if getattr(request, name) is None}
    return replace(request, **known)
