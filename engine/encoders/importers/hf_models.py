"""Imports models in the layout of the Hugging Face hub: CLIP, SigLIP, DINOv2 and other transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

from engine.encoders.importers import hf_files, preprocess
from engine.encoders.importers.hub import fetching
from engine.encoders.importers.request import ImportReport, ImportRequest
from engine.encoders.importers.text_part import (
    TextPart,
    with_canonical_texts,
    write_text_part,
)
from engine.encoders.importers.tower import TowerFacts, write_encoder
from engine.encoders.tokenizer import Tokenizer
from engine.errors import EncoderError, UsageError

# Models with a tower of pictures and a tower of texts.
_TWO_TOWERS = ("clip", "siglip")
# Models of pictures, with a class token at the start of the result.
_PICTURES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "deit", "ijepa", "vit_msn")
# Tensors that no tower reads: a head for the loss of a training, or for classes.
_UNREAD = ("pooler.", "logit_scale", "logit_bias")
_ADVICE = "name a folder of this machine: hf:FOLDER"


def import_hf(request: ImportRequest) -> ImportReport:
    """Import ``FOLDER``, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` of the hub.

    A folder needs no network. Code in it is never run.
    """
    if request.layer is not None:
        raise UsageError("hf: models have one result for each picture: leave layer= out")
    if request.weights is not None:
        raise UsageError("hf: models bring their own weights: leave weights= out")
    folder, origin = _folder(request)
    config = hf_files.read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind not in (*_TWO_TOWERS, *_PICTURES):
        raise EncoderError(
            f"{request.spec} is a model of type {str(kind)[:40]!r}, which is not known here: the known "
            f"ones are {', '.join((*_TWO_TOWERS, *_PICTURES))}"
        )
    model = _model(request, folder)
    has_texts = kind in _TWO_TOWERS
    preprocessing, mean, std = preprocess.chosen(request, hf_files.preprocessing(folder))
    vision = model.config.vision_config if has_texts else model.config
    resized = _is_resized(vision, preprocessing.size)
    part, note = _text_part(request, folder, model) if has_texts else (None, None)
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    return write_encoder(
        request,
        (_Pictures if has_texts else _ClassToken)(model, resized),
        TowerFacts(
            request.name or origin["name"],
            preprocessing,
            mean,
            std,
            {
                "importer": "hf",
                "model": request.model,
                "architecture": kind,
                "weights": {key: value for key, value in origin.items() if key != "name"},
                "libraries": libraries,
            },
            request.licence or hf_files.licence(folder) or "unknown",
            (note,) if note else (),
            more=part.more if part else {},
            files=part.files if part else {},
        ),
    )


def _folder(request: ImportRequest) -> tuple[Path, dict[str, str]]:
    """The folder of the model's files, downloaded if it is a name; and its origin, with a name."""
    given = Path(request.model)
    try:
        is_there = given.is_dir()
    except (OSError, ValueError):
        is_there = False
    if is_there:
        # The name of "." is that of the folder.
        name = Path(os.path.abspath(given)).name  # noqa: PTH100
        return given, {"name": name or "model", **hf_files.describe(given)}
    name, _, revision = request.model.partition("@")
    if not hf_files.is_name(name):
        raise EncoderError(
            f"{request.spec} is neither a folder nor a name such as openai/clip-vit-base-patch32"
        )
    with fetching(request.spec, _ADVICE):
        folder = hf_files.download(name, revision or None)
    return folder, {"name": name.rpartition("/")[2], "hub": name, "revision": folder.name}


def _model(request: ImportRequest, folder: Path) -> Any:
    """The model with all its weights, as float32."""
    hf_files.require_weights(folder, request.spec)
    try:
        with warnings.catch_warnings(), hf_files.quiet():
            warnings.simplefilter("ignore")
            model, found = transformers.AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except MemoryError:
        raise EncoderError(f"{request.spec} takes more memory than there is") from None
    # transformers raises errors of many kinds for descriptions and weights that are damaged.
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise EncoderError(f"{request.spec} cannot be loaded: {why}") from None
    lacking = sorted(
        str(name)
        for part in ("missing_keys", "mismatched_keys")
        for name in found.get(part) or ()
        if not str(name).startswith(_UNREAD)
    )
    # The library fills such tensors with random numbers.
    if lacking:
        raise EncoderError(
            f"the weights of {request.spec} lack {lacking[0][:100]}, or have it in another shape "
            f"({len(lacking):,} tensors in all): download the model again"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EncoderError(
                f"{request.spec}: the tensor {name} holds values that are no numbers"
            )
    return model.eval()


def _is_resized(config: Any, size: int) -> bool:
    """Whether the position embeddings, which are made for one size, must be fitted to another."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and size < patch:
        raise UsageError(f"image_size= {size} is less than one patch of the model, {patch} pixels")
    return bool(getattr(config, "image_size", size) != size)


class _Pictures(nn.Module):
    """The tower of pictures of a model with two: (n, 3, S, S) → (n, d)."""

    def __init__(self, model: Any, resized: bool) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.projection = getattr(model, "visual_projection", nn.Identity())
        self._more = {"interpolate_pos_encoding": True} if resized else {}

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.projection(
            self.vision_model(pixel_values=x, **self._more).pooler_output
        )
        return made


class _ClassToken(nn.Module):
    """A tower of pictures: (n, 3, S, S) → (n, d), the first token after the last normalisation."""

    def __init__(self, model: Any, resized: bool) -> None:
        super().__init__()
        self.model = model
        # The models of Meta fit their position embeddings themselves.
        fits = model.config.model_type in ("vit", "deit", "ijepa", "vit_msn")
        self._more = {"interpolate_pos_encoding": True} if resized and fits else {}
        self._averages = model.config.model_type == "ijepa"

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(pixel_values=x, **self._more).last_hidden_state
        return made.mean(1) if self._averages else made[:, 0]


class _Texts(nn.Module):
    """The tower of texts: (n, context) → (n, d)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.projection = getattr(model, "text_projection", nn.Identity())

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.projection(self.text_model(input_ids=ids).pooler_output)
        return made


def _text_part(
    request: ImportRequest, folder: Path, model: Any
) -> tuple[TextPart | None, str | None]:
    """The text tower; or None, with a note that says why texts cannot be encoded."""
    if not hf_files.has_tokenizer(folder):
        return None, "texts cannot be looked up: the model's folder has no tokenizer.json"
    try:
        with warnings.catch_warnings(), hf_files.quiet():
            warnings.simplefilter("ignore")
            own = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    # transformers raises errors of many kinds for files that are damaged.
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise EncoderError(f"the tokenizer of {request.spec} cannot be loaded: {why}") from None
    context = int(model.config.text_config.max_position_embeddings)
    pad_id = own.pad_token_id if own.pad_token_id is not None else 0

    def library_ids(texts: Sequence[str]) -> npt.NDArray[np.int64]:
        found = own(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context,
            return_tensors="np",
        )
        return np.asarray(found["input_ids"], np.int64)

    contents = hf_files.tokenizers(folder, own)
    # SigLIP's tokenizer cleans texts in Python, so its file lacks these steps.
    contents += [with_canonical_texts(each) for each in contents]
    return (
        write_text_part(
            request,
            _Texts(model),
            _agreeing(contents, library_ids, context, pad_id),
            context=context,
            pad_id=pad_id,
            library_ids=library_ids,
        ),
        None,
    )


def _agreeing(
    contents: Sequence[bytes],
    library_ids: Callable[[Sequence[str]], npt.NDArray[np.int64]],
    context: int,
    pad_id: int,
) -> bytes:
    """The first content whose ids are the library's; the first of all if there is none."""
    texts = ("A photo, of two_dogs & a cat's bowl.", "猫 CAFÉ  naïve", "a")
    wanted = library_ids(texts)
    for content in contents:
        try:
            tokenizer = Tokenizer(content, Path("tokenizer.json"), context=context, pad_id=pad_id)
            if np.array_equal(tokenizer.ids(texts)[0], wanted):
                return content
        except EncoderError:
            continue
    return contents[0]
