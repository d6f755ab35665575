"""Imports networks of timm: ViT, DINOv2, DINOv3, Swin, EfficientNet and about a thousand others."""

from __future__ import annotations

import difflib
import inspect
import math
import sys
import warnings
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from engine.encoders.importers import layers, preprocess, weights
from engine.encoders.importers.hub import fetching
from engine.encoders.importers.layers import Layer
from engine.encoders.importers.request import ImportReport, ImportRequest
from engine.encoders.importers.tower import TowerFacts, write_encoder
from engine.errors import EncoderError, UsageError

_ON_HUB = "hf-hub:"


def import_timm(request: ImportRequest) -> ImportReport:
    """Import ``NAME`` or ``NAME.TAG``, as timm names both, without its classifier."""
    network = _network(request)
    notes: tuple[str, ...] = ()
    source: dict[str, Any] = {"importer": "timm", "model": request.model}
    if request.weights is not None:
        note = _fill(network, request)
        notes = (note,) if note else ()
        source["weights"] = weights.describe(request.weights)
    else:
        origin = network.pretrained_cfg
        hub = origin.get("hf_hub_id") or origin.get("url") or request.model
        source["weights"] = {"hub": str(hub), "tag": origin.get("tag") or ""}
    own = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
    size = int(own["input_size"][1])
    squashes = own.get("crop_mode") == "squash"
    given = preprocess.Defaults(
        size=size,
        shorter_side=None if squashes else max(size, math.floor(size / own["crop_pct"])),
        interpolation=own["interpolation"],
        mean=own["mean"],
        std=own["std"],
    )
    preprocessing, mean, std = preprocess.chosen(request, given)
    tower: nn.Module = network
    if request.layer is not None:
        layer, size = layers.parse(request.layer), preprocessing.size
        tower = _Intermediate(network, layer, request.model, size)
        source["layer"] = request.layer
    source["libraries"] = {"torch": torch.__version__, "timm": timm.__version__}
    name = request.name or request.model.removeprefix(_ON_HUB).rpartition("/")[2]
    licence = request.licence or network.pretrained_cfg.get("license") or "unknown"
    return write_encoder(
        request, tower, TowerFacts(name, preprocessing, mean, std, source, str(licence), notes)
    )


def _network(request: ImportRequest) -> Any:
    """The network, with its weights from the hub unless a file of weights is given."""
    name = request.model
    if not name.startswith(_ON_HUB) and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3)
        raise EncoderError(
            f"timm has no network {name!r:.60}"
            + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    settings: dict[str, Any] = {"num_classes": 0}
    wanted = request.image_size
    if wanted is not None and _takes_size(name):
        settings["img_size"] = wanted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if request.weights is not None:
                return timm.create_model(name, pretrained=False, **settings)
            with fetching(request.spec):
                return timm.create_model(name, pretrained=True, **settings)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"timm cannot build {name}: {why}") from None


def _takes_size(name: str) -> bool:
    """Whether the network's weights depend on the size of its input, as position embeddings do."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0)
        # Some networks cannot be built without memory.
        except (RuntimeError, NotImplementedError):
            return False
    return hasattr(network, "set_input_size")


def _fill(network: Any, request: ImportRequest) -> str | None:
    assert request.weights is not None
    classifier = network.pretrained_cfg.get("classifier") or ()
    named = [classifier] if isinstance(classifier, str) else list(classifier)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return weights.fit(
        network,
        weights.read_weights(request.weights),
        what=f"{request.weights.name} does not fit {request.model}",
        heads=tuple(f"{each}." for each in named),
        adapt=None if convert is None else lambda tensors: _converted(convert, tensors, network),
    )


def _converted(convert: Any, tensors: weights.Tensors, network: Any) -> weights.Tensors:
    found = convert(tensors, network)
    # A few conversions return pairs.
    return dict(found) if not isinstance(found, dict) else found


class _Intermediate(nn.Module):
    """The result of one block, pooled to one vector, after the network's last normalisation."""

    def __init__(self, network: Any, layer: Layer, name: str, size: int) -> None:
        super().__init__()
        if not hasattr(network, "forward_intermediates"):
            raise UsageError(f"timm gives no inner results of {name}: leave layer= out")
        self.network = network
        self._number, self._pool = layer.number, layer.pool
        takes = inspect.signature(network.forward_intermediates).parameters
        self._has_tokens = (
            "return_prefix_tokens" in takes and getattr(network, "num_prefix_tokens", 0) > 0
        )
        self._settings: dict[str, Any] = {"intermediates_only": True, "stop_early": True}
        if "norm" in takes:
            self._settings["norm"] = True
        if self._has_tokens:
            self._settings["return_prefix_tokens"] = True
        if self._pool == layers.TOKEN and not self._has_tokens:
            raise UsageError(f"{name} has no class token: write layer= {layer.name}:{layers.MEAN}")
        try:
            self._find(torch.zeros((1, 3, size, size)))
        except (AssertionError, IndexError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(f"{name} has no layer= {layer.name}: {why}") from None
        except RuntimeError:
            # The export reports what else is wrong.
            pass

    def _find(self, x: Tensor) -> Any:
        (found,) = self.network.forward_intermediates(x, indices=[self._number], **self._settings)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, S, S) → (n, d)."""
        found = self._find(x)
        places, tokens = found if isinstance(found, tuple) else (found, None)
        if tokens is not None and self._pool != layers.MEAN:
            token: Tensor = tokens[:, 0]
            return token
        # forward_intermediates gives maps of (n, d, h, w) for every network.
        mean: Tensor = places.mean((2, 3))
        return mean
