"""Writes an evaluation into a folder: the report as JSON, a plot, and sheets of the worst cases."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from engine.errors import EngineError, UsageError
from engine.evaluation import plot, worst_cases
from engine.evaluation.copies import CopyResult
from engine.evaluation.report import EvalReport
from engine.storage.durable import make_folders, replace_file

REPORT = "eval.json"
PLOT = "quality.png"


def fresh_folder(folder: Path) -> Path:
    """Create the folder; ``UsageError`` if that fails or the folder is not empty."""
    try:
        make_folders(folder)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name a new folder with out=")
    except OSError as error:
        raise UsageError(f"{folder} cannot be created as a folder: {error.strerror}") from None
    return folder


def write_report(report: EvalReport, copies: Sequence[CopyResult], folder: Path) -> EvalReport:
    """Write the sheets and the report; return the report with the names of the files.

    ``copies`` are the results of the copy retrieval in the order of ``report.results``, or empty.
    """
    files: list[str] = []
    try:
        for number, each in enumerate(copies):
            if not each.rows:
                continue
            name = report.results[number].name
            path = folder / f"worst-{number + 1}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80]}.png"
            title = f"{name}: the worst of {report.queries:,} queries"
            data = io.BytesIO()
            worst_cases.draw(title, each.rows).save(data, "PNG")
            replace_file(path, data.getvalue())
            files.append(str(path))
        drawn = plot.draw(report)
        if drawn is not None:
            replace_file(folder / PLOT, drawn)
            files.append(str(folder / PLOT))
        report = replace(report, files=(*files, str(folder / REPORT)))
        body = json.dumps(asdict(report), indent=2) + "\n"
        replace_file(folder / REPORT, body.encode())
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be written ({error.strerror}): make room there, or choose another folder"
        ) from None
    return report
