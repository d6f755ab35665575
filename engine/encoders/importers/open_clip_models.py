"""Imports models of open_clip: CLIP, SigLIP and others, with the tower of images and that of texts."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip import convert, tokenizer
from torch import Tensor, nn

from engine.encoders.importers import preprocess, weights
from engine.encoders.importers.clip_tokenizer import tokenizer_json
from engine.encoders.importers.hub import fetching
from engine.encoders.importers.request import ImportReport, ImportRequest
from engine.encoders.importers.text_part import (
    TextPart,
    with_canonical_texts,
    write_text_part,
)
from engine.encoders.importers.tower import TowerFacts, write_encoder
from engine.errors import EncoderError, UsageError

_LICENCE = "unknown; open_clip's own code is MIT"
# Parameters of the loss, which no tower needs.
_OF_THE_LOSS = ("logit_scale", "logit_bias")
# What a description of weights says of pictures.
_PICTURES = ("mean", "std", "interpolation", "resize_mode")


def import_open_clip(request: ImportRequest) -> ImportReport:
    """Import ``ARCHITECTURE/PRETRAINED``, as open_clip names both; weights= replaces the latter."""
    if request.layer is not None:
        raise UsageError("open-clip: models have one result for each picture: leave layer= out")
    name, _, tag = request.model.partition("/")
    _require_known(request, name, tag)
    source: dict[str, Any] = {"importer": "open-clip", "model": request.model}
    model, notes = _model(request, name, tag, source)
    own = model.visual.preprocess_cfg
    size = int(own["size"] if isinstance(own["size"], int) else own["size"][0])
    given = preprocess.Defaults(
        size=size,
        shorter_side=size if own["resize_mode"] == "shortest" else None,
        interpolation=own["interpolation"],
        mean=own["mean"],
        std=own["std"],
    )
    if own["resize_mode"] == "longest":
        notes += ("pictures are squashed, where open_clip pads them to a square",)
    preprocessing, mean, std = preprocess.chosen(request, given)
    part, note = _text_part(request, model, name)
    source["libraries"] = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    return write_encoder(
        request,
        _Images(model),
        TowerFacts(
            request.name or (f"{name}-{tag}" if tag else name),
            preprocessing,
            mean,
            std,
            source,
            request.licence or _LICENCE,
            (*notes, *((note,) if note else ())),
            more=part.more if part else {},
            files=part.files if part else {},
        ),
    )


def _require_known(request: ImportRequest, name: str, tag: str) -> None:
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise EncoderError(
            f"open_clip has no model {name!r:.60}"
            + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise EncoderError(
            f"open_clip has no weights {tag!r:.60} for {name}: choose one of "
            f"{', '.join(tags) or 'none'}, or give a file with weights="
        )
    if not tag and request.weights is None:
        raise EncoderError(
            f"{request.spec} names no weights: write {request.spec}/TAG, with one of "
            f"{', '.join(tags) or 'none'}, or give a file with weights="
        )


def _model(
    request: ImportRequest, name: str, tag: str, source: dict[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """The model with its weights, and notes about them."""
    of_tag = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    settings: dict[str, Any] = {
        # Some weights need another activation than the architecture's usual one.
        "force_quick_gelu": bool(of_tag.get("quick_gelu")),
        "force_image_size": request.image_size,
        "weights_only": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.weights is None:
            with fetching(request.spec):
                model = open_clip.create_model(name, pretrained=tag, **settings)
            source["weights"] = {"hub": of_tag.get("hf_hub") or of_tag.get("url") or "", "tag": tag}
            return model, ()
        how = {key: of_tag[key] for key in _PICTURES if key in of_tag}
        # An architecture with a text model of transformers fetches that model's description.
        with fetching(request.spec):
            model = open_clip.create_model(
                name, pretrained_text=False, force_preprocess_cfg=how, **settings
            )
    note = weights.fit(
        model,
        weights.read_weights(request.weights),
        what=f"{request.weights.name} does not fit {name}",
        adapt=lambda tensors: _converted(model, tensors),
    )
    source["weights"] = weights.describe(request.weights)
    return model, (note,) if note else ()


def _converted(model: Any, tensors: weights.Tensors) -> weights.Tensors:
    """The tensors of other libraries and of old versions under open_clip's names."""
    found = dict(convert.convert_state_dict(model, tensors))
    if "positional_embedding" in found and not hasattr(model, "positional_embedding"):
        found = dict(open_clip.model.convert_to_custom_text_state_dict(found))
    own = model.state_dict()
    for name in _OF_THE_LOSS:
        if name in own:
            given = found.get(name)
            found[name] = own[name] if given is None else given.reshape(own[name].shape)
    return found


class _Images(nn.Module):
    """The tower of images: (n, 3, S, S) → (n, d)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor | tuple[Tensor, Tensor] = self.visual(x)
        # CoCa returns its tokens too.
        return made[0] if isinstance(made, tuple) else made


class _Texts(nn.Module):
    """The tower of texts: (n, context) → (n, d)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.model.encode_text(ids)
        return made


def _text_part(request: ImportRequest, model: Any, name: str) -> tuple[TextPart | None, str | None]:
    """The text tower; or None, with a note that says why its texts cannot be encoded here."""
    with fetching(request.spec):
        found = open_clip.get_tokenizer(name)
    if isinstance(found, tokenizer.SimpleTokenizer):
        if found.clean_fn is not tokenizer.get_clean_fn("lower") or found.reduction_fn is not None:
            return None, f"texts cannot be looked up: {name} prepares them in a way of its own"
        content, pad_id = tokenizer_json(found), 0
    elif isinstance(found, tokenizer.HFTokenizer) and not found.strip_sep_token:
        backend = getattr(found.tokenizer, "backend_tokenizer", None)
        if backend is None or found.tokenizer_mode:
            return None, f"texts cannot be looked up: the tokenizer of {name} is not one in Rust"
        content, pad_id = backend.to_str().encode("utf-8"), int(found.tokenizer.pad_token_id)
        if found.clean_fn is tokenizer.get_clean_fn("canonicalize"):
            content = with_canonical_texts(content)
        json.loads(content)
    else:
        return None, f"texts cannot be looked up: the tokenizer of {name} is not known here"

    def library_ids(texts: Sequence[str]) -> npt.NDArray[np.int64]:
        ids: npt.NDArray[np.int64] = found(list(texts)).numpy().astype(np.int64)
        return ids

    return (
        write_text_part(
            request,
            _Texts(model),
            content,
            context=int(found.context_length),
            pad_id=pad_id,
            library_ids=library_ids,
        ),
        None,
    )
