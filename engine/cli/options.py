"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli import completion

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", metavar="DIR", help="Folder of the store.  [$ENGINE_STORE, else ./engine.store]"
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        "--memory", metavar="SIZE", help="Limit of anonymous memory, at least 128M.  [1G]"
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        show_default=False,
        help="Seconds to wait for another process that writes to the store.  [0]",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda",
        help="Where the encoder runs: cuda is a GPU of Nvidia, with onnxruntime-gpu.",
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="MODEL|none",
        autocompletion=completion.encoders("none", suffix=".onnx"),
        help="The encoder [simclr]: a name, a folder, or a model to import, as 'engine encoders' lists "
        "them; the first vectors fix it. none adds images without vectors.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FilesFromOption = Annotated[
    str,
    typer.Option("--files-from", metavar="FILE", help="Read more names from FILE, one per line."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Skip files and folders inside folders, by name or by path; may be repeated.",
    ),
]
NullOption = Annotated[
    bool,
    typer.Option(
        "-0", "--null", help="Names in a list end with a null byte, as find -print0 writes them."
    ),
]
