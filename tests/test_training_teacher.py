# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""A teacher's vectors: made once, kept whole, and followed by the network."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import EncoderError, TrainingError, UsageError
from engine.evaluation.teachers import find_teacher

torch = pytest.importorskip("torch")

from engine.training import TrainProgress, TrainSettings, run, saved_run, train
from engine.training.checkpoint import CHECKPOINT, LAST, read_tensors
from engine.training.distill import Taught
from engine.training.export import EncoderExportReport
from engine.training.loss import taught
from engine.training.methods import Contrastive
from engine.training.model import build
from engine.training.pictures import RunPictures, read_pictures
from engine.training.teacher import (
    Teacher,
    TeacherVectors,
    check_teacher,
    remove_vectors,
    unit_vectors,
    vectors_of,
)

TINY = TrainSettings(image_size=32, batch=8, epochs=2, hidden=32, dim=16)
SIDE = 24


class Colours:
    """A teacher that sees the colours of a picture; it counts the pictures that it was asked of."""

    def __init__(self, dim: int = 12) -> None:
        self.asked = 0
        self._dim = dim

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        self.asked += len(pictures)
        small = [np.asarray(Image.fromarray(one).resize((2, 2))).reshape(-1) for one in pictures]
        return np.stack(small)[:, : self._dim].astype(np.float32) + 1


def teacher(encode: Any = None, sha256: str = "aa", dim: int = 12) -> Teacher:
    return Teacher("colours", "here/colours.onnx", sha256, dim, SIDE, encode or Colours(dim))


def photos(folder: Path, n: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(n):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 40)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPictures]:
    folder = tmp_path_factory.mktemp("pictures")
    photos(folder / "in" / "train", 70)
    photos(folder / "in" / "valid", 5, seed=1)
    with ThreadPoolExecutor(2) as pool:
        read = read_pictures(
            [str(folder / "in")],
            side=SIDE,
            square=16,
            folder=folder,
            pool=pool,
            tick=lambda done, total: None,
        )
    yield read
    read.close()


def vectors(
    read: RunPictures, folder: Path, by: Teacher | None, described: dict[str, Any] | None = None
) -> TeacherVectors:
    return vectors_of(
        described or teacher().described(),
        by,
        read,
        folder,
        tick=lambda done, total: None,
        stop=lambda: False,
    )


