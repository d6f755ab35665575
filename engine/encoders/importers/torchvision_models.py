"""Imports classification networks of torchvision: what comes before their last linear layer."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from engine.encoders.importers import layers, preprocess, weights
from engine.encoders.importers.hub import fetching
from engine.encoders.importers.layers import Layer
from engine.encoders.importers.request import ImportReport, ImportRequest
from engine.encoders.importers.tower import TowerFacts, write_encoder
from engine.errors import EncoderError, UsageError

# Classifiers that only training uses.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_LICENCE = "unknown; torchvision's own code is BSD-3-Clause"


def import_torchvision(request: ImportRequest) -> ImportReport:
    """Import ``ARCHITECTURE`` or ``ARCHITECTURE@WEIGHTS``, as torchvision names both."""
    name, _, version = request.model.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise EncoderError(
            f"torchvision has no classification network {name!r:.60}"
            + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    choice = _weights(request, name, version)
    network = models.get_model(name, weights=None, **_settings(name))
    linear = [path for path, each in network.named_modules() if isinstance(each, nn.Linear)]
    notes: tuple[str, ...] = ()
    source: dict[str, Any] = {"importer": "torchvision", "model": request.model}
    if linear:
        network.set_submodule(linear[-1], nn.Identity())
    heads = (*_AUXILIARY, *(f"{path}." for path in linear[-1:]))
    if request.weights is not None:
        note = weights.fit(
            network,
            weights.read_weights(request.weights),
            what=f"{request.weights.name} does not fit {name}",
            heads=heads,
        )
        notes = (note,) if note else ()
        source["weights"] = weights.describe(request.weights)
    else:
        with fetching(request.spec):
            tensors = choice.get_state_dict(progress=False, check_hash=True)
        weights.fit(network, tensors, what=f"{choice.name} does not fit {name}", heads=heads)
        source["weights"] = {"hub": str(choice), "url": choice.url}
    tower: nn.Module = network
    if request.layer is not None:
        layer = layers.parse(request.layer)
        tower, source["layer"] = _Intermediate(network.eval(), layer, name), request.layer
    elif not linear:
        raise UsageError(f"{name} has no linear layer for classes: name a layer with layer=")
    transforms = choice.transforms()
    given = preprocess.Defaults(
        size=int(transforms.crop_size[0]),
        shorter_side=int(transforms.resize_size[0]),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    preprocessing, mean, std = preprocess.chosen(request, given)
    source["libraries"] = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return write_encoder(
        request,
        tower,
        TowerFacts(
            request.name or name,
            preprocessing,
            mean,
            std,
            source,
            request.licence or _LICENCE,
            notes,
        ),
    )


def _weights(request: ImportRequest, name: str, version: str) -> Any:
    """The entry of torchvision for some weights, which also says how pictures are resized."""
    found = models.get_model_weights(name)
    if not version:
        return found.DEFAULT
    if version not in found.__members__:
        raise EncoderError(
            f"torchvision has no weights {version!r:.60} for {name}: choose one of "
            f"{', '.join(found.__members__)}"
        )
    return found[version]


def _settings(name: str) -> dict[str, Any]:
    """Arguments of networks that would build classifiers for training, or draw weights for minutes."""
    if name in _WITH_AUXILIARY:
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    return {}


class _Intermediate(nn.Module):
    """The result of an inner node of a network, pooled to one vector."""

    def __init__(self, network: nn.Module, layer: Layer, name: str) -> None:
        super().__init__()
        self._layer = layer
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.inner = create_feature_extractor(network, {layer.name: "found"})
        # It raises errors of several kinds for names that do not exist.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(f"{name} has no layer= {layer.name!r:.60}: {why}") from None

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, S, S) → (n, d)."""
        return pooled(self.inner(x)["found"], self._layer)


def pooled(x: Tensor, layer: Layer) -> Tensor:
    """A vector for each picture of (n, d), (n, tokens, d), (n, d, h, w) or (n, h, w, d)."""
    if x.ndim == 4:
        if layer.pool == layers.TOKEN:
            raise UsageError(f"layer= {layer.name} has no class token: write {layer.name}:mean")
        places_last = x.shape[2] == x.shape[3]
        return x.mean((2, 3)) if places_last else x.mean((1, 2))
    if x.ndim == 3:
        return x[:, 1:].mean(1) if layer.pool == layers.MEAN else x[:, 0]
    return x
