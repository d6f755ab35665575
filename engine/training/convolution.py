"""Convolutions over small maps as matrix products, for training on a CPU.

The last stages of a ResNet see maps of a few pixels with hundreds of channels. There the direct kernels
of oneDNN spend their time on the weights. Above all, their gradient of the weights takes four to ten
times as long as the same sum as one product (im2col: Chellapilla, Puri, Simard, 2006, High performance
convolutional neural networks for document processing). All other convolutions are PyTorch's own.
``bench.questions.train_speed`` measures the speed of training with all such changes together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# The largest side of an output map for which a product is faster, measured on images of 32 to 224
# pixels a side. For the two passes that read the weights, it also takes ``_MANY_WEIGHTS``.
_WEIGHT_GRADIENT = {torch.bfloat16: 7, torch.float32: 3}
_OTHERS = {torch.bfloat16: 4, torch.float32: 3}
_MANY_WEIGHTS = 1 << 20
# Bytes of unfolded maps at a time. Fresh pages for more cost more than they save.
_CHUNK_BYTES = 16 << 20


class Convolution(nn.Conv2d):
    """A ``Conv2d`` without bias, groups or dilation, with square strides and padding."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Convolution:
        """A convolution that shares the weights of ``conv``; ``ValueError`` if ``conv`` is not plain."""
        plain = (
            conv.bias is None,
            conv.groups == 1,
            conv.dilation == (1, 1),
            conv.padding_mode == "zeros",
            not isinstance(conv.padding, str),
            len(set(conv.stride)) == 1,
            len(set(conv.padding)) == 1,
        )
        if not all(plain):
            raise ValueError(f"not a plain convolution: {conv}")
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        own.__dict__.update(conv.__dict__)
        return own

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, H, W) → (n, out, H', W'), float32 or the dtype of autocast."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        stride, padding = self.stride[0], int(self.padding[0])
        height, width = _out(x, weight, stride, padding)
        if max(height, width) > _WEIGHT_GRADIENT.get(x.dtype, 0):
            return super().forward(x)
        out: Tensor = _Product.apply(x, weight, stride, padding)
        return out


class _Product(torch.autograd.Function):
    """The convolution and its gradients, each as a product if that is faster."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.step = stride, padding  # type: ignore[attr-defined]
        if not _pays(x, weight, stride, padding):
            return F.conv2d(x, weight, None, stride, padding)
        return convolved(x, weight, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        stride, padding = ctx.step  # type: ignore[attr-defined]
        of_x, of_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        first = second = None
        if of_x and _pays(x, weight, stride, padding):
            first = input_gradient(gradient, x, weight, stride, padding)
        elif of_x:
            first = torch.ops.aten.convolution_backward(
                *(gradient, x, weight, None),
                *([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]),
            )[0]
        if of_weight:
            second = weight_gradient(gradient, x, weight, stride, padding)
        return first, second, None, None


def convolved(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """``F.conv2d`` of (n, in, H, W) with (out, in, k, l), in channels-last memory format."""
    out = weight.shape[0]
    kernel = _rows(weight)
    height, width = _out(x, weight, stride, padding)
    parts = [part @ kernel.T for _, part in _unfolded(x, weight, stride, padding)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(len(x), height, width, out).permute(0, 3, 1, 2)


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """The gradient of the loss by the weights, (out, in, k, l); ``gradient`` is that by the output."""
    out, channels, high, wide = weight.shape
    total: Tensor | None = None
    for images, part in _unfolded(x, weight, stride, padding):
        one = gradient[images].permute(0, 2, 3, 1).reshape(-1, out).T @ part
        # Add the parts in float32, as a product does inside.
        total = one if total is None else total.float() + one
    assert total is not None
    return total.to(weight.dtype).view(out, high, wide, channels).permute(0, 3, 1, 2)


def input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """The gradient of the loss by ``x``, (n, in, H, W); ``gradient`` is that by the output."""
    n, channels, height, width = x.shape
    out, _, high, wide = weight.shape
    _, _, down, across = gradient.shape
    sent = (gradient.permute(0, 2, 3, 1).reshape(-1, out) @ _rows(weight)).view(
        n, down, across, high, wide, channels
    )
    total = torch.zeros(n, height + 2 * padding, width + 2 * padding, channels)  # float32
    for row in range(high):
        for column in range(wide):
            total[
                :,
                row : row + stride * (down - 1) + 1 : stride,
                column : column + stride * (across - 1) + 1 : stride,
            ] += sent[:, :, :, row, column]
    inner = total[:, padding : padding + height, padding : padding + width]
    return inner.to(x.dtype).permute(0, 3, 1, 2)


def _pays(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the passes that read the weights are faster as products."""
    most = max(_out(x, weight, stride, padding))
    return most <= _OTHERS[x.dtype] and weight.numel() >= _MANY_WEIGHTS


def _out(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the output."""
    high, wide = weight.shape[2:]
    return (
        (x.shape[2] + 2 * padding - high) // stride + 1,
        (x.shape[3] + 2 * padding - wide) // stride + 1,
    )


def _rows(weight: Tensor) -> Tensor:
    """(out, in, k, l) → (out, k · l · in), in the order of ``_unfolded``."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _unfolded(
    x: Tensor, weight: Tensor, stride: int, padding: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of images, each with the inputs of every output value.

    The inputs are (images · H' · W', k · l · in).
    """
    n, channels, _, _ = x.shape
    high, wide = weight.shape[2:]
    height, width = _out(x, weight, stride, padding)
    values = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    image, row, column, channel = values.stride()
    length = height * width * high * wide * channels
    most = max(1, _CHUNK_BYTES // (length * x.element_size()))
    for first in range(0, n, most):
        part = values[first : first + most]
        windows = part.as_strided(
            (len(part), height, width, high, wide, channels),
            (image, stride * row, stride * column, row, column, channel),
        )
        yield slice(first, first + most), windows.reshape(-1, high * wide * channels)
