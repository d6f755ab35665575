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
from engine.cli.text import count_of
from engine.cli.train_progress import TrainProgressBars
from engine.errors import TrainingError, UsageError, how_to_install

if TYPE_CHECKING:
    from engine.training import TrainSettings  # which needs torch


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of ``engine train``.

    An option that is a setting has the name of a field of ``TrainSettings``. It has no default here,
    because the recipe sets it. The number in brackets is that of the recipe "report".
    """

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Images, in every form that 'engine ingest' takes. In a folder with train/ and "
            "valid/ or test/ (Roboflow's layout), train/ is for training; the rest is held out.",
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
            help="The recipe that other settings change [report]; small suits a few hundred images, "
            "large suits many.",
        ),
    ] = ""
    settings: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml",
            help="Settings by name, as in encoder.json. They override the recipe; options override "
            "them.",
        ),
    ] = ""
    init: Annotated[
        str,
        typer.Option(
            metavar="ENCODER",
            autocompletion=completion.encoders(),
            help="Begin with the weights of simclr, or of a folder that 'engine train' wrote.",
        ),
    ] = ""
    teacher: Annotated[
        str,
        typer.Option(
            metavar="ENCODER",
            autocompletion=completion.encoders(suffix=".onnx"),
            help="Learn to follow another encoder: a name, a folder, or a model to import such as a "
            "FILE.onnx. --resume needs it only if the training was stopped before it had all vectors.",
        ),
    ] = ""
    teacher_weight: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the loss that follows the teacher; 1: nothing else, from one view of each "
            "image [0.5].",
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in ENCODER_DIR.")
    ] = False
    cache: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Keep the decoded images here for the next training on them."
        ),
    ] = ""
    method: Annotated[
        str | None,
        typer.Option(
            metavar="simclr|moco|supervised",
            help="Learn from two views of an image (simclr), also from the keys of past batches "
            "(moco), or from the names of folders (supervised) [simclr].",
        ),
    ] = None
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Number of passes over the images [30].")
    ] = None
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Images per step, two views of each [64].")
    ] = None
    image_size: Annotated[
        int | None, typer.Option(metavar="S", help="Input size of the network, S × S pixels [224].")
    ] = None
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the images to hold out, 0 to 0.5, at most 1,024. It applies to 64 images "
            "or more without a valid/ or test/ folder. 0 holds out nothing [those folders only].",
        ),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option("--lr", metavar="X", help="Learning rate of Adam [0.001].")
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(metavar="constant|cosine", help="Schedule of the learning rate [constant]."),
    ] = None
    warmup: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs over which the learning rate rises [0].")
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Decoupled weight decay, as in AdamW [0].")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Temperature of the loss [0.1].")
    ] = None
    queue: Annotated[
        int | None, typer.Option(metavar="N", help="moco: number of keys in the queue [4096].")
    ] = None
    momentum: Annotated[
        float | None, typer.Option(metavar="M", help="moco: momentum of the key encoder [0.99].")
    ] = None
    hard_negatives: Annotated[
        float | None,
        typer.Option(metavar="BETA", help="Weigh near negatives more (Robinson et al.) [0: off]."),
    ] = None
    tau_plus: Annotated[
        float | None,
        typer.Option(metavar="P", help="Assumed share of false negatives [0]."),
    ] = None
    semi_hard: Annotated[
        bool | None,
        typer.Option(
            "--semi-hard/--no-semi-hard",
            help="Ignore negatives that are nearer than the positive [no].",
        ),
    ] = None
    hidden: Annotated[
        int | None, typer.Option(metavar="N", help="Width of the hidden layer of the head [256].")
    ] = None
    dim: Annotated[
        int | None, typer.Option(metavar="N", help="Dimensions of the vectors [128].")
    ] = None
    crop_scale: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="MIN MAX", help="Share of an image's area in a crop [0.2 1]."),
    ] = None
    jitter: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="B C S H",
            help="Jitter of brightness, contrast, saturation and hue [0.4 0.4 0.4 0.1].",
        ),
    ] = None
    flip: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a flip [0.5].")
    ] = None
    grey: Annotated[
        float | None, typer.Option(metavar="P", help="Probability of a view without colour [0].")
    ] = None
    whole: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a view of the whole image, squashed [0]."),
    ] = None
    turn: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability that a view is turned by up to 15° [0]."),
    ] = None
    erase: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability that one rectangle of a view is erased [0]."),
    ] = None
    bits: Annotated[
        float | None,
        typer.Option(metavar="P", help="Probability of a view with one bit per channel [0]."),
    ] = None
    blur_kernel: Annotated[
        int | None,
        typer.Option("--blur", metavar="N", help="Size of the blur kernel in pixels, odd [5]."),
    ] = None
    mean: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: mean [ImageNet's]."),
    ] = None
    std: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="R G B", help="Normalisation: standard deviation [ImageNet's]."),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(metavar="fp32|bf16", help="Precision of training; bf16 is autocast [fp32]."),
    ] = None
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to train [auto].")
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of everything random [0].")
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Threads that read images, and crop them for a GPU [0: one per core]."
        ),
    ] = None
    name: Annotated[str, typer.Option(metavar="NAME", help="The encoder's name.")] = ""
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="A description of the images and their licence.")
    ] = ""
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="The encoder's licence; it is written to its files.")
    ] = ""
    as_json: JsonOption = False

    def given_settings(self, settings: type[TrainSettings]) -> dict[str, Any]:
        """The settings that were typed as options, by field of ``settings``."""
        names = [field.name for field in fields(settings) if field.name != "recipe"]
        values = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train an encoder on your own images.

    The default settings are the classic SimCLR recipe. ENCODER_DIR gets checkpoints, TensorBoard
    logs, sheets of nearest pictures, and the model as ONNX, which 'engine ingest --encoder
    ENCODER_DIR' takes. Ctrl-C writes a checkpoint and stops; --resume continues from there. It
    needs an extra:
    pip install 'image-index-engine[train]', or in a clone: pip install -e '.[train]'

    \b
    Example:
      engine train photos/ --out my-encoder --epochs 30
      engine train photos/ --out small-encoder --recipe small --cache decoded/
      engine train photos/ --out checked-encoder --held-out 0.2
      engine train photos/ --out taught-encoder --teacher simclr
      tensorboard --logdir my-encoder/logs
    """
    if not options.sources:
        raise UsageError("name at least one source of images to train on")
    if not options.out:
        raise UsageError("name a new folder for the encoder with --out")
    try:
        from engine import training
        from engine.evaluation.teachers import find_teacher
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: {how_to_install('train')}") from None
    typed = options.given_settings(training.TrainSettings)
    base = training.saved_run(options.out).settings if options.resume else None
    try:
        settings = training.resolve(typed, recipe=options.recipe, file=options.settings, base=base)
    except UsageError as error:
        raise UsageError(_in_options(str(error), typed)) from None
    teacher = find_teacher(options.teacher) if options.teacher else None
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
                teacher=teacher,
                resume=options.resume,
                cache=options.cache or None,
                stop=stop,
            )
    # Stopped before there was anything to report.
    except KeyboardInterrupt:
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
    """A message about a setting, which it calls by its option if the option was typed."""
    name, rest = message.partition(" ")[::2]
    return f"{named_options(TrainOptions)[name]} {rest}" if name in typed else message


