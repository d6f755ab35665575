"""Does the nearest picture show the same? Categories of five labelled public sets, by encoder.

Each picture of a set is looked up among the others of its set, by cosine. P@3 is the share of the three
nearest that have the same category. Emoji and icons come in pairs, drawn by two hands. There it is the
share whose nearest is the other one of the pair. No encoder of the engine was trained on any of them.

The packages of the sets are downloaded into a folder, if they are not there: Debian's with apt-get,
npm's with npm. Entrants are those of 'engine eval': encoders, networks (FILE.onnx), and baselines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..harness import script
from ..report.tables import align
from .looks_alike_sets import SETS, LabelledSet

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Precision:
    """How often the nearest pictures have the category of the query."""

    set: str
    entrant: str
    pictures: int
    precision: float
    chance: float  # the same share of pictures drawn at random
    images_per_second: float  # encoded, once decoded


def precision(vectors: npt.NDArray[np.float32], labels: Sequence[str], nearest: int) -> float:
    """The mean share of the ``nearest`` others of (n, d) unit vectors that have the same label."""
    numbers = np.unique(list(labels), return_inverse=True)[1]
    right = 0
    for start in range(0, len(vectors), 1024):
        scores = vectors[start : start + 1024] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        top = np.argpartition(-scores, nearest - 1, axis=1)[:, :nearest]
        right += int((numbers[top] == numbers[start + rows][:, None]).sum())
    return right / (len(vectors) * nearest)


def chance(labels: Sequence[str]) -> float:
    """The share of other pictures that have the same label, on average."""
    _, counts = np.unique(list(labels), return_counts=True)
    n = len(labels)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def measure(sets: Sequence[LabelledSet], specs: Sequence[str]) -> list[Precision]:
    """Encode every set with every entrant."""
    from engine.evaluation.entrants import find_all

    entrants, _ = find_all(specs, seed=0)
    results = []
    for entrant in entrants:
        for each in sets:
            began = time.perf_counter()
            vectors = np.concatenate(
                [
                    entrant.encode(each.pictures[at : at + _BATCH])
                    for at in range(0, len(each.pictures), _BATCH)
                ]
            ).astype(np.float32)
            speed = len(vectors) / (time.perf_counter() - began)
            found = precision(vectors, each.labels, each.nearest)
            results.append(
                Precision(each.name, entrant.name, len(vectors), found, chance(each.labels), speed)
            )
    return results


def main() -> bool:
    """Measure and print."""
    parser = script.parser(__doc__)
    parser.add_argument("entrants", nargs="*", default=["pixels", "simclr"], metavar="ENTRANT")
    parser.add_argument(
        "--packages", type=Path, required=True, metavar="DIR", help="where packages are, unpacked"
    )
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS, help="[all]")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    arguments = parser.parse_args()
    sets = [SETS[name](arguments.packages) for name in arguments.sets]
    results = measure(sets, arguments.entrants)
    print(table(sets, results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(one) for one in results], indent=2) + "\n")
    return True


def table(sets: Sequence[LabelledSet], results: Sequence[Precision]) -> str:
    """A row an entrant, a column a set."""
    names = list(dict.fromkeys(one.entrant for one in results))
    found = {(one.entrant, one.set): one for one in results}
    lines = [["", *(f"{each.name} ({len(each.pictures):,})" for each in sets)]]
    if results:
        lines.append(["at random", *(f"{found[names[0], each.name].chance:.3f}" for each in sets)])
    lines += [
        [name, *(f"{found[name, each.name].precision:.3f}" for each in sets)] for name in names
    ]
    return align(lines, left=(0,))


if __name__ == "__main__":
    script.exit_with(main)
