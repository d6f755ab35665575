"""``engine eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from engine.cli import completion, render
from engine.cli.dataclass_options import takes
from engine.cli.options import DeviceOption, JsonOption
from engine.cli.output import show_line, warn_each
from engine.cli.progress import Progress
from engine.cli.status import DONE, SOME_REJECTED
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options of ``engine eval``."""

    encoders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENCODER...",
            autocompletion=completion.encoders(*completion.BASELINES, suffix=".onnx"),
            help="An encoder: a name, a folder, or a model to import such as a FILE.onnx, as 'engine "
            "encoders' lists them; or a baseline (pixels, pdq or untrained).",
        ),
    ] = None
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Pictures to find by distorted copies of them, of 48 pixels a side or more; may be "
            "repeated.",
        ),
    ] = None
    distractors: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="More pictures to search among; may be repeated."),
    ] = None
    queries: Annotated[
        int, typer.Option(metavar="N", help="Number of images to make copies of.")
    ] = 500
    labels: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="TRAIN TEST",
            help="Labelled pictures: folders of classes, archives or tables with labels, .npz files "
            "with x_train, y_train, x_test and y_test, or folders of IDX files. For .npz and IDX, "
            "TRAIN and TEST may be the same.",
        ),
    ] = None
    alike: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Labelled pictures of any kind, as for --labels: how many of the three nearest to a "
            "picture have its label?",
        ),
    ] = ""
    captions: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Pictures with captions, as a table or an archive has them: how often does a caption "
            "find its picture? Needs an encoder with a text tower.",
        ),
    ] = ""
    labelled_most: Annotated[
        tuple[int, int],
        typer.Option(
            metavar="N N",
            help="Maximum numbers of labelled pictures to learn from, and to test or compare.",
        ),
    ] = (20_000, 5_000)
    k: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of neighbours that vote on a class.")
    ] = "20,200"
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.")] = 0
    device: DeviceOption = "auto"
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="A new folder for eval.json, a plot of quality against speed, and sheets of the worst "
            "cases.",
        ),
    ] = ""
    as_json: JsonOption = False


@takes(EvalOptions)
def evaluate(options: EvalOptions) -> None:
    """Measure how encoders find copies, classes and look-alikes.

    --images makes copies of some images in eleven ways: JPEG, half size, crops, a turn, a mirror,
    colours, blur, noise, an overlay, grey. Each copy searches for its original among all images and
    distractors. --labels names the class of each test picture twice: by its nearest neighbours, and
    by a linear classifier. --alike looks at the three pictures nearest to each picture.
    --captions looks up each picture by its caption, with an encoder that has a text tower.

    \b
    Example:
      engine eval simclr pixels pdq --images photos/
      engine eval simclr pixels --images photos/ --distractors scans.tar --out report/
      engine eval simclr pixels --alike classes/
    """
    from engine import evaluation
    from engine.evaluation import report as found

    if not options.encoders:
        raise UsageError("name at least one encoder, such as simclr")
    settings = evaluation.EvalSettings(
        queries=options.queries,
        ks=_numbers(options.k),
        most_train=options.labelled_most[0],
        most_test=options.labelled_most[1],
        seed=options.seed,
        device=options.device,
    )
    with Progress("eval") as progress:
        report = evaluation.evaluate(
            options.encoders,
            images=options.images or [],
            distractors=options.distractors or [],
            labels=options.labels,
            alike=options.alike or None,
            captions=options.captions or None,
            settings=settings,
            out=options.out or None,
            progress=progress,
        )
    show_line(render.rejections_json(report) if options.as_json else found.text(report))
    warn_each([f"{rejected.source}: {rejected.reason}" for rejected in report.rejected])
    raise typer.Exit(SOME_REJECTED if report.rejected else DONE)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"--k is {text!r}: write whole numbers, such as 20,200") from None