def test_vectors_are_made_once_and_are_of_unit_length(
    pictures: RunPictures, tmp_path: Path
) -> None:
    seen = Colours()
    found = vectors(pictures, tmp_path, teacher(seen))
    assert seen.asked == 75 and (found.trained, found.held_out) == (70, 5)
    rows = found.read(range(75))
    assert torch.allclose(rows.norm(dim=1), torch.ones(75), atol=1e-3)
    expected = unit_vectors(teacher(), [pictures.held_out[2].numpy()])[0]
    assert np.allclose(rows[72], expected, atol=1e-3)
    # Another run takes them, and needs no teacher.
    again = vectors(pictures, tmp_path, None)
    assert torch.equal(again.read(range(75)), rows)
    remove_vectors(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_behind_the_last_whole_block(pictures: RunPictures, tmp_path: Path) -> None:
    polls = iter([False, False, True])
    seen = Colours()
    with pytest.raises(KeyboardInterrupt):
        vectors_of(
            teacher().described(),
            teacher(seen),
            pictures,
            tmp_path,
            tick=lambda done, total: None,
            stop=lambda: next(polls),
        )
    assert seen.asked == 64
    (file,) = tmp_path.iterdir()
    # What a crash leaves of the block that it was writing.
    with file.open("ab") as end:
        end.write(bytes(100))
    with pytest.raises(UsageError, match=r"lacks vectors .* teacher=here/colours\.onnx"):
        vectors(pictures, tmp_path, None)
    rest = Colours()
    found = vectors(pictures, tmp_path, teacher(rest))
    assert rest.asked == 75 - 64
    vectors(pictures, tmp_path / "..", teacher())
    whole = vectors(pictures, tmp_path / "..", None)
    assert torch.equal(found.read(range(75)), whole.read(range(75)))
    remove_vectors(tmp_path / "..")


def test_vectors_of_another_teacher_are_not_taken(pictures: RunPictures, tmp_path: Path) -> None:
    vectors(pictures, tmp_path, teacher())
    other, seen = teacher(sha256="bb").described(), Colours()
    with pytest.raises(UsageError, match="lacks vectors"):
        vectors(pictures, tmp_path, None, other)
    vectors(pictures, tmp_path, teacher(seen, sha256="bb"), other)
    assert seen.asked == 75 and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line(pictures: RunPictures, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot be written .* make room there"):
        vectors(pictures, tmp_path / "file", teacher())


def test_a_picture_without_a_vector_has_zeros() -> None:
    rows = np.array([[3e38, 4e38], [np.nan, 1], [np.inf, 1], [0, 0], [0, 5]], np.float64)
    blank = [np.zeros((2, 2, 3), np.uint8)] * len(rows)
    found = unit_vectors(teacher(lambda _: rows, dim=2), blank)
    assert np.allclose(found, [[0.6, 0.8], [0, 0], [0, 0], [0, 0], [0, 1]])


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"returned \(3, 5\) float64 instead of \(3, 12\)"):
        unit_vectors(teacher(lambda _: np.zeros((3, 5))), [np.zeros((2, 2, 3), np.uint8)] * 3)
    with pytest.raises(TrainingError, match="choose another"):
        unit_vectors(teacher(lambda _: np.full((1, 12), "x")), [np.zeros((2, 2, 3), np.uint8)])


def kept(folder: Path, rows: np.ndarray) -> TeacherVectors:
    path = folder / "rows"
    path.write_bytes(rows.astype(np.float16).tobytes())
    return TeacherVectors(path, len(rows), 0, rows.shape[1])


def follower(folder: Path, rows: np.ndarray, dim: int = 16, weight: float = 1.0) -> Taught:
    settings = dataclasses.replace(TINY, dim=dim, teacher_weight=weight)
    return Taught(settings, Contrastive(settings), kept(folder, rows), torch.device("cpu"))


@pytest.mark.parametrize("shape", [(40, 8), (10, 64), (40, 16)])
def test_the_projection_keeps_cosines_if_it_has_the_dimensions(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    rows = np.random.default_rng(0).standard_normal(shape) + 3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centred = rows - rows.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    found = follower(tmp_path, rows).targets(range(len(rows))).numpy()
    assert found.shape == (len(rows), 16)
    assert np.allclose(found @ found.T, centred @ centred.T, atol=0.02)


def test_a_projection_to_fewer_dimensions_keeps_the_largest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((60, 8)) * [1, 0.5, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
    found = follower(tmp_path, rows, dim=2).targets(range(60)).numpy()
    plane = (rows - rows.mean(0))[:, :2]
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)
    assert np.allclose(found @ found.T, plane @ plane.T, atol=0.2)


def test_pictures_without_a_vector_teach_nothing(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 8))
    rows[2] = 0
    targets = follower(tmp_path, rows).targets(range(6))
    assert not targets[2].any() and targets[[0, 1, 3, 4, 5]].any(1).all()
    z = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    others = [0, 1, 3, 4, 5]
    assert taught(z, targets) == pytest.approx(float(taught(z[others], targets[others])))
    assert float(taught(z, torch.zeros(6, 16))) == pytest.approx(float(z.new_zeros(())), abs=1e-6)


@pytest.mark.parametrize("rows", [np.zeros((5, 4)), np.ones((5, 4))])
def test_a_teacher_that_tells_nothing_apart_is_refused(tmp_path: Path, rows: np.ndarray) -> None:
    with pytest.raises(TrainingError, match="choose another teacher"):
        follower(tmp_path, rows)


def test_the_loss_is_least_where_the_embeddings_are_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    best = taught(targets, targets)
    for noise in (0.2, 0.5, 2.0):
        z = targets + noise * torch.randn(8, 16, generator=generator)
        worse = taught(torch.nn.functional.normalize(z, dim=1), targets)
        assert worse > best
        best = worse


@pytest.mark.slow
def test_the_weight_mixes_the_two_losses(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 8))
    network = build(TINY).eval()
    views = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def embed(net: Any, x: Any) -> Any:
        return net(x)

    numbers = [0, 1, 2, 3]
    with torch.no_grad():
        alone = Contrastive(TINY).loss(network, embed, numbers, views)
        follow = follower(tmp_path, rows).loss(network, embed, numbers, views)
        mixed = follower(tmp_path, rows, weight=0.25).loss(network, embed, numbers, views)
        one_view = follower(tmp_path, rows).loss(network, embed, numbers, views[:4])
    assert float(mixed) == pytest.approx(float(0.75 * alone + 0.25 * follow), rel=1e-5)
    assert torch.isfinite(one_view)


