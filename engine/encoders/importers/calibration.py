"""The pictures that show the ranges of a network's activations, and whether int8 keeps neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from engine.encoders.importers.request import MAX_PICTURES, Calibration, Images, Picture
from engine.images.preprocessing import Preprocessing

_MIN_PICTURES = 32
_COMPARED = 3
# Pixels of all pictures for an input of up to 128 a side: larger inputs take longer, and fewer pictures.
_PIXELS = MAX_PICTURES * 128**2
_SHORTER, _LONGER = 256, 341  # pixels a side of a generated picture
_OCTAVES = 6

Plane = npt.NDArray[np.float64]


def pictures_for(size: int) -> int:
    """How many pictures calibrate an encoder of ``size`` pixels a side."""
    return max(_MIN_PICTURES, min(MAX_PICTURES, _PIXELS // size**2))


def calibration_images(
    calibration: Calibration | None, preprocessing: Preprocessing
) -> tuple[Images, str]:
    """The inputs (n, S, S, 3) uint8 for calibration, and where they come from."""
    count = pictures_for(preprocessing.size)
    if calibration is None or not calibration.pictures:
        generated = (generated_picture(number) for number in range(count))
        return np.stack([preprocessing.resize(each) for each in generated]), "generated"
    pictures = calibration.pictures
    count = min(count, len(pictures))
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    return np.stack([preprocessing.resize(each) for each in chosen]), calibration.described


def compared_images(preprocessing: Preprocessing) -> Images:
    """A few inputs (n, S, S, 3) uint8, to compare a written model with the original one."""
    return np.stack([preprocessing.resize(generated_picture(i)) for i in range(_COMPARED)])


def generated_picture(number: int) -> Picture:
    """A picture (H, W, 3) uint8 that depends on ``number`` only.

    Textures, flat drawings, stripes, crowds of small things and pages of strokes take turns: networks
    tell these apart, so they show whether int8 keeps neighbours. Noise would show a network only values
    that photographs never cause.
    """
    rng = np.random.default_rng([number, 0x70696373])
    height, width = (_SHORTER, _LONGER) if rng.random() < 0.7 else (_LONGER, _SHORTER)
    kind = number % 5
    if kind == 0:
        canvas = _texture(rng, height, width)
    elif kind == 2:
        canvas = _stripes(rng, height, width)
    else:
        canvas = np.broadcast_to(rng.uniform(0, 255, 3), (height, width, 3))
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if kind == 3:
        colour = _colour(rng)
        for _ in range(rng.integers(20, 150)):
            _shape(picture, rng, 0.05, colour)
    elif kind == 4:
        _strokes(picture, rng)
    else:
        for _ in range(rng.integers(1, 10)):
            _shape(picture, rng, 0.3, _colour(rng))
    return np.array(picture)


def _texture(rng: np.random.Generator, height: int, width: int) -> Plane:
    """A field whose power falls with frequency, like that of photographs."""
    steepness = rng.uniform(0.3, 1.6)
    field = np.zeros((height, width, 3), np.float64)
    for octave in range(_OCTAVES):
        cells = 2 ** (octave + 1)
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        # Natural colours vary less than brightness.
        coarse = 1.3 * coarse.mean(axis=2, keepdims=True) + 0.35 * coarse
        for channel in range(3):
            plane = Image.fromarray(coarse[:, :, channel])
            smooth = plane.resize((width, height), Image.Resampling.BICUBIC)
            field[:, :, channel] += np.asarray(smooth) * 2 ** (-steepness * octave)
    made: Plane = rng.uniform(40, 215, 3) + rng.uniform(15, 70) * field
    return made


def _stripes(rng: np.random.Generator, height: int, width: int) -> Plane:
    """Waves in one or two directions, soft or sharp."""
    y, x = np.mgrid[:height, :width] / _SHORTER
    wave = np.ones((height, width))
    for _ in range(rng.integers(1, 3)):
        angle, frequency = rng.uniform(0, np.pi), 2 ** rng.uniform(1, 6)
        wave = wave * np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y))
    wave = np.sign(wave) if rng.random() < 0.5 else wave
    first, second = rng.uniform(0, 255, (2, 3))
    made: Plane = first + (second - first) * (wave[:, :, None] + 1) / 2
    return made


def _shape(
    picture: Image.Image, rng: np.random.Generator, largest: float, colour: tuple[int, ...]
) -> None:
    """Draw one shape with sharp edges, of up to ``largest`` of the picture to each side."""
    draw = ImageDraw.Draw(picture)
    size = np.array(picture.size)
    middle, half = rng.uniform(0, 1, 2) * size, rng.uniform(largest / 10, largest, 2) * size
    low, high = middle - half, middle + half
    box = [*map(float, low), *map(float, high)]
    kind = rng.integers(0, 4)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.rectangle(box, fill=colour)
    elif kind == 2:
        draw.line(box, fill=colour, width=int(rng.integers(1, 9)))
    else:
        corners = rng.uniform(0, 1, (int(rng.integers(3, 7)), 2)) * 2 * half + low
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=colour)


def _strokes(picture: Image.Image, rng: np.random.Generator) -> None:
    """Rows of short strokes, as of a page of writing."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    line, colour = rng.uniform(8, 40), _colour(rng)
    thickness = max(1, round(line / 10))
    y = line
    while y < height:
        x = rng.uniform(0, 2 * line)
        while x < width:
            steps = rng.uniform(-line / 3, line / 3, (3, 2))
            draw.line([(x + float(a), y + float(b)) for a, b in steps], colour, thickness)
            x += line * rng.uniform(0.3, 1.2)
        y += 1.5 * line


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(value) for value in rng.integers(0, 256, 3))
