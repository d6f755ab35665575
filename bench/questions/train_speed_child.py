"""The child of ``train_speed``: one of the two ways to train, a round at a time, on request.

Each way has a process of its own, so that neither runs with the other's settings of threads or memory.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from engine.config import cpu_count

from ..data import photographs
from ..harness.errors import BenchError
from ..harness.process import answer, send

ENGINE, PLAIN = "engine", "plain"

Batches = Iterator[Any]  # (2 × batch, 3, S, S) float32, without end


def serve(way: str, folder: str, size: int, batch: int) -> None:
    """Report readiness; then do the number of steps in each line of standard input, and report them."""
    files = photographs.listed(Path(folder))
    began = time.perf_counter()
    with ExitStack() as stack:
        if way == ENGINE:
            views, pictures = engine_batches(files, size, batch, stack)
            if pictures < len(files):
                raise BenchError(
                    f"{len(files) - pictures} of {len(files)} images in {folder} cannot be read: "
                    f"remove them, for the plain recipe would trip over them"
                )
        else:
            views = plain_batches(files, size, batch, stack)
        run = steps_of(views, size, batch, fast=way == ENGINE)
        send(ready=time.perf_counter() - began)
        for line in sys.stdin:
            seconds, waiting = run(int(line))
            send(seconds=seconds, waiting=waiting)


def engine_batches(
    files: list[Path], size: int, batch: int, stack: ExitStack
) -> tuple[Batches, int]:
    """Batches as the engine makes them, and how many pictures there are."""
    import torch

    from engine.training import augment
    from engine.training.pictures import read_pictures
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=size, precision="bf16")
    pool = stack.enter_context(ThreadPoolExecutor(cpu_count()))
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    read = read_pictures(
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


def steps_of(
    batches: Batches, size: int, batch: int, *, fast: bool
) -> Callable[[int], tuple[float, float]]:
    """A function that does some training steps and returns all seconds, and those of waiting."""
    import torch
    from torchvision.models import resnet18

    from engine.training.loss import nt_xent
    from engine.training.malloc_pages import kept_pages
    from engine.training.model import TRUNK_DIM, build
    from engine.training.settings import TrainSettings

    settings = TrainSettings(image_size=size)
    torch.manual_seed(0)
    network = build(settings)
    if not fast:  # the engine's network has its own convolutions
        network.trunk = resnet18(num_classes=TRUNK_DIM)
        network.trunk.fc = torch.nn.Identity()
    layout = torch.channels_last if fast else torch.contiguous_format
    network = network.to(memory_format=layout).train()
    kind = torch.optim.AdamW if fast else torch.optim.Adam
    optimizer = kind(network.parameters(), lr=settings.learning_rate, fused=fast or None)

    def run(steps: int) -> tuple[float, float]:
        with kept_pages() if fast else nullcontext():
            return timed(steps)

    def timed(steps: int) -> tuple[float, float]:
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
        return time.perf_counter() - began, waiting

    return run


if __name__ == "__main__":
    answer(serve)
