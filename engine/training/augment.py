"""Two-view augmentation: the random draws, the crops, and the colours of a whole batch at once.

It has the distributions of torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip``,
``ColorJitter``, ``RandomGrayscale`` and ``GaussianBlur``, in that order, drawn separately for each view:

- whole: with the probability ``whole``, the whole picture is taken instead of a crop; torchvision's has
  no such step
- crop: area share uniform in ``crop_scale``, log of the aspect ratio uniform between log(3/4) and
  log(4/3), ten tries, then the largest centred crop within these ratios; bilinear with
  antialiasing to S × S
- jitter: brightness, contrast and saturation factors uniform in 1 ± strength, the hue turn uniform
  in ± strength of a full turn; the four in a random order
- grey: with the probability ``grey``
- blur: a square kernel of ``blur_kernel`` pixels, sigma uniform in 0.1 … 2, reflected borders

Three more steps follow, for turned copies, for copies with an overlay, and for bit images:

- turn: with the probability ``turn``, a view is turned about its centre by up to 15° either way; the
  uncovered corners are black
- erase: with the probability ``erase``, a rectangle of 2 to 25 % of the view, with an aspect ratio
  from 1/2 to 2, gets one random colour (after Zhong et al., 2020, arXiv:1708.04896)
- bits: with the probability ``bits``, each value becomes 1 if it is above its channel's mean, else 0

One thing differs from torchvision: colours stay float between the steps, while torchvision rounds PIL
images to 8 bits after each. All random numbers come from one CPU ``torch.Generator``, so a seed gives
the same views on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from engine.training.settings import TrainSettings

RATIO = (3 / 4, 4 / 3)
SIGMA = (0.1, 2.0)
ERASED = (0.02, 0.25)  # share of the view
ERASED_RATIO = (1 / 2, 2.0)
TURNED = 15.0  # degrees, at most
_TRIES = 10
# Values per channel in one pass on a CPU. With fewer, distributing them to threads costs more than the
# work. With more, they leave the CPU cache before the next pass.
_CPU_CHUNK = 400_000
_MAX_VIEWS = 64


@dataclass(frozen=True, slots=True)
class Draws:
    """The random draws for n views; all on the CPU."""

    boxes: Tensor  # (n, 4) int64: top, left, height, width
    flip: Tensor  # (n,) bool
    order: Tensor  # (n, 4) int64: the order of brightness, contrast, saturation, hue
    factors: Tensor  # (n, 4) float32: three factors and the hue turn
    sigma: Tensor  # (n,) float32
    grey: Tensor  # (n,) bool
    angle: Tensor  # (n,) float32, radians
    erased: Tensor  # (n, 4) int64: a box in the view; its height is 0 if nothing is erased
    fill: Tensor  # (n, 3) float32: the colour of that box, 0 to 1
    bits: Tensor  # (n,) bool


def draw(sizes: Sequence[tuple[int, int]], settings: TrainSettings, generator: Generator) -> Draws:
    """Draw one view of each picture; ``sizes`` are their (height, width)."""
    n = len(sizes)
    strength = torch.tensor(settings.jitter)
    middle = torch.tensor((1.0, 1.0, 1.0, 0.0))

    def chosen(probability: float) -> Tensor:
        # A step that is off draws no numbers, so that adding steps does not change other runs.
        if not probability:
            return torch.zeros(n, dtype=torch.bool)
        return torch.rand(n, generator=generator) < probability

    def angle() -> Tensor:
        if not settings.turn:
            return torch.zeros(n)
        angles = math.radians(TURNED) * (2 * torch.rand(n, generator=generator) - 1)
        return angles * chosen(settings.turn)

    def erased() -> Tensor:
        if not settings.erase:
            return torch.zeros(n, 4, dtype=torch.int64)
        views = torch.full((n, 2), settings.image_size)
        boxes = _boxes(views, ERASED, ERASED_RATIO, generator)
        return boxes * chosen(settings.erase)[:, None]

    def fill() -> Tensor:
        return torch.rand(n, 3, generator=generator) if settings.erase else torch.zeros(n, 3)

    def boxes() -> Tensor:
        cut = _boxes(torch.tensor(sizes), settings.crop_scale, RATIO, generator)
        all_of_it = torch.cat((torch.zeros(n, 2, dtype=torch.int64), torch.tensor(sizes)), 1)
        return torch.where(chosen(settings.whole)[:, None], all_of_it, cut)

    return Draws(
        boxes=boxes(),
        flip=torch.rand(n, generator=generator) < settings.flip,
        order=torch.rand(n, 4, generator=generator).argsort(1),
        factors=middle + strength * (2 * torch.rand(n, 4, generator=generator) - 1),
        sigma=SIGMA[0] + (SIGMA[1] - SIGMA[0]) * torch.rand(n, generator=generator),
        grey=chosen(settings.grey),
        angle=angle(),
        erased=erased(),
        fill=fill(),
        bits=chosen(settings.bits),
    )


def crop(
    pictures: Sequence[Tensor], draws: Draws, size: int, pool: Executor | None = None
) -> Tensor:
    """Cut and resize: pictures (H, W, 3) uint8 of any sizes → (n, 3, size, size) uint8."""

    def one(picture: Tensor, box: tuple[int, int, int, int]) -> Tensor:
        top, left, height, width = box
        cut = picture[top : top + height, left : left + width]
        return _resized(cut.permute(2, 0, 1), size)

    boxes = [tuple(box) for box in draws.boxes.tolist()]
    return torch.stack(list((pool.map if pool else map)(one, pictures, boxes)))


def colour(
    crops: Tensor,
    draws: Draws,
    settings: TrainSettings,
    *,
    chunk_pixels: int = _CPU_CHUNK,
    max_views: int = _MAX_VIEWS,
) -> Tensor:
    """Apply all steps after the crop, and normalise: (n, 3, S, S) uint8 → float32, on their device.

    On a CPU, at most ``chunk_pixels`` values per channel and ``max_views`` views are changed at a time.
    """
    n = len(crops)
    device = crops.device
    chunk = n
    if device.type == "cpu":
        chunk = min(max_views, max(1, chunk_pixels // crops[0, 0].numel()))
    flip, order, factors, sigma = (
        part.to(device) for part in (draws.flip, draws.order, draws.factors, draws.sigma)
    )
    grey, angle, erased, fill, bits = (
        part.to(device) for part in (draws.grey, draws.angle, draws.erased, draws.fill, draws.bits)
    )
    mean = torch.tensor(settings.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(settings.std, device=device).view(1, 3, 1, 1)
    out = torch.empty(crops.shape, dtype=torch.float32, device=device)
    for start in range(0, n, chunk):
        part = slice(start, start + chunk)
        x = crops[part].float() / 255
        x = torch.where(flip[part].view(-1, 1, 1, 1), x.flip(-1), x)
        x = _jittered(x, order[part], factors[part])
        if settings.grey:
            x = torch.where(grey[part].view(-1, 1, 1, 1), _grey(x)[:, None], x)
        x = _blurred(x, sigma[part], settings.blur_kernel)
        if settings.turn:
            x = _turned(x, angle[part])
        if settings.erase:
            x = _erased(x, erased[part], fill[part])
        if settings.bits:
            binary = (x > x.mean((2, 3), keepdim=True)).float()
            x = torch.where(bits[part].view(-1, 1, 1, 1), binary, x)
        out[part] = (x - mean) / std
    return out


def _resized(picture: Tensor, size: int) -> Tensor:
    """(3, h, w) uint8 → (3, size, size) uint8, bilinear, with antialiasing when it shrinks."""
    return F.interpolate(
        picture[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]


def _boxes(
    sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> Tensor:
    """(n, 2) heights and widths → (n, 4) boxes, drawn as by ``RandomResizedCrop.get_params``."""
    n, _ = sizes.shape
    height, width = sizes[:, :1].double(), sizes[:, 1:].double()  # (n, 1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    uniform = torch.rand(4, n, _TRIES, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    aspect = torch.exp(low + (high - low) * uniform[1])
    widths = (area * aspect).sqrt().round()  # (n, tries)
    heights = (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = (uniform[2] * (height - heights + 1)).floor()
    lefts = (uniform[3] * (width - widths + 1)).floor()
    # argmax returns the first of equal values.
    first = fits.int().argmax(1, keepdim=True)
    found = torch.stack([part.gather(1, first) for part in (tops, lefts, heights, widths)], -1)
    boxes = torch.where(fits.any(1).view(-1, 1), found[:, 0], _centred(height, width, ratio))
    return boxes.long()


def _centred(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    """(n, 1) heights and widths → (n, 4) largest centred boxes with an allowed aspect ratio."""
    boxes_width = torch.minimum(width, (height * ratio[1]).round())
    boxes_height = torch.minimum(height, (width / ratio[0]).round())
    top = ((height - boxes_height) / 2).floor()
    left = ((width - boxes_width) / 2).floor()
    return torch.cat((top, left, boxes_height, boxes_width), 1)


def _jittered(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Apply each view's four colour changes in its own order; x is (n, 3, S, S), 0 to 1."""
    changes = (_brightness, _contrast, _saturation, _hue)
    for turn in range(4):
        for which, change in enumerate(changes):
            rows = (order[:, turn] == which).nonzero()[:, 0]
            if len(rows):
                x[rows] = change(x[rows], factors[rows, which].view(-1, 1, 1))
    return x


