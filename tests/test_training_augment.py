# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Augmentation: shapes, ranges, determinism, and agreement with torchvision."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Generator, Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from engine.training import augment
from engine.training.settings import TrainSettings

SIZE = 32
SETTINGS = TrainSettings(image_size=SIZE)


def pictures(n: int, height: int = 40, width: int = 56) -> list[Tensor]:
    generator = Generator().manual_seed(9)
    return [
        torch.randint(0, 256, (height + i, width, 3), dtype=torch.uint8, generator=generator)
        for i in range(n)
    ]


def off(**on: float) -> TrainSettings:
    """Settings that change nothing but the crop, and what is ``on``."""
    return TrainSettings(
        image_size=SIZE, jitter=(0.0, 0.0, 0.0, 0.0), blur_kernel=1, flip=0.0, **on
    )


def shown(images: list[Tensor], seed: int, settings: TrainSettings) -> Tensor:
    """Views, with channel values from 0 to 1 again."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (settings.mean, settings.std))
    return views(images, seed, settings) * std + mean


def views(
    images: list[Tensor], seed: int, settings: TrainSettings = SETTINGS, **limits: int
) -> Tensor:
    draws = augment.draw(
        [tuple(image.shape[:2]) for image in images], settings, Generator().manual_seed(seed)
    )
    return augment.colour(
        augment.crop(images, draws, settings.image_size), draws, settings, **limits
    )


def batch(n: int = 6) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=Generator().manual_seed(1))


def test_views_have_the_shape_and_the_range_of_normalised_pixels() -> None:
    n = augment._MAX_VIEWS + 5
    x = views(pictures(n), 0)
    assert x.shape == (n, 3, SIZE, SIZE) and x.dtype == torch.float32
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SETTINGS.mean, SETTINGS.std))
    back = x * std + mean
    assert back.min() > -1e-5 and back.max() < 1 + 1e-5


def test_a_seed_decides_everything() -> None:
    images = pictures(5)
    assert torch.equal(views(images, 1), views(images, 1))
    assert not torch.equal(views(images, 1), views(images, 2))


def test_two_views_of_a_picture_differ() -> None:
    image = pictures(1)[0]
    first, second = views([image, image], 0)
    assert (first - second).abs().mean() > 0.1


def test_chunks_do_not_show() -> None:
    images = pictures(9)
    whole = views(images, 3)
    for chunk, most in ((augment._CPU_CHUNK, 2), (3 * 32 * 32 * 2, 64), (1, 64)):
        parts = views(images, 3, chunk_pixels=chunk, max_views=most)
        assert torch.allclose(parts, whole, atol=1e-5)


@pytest.mark.slow
def test_boxes_lie_inside_and_are_spread_as_torchvision_spreads_them() -> None:
    n, height, width = 4000, 90, 120
    draws = augment.draw([(height, width)] * n, SETTINGS, Generator().manual_seed(0))
    top, left, h, w = draws.boxes.double().unbind(1)
    assert top.min() >= 0 and left.min() >= 0
    assert (top + h).max() <= height and (left + w).max() <= width

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    ).double()
    ours = draws.boxes.double()
    for quantile in (0.1, 0.5, 0.9):
        gap = ours.quantile(quantile, 0) - theirs.quantile(quantile, 0)
        assert gap.abs().max() <= 4  # pixels; the standard error is about one
    area = h * w / (height * width)
    assert area.min() > 0.19 and area.max() <= 1


def test_a_picture_too_long_for_any_box_is_cut_at_its_centre() -> None:
    settings = TrainSettings(image_size=SIZE, crop_scale=(1.0, 1.0))
    draws = augment.draw([(30, 300), (300, 30)], settings, Generator().manual_seed(0))
    assert draws.boxes.tolist() == [[0, 130, 30, 40], [130, 0, 40, 30]]


def test_one_pixel_is_enough() -> None:
    x = views(
        [torch.zeros(1, 1, 3, dtype=torch.uint8), torch.zeros(1, 99, 3, dtype=torch.uint8)], 0
    )
    assert bool(torch.isfinite(x).all())


def test_crops_are_resized_as_torchvision_does_it() -> None:
    images = pictures(4, 90, 120)
    draws = augment.draw([tuple(i.shape[:2]) for i in images], SETTINGS, Generator().manual_seed(2))
    ours = augment.crop(images, draws, SIZE)
    for image, box, crop in zip(images, draws.boxes.tolist(), ours, strict=True):
        theirs = tv.resized_crop(image.permute(2, 0, 1), *box, [SIZE, SIZE], antialias=True)
        assert (crop.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "reference", "factors"),
    [
        ("_brightness", tv.adjust_brightness, (0.6, 1.0, 1.4)),
        ("_contrast", tv.adjust_contrast, (0.6, 1.0, 1.4)),
        ("_saturation", tv.adjust_saturation, (0.6, 1.0, 1.4)),
        ("_hue", tv.adjust_hue, (-0.1, 0.0, 0.1)),
    ],
)
def test_colour_changes_are_torchvisions(
    change: str, reference: object, factors: tuple[float, ...]
) -> None:
    x = batch(len(factors))
    ours = getattr(augment, change)(x.clone(), torch.tensor(factors).view(-1, 1, 1))
    for one, before, factor in zip(ours, x, factors, strict=True):
        assert torch.allclose(one, reference(before, factor), atol=1e-4)


def test_a_grey_picture_has_no_hue_to_turn() -> None:
    grey = torch.full((1, 3, 4, 4), 0.3)
    assert torch.allclose(augment._hue(grey, torch.tensor(0.1).view(1, 1, 1)), grey)


def test_the_blur_is_torchvisions() -> None:
    x = batch(3)
    sigma = torch.tensor([0.1, 0.8, 2.0])
    ours = augment._blurred(x, sigma, 5)
    for one, before, s in zip(ours, x, sigma.tolist(), strict=True):
        assert torch.allclose(one, tv.gaussian_blur(before, [5, 5], [s, s]), atol=1e-5)
    assert torch.equal(augment._blurred(x, sigma, 1), x)


def test_the_order_of_the_colour_changes_is_each_views_own() -> None:
    x = batch(2)
    factors = torch.tensor([[1.4, 0.6, 1.4, 0.1]] * 2)
    order = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    ours = augment._jittered(x.clone(), order, factors)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for one, expected, turns in zip(ours, x, order.tolist(), strict=True):
        for turn in turns:
            expected = steps[turn](expected, float(factors[0, turn]))
        assert torch.allclose(one, expected, atol=1e-4)


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    draws = augment.draw([(50, 50)] * 4000, SETTINGS, Generator().manual_seed(0))
    low, high = draws.factors.amin(0), draws.factors.amax(0)
    assert torch.allclose(low, torch.tensor([0.6, 0.6, 0.6, -0.1]), atol=0.01)
    assert torch.allclose(high, torch.tensor([1.4, 1.4, 1.4, 0.1]), atol=0.01)
    assert draws.flip.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.1 <= draws.sigma.min() < 0.11 and 1.99 < draws.sigma.max() <= 2
    orders = {tuple(order) for order in draws.order.tolist()}
    assert len(orders) == math.factorial(4)


def test_what_is_off_draws_nothing() -> None:
    images = pictures(5)
    generators = [Generator().manual_seed(3) for _ in range(2)]
    for generator, settings in zip(generators, (SETTINGS, off()), strict=True):
        augment.draw([tuple(image.shape[:2]) for image in images], settings, generator)
    left = [torch.rand(1, generator=generator).item() for generator in generators]
    assert left[0] == left[1]
    with_grey = Generator().manual_seed(3)
    draws = augment.draw([(40, 56)] * 5, off(grey=1.0), with_grey)
    assert torch.rand(1, generator=with_grey).item() != left[0] and draws.grey.all()


def test_a_view_without_colour_is_luma() -> None:
    images = pictures(20)
    plain, grey = shown(images, 4, off()), shown(images, 4, off(grey=1.0))
    for one, before in zip(grey, plain, strict=True):
        assert torch.allclose(one, tv.rgb_to_grayscale(before, 3), atol=1e-5)
    some = shown(images, 4, off(grey=0.5))
    without = (some[:, 0] - some[:, 1]).abs().amax((1, 2)) < 1e-5
    assert 0 < without.sum() < len(images)
    assert torch.allclose(some[~without], plain[~without], atol=1e-5)


def test_a_rectangle_of_one_colour_is_laid_over_a_view() -> None:
    images = pictures(40)
    plain, erased = shown(images, 4, off()), shown(images, 4, off(erase=1.0))
    for one, before in zip(erased, plain, strict=True):
        changed = (one - before).abs().amax(0) > 1e-5
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        height = int(rows[-1] - rows[0]) + 1
        width = int(columns[-1] - columns[0]) + 1
        assert 0.01 < height * width / SIZE**2 < 0.3  # 0.02 to 0.25 of it, but for rounding
        assert 0.4 < height / width < 2.5
        box = one[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.allclose(box, box[:, :1, :1].expand_as(box), atol=1e-5)
    some = shown(images, 4, off(erase=0.5))
    assert 5 < (some - plain).abs().amax((1, 2, 3)).gt(1e-5).sum() < 35


def test_turned_views_are_turned_as_torchvision_does_it() -> None:
    images = pictures(4)
    settings = off(turn=1.0)
    draws = augment.draw([(40, 56)] * 4, settings, Generator().manual_seed(4))
    degrees = (draws.angle * 180 / math.pi).tolist()
    assert max(map(abs, degrees)) <= augment.TURNED and len({round(d, 3) for d in degrees}) == 4
    plain, turned = shown(images, 4, off()), shown(images, 4, settings)
    for one, before, angle in zip(turned, plain, degrees, strict=True):
        wanted = tv.rotate(before, angle, tv.InterpolationMode.BILINEAR)
        assert torch.allclose(one, wanted, atol=1e-3)
    some = shown(images * 10, 4, off(turn=0.5))
    same = sum(torch.equal(a, b) for a, b in zip(some, shown(images * 10, 4, off()), strict=True))
    assert 5 < same < 35


def test_a_bit_image_has_one_bit_a_channel() -> None:
    images = pictures(20)
    plain, bits = shown(images, 4, off()), shown(images, 4, off(bits=1.0))
    expected = (plain > plain.mean((2, 3), keepdim=True)).float()
    assert torch.allclose(bits, expected, atol=1e-5)
    assert 0.2 < bits.mean() < 0.8
