"""``engine train``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import completion, render
from engine.cli.dataclass_options import named_options, takes
from engine.cli.interrupts import interruptible
from engine.cli.options import JsonOption
from engine.cli.output import show_line, warn, warn_each
from engine.cli.status import DONE, INTERRUPTED, SOME_REJECTED
from engine.cli.train_progress import TrainProgressBars
from engine.errors import TrainingError, UsageError, how_to_install

if TYPE_CHECKING:
    from engine.training import TrainSettings  # which needs torch


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What ``engine train`` takes.

    An option that is a setting has the name of a field of ``TrainSettings``. It has no default here:
    the recipe says what is not given. The number in brackets is that of the recipe "report".
    """

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Images, in all that 'engine ingest' takes; of a folder with train/ and valid/ or "
            "test/, as Roboflow lays COCO-128 out, train/ is trained on and the rest held out.",
        ),
    ] = None
    out: Annotated[
        str, typer.Option(metavar="ENCODER_DIR", help="A new folder for the encoder.")
    ] = ""
    recipe: Annotated[
        str,
        typer.Option(
            metavar="report|small|large",
            autocompletion=completion.one_of(*completion.RECIPES),
            help="Where settings start from [report]; small is for a few hundred images, large "
            "for many.",
        ),
    ] = ""
    settings: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml",
            help="Settings by name, as encoder.json has them; over the recipe, under the options.",
        ),
    ] = ""
    init: Annotated[
        str,
        typer.Option(
            metavar="ENCODER",
            autocompletion=completion.encoders(),
            help="Begin with the weights of simclr, or of a folder of this kind.",
        ),
    ] = ""
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in ENCODER_DIR.")
    ] = False
    cache: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Keep the decoded images there, for the next training on them."
        ),
    ] = ""
    method: Annotated[
        str | None,
        typer.Option(
            metavar="simclr|moco|supervised",
            help="simclr: learn from two views of an image; moco: also from the keys of past batches; "
            "supervised: from the names of folders [simclr].",
        ),
    ] = None
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Times each image is seen [30].")
    ] = None
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Images a step, two views each [64].")
    ] = None
    image_size: Annotated[
        int | None, typer.Option(metavar="S", help="The network sees S × S [224].")
    ] = None
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the images to hold out, 0 to 0.5, where no folder is for that and there "
            "are at least 64; at most 1,024. 0: none, not even those folders [folders only].",
        ),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option("--lr", metavar="X", help="Learning rate of Adam [0.001].")
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(metavar="constant|cosine", help="How the learning rate goes [constant]."),
    ] = None
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs over which the rate rises [0].")
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Decoupled, as of AdamW [0].")
    ] = None
    temperature: Annotated[float | None, typer.Option(metavar="X", help="Of the loss [0.1].")] = (
        None
    )
    queue: Annotated[
        int | None, typer.Option(metavar="N", help="moco: keys that are kept [4096].")
    ] = None
    momentum: Annotated[
        float | None, typer.Option(metavar="M", help="moco: of the key encoder [0.99].")
    ] = None
    hard_negatives: Annotated[
        float | None,
        typer.Option(metavar="BETA", help="Weigh near negatives more (Robinson et al.) [0: off]."),
    ] = None
    tau_plus: Annotated[
        float | None,
        typer.Option(metavar="P", help="Share of negatives that are thought to be none [0]."),
    ] = None
    semi_hard: Annotated[
        bool | None,
        typer.Option(
            "--semi-hard/--no-semi-hard",
            help="Leave out negatives that are nearer than the positive [no].",
        ),
    ] = None
    hidden: Annotated[
        int | None, typer.Option(metavar="N", help="Width inside the head [256].")
    ] = None
    dim: Annotated[int | None, typer.Option(metavar="N", help="Length of the vectors [128].")] = (
        None
    )
    crop_scale: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="MIN MAX", help="Share of the area in a crop [0.2 1]."),
    ] = None
    jitter: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="B C S H", help="Brightness, contrast, saturation, hue [0.4 0.4 0.4 0.1]."
        ),
    ] = None
    flip: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a flip [0.5].")
    ] = None
    grey: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a view without colour [0].")
    ] = None
    turn: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability that a view is turned by up to 15° [0]."),
    ] = None
    erase: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a rectangle of one colour in a view [0]."),
    ] = None
    bits: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a view of one bit a channel [0]."),
    ] = None
    blur_kernel: Annotated[
        int | None, typer.Option("--blur", metavar="N", help="Kernel of the blur, odd [5].")
    ] = None
    mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: mean [ImageNet's]."),
    ] = None
    std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: deviation [ImageNet's]."),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp32|bf16", help="bf16: autocast of the forward pass [fp32]."),
    ] = None
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to train [auto].")
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random [0].")] = None
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads that read, and crop for a GPU [0: one a core]."),
    ] = None
    name: Annotated[str, typer.Option(metavar="NAME", help="The encoder's name.")] = ""
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="What the images are and under which licence.")
    ] = ""
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Of the encoder itself; goes into its files.")
    ] = ""
    as_json: JsonOption = False

    def given_settings(self, settings: type[TrainSettings]) -> dict[str, Any]:
        """The settings that are given as options, by name."""
        names = [field.name for field in fields(settings) if field.name != "recipe"]
        values = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train an encoder on your own images; the defaults are the classic SimCLR recipe.

    ENCODER_DIR gets checkpoints, TensorBoard logs, sheets of nearest pictures, and the model as
    ONNX, which 'engine ingest --encoder ENCODER_DIR' takes. Ctrl-C stops with a checkpoint, and
    --resume goes on from there. It needs an extra:
    pip install 'image-index-engine[train]', or in a clone: pip install -e '.[train]'

    \b
    Example:
      engine train photos/ --out my-encoder --epochs 30
      engine train photos/ --out small-encoder --recipe small --cache decoded/
      engine train photos/ --out checked-encoder --held-out 0.2
      tensorboard --logdir my-encoder/logs
    """
    if not options.sources:
        raise UsageError("name at least one source of images to train on")
    if not options.out:
        raise UsageError("name a new folder for the encoder with --out")
    try:
        from engine import training
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: {how_to_install('train')}") from None
    typed = options.given_settings(training.TrainSettings)
    base = training.saved_run(options.out).settings if options.resume else None
    try:
        settings = training.resolve(typed, recipe=options.recipe, file=options.settings, base=base)
    except UsageError as error:
        raise UsageError(_in_options(str(error), typed)) from None
    shown = TrainProgressBars()
    try:
        with interruptible("a checkpoint", shown.patience) as stop, shown:
            report = training.train(
                options.sources,
                options.out,
                settings,
                progress=shown,
                name=options.name or None,
                description=options.description,
                licence=options.licence,
                init=options.init or None,
                resume=options.resume,
                cache=options.cache or None,
                stop=stop,
            )
    except KeyboardInterrupt:  # it was stopped before there was anything to report
        warn("stopped before the first step; start it again with the same command")
        raise typer.Exit(INTERRUPTED) from None
    if options.as_json:
        show_line(render.rejections_json(report))
    else:
        show_line(_text(report))
        warn_each([f"{rejected.source}: {rejected.reason}" for rejected in report.rejected])
    if report.interrupted:
        kept = ["--cache", options.cache] if options.cache else []
        again = ["engine", "train", *options.sources, "--out", options.out, *kept, "--resume"]
        warn(f"stopped after step {report.steps:,}; go on with: {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


def _in_options(message: str, typed: dict[str, Any]) -> str:
    """A message on a setting, by the name of the option if it was typed as one."""
    name, rest = message.partition(" ")[::2]
    return f"{named_options(TrainOptions)[name]} {rest}" if name in typed else message


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
    use = ["engine", "ingest", "SOURCE", "--encoder", report.out, "--store", "NEW_STORE"]
    return "\n".join(
        [
            text,
            f"exported the network of epoch {report.best_epoch}",
            *_parity(report.parity),
            f"use it with: {shlex.join(use)}",
        ]
    )


def _parity(found: dict[str, float | int | str]) -> list[str]:
    """How well the files of the encoder agree, in words; see ``EncoderExportReport``."""
    if not found:
        return []
    which = "images that were held out" if found["images_from"] == "held_out" else "training images"
    return [
        f"compared on {found['images']:,} {which}:",
        f"  fp32 and the network: cosine {found['fp32_torch_min_cosine']:.4f} or more",
        f"  int8 and fp32: mean cosine {found['int8_fp32_mean_cosine']:.4f}, and "
        f"{found['int8_fp32_top10_overlap']:.0%} of the ten nearest are the same",
        f"  int8 has its ranges from {found['calibration_images']:,} training images "
        f"({found['calibration']})",
    ]
