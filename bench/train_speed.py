"""How fast does training go beside the plain recipe, and does it ever wait for its images?

Both train a ResNet-18 with SimCLR on the same images and the same cores, with the same augmentation:

- engine: pictures decoded and shrunk once into a mapped cache, augmented in batches, bf16 autocast,
  channels last, convolutions of small maps as products, memory kept from step to step; as ``engine
  train --precision bf16`` does it
- plain: a folder of files through torchvision's PIL transforms, a DataLoader with a worker a core,
  fp32, eager

They take turns, a few steps a round, and medians over the rounds are printed. "waiting" is the share
of a step's time until its batch is there; on a CPU the engine makes it in that time, since network
and augmentation would only take cores from each other.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config import cpu_count
from engine.errors import UsageError

from . import script
from .machine import machine, versions
from .report import Target, align, targets

TARGET_RATIO = 3.0
_WARM_UP = 2  # steps of each that are not counted

Batches = Iterator[Any]  # (2 × batch, 3, S, S) float32, without end


@dataclass(frozen=True, slots=True)
class Round:
    """A few steps of one of them."""

    seconds: float
    waiting: float  # seconds of them until batches were there
    images: int

    @property
    def rate(self) -> float:
        """Images a second; the network sees two views of each."""
        return self.images / self.seconds

    @property
    def share(self) -> float:
        """Of the time that was spent waiting."""
        return self.waiting / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds of both at one image size."""

    image_size: int
    batch: int
    read_seconds: float  # until the engine's cache was there
    pictures: int
    engine: list[Round]
    plain: list[Round]

    @property
    def ratio(self) -> float:
        """How many times faster the engine is: the median over rounds."""
        return statistics.median(
            a.rate / b.rate for a, b in zip(self.engine, self.plain, strict=True)
        )


def main() -> bool:
    """Measure and print; true if the engine is fast enough at every size."""
    parser = script.parser(__doc__)
    parser.add_argument("images", type=Path, help="a folder of photographs")
    parser.add_argument(
        "--image-size", type=_sizes, default="96,128", help="pixels a side  [96,128]"
    )
    parser.add_argument("--batch", type=_at_least(2), default=64, help="images a step  [64]")
    parser.add_argument("--steps", type=_at_least(1), default=12, help="a round  [12]")
    parser.add_argument(
        "--rounds", type=_at_least(1), default=3, help="of which medians are taken  [3]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    found = [
        measure(given.images, size, given.batch, given.steps, given.rounds)
        for size in given.image_size
    ]
    wanted = [
        Target(
            f"engine / plain at {one.image_size}", TARGET_RATIO, one.ratio, digits=2, at_least=True
        )
        for one in found
    ]
    if given.json:
        said = {
            "machine": machine(),
            "versions": versions(),
            "measured": [{**asdict(one), "ratio": one.ratio} for one in found],
        }
        print(json.dumps(said, indent=1))
    else:
        print(table(found), end="\n\n")
        print(targets(wanted))
    return all(one.met for one in wanted)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"it has to be at least {least}")
        return int(text)

    return number


def _sizes(text: str) -> list[int]:
    return [_at_least(16)(size) for size in text.split(",")]


def measure(folder: Path, size: int, batch: int, steps: int, rounds: int) -> Measured:
    """Rounds of both in turn, each beginning with another one."""
    files = script.photos(folder)
    if len(files) < batch:
        raise UsageError(f"{len(files)} images in {folder} are fewer than a batch of {batch}")
    with ExitStack() as stack:
        began = time.perf_counter()
        views, pictures = engine_batches(files, size, batch, stack)
        if pictures < len(files):
            raise UsageError(
                f"{len(files) - pictures} of {len(files)} images in {folder} cannot be read: "
                f"remove them, for the plain recipe would trip over them"
            )
        read_seconds = time.perf_counter() - began
        runs = [
            _steps(views, size, batch, fast=True),
            _steps(plain_batches(files, size, batch, stack), size, batch, fast=False),
        ]
        for run in runs:
            run(_WARM_UP)
        results: list[list[Round]] = [[], []]
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                results[which].append(runs[which](steps))
    return Measured(size, batch, read_seconds, pictures, *results)


