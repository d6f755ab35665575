"""``engine train``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from engine import show
from engine.cli.options import DONE, SOME_REJECTED, JsonOption, show_line, warn
from engine.errors import TrainingError, UsageError
from engine.progress import Progress


def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders of images; of a folder with train/ and valid/ or test/, as Roboflow "
            "lays COCO-128 out, train/ is trained on and the rest held out.",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="ENCODER_DIR", help="A new folder for the encoder.")
    ] = "",
    image_size: Annotated[int, typer.Option(metavar="S", help="The network sees S × S.")] = 224,
    epochs: Annotated[int, typer.Option(metavar="N", help="Times each image is seen.")] = 30,
    batch: Annotated[int, typer.Option(metavar="N", help="Images a step, two views each.")] = 64,
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate of Adam.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option(metavar="constant|cosine", help="How the learning rate goes.")
    ] = "constant",
    temperature: Annotated[float, typer.Option(metavar="X", help="Of InfoNCE.")] = 0.1,
    hidden: Annotated[int, typer.Option(metavar="N", help="Width inside the head.")] = 256,
    dim: Annotated[int, typer.Option(metavar="N", help="Length of the vectors.")] = 128,
    crop_scale: Annotated[
        tuple[float, float], typer.Option(metavar="MIN MAX", help="Share of the area in a crop.")
    ] = (0.2, 1.0),
    jitter: Annotated[
        tuple[float, float, float, float],
        typer.Option(metavar="B C S H", help="Brightness, contrast, saturation, hue."),
    ] = (0.4, 0.4, 0.4, 0.1),
    flip: Annotated[float, typer.Option(metavar="P", help="Probability of a flip.")] = 0.5,
    blur: Annotated[int, typer.Option(metavar="N", help="Kernel of the blur, odd.")] = 5,
    mean: Annotated[
        tuple[float, float, float], typer.Option(metavar="R G B", help="Normalisation: mean.")
    ] = (0.485, 0.456, 0.406),
    std: Annotated[
        tuple[float, float, float], typer.Option(metavar="R G B", help="Normalisation: deviation.")
    ] = (0.229, 0.224, 0.225),
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16", help="bf16: autocast, twice as fast on new CPUs.")
    ] = "fp32",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Threads that augment; 0: one a core.")
    ] = 0,
    name: Annotated[str, typer.Option(metavar="NAME", help="The encoder's name.")] = "",
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="What the images are and under which licence.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Train a SimCLR encoder on your own images; the defaults are the classic recipe.

    ENCODER_DIR gets a checkpoint, TensorBoard logs, and the model as ONNX, which
    'engine ingest --encoder ENCODER_DIR' takes. Needs the extra: pip install
    'image-index-engine[train]'.

    \b
    Example:
      engine train photos/ --out my-encoder --epochs 30
      tensorboard --logdir my-encoder/logs
    """
    if not sources:
        raise UsageError("name at least one folder of images to train on")
    if not out:
        raise UsageError("name a new folder for the encoder with --out")
    try:
        from engine import training
    except ImportError as error:
        raise TrainingError(
            f"training needs {error.name}: install it with pip install 'image-index-engine[train]'"
        ) from None
    settings = training.TrainSettings(
        image_size=image_size,
        crop_scale=crop_scale,
        jitter=jitter,
        blur_kernel=blur,
        flip=flip,
        mean=mean,
        std=std,
        temperature=temperature,
        batch=batch,
        epochs=epochs,
        learning_rate=lr,
        schedule=schedule,
        hidden=hidden,
        dim=dim,
        seed=seed,
        precision=precision,
        device=device,
        workers=workers,
    )
    with Progress("train", "steps") as bar:

        def tell(at: Any) -> None:
            if at.warning:
                warn(at.warning)
            elif at.phase == "train":
                loss = f", loss {at.loss:.3f}" if at.loss is not None else ""
                bar.note(
                    f"epoch {at.epoch} of {at.epochs}{loss}, {at.images_per_second:,.0f} images/s"
                )
                bar(at.done, at.total)

        report = training.train(
            sources, out, settings, progress=tell, name=name or None, description=description
        )
    if as_json:
        show_line(show.line(asdict(report)))
    else:
        show_line(
            f"{report.images:,} images, {report.epochs} epochs, {report.seconds:.0f} s "
            f"({report.images_per_second:,.0f} images/s), loss {report.loss:.3f}\n"
            f"parity of the exported model: {json.dumps(report.parity)}\n"
            f"use it with: engine ingest SOURCE --encoder {report.out} --store NEW_STORE"
        )
    for rejected in report.rejected:
        warn(f"{rejected.source}: {rejected.reason}")
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)