def _text(report: Any) -> str:
    """A ``TrainReport`` as text for people."""
    loss = "" if report.loss is None else f", loss {report.loss:.3f}"
    held_out = ""
    if report.held_out_accuracy is not None:
        held_out = f", held-out accuracy {report.held_out_accuracy:.3f}"
    elif report.held_out_recall is not None:
        held_out = f", held-out recall@1 {report.held_out_recall:.3f}"
    counts = f"{count_of(report.images, 'image')}, {count_of(report.epochs, 'epoch')}"
    text = f"{counts}, {report.seconds:.0f} s ({report.images_per_second:,.0f} images/s){loss}{held_out}"
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
    """Lines on how well the encoder's files agree; see ``EncoderExportReport``."""
    if not found:
        return []
    which = "held-out images" if found["images_from"] == "held_out" else "training images"
    return [
        f"compared on {found['images']:,} {which}:",
        f"  fp32 and the network: cosine {found['fp32_torch_min_cosine']:.4f} or more",
        f"  int8 and fp32: mean cosine {found['int8_fp32_mean_cosine']:.4f}, and "
        f"{found['int8_fp32_top10_overlap']:.0%} of the ten nearest are the same",
        f"  int8 ranges were calibrated on {found['calibration_images']:,} training images "
        f"({found['calibration']})",
    ]
