"""The network: a ResNet-18 trunk with a projection head, and the form of it that is deployed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from engine.training.convolution import Convolution
from engine.training.settings import TrainSettings

TRUNK_DIM = 512


class SimCLR(nn.Module):
    """ResNet-18 (He et al., 2015, arXiv:1512.03385) and a head of two linear layers, from scratch.

    The embedding is the head's output, so that search uses the space in which the loss was taken.
    """

    def __init__(self, hidden: int = 256, dim: int = 128) -> None:
        super().__init__()
        self.trunk = resnet18(weights=None)
        self.trunk.fc = nn.Identity()
        for path, module in list(self.trunk.named_modules()):
            if isinstance(module, nn.Conv2d):
                self.trunk.set_submodule(path, Convolution.of(module))
        self.head = nn.Sequential(
            nn.Linear(TRUNK_DIM, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, S, S) float32, normalised → (n, dim) float32 of unit length."""
        z = self.head(self.trunk(x))
        return F.normalize(z.float(), dim=1)


class Classifier(nn.Module):
    """Reads classes from embeddings: their scale is learned, because on the sphere they have none.

    So what is exported, the embedding of unit length, is the very thing that was trained.
    """

    def __init__(self, dim: int, classes: int, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.linear = nn.Linear(dim, classes)

    def forward(self, z: Tensor) -> Tensor:
        """(n, dim) float32 of unit length → (n, classes) logits."""
        logits: Tensor = self.linear(self.log_scale.exp() * z)
        return logits


class Deployed(nn.Module):
    """A trained network that takes pixels as they come: it casts, scales and normalises itself.

    Batch normalisation is folded into the convolutions, so it is for inference only.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: SimCLR, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = _folded(network)
        deviation = torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("offset", torch.tensor(mean).view(1, 3, 1, 1) / deviation)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 RGB → (n, dim) float32 of unit length."""
        trunk, head = self.network.trunk, self.network.head
        x = pixels.permute(0, 3, 1, 2).float() * self.scale - self.offset
        x = trunk.maxpool(trunk.relu(trunk.conv1(x)))
        x = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(x))))
        # Not through the trunk: its flatten would drag shape arithmetic into the exported graph.
        z: Tensor = head(x.mean((2, 3)))
        length = (z * z).sum(1, keepdim=True).sqrt()
        return z / length.clamp_min(1e-12)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, S, S, 3) uint8 → (n, 3, S, S) float32 as the network was trained to see it."""
    middle, deviation = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - middle) / deviation


def build(settings: TrainSettings) -> SimCLR:
    """A fresh network, the same for the same seed; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return SimCLR(settings.hidden, settings.dim)


def _folded(network: SimCLR) -> SimCLR:
    """A copy in eval mode whose batch normalisation is part of the convolutions before it."""
    network = copy.deepcopy(network).float().cpu().eval()
    trunk = network.trunk
    trunk.conv1, trunk.bn1 = fuse_conv_bn_eval(trunk.conv1, trunk.bn1), nn.Identity()
    for block in [module for module in trunk.modules() if isinstance(module, BasicBlock)]:
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
        if block.downsample is not None:
            block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return network