def engine_batches(
    files: list[Path], size: int, batch: int, stack: ExitStack
) -> tuple[Batches, int]:
    """Batches as the engine makes them, and how many pictures there are."""
    import torch

    from engine.training import augment, data
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=size, precision="bf16")
    pool = stack.enter_context(ThreadPoolExecutor(cpu_count()))
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    read = data.read(
        [str(file) for file in files],
        side=round(settings.shrink * size),
        square=size,
        folder=scratch,
        pool=pool,
        tick=lambda done, total: None,
        held_out=0.0,
    )
    stack.callback(read.close)
    pictures = read.pictures

    def batches() -> Batches:
        generator = torch.Generator().manual_seed(0)
        while True:
            rows = torch.randperm(len(pictures), generator=generator)[:batch].tolist() * 2
            draws = augment.draw([pictures.sizes[row] for row in rows], settings, generator)
            crops = augment.crop([pictures[row] for row in rows], draws, size)
            yield augment.colour(crops, draws, settings)

    return batches(), len(pictures)


def plain_batches(files: list[Path], size: int, batch: int, stack: ExitStack) -> Batches:
    """Batches as a notebook makes them: files, PIL, a DataLoader."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from engine.training.settings import TrainSettings

    s = TrainSettings(image_size=size)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=s.crop_scale),
            transforms.RandomHorizontalFlip(s.flip),
            transforms.ColorJitter(*s.jitter),
            transforms.GaussianBlur(s.blur_kernel),
            transforms.ToTensor(),
            transforms.Normalize(s.mean, s.std),
        ]
    )

    class TwoViews(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            with Image.open(files[index]) as image:
                picture = image.convert("RGB")
            return transform(picture), transform(picture)

    random.seed(0)
    loader = DataLoader(TwoViews(), batch, shuffle=True, num_workers=cpu_count(), drop_last=True)

    def batches() -> Batches:
        while True:
            for first, second in loader:
                yield torch.cat((first, second))

    made = batches()
    stack.callback(made.close)  # type: ignore[attr-defined]
    return made


def _steps(batches: Batches, size: int, batch: int, *, fast: bool) -> Callable[[int], Round]:
    """What does some steps of training on such batches."""
    import torch
    from torchvision.models import resnet18

    from engine.training.loss import nt_xent
    from engine.training.model import TRUNK_DIM, build
    from engine.training.pages import kept_pages
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=size)
    torch.manual_seed(0)
    network = build(settings)
    if not fast:  # the engine's has convolutions of its own
        network.trunk = resnet18(num_classes=TRUNK_DIM)
        network.trunk.fc = torch.nn.Identity()
    layout = torch.channels_last if fast else torch.contiguous_format
    network = network.to(memory_format=layout).train()
    kind = torch.optim.AdamW if fast else torch.optim.Adam
    optimizer = kind(network.parameters(), lr=settings.learning_rate, fused=fast or None)

    def run(steps: int) -> Round:
        with kept_pages() if fast else nullcontext():
            return timed(steps)

    def timed(steps: int) -> Round:
        waiting = 0.0
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            views = next(batches)
            waiting += time.perf_counter() - asked
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                z = network(views.contiguous(memory_format=layout))
            first, second = z.float().chunk(2)
            loss = nt_xent(first, second, settings.temperature)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return Round(time.perf_counter() - began, waiting, steps * batch)

    return run


def table(found: list[Measured]) -> str:
    """Both at each size as aligned columns: medians over the rounds."""
    lines = [("size", "what", "images/s", "slowest", "fastest", "ms a step", "waiting %", "times")]
    for one in found:
        for name, rounds in (("engine", one.engine), ("plain", one.plain)):
            rates = [each.rate for each in rounds]
            middle = statistics.median(rates)
            lines.append(
                (
                    str(one.image_size),
                    name,
                    f"{middle:.1f}",
                    f"{min(rates):.1f}",
                    f"{max(rates):.1f}",
                    f"{1e3 * one.batch / middle:.0f}",
                    f"{100 * statistics.median(each.share for each in rounds):.0f}",
                    f"{one.ratio:.2f}" if name == "engine" else "",
                )
            )
    return align(lines, left=(1,))


if __name__ == "__main__":
    script.exit_with(main)
