"""``engine import-encoder``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from engine.cli import render
from engine.cli.dataclass_options import takes
from engine.cli.options import JsonOption
from engine.cli.output import show_line
from engine.cli.progress import Progress
from engine.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of ``engine import-encoder``."""

    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="timm:NAME, torchvision:NAME or FILE.onnx; 'engine encoders' lists all kinds.",
        ),
    ] = ""
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new or empty folder for the encoder (required).")
    ] = ""
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Weights of the model: .safetensors, or a PyTorch checkpoint, of which no code is "
            "run.  [downloaded]",
        ),
    ] = ""
    layer: Annotated[
        str,
        typer.Option(
            metavar="LAYER[:mean|:token]",
            help="An inner layer as the vector, by the mean of its places or by its class token: such "
            "as 9, 9:mean, or a name of the graph.  [the last before the classes]",
        ),
    ] = ""
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|int8|fp32",
            help="auto: int8 if it is faster and finds nine of the ten nearest that fp32 finds.",
        ),
    ] = "auto"
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Pictures for the ranges of int8, like those that will be searched; may be "
            "repeated.  [generated]",
        ),
    ] = None
    image_size: Annotated[
        int, typer.Option(metavar="S", help="Input size, S × S pixels.  [the model's own]", min=0)
    ] = 0
    mean: Annotated[
        str,
        typer.Option(metavar="R,G,B", help="Mean of channel values, 0 to 1.  [the model's own]"),
    ] = ""
    std: Annotated[
        str, typer.Option(metavar="R,G,B", help="Their standard deviation.  [the model's own]")
    ] = ""
    resize: Annotated[
        str,
        typer.Option(
            metavar="crop|squash-WAY",
            help="Resize the shorter side and cut out the middle, or resize the whole picture; by "
            "bilinear, bicubic or lanczos, such as crop-bicubic.  [the model's own]",
        ),
    ] = ""
    shorter_side: Annotated[
        int,
        typer.Option(
            metavar="N", help="Pixels of the shorter side before the cut.  [the model's own]", min=0
        ),
    ] = 0
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the encoder.")] = ""
    licence: Annotated[
        str, typer.Option(metavar="LICENCE", help="Licence of the weights, for encoder.json.")
    ] = ""
    as_json: JsonOption = False


@takes(ImportOptions)
def import_encoder(options: ImportOptions) -> None:
    """Make an encoder from a model of another library.

    The folder is used like any other encoder, with --encoder DIR. --encoder MODEL imports a model on its
    first use, into the user's cache. Settings can follow its name, as in
    'timm:vit_small_patch14_dinov2?weights=dinov2.safetensors&layer=9:mean'.

    \b
    Example:
      engine import-encoder timm:vit_small_patch14_dinov2 --out dinov2
      engine import-encoder torchvision:resnet50 --weights resnet50.pth --out resnet50
      engine import-encoder net.onnx --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out net
      engine ingest photos/ --encoder dinov2 --store photos.store
    """
    from engine.api import import_encoder as api
    from engine.cli import render_encoders
    from engine.encoders.importers.specs import three_numbers

    if not options.model or not options.out:
        raise UsageError("name a model, and a folder for the encoder with out=")
    with Progress("read", "pictures") as progress:
        report = api.import_encoder(
            options.model,
            options.out,
            weights=options.weights or None,
            layer=options.layer or None,
            precision=options.precision,
            calibrate=options.calibrate or None,
            image_size=options.image_size or None,
            mean=three_numbers("mean", options.mean) if options.mean else None,
            std=three_numbers("std", options.std) if options.std else None,
            resize=options.resize or None,
            shorter_side=options.shorter_side or None,
            name=options.name or None,
            licence=options.licence or None,
            progress=progress,
        )
    show_line(
        render.line(asdict(report)) if options.as_json else render_encoders.import_text(report)
    )
