# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Whole training runs on tiny images, good ones and those that cannot go on."""

import dataclasses
import functools
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import TrainingError, UsageError

torch = pytest.importorskip("torch")


from engine.training import (
    TrainProgress,
    TrainReport,
    TrainSettings,
    loop,
    methods,
    run,
    saved_run,
    saving,
    train,
)
from engine.training.checkpoint import (
    CHECKPOINT,
    LAST,
    load_checkpoint,
    load_last,
    read_tensors,
    write_tensors,
)
from engine.training.export import EncoderExportReport
from engine.training.schedule import learning_rate
from engine.training.scoring import HeldOutScore, Scorer
from engine.training.trainer import adam_state

pytestmark = pytest.mark.slow

TINY = TrainSettings(image_size=32, batch=8, epochs=2, hidden=32, dim=16)


def photos(folder: Path, n: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(n):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 40)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export takes seconds, and has tests of its own."""
    leave_out_export(monkeypatch)


def leave_out_export(patch: pytest.MonkeyPatch) -> None:
    report = EncoderExportReport("", 0, 0, {}, "int8")
    patch.setattr(run, "export", lambda out, *_: dataclasses.replace(report, out=str(out)))


@pytest.fixture(scope="module")
def ended_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 images in ``in``, and in ``out`` the run ``TINY`` of four steps on them."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_export(patch)
        train([str(photos(folder / "in", 16))], folder / "out", TINY)
    return folder


@pytest.fixture
def ended(ended_once: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the images and of the folder of a run that ended."""
    for name in ("in", "out"):
        shutil.copytree(ended_once / name, tmp_path / name)
    return tmp_path / "in", tmp_path / "out"


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_steps_are_done_with_pages_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def kept_pages() -> Iterator[None]:
        events.append("kept")
        yield
        events.append("given back")

    def note(progress: TrainProgress) -> None:
        if progress.phase == "train":
            events.append("step")

    monkeypatch.setattr(run, "kept_pages", kept_pages)
    settings = dataclasses.replace(TINY, epochs=1)
    train([str(photos(tmp_path / "in", 8))], tmp_path / "out", settings, progress=note)
    assert events[0] == "kept" and events[-1] == "given back" and "step" in events


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, TrainReport, list[TrainProgress]]:
    """One run from a Roboflow folder with an unreadable image to an exported encoder."""
    folder = tmp_path_factory.mktemp("whole")
    photos(folder / "coco" / "train" / "images", 20)
    photos(folder / "coco" / "valid" / "images", 12, seed=1)
    (folder / "coco" / "train" / "images" / "broken.png").write_bytes(b"broken")
    seen: list[TrainProgress] = []
    report = train(
        [str(folder / "coco")],
        folder / "out",
        TINY,
        progress=seen.append,
        description="blots, CC0",
        licence="MIT",
    )
    return folder / "out", report, seen


Whole = tuple[Path, TrainReport, list[TrainProgress]]


@pytest.mark.slow
def test_the_report_counts(whole: Whole) -> None:
    out, report, _ = whole
    assert (report.images, report.held_out, report.epochs) == (20, 12, 2)
    assert report.steps == 4  # the four images that do not fill a batch wait for the next epoch
    assert report.out == str(out)
    assert np.isfinite(report.loss) and report.images_per_second > 0
    assert report.held_out_recall is not None and 0 <= report.held_out_recall <= 1
    assert report.parity["fp32_torch_min_cosine"] >= 0.9999
    assert report.parity["images_from"] == "held_out"


def test_an_unreadable_image_is_reported_and_skipped(whole: Whole) -> None:
    _, report, seen = whole
    (rejected,) = report.rejected
    assert rejected.source.endswith("broken.png") and rejected.reason
    # What int8 loses of so few pictures depends on the processor, and may be told too.
    first, *more = report.warnings
    assert first == "1 of 33 images cannot be read and are left out"
    assert all(warning.startswith("int8 finds") for warning in more)
    assert [p.warning for p in seen if p.warning] == list(report.warnings)


def test_progress_goes_through_the_phases(whole: Whole) -> None:
    _, _, seen = whole
    assert list(dict.fromkeys(p.phase for p in seen)) == ["read", "train", "export"]
    steps = [p for p in seen if p.loss is not None]
    assert all(p.learning_rate == 1e-3 and p.images_per_second > 0 for p in steps)
    assert [(p.epoch, p.done, p.total) for p in steps] == [
        (1, 1, 4),
        (1, 2, 4),
        (2, 3, 4),
        (2, 4, 4),
    ]
    assert sum(p.held_out_recall is not None for p in seen) == 2


