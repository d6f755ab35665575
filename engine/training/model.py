"""The network: a ResNet-18 trunk with a projection head, and its deployed form."""

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
    """An untrained ResNet-18 (He et al., 2015, arXiv:1512.03385) with a head of two linear layers.

    The embedding is the head's output, so that search uses the same space as the loss.
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
    """Predicts classes from embeddings, with a learned scale, as embeddings have unit length.

    So the training works on exactly the unit embeddings that are exported.
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
    """A trained network that takes 8-bit pixels, and casts, scales and normalises them itself.

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
        # The trunk's own forward would put the shape arithmetic of its flatten into the exported graph.
        z: Tensor = head(x.mean((2, 3)))
        length = (z * z).sum(1, keepdim=True).sqrt()
        return z / length.clamp_min(1e-12)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, S, S, 3) uint8 → (n, 3, S, S) float32, normalised as in training."""
    middle, deviation = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - middle) / deviation


def build(settings: TrainSettings) -> SimCLR:
    """A new network, the same for the same seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return SimCLR(settings.hidden, settings.dim)


def _folded(network: SimCLR) -> SimCLR:
    """A copy in eval mode with batch normalisation folded into the convolutions before it."""
    network = copy.deepcopy(network).float().cpu().eval()
    trunk = network.trunk
    trunk.conv1, trunk.bn1 = fuse_conv_bn_eval(trunk.conv1, trunk.bn1), nn.Identity()
    for block in [module for module in trunk.modules() if isinstance(module, BasicBlock)]:
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
        if block.downsample is not None:
            block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return network