def _grey(x: Tensor) -> Tensor:
    """(n, 3, S, S) → (n, S, S): luma by ITU-R BT.601, with torchvision's weights."""
    return 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor[:, None]).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(x).mean((1, 2)).view(-1, 1, 1, 1)
    return torch.lerp(mean, x, factor[:, None]).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x)[:, None], x, factor[:, None]).clamp_(0, 1)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue in HSV (Smith, 1978): ``turn`` is (n, 1, 1), a full turn is 1."""
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    safe = chroma.clamp_min(1e-12)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # The value does not matter where chroma is 0.
    sixth = sixth + 6 * turn
    out = torch.empty_like(x)
    for channel, start in enumerate((5, 3, 1)):
        k = (start + sixth).remainder_(6)
        ramp = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, ramp, value=-1, out=out[:, channel])
    return out


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Turn each view of (n, 3, S, S) by its angle (n,), in radians, with black around it."""
    rows = angle.nonzero()[:, 0]
    if len(rows):
        cos, sin, zero = angle[rows].cos(), angle[rows].sin(), torch.zeros_like(angle[rows])
        turns = torch.stack((cos, -sin, zero, sin, cos, zero), 1).view(-1, 2, 3)
        grid = F.affine_grid(turns, [len(rows), *x.shape[1:]], align_corners=False)
        x[rows] = F.grid_sample(x[rows], grid, align_corners=False)
    return x


def _erased(x: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """Fill the box (n, 4) of each view of (n, 3, S, S) with one colour (n, 3)."""
    top, left, height, width = (part.view(-1, 1) for part in boxes.unbind(1))
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    high = (rows >= top) & (rows < top + height)
    wide = (columns >= left) & (columns < left + width)
    inside = high[:, None, :, None] & wide[:, None, None, :]
    return torch.where(inside, fill[:, :, None, None], x)


def _blurred(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur (n, 3, S, S) with a Gaussian of each view's own sigma, one axis after the other."""
    if kernel == 1:
        return x
    n, _, height, width = x.shape
    half = kernel // 2
    at = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).view(n, kernel, 1, 1, 1)
    x = F.pad(x, (half, half, half, half), mode="reflect")
    rows = x[..., :width] * weights[:, 0]
    for tap in range(1, kernel):
        rows.addcmul_(x[..., tap : tap + width], weights[:, tap])
    out = rows[:, :, :height] * weights[:, 0]
    for tap in range(1, kernel):
        out.addcmul_(rows[:, :, tap : tap + height], weights[:, tap])
    return out