def test_a_resumed_run_takes_no_other_teacher(tmp_path: Path) -> None:
    before = teacher().described()
    check_teacher(before, None, tmp_path)
    check_teacher(before, teacher(), tmp_path)
    with pytest.raises(UsageError, match=r"is not the one .* \(colours, here/colours\.onnx\)"):
        check_teacher(before, teacher(sha256="bb"), tmp_path)
    with pytest.raises(UsageError, match="began without a teacher"):
        check_teacher(None, teacher(), tmp_path)


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export takes seconds, and has tests of its own."""
    report = EncoderExportReport("", 0, 0, {}, "int8")
    monkeypatch.setattr(run, "export", lambda out, *_: dataclasses.replace(report, out=str(out)))


def same(one: Path, other: Path) -> bool:
    for file in (CHECKPOINT, LAST):
        (ours, _), (theirs, _) = (read_tensors(folder / file) for folder in (one, other))
        if ours.keys() != theirs.keys():
            return False
        if not all(torch.equal(value, theirs[key]) for key, value in ours.items()):
            return False
    return True


@pytest.mark.slow
@pytest.mark.usual
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_taught_run_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, weight: float
) -> None:
    settings = dataclasses.replace(TINY, epochs=3, batch=6, teacher_weight=weight, whole=0.5)
    photos(tmp_path / "in" / "train", 19)
    photos(tmp_path / "in" / "valid", 4, seed=3)
    source = str(tmp_path / "in")
    told: list[TrainProgress] = []
    whole = train([source], tmp_path / "whole", settings, teacher=teacher(), progress=told.append)
    assert [p.done for p in told if p.phase == "teach"][-1] == 23
    assert not list((tmp_path / "whole").glob("teacher-*"))

    seen: list[TrainProgress] = []
    stop = {
        "progress": seen.append,
        "stop": lambda: any(p.phase == "train" and p.done >= 4 for p in seen),
    }
    report = train([source], tmp_path / "parts", settings, teacher=teacher(), **stop)
    assert report.interrupted and list((tmp_path / "parts").glob("teacher-*"))
    assert saved_run(tmp_path / "parts").data["teacher"]["path"] == "here/colours.onnx"
    with pytest.raises(UsageError, match="is not the one that the training"):
        train([source], tmp_path / "parts", teacher=teacher(sha256="bb"), resume=True)
    # The vectors are there, so the teacher may be gone.
    report = train([source], tmp_path / "parts", resume=True)
    assert report.steps == whole.steps == 9 and same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_run_learns_what_its_teacher_sees(tmp_path: Path) -> None:
    source = str(photos(tmp_path / "in", 32))
    settings = dataclasses.replace(TINY, epochs=8, teacher_weight=1.0, whole=1.0, flip=0.0)
    losses: list[float] = []
    train(
        [source],
        tmp_path / "out",
        settings,
        teacher=teacher(),
        progress=lambda at: losses.append(at.loss) if at.loss is not None else None,
    )
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_weight_needs_no_teacher(tmp_path: Path) -> None:
    source = str(photos(tmp_path / "in", 8))
    settings = dataclasses.replace(TINY, epochs=1, teacher_weight=1.0)
    # Without a teacher the method has the whole loss.
    report = train([source], tmp_path / "out", settings)
    assert report.loss is not None and "teacher" not in saved_run(tmp_path / "out").data


def test_a_shipped_encoder_and_a_folder_can_teach(tiny_encoder: Path) -> None:
    found = find_teacher("simclr")
    assert (found.name, found.dim, found.image_size) == ("simclr", 128, 96)
    vectors = unit_vectors(found, [np.zeros((50, 60, 3), np.uint8)])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    assert find_teacher(tiny_encoder).name == "tiny"


def test_a_teacher_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        EncoderError, match=r"there is no teacher 'nobody': name one of lite0, simclr"
    ):
        find_teacher("nobody")
    with pytest.raises(EncoderError, match="no such file"):
        find_teacher(tmp_path / "net.onnx")
