"""The files of a run in its folder: the figures, and the drawings of them."""

from __future__ import annotations

from pathlib import Path

from engine.errors import how_to_install

from .results import Results
from .results_file import save


def write(results: Results, folder: Path) -> list[str]:
    """Write figures, plots, a page and TensorBoard's logs; returns what was left out, and why.

    The figures come first. A failure of the rest does not fail the run.
    """
    save(results, folder)
    left_out = []
    images: dict[str, bytes] | None = None

    def draw() -> None:
        from . import plots

        nonlocal images
        images = plots.write(results, folder)

    def write_page() -> None:
        from . import page

        page.write(results, folder, images)

    def write_logs() -> None:
        from . import tensorboard

        tensorboard.write(results, folder)

    for what, draw_one in (
        ("plots", draw),
        ("page", write_page),
        ("logs for TensorBoard", write_logs),
    ):
        try:
            draw_one()
        except ModuleNotFoundError as error:
            left_out.append(
                f"no {what}: {(error.name or '').partition('.')[0]} is not installed ("
                f"{how_to_install('bench')})"
            )
        except Exception as error:  # a library that draws must not cost a run of hours
            left_out.append(f"no {what}: {type(error).__name__}: {' '.join(str(error).split())}")
    return left_out