def test_the_folder_holds_the_encoder_and_no_pickle(whole: Whole) -> None:
    out, _, _ = whole
    names = {path.name for path in out.iterdir()}
    assert names == {  # and none of the pictures
        "checkpoint.safetensors",
        "encoder.json",
        "last.safetensors",
        "logs",
        "model.int8.onnx",
        "model.onnx",
        "sheets",
    }
    body = json.loads((out / "encoder.json").read_text())
    assert body["name"] == "out" and body["data"]["description"] == "blots, CC0"
    assert body["data"]["count"] == 20 and body["epoch"] == whole[1].best_epoch
    assert body["licence"] == "MIT" and body["settings"]["recipe"] == "report"


def test_tensorboard_can_read_the_scalars(whole: Whole) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole[0] / "logs"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second", "held_out_recall_at_1"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("nearest")] == [1, 2]


def test_sheets_show_queries_with_their_nearest(whole: Whole) -> None:
    sheets = sorted((whole[0] / "sheets").iterdir())
    assert [path.name for path in sheets] == ["epoch-0001.png", "epoch-0002.png"]
    with Image.open(sheets[0]) as image:
        assert image.width > 7 * 100 and image.height > 8 * 100


def test_an_encoder_is_not_overwritten(whole: Whole) -> None:
    with pytest.raises(UsageError, match="already holds encoder"):
        train([str(whole[0].parent / "coco")], whole[0], TINY)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_seed_decides_the_run(tmp_path: Path) -> None:
    photos(tmp_path / "in", 10)

    def losses(out: str, seed: int) -> list[float]:
        seen: list[TrainProgress] = []
        settings = TrainSettings(image_size=32, batch=5, epochs=1, precision="bf16", seed=seed)
        train([str(tmp_path / "in")], tmp_path / out, settings, progress=seen.append)
        return [p.loss for p in seen if p.loss is not None]

    assert losses("one", 3) == losses("two", 3) != losses("other", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_fewer_images_than_a_batch_shrink_it_and_are_warned_of(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    report = train(
        [str(photos(tmp_path / "in", 3))],
        tmp_path / "out",
        TrainSettings(image_size=32, epochs=1),
        progress=seen.append,
    )
    (warning,) = report.warnings
    assert "3 images are fewer than a batch of 64" in warning
    assert warning in [p.warning for p in seen]
    assert report.steps == 1 and report.held_out_recall is None


@pytest.mark.parametrize(
    ("good", "broken", "message"),
    [
        (0, 0, "no images in"),
        (1, 0, "1 of 1 images can be read"),
        (1, 3, "1 of 4 images can be read"),
        (0, 2, "0 of 2 images can be read"),
    ],
)
def test_too_few_images_to_learn_from(tmp_path: Path, good: int, broken: int, message: str) -> None:
    photos(tmp_path / "in", good)
    for i in range(broken):
        (tmp_path / "in" / f"broken{i}.png").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=message) as caught:
        train([str(tmp_path / "in")], tmp_path / "out", TINY)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_there_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        train([str(tmp_path / "absent")], tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="cannot be created as a folder"):
        train([str(photos(tmp_path / "in", 4))], tmp_path / "out", TINY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose the device auto or cpu"):
        train([str(tmp_path)], tmp_path / "out", TrainSettings(device="cuda"))


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = methods.nt_xent
    calls = 0

    def wrong_in_the_second_epoch(*arguments: object) -> "torch.Tensor":
        nonlocal calls
        calls += 1
        return right(*arguments) * (float("nan") if calls == 4 else 1)

    monkeypatch.setattr(methods, "nt_xent", wrong_in_the_second_epoch)
    with pytest.raises(TrainingError, match=r"epoch 2, step 2 .*checkpoint of epoch 1 is in"):
        train([str(photos(tmp_path / "in", 16))], tmp_path / "out", TINY)
    network, provenance = load_checkpoint(tmp_path / "out")
    assert provenance.epoch == 1
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    assert not (tmp_path / "out" / "encoder.json").exists()


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "is_finite", lambda _: False)
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    def stop(progress: TrainProgress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY, progress=stop)
    assert load_checkpoint(tmp_path / "out")[1].epoch == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {CHECKPOINT, LAST, "logs"}  # and no pictures


@pytest.mark.parametrize("count", [2, 9])
def test_images_that_are_all_alike_are_refused(tmp_path: Path, count: int) -> None:
    (tmp_path / "in").mkdir()
    for i in range(count):
        Image.new("RGB", (40 + i, 40), (9, 99, 199)).save(tmp_path / "in" / f"{i}.png")
    with pytest.raises(TrainingError, match=f"all {count} images are alike"):
        train([str(tmp_path / "in")], tmp_path / "out", TINY)


# --- the rate -------------------------------------------------------------------------------------


def rates(settings: TrainSettings, total: int = 10, per_epoch: int = 1) -> list[float]:
    return [learning_rate(settings, step, total, per_epoch) for step in range(total)]


def test_the_rate_falls_along_a_cosine_only_when_asked() -> None:
    cosine = rates(TrainSettings(schedule="cosine", learning_rate=0.1))
    assert cosine[0] == 0.1 and cosine[5] == pytest.approx(0.05) and 0 < cosine[9] < 0.003
    assert rates(TrainSettings(learning_rate=0.1)) == [0.1] * 10


def test_the_rate_rises_over_the_warmup_and_at_most_half_of_the_run() -> None:
    settings = TrainSettings(learning_rate=0.1, warmup=2)
    assert rates(settings, 10, 2)[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates(settings, 4, 4) == pytest.approx([0.05, 0.1, 0.1, 0.1])
    cosine = rates(TrainSettings(learning_rate=0.1, warmup=2, schedule="cosine"), 10, 2)
    assert cosine[3] == cosine[4] == 0.1 and cosine[7] == pytest.approx(0.05)


# --- the best network -----------------------------------------------------------------------------


def with_scores(monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    right = Scorer.score

    def score(scorer: Scorer, epoch: int) -> HeldOutScore:
        found = right(scorer, epoch)
        assert found is not None
        return dataclasses.replace(found, best_by=scores[epoch])

    monkeypatch.setattr(Scorer, "score", score)


@pytest.mark.slow
@pytest.mark.usual
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("scores", "best"), [((0.3, 0.9, 0.5), 2), ((0.3, 0.5, 0.5), 3), ((0.9, 0.5, 0.7), 1)]
)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_best_network_is_kept_and_of_equals_the_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: tuple[float, ...],
    best: int,
    share: float,
) -> None:
    monkeypatch.setattr(saving, "_SAVING_SHARE", share)
    with_scores(monkeypatch, dict(enumerate(scores, 1)))
    source = held_out_photos(tmp_path / "in")
    report = train([source], tmp_path / "out", dataclasses.replace(TINY, epochs=3))
    _, provenance = load_checkpoint(tmp_path / "out")
    assert report.best_epoch == provenance.epoch == best
    assert provenance.score == scores[best - 1]
    _, last, place = load_last(tmp_path / "out")
    assert last.epoch == 3 and (place.best_epoch, place.best_score) == (best, max(scores))


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_where_nothing_is_held_out_the_last_network_is_kept(tmp_path: Path) -> None:
    report = train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY)
    assert report.best_epoch == 2 and load_checkpoint(tmp_path / "out")[1].epoch == 2
    assert not (tmp_path / "out" / "sheets").exists()


