"""``engine train``."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated, Any

import typer

from engine.cli import interrupts, render
from engine.cli.options import (
    DONE,
    INTERRUPTED,
    SOME_REJECTED,
    JsonOption,
    interruptible,
    show_line,
    warn,
)
from engine.cli.progress import Progress
from engine.errors import TrainingError, UsageError

_UNITS = {"read": "images", "train": "steps"}
_CHECKPOINT_SECONDS = 30.0  # it takes a second or less, but for slow disks


# Options of settings have no default here: what is not given is left to the recipe. The number in
# brackets is that of the recipe "report".
def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Images, in all that 'engine ingest' takes; of a folder with train/ and valid/ or "
            "test/, as Roboflow lays COCO-128 out, train/ is trained on and the rest held out.",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="ENCODER_DIR", help="A new folder for the encoder.")
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(
            metavar="report|small|large",
            help="Where settings start from [report]; small is for a few hundred images, large "
            "for many.",
        ),
    ] = "",
    settings: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml",
            help="Settings by name, as encoder.json has them; over the recipe, under the options.",
        ),
    ] = "",
    init: Annotated[
        str,
        typer.Option(
            metavar="ENCODER", help="Begin with the weights of simclr, or of a folder of this kind."
        ),
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in ENCODER_DIR.")
    ] = False,
    cache: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Keep the decoded images there, for the next training on them."
        ),
    ] = "",
    method: Annotated[
        str | None,
        typer.Option(
            metavar="simclr|moco|supervised",
            help="What is learned from [simclr]: two views of an image; these and the keys of "
            "past batches; the names of folders.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Times each image is seen [30].")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Images a step, two views each [64].")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="S", help="The network sees S × S [224].")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of 64 images and more, hold out this share, where no folder is for that; 0 holds "
            "out nothing at all [folders only].",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate of Adam [0.001].")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="constant|cosine", help="How the learning rate goes [constant]."),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs over which the rate rises [0].")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Decoupled, as of AdamW [0].")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Of the loss [0.1].")
    ] = None,
    queue: Annotated[
        int | None, typer.Option(metavar="N", help="moco: keys that are kept [4096].")
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(metavar="M", help="moco: of the key encoder [0.99].")
    ] = None,
    hard_negatives: Annotated[
        float | None,
        typer.Option(metavar="BETA", help="Weigh near negatives more (Robinson et al.) [0: off]."),
    ] = None,
    tau_plus: Annotated[
        float | None,
        typer.Option(metavar="P", help="Share of negatives that are thought to be none [0]."),
    ] = None,
    semi_hard: Annotated[
        bool | None,
        typer.Option(
            "--semi-hard/--no-semi-hard",
            help="Leave out negatives that are nearer than the positive [no].",
        ),
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(metavar="N", help="Width inside the head [256].")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(metavar="N", help="Length of the vectors [128].")
    ] = None,
    crop_scale: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="MIN MAX", help="Share of the area in a crop [0.2 1]."),
    ] = None,
    jitter: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="B C S H", help="Brightness, contrast, saturation, hue [0.4 0.4 0.4 0.1]."
        ),
    ] = None,
    flip: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a flip [0.5].")
    ] = None,
    grey: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a view without colour [0].")
    ] = None,
    turn: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability that a view is turned by up to 15° [0]."),
    ] = None,
    erase: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a rectangle of one colour in a view [0]."),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a view of one bit a channel [0]."),
    ] = None,
    blur: Annotated[
        int | None, typer.Option(metavar="N", help="Kernel of the blur, odd [5].")
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: mean [ImageNet's]."),
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: deviation [ImageNet's]."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp32|bf16", help="bf16: autocast of the forward pass [fp32]."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to train [auto].")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random [0].")] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads that read, and crop for a GPU [0: one a core]."),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="The encoder's name.")] = "",
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="What the images are and under which licence.")
    ] = "",
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the encoder itself; goes into its files.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Train an encoder on your own images; the defaults are the classic SimCLR recipe.

    ENCODER_DIR gets checkpoints, TensorBoard logs, sheets of nearest pictures, and the model as
    ONNX, which 'engine ingest --encoder ENCODER_DIR' takes. Ctrl-C stops with a checkpoint, and
    --resume goes on from there. Needs the extra: pip install 'image-index-engine[train]'.

    \b
    Example:
      engine train photos/ --out my-encoder --epochs 30
      engine train photos/ --out small-encoder --recipe small --cache decoded/
      tensorboard --logdir my-encoder/logs
    """
    if not sources:
        raise UsageError("name at least one source of images to train on")
    if not out:
        raise UsageError("name a new folder for the encoder with --out")
    try:
        from engine import training
    except ImportError as error:
        raise TrainingError(
            f"training needs {error.name}: install it with pip install 'image-index-engine[train]'"
        ) from None
    flags = {
        "method": method,
        "epochs": epochs,
        "batch": batch,
        "image_size": image_size,
        "held_out": held_out,
        "learning_rate": lr,
        "schedule": schedule,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "temperature": temperature,
        "queue": queue,
        "momentum": momentum,
        "hard_negatives": hard_negatives,
        "tau_plus": tau_plus,
        "semi_hard": semi_hard,
        "hidden": hidden,
        "dim": dim,
        "crop_scale": crop_scale,
        "jitter": jitter,
        "flip": flip,
        "grey": grey,
        "turn": turn,
        "erase": erase,
        "bits": bits,
        "blur_kernel": blur,
        "mean": mean,
        "std": std,
        "precision": precision,
        "device": device,
        "seed": seed,
        "workers": workers,
    }
    resolved = training.resolve(
        {setting: value for setting, value in flags.items() if value is not None},
        recipe=recipe,
        file=settings,
        base=training.saved_run(out).settings if resume else None,
    )
    shown = _Shown()
    with interruptible("a checkpoint", shown.patience) as stop, shown:
        report = training.train(
            sources,
            out,
            resolved,
            progress=shown,
            name=name or None,
            description=description,
            licence=licence,
            init=init or None,
            resume=resume,
            cache=cache or None,
            stop=stop,
        )
    if as_json:
        show_line(render.line(asdict(report)))
    else:
        show_line(_text(report))
    for rejected in report.rejected:
        warn(f"{rejected.source}: {rejected.reason}")
    if report.interrupted:
        kept = ["--cache", cache] if cache else []
        again = shlex.join(["engine", "train", *sources, "--out", out, *kept, "--resume"])
        warn(f"stopped after step {report.steps:,}; go on with: {again}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


class _Shown:
    """Shows what a run tells: a bar for each of its phases, and warnings as they come."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._bar: Progress | None = None
        self._phase = ""
        self._score = ""

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.close()

    def patience(self) -> float:
        """Seconds that a run may take to end: only where it trains is there anything to write."""
        return _CHECKPOINT_SECONDS if self._phase == "train" else interrupts.PATIENCE

    def __call__(self, at: Any) -> None:
        """``at`` is a ``TrainProgress``."""
        if at.warning:
            warn(at.warning)
            return
        if at.phase != self._phase:
            self._bars.close()
            self._phase, self._bar = at.phase, None
            if at.phase in _UNITS:
                self._bar = self._bars.enter_context(Progress(at.phase, _UNITS[at.phase]))
        if self._bar is None:
            return
        score = at.held_out_recall if at.held_out_accuracy is None else at.held_out_accuracy
        if score is not None:
            self._score = f", held out {score:.3f}"
        if at.loss is not None:
            self._bar.note(
                f"epoch {at.epoch} of {at.epochs}, loss {at.loss:.3f}, rate "
                f"{at.learning_rate:.2g}, {at.images_per_second:,.0f} images/s{self._score}"
            )
        self._bar(at.done, at.total)


def _text(report: Any) -> str:
    """A ``TrainReport`` for people."""
    loss = "" if report.loss is None else f", loss {report.loss:.3f}"
    held_out = ""
    if report.held_out_accuracy is not None:
        held_out = f", held-out accuracy {report.held_out_accuracy:.3f}"
    elif report.held_out_recall is not None:
        held_out = f", held-out recall@1 {report.held_out_recall:.3f}"
    text = (
        f"{report.images:,} images, {report.epochs} epochs, {report.seconds:.0f} s "
        f"({report.images_per_second:,.0f} images/s){loss}{held_out}"
    )
    if report.interrupted:
        return text
    return (
        f"{text}\n"
        f"the network of epoch {report.best_epoch}; parity of the exported model: "
        f"{json.dumps(report.parity)}\n"
        f"use it with: engine ingest SOURCE --encoder {report.out} --store NEW_STORE"
    )
