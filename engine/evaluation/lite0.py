"""EfficientNet-Lite0, from a file of weights: a network that was trained on ImageNet with its classes.

The architecture is that of Tan and Le (2019, arXiv:1905.11946) in its "lite" form: no squeeze and
excitation, ReLU6 throughout, stem and head of full width. Weights are looked up by the names that the
PyTorch ports give them, in a ``.pth`` of plain tensors; nothing else is unpickled.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EncoderError

SIZE = 224
DIM = 1280
MEAN, DEVIATION = 127.0, 128.0

# Of each stage: kernel, stride, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_EPSILON = 1e-3
_MAX_BYTES = 128 << 20  # the weights are some 20 MB
_REASON = 160  # characters of it


class Lite0(nn.Module):
    """(n, 224, 224, 3) uint8 → (n, 1280) float32, what the classifier is given; not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPSILON)
        blocks, before = [], 32
        for kernel, stride, expansion, channels, count in _STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(_Block(before, channels, kernel, step, expansion))
                before = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Same(before, DIM, 1)
        self._bn1 = nn.BatchNorm2d(DIM, eps=_EPSILON)
        self._fc = nn.Linear(DIM, 1000)  # not used, but its weights are in the file

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        x = (pixels.permute(0, 3, 1, 2).float() - MEAN) / DEVIATION
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class _Same(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME", where the weights come from: less in front."""

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(before, after, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]
        )
        sides = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(F.pad(x, sides), self.weight, None, stride, groups=self.groups)


class _Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self._widens = expansion > 1
        if self._widens:
            self._expand_conv = _Same(before, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv = _Same(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv = _Same(wide, after, 1)
        self._bn2 = nn.BatchNorm2d(after, eps=_EPSILON)
        self._adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self._adds else y
        return out


def load(path: Path) -> Lite0:
    """The network with the weights of a ``.pth``; ``EncoderError`` if they are not its own."""
    network = Lite0()
    try:
        if _unpacked_bytes(path) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES >> 20} MiB")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError:  # torch's own words advise to run what the file says
        raise EncoderError(
            f"{path} does not hold EfficientNet-Lite0's weights: it is no file of tensors alone"
        ) from None
    except (
        *(RuntimeError, zipfile.BadZipFile, ValueError),
        *(AttributeError, TypeError, KeyError, EOFError),
    ) as error:
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        raise EncoderError(f"{path} does not hold EfficientNet-Lite0's weights: {reason}") from None
    return network.eval()


def _unpacked_bytes(path: Path) -> int:
    """How large a file is, or what is in it if it is a zip, as torch's files are."""
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return sum(member.file_size for member in zipfile.ZipFile(file).infolist())
        return os.fstat(file.fileno()).st_size