# --- the methods ----------------------------------------------------------------------------------


def held_out_photos(folder: Path) -> str:
    """A folder with train/ and valid/, each of two classes."""
    for part, n in (("train", 10), ("valid", 2)):
        for label in ("cats", "dogs"):
            photos(folder / part / label, n, seed=len(label + part) + ord(label[0]))
    return str(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_moco_learns_from_a_queue(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, method="moco", queue=24, hard_negatives=0.5)
    report = train([str(photos(tmp_path / "in", 20))], tmp_path / "out", settings)
    assert report.loss is not None and np.isfinite(report.loss)
    tensors, _, _ = load_last(tmp_path / "out")
    assert tensors["method.queue"].shape == (24, 16)
    assert int(tensors["method.written"]) == 4 * 16 and int(tensors["method.steps"]) == 4
    assert set(tensors["method.queue_images"].tolist()) <= set(range(20))


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_labels_are_learned_from_folders(tmp_path: Path) -> None:
    source = held_out_photos(tmp_path / "in")
    for path in (tmp_path / "in").glob("*/dogs/*"):  # what anything tells apart
        Image.new("RGB", (40, 40), (20, 20, 20)).save(path)
    settings = dataclasses.replace(TINY, method="supervised", epochs=6, weight_decay=1e-4)
    report = train([source], tmp_path / "out", settings)
    assert report.loss is not None and report.loss < 0.5
    assert report.held_out_accuracy is not None and report.held_out_recall is not None
    best = load_checkpoint(tmp_path / "out")[1]
    assert best.epoch == report.best_epoch and best.score is not None
    assert best.score >= report.held_out_accuracy


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_labels_that_are_held_out_only_are_counted(tmp_path: Path) -> None:
    source = held_out_photos(tmp_path / "in")
    photos(tmp_path / "in" / "valid" / "birds", 2, seed=9)
    settings = dataclasses.replace(TINY, method="supervised", epochs=1)
    report = train([source], tmp_path / "out", settings)
    assert report.warnings == (
        "2 of 6 held-out images have a label that no training image has: accuracy is measured on the "
        "others",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_share_is_held_out_where_no_folder_is_for_that(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, held_out=0.1, epochs=1, batch=32)
    report = train([str(photos(tmp_path / "in", 70))], tmp_path / "out", settings)
    assert (report.images, report.held_out) == (63, 7)
    assert not report.warnings
    assert report.held_out_recall is not None


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_run_may_begin_with_the_weights_of_an_encoder(whole: Whole, tmp_path: Path) -> None:
    encoder, _, _ = whole
    before, _ = load_checkpoint(encoder)
    settings = dataclasses.replace(TINY, learning_rate=1e-12, epochs=1, seed=99)
    sources = [str(photos(tmp_path / "in", 9))]
    train(sources, tmp_path / "tuned", settings, init=encoder)
    after, provenance = load_checkpoint(tmp_path / "tuned")
    for name, value in after.named_parameters():
        assert torch.allclose(value, before.state_dict()[name], atol=1e-6)
    assert provenance.data["init"] == encoder.name
    with pytest.raises(UsageError, match=r"dim of the encoder .* is 16, not 8: set it to that"):
        wide = dataclasses.replace(settings, dim=8)
        train(sources, tmp_path / "new", wide, init=encoder)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="leave out init= or resume="):
        train(sources, tmp_path / "tuned", settings, init=encoder, resume=True)


@pytest.mark.slow
def test_labels_that_do_not_differ_or_are_not_there_are_said(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, method="supervised")
    photos(tmp_path / "in" / "cats", 8)
    with pytest.raises(TrainingError, match="all 8 images have the same label"):
        train([str(tmp_path / "in")], tmp_path / "one", settings)
    photos(tmp_path / "in", 2, seed=1)
    with pytest.raises(TrainingError, match="2 of 10 images have no label") as caught:
        train([str(tmp_path / "in")], tmp_path / "two", settings)
    assert "\n" not in str(caught.value)


# --- going on -------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from engine.training import TrainSettings, saving, train
from engine.training.recipes import resolve
saving._SAVING_SHARE = 1.0
after, source, out, file = int(sys.argv[1]), *sys.argv[2:]
def tell(at):
    if at.loss is not None and at.done == after:
        os.kill(os.getpid(), signal.SIGKILL)
train([source], out, resolve({}, file=file), progress=tell)
"""


def same(one: Path, other: Path) -> bool:
    for file in (CHECKPOINT, LAST):
        (ours, said), (theirs, also) = (read_tensors(folder / file) for folder in (one, other))
        said.pop("name"), also.pop("name")
        if said != also or ours.keys() != theirs.keys():
            return False
        if not all(torch.equal(value, theirs[key]) for key, value in ours.items()):
            return False
    return True


def until(step: int) -> dict[str, Callable[..., Any]]:
    """What ``train`` is given to end after a step."""
    seen: list[TrainProgress] = []
    return {
        "progress": seen.append,
        "stop": lambda: any(p.phase == "train" and p.done >= step for p in seen),
    }


METHODS = {
    "simclr": {},
    "moco": {"queue": 24, "hard_negatives": 0.3},
    "supervised": {},
}


@pytest.mark.slow
@pytest.mark.usual
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path: Path, method: str) -> None:
    settings = dataclasses.replace(
        TINY,
        method=method,
        queue=-1,
        epochs=3,
        batch=6,
        schedule="cosine",
        warmup=1,
        weight_decay=1e-2,
        seed=7,
    )
    settings = dataclasses.replace(settings, **METHODS[method])
    source = tmp_path / "in"
    for label, n in (("cats", 10), ("dogs", 11)):
        photos(source / "train" / label, n, seed=n)
        photos(source / "valid" / label, 2, seed=n + 2)
    train([str(source)], tmp_path / "whole", settings)

    # Stopped within an epoch of three steps, twice, and the second time it is the last one.
    report = train([str(source)], tmp_path / "parts", settings, **until(4))
    assert report.interrupted and report.steps == 4 and not report.parity
    report = train([str(source)], tmp_path / "parts", resume=True, **until(8))
    assert report.interrupted and report.steps == 8
    report = train([str(source)], tmp_path / "parts", resume=True)
    assert not report.interrupted and (report.steps, report.epochs) == (9, 3)
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_run_that_was_killed_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    source = held_out_photos(tmp_path / "in")
    file = tmp_path / "tiny.toml"
    body = 'method = "moco"\nqueue = 24\nimage_size = 32\nbatch = 8\nepochs = 3\nhidden = 32\n'
    file.write_text(body + "dim = 16\n")
    command = [sys.executable, "-c", KILLED, "4", source, str(tmp_path / "killed"), str(file)]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert load_last(tmp_path / "killed")[2].step == 2  # the epoch before
    report = train([source], tmp_path / "killed", resume=True)
    settings = saved_run(tmp_path / "killed").settings
    train([source], tmp_path / "whole", settings)
    assert report.steps == 6 and same(tmp_path / "whole", tmp_path / "killed")
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {CHECKPOINT, LAST, "logs", "sheets"}


def test_all_that_adam_keeps_lies_where_its_parameter_does() -> None:
    # Where there is no GPU, torch's device without memory is another one than the file's.
    parameter = torch.nn.Parameter(torch.empty(2, 3, device="meta"))
    saved = {"step": torch.tensor(4.0), "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}
    moments = adam_state(parameter, saved)
    assert moments.keys() == saved.keys()
    assert {value.device for value in moments.values()} == {parameter.device}


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_what_was_trained_may_go_on_for_more_epochs(ended: tuple[Path, Path]) -> None:
    source, out = ended
    longer = dataclasses.replace(TINY, epochs=3, workers=1)
    report = train([str(source)], out, longer, resume=True)
    assert (report.steps, report.epochs) == (6, 3)
    with pytest.raises(UsageError, match=r"epochs is 2: .*already gone beyond it"):
        train([str(source)], out, TINY, resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_run_that_ended_is_only_exported_again(ended: tuple[Path, Path]) -> None:
    source, out = ended
    before = (out / LAST).read_bytes()
    report = train([str(source)], out, resume=True)
    assert report.steps == 4 and report.best_epoch == 2
    assert (out / LAST).read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_run_does_not_go_on_with_other_settings_or_images(ended: tuple[Path, Path]) -> None:
    source, out = ended
    before = (out / LAST).read_bytes()
    for name, value in (("temperature", 0.2), ("method", "moco"), ("image_size", 48)):
        other = dataclasses.replace(TINY, queue=-1, **{name: value})
        with pytest.raises(UsageError, match=f"^{name} is .* began with"):
            train([str(source)], out, other, resume=True)
    (source / "003.png").unlink()
    with pytest.raises(UsageError, match="are not those that the training"):
        train([str(source)], out, TINY, resume=True)
    assert (out / LAST).read_bytes() == before


def test_there_has_to_be_something_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no last\.safetensors"):
        train([str(photos(tmp_path / "in", 4))], tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign", "another network", "no moments"])
def test_what_a_run_cannot_go_on_from_is_said_in_one_line(
    ended: tuple[Path, Path], damage: str
) -> None:
    source, out = ended
    path = out / LAST
    tensors, fields = read_tensors(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04garbage" * 10)
    elif damage == "foreign":
        write_tensors(path, {"x": torch.zeros(1)}, {})
    elif damage == "another network":
        write_tensors(path, tensors | {"network.head.0.bias": torch.zeros(3)}, fields)
    else:
        kept = {key: value for key, value in tensors.items() if "exp_avg_sq" not in key}
        write_tensors(path, kept, fields)
    longer = dataclasses.replace(TINY, epochs=3)
    with pytest.raises(TrainingError) as caught:
        train([str(source)], out, longer, resume=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(ended: tuple[Path, Path]) -> None:
    source, out = ended
    before = {file: (out / file).read_bytes() for file in (CHECKPOINT, LAST)}
    longer = dataclasses.replace(TINY, epochs=3)
    with files_end_at(1 << 20), pytest.raises(TrainingError, match="cannot be written"):
        train([str(source)], out, longer, resume=True)
    for file, body in before.items():
        assert (out / file).read_bytes() == body
    assert not [path for path in out.iterdir() if path.name.endswith(".new")]


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    source = str(photos(tmp_path / "in", 16))
    refused = []

    def meanwhile(progress: TrainProgress) -> None:
        if progress.epoch == 2 and not refused:  # there is something to go on from, too
            for resume in (False, True):
                with pytest.raises(UsageError, match="another training writes into"):
                    train([source], tmp_path / "out", TINY, resume=resume)
                refused.append(resume)

    report = train([source], tmp_path / "out", TINY, progress=meanwhile)
    assert len(refused) == 2 and report.steps == 4
    assert train([source], tmp_path / "out", resume=True).steps == 4  # it has let go


@pytest.mark.slow
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("name", ["logs", "sheets"])
def test_what_a_run_cannot_write_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("in the way")
    with pytest.raises(TrainingError, match=r"out cannot be written .*: make room there") as caught:
        train([held_out_photos(tmp_path / "in")], tmp_path / "out", TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_whoever_hears_no_more_of_a_run_is_not_a_full_disk(tmp_path: Path) -> None:
    def gone(progress: TrainProgress) -> None:
        if progress.phase == "train":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY, progress=gone)


def test_what_no_memory_holds_is_said_in_one_line(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, method="moco", queue=2**31 - 1, dim=2**16)
    with pytest.raises(TrainingError, match="the cpu has too little memory") as caught:
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", settings)
    assert "\n" not in str(caught.value)


def test_a_stop_while_images_are_read_ends_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train([str(photos(tmp_path / "in", 4))], tmp_path / "out", TINY, stop=lambda: True)
    assert list((tmp_path / "out").iterdir()) == []


NeverStopped = Callable[[str], tuple[str, Path, TrainSettings]]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> NeverStopped:
    """For a method, a run of two epochs: its source, its folder and its settings."""
    folder = tmp_path_factory.mktemp("never-stopped")
    source = held_out_photos(folder / "in")

    @functools.cache
    def run_of(method: str) -> tuple[str, Path, TrainSettings]:
        settings = dataclasses.replace(
            TINY, method=method, queue=24 if method == "moco" else -1, epochs=2, batch=6
        )
        with pytest.MonkeyPatch.context() as patch:
            leave_out_export(patch)
            train([source], folder / method, settings)
        return source, folder / method, settings

    return run_of


@pytest.mark.slow
@pytest.mark.usual
@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("method", ["simclr", "moco"])
@pytest.mark.parametrize(
    ("step", "asked"), [(1, 20), (1, 90), (2, 1)], ids=["forward", "backward", "scoring"]
)
def test_a_step_that_is_given_up_is_taken_again(
    tmp_path: Path, never_stopped: NeverStopped, method: str, step: int, asked: int
) -> None:
    source, whole, settings = never_stopped(method)
    per_epoch = load_last(whole)[2].step // 2
    assert per_epoch > 1
    step = per_epoch if step == 2 else step
    begun = until(step)
    since = 0

    def stop() -> bool:
        nonlocal since
        since += begun["stop"]()
        return since > asked

    report = train([source], tmp_path / "parts", settings, progress=begun["progress"], stop=stop)
    assert report.interrupted and report.steps == step
    # The time of its steps was counted: it is not thousands of millions of images a second.
    assert report.images_per_second < report.steps * 6 * 1e9
    report = train([source], tmp_path / "parts", resume=True)
    assert not report.interrupted
    assert same(whole, tmp_path / "parts")


def test_a_run_without_a_step_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += any(p.phase == "train" for p in seen) or bool(seen and seen[-1].done == 8)
        return asked > 10

    seen: list[TrainProgress] = []
    with pytest.raises(KeyboardInterrupt):
        train(
            [str(photos(tmp_path / "in", 8))],
            tmp_path / "out",
            TINY,
            progress=seen.append,
            stop=stop,
        )
    assert not (tmp_path / "out" / LAST).exists()
