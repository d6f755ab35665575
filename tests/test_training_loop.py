# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Whole training runs on tiny images, good ones and those that cannot go on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import TrainingError, UsageError

torch = pytest.importorskip("torch")


from engine.training import TrainProgress, TrainReport, TrainSettings, loop, train
from engine.training.checkpoint import load_checkpoint
from engine.training.export import ExportReport

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
    monkeypatch.setattr(loop, "export", lambda folder: ExportReport(str(folder), 0, 0, {}))


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
    )
    return folder / "out", report, seen


Whole = tuple[Path, TrainReport, list[TrainProgress]]


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
    assert report.warnings == ("1 of 33 images cannot be read and are left out",)
    assert [p.warning for p in seen if p.warning] == list(report.warnings)


def test_progress_goes_through_the_phases(whole: Whole) -> None:
    _, _, seen = whole
    assert list(dict.fromkeys(p.phase for p in seen)) == ["read", "train", "export"]
    steps = [p for p in seen if p.loss is not None]
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
        "logs",
        "model.int8.onnx",
        "model.onnx",
    }
    body = json.loads((out / "encoder.json").read_text())
    assert body["name"] == "out" and body["data"]["description"] == "blots, CC0"
    assert body["data"]["count"] == 20 and body["epoch"] == 2


def test_tensorboard_can_read_the_scalars(whole: Whole) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole[0] / "logs"))
    events.Reload()
    assert {"loss", "learning_rate", "images_per_second", "held_out_recall_at_1"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_an_encoder_is_not_overwritten(whole: Whole) -> None:
    with pytest.raises(UsageError, match="already holds encoder"):
        train([str(whole[0].parent / "coco")], whole[0], TINY)


@pytest.mark.usefixtures("no_export")
def test_a_seed_decides_the_run(tmp_path: Path) -> None:
    photos(tmp_path / "in", 10)

    def losses(out: str) -> list[float]:
        seen: list[TrainProgress] = []
        settings = TrainSettings(image_size=32, batch=5, epochs=1, precision="bf16")
        train([str(tmp_path / "in")], tmp_path / out, settings, progress=seen.append)
        return [p.loss for p in seen if p.loss is not None]

    assert losses("one") == pytest.approx(losses("two"), rel=1e-2)


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
    with pytest.raises(UsageError, match="no such folder"):
        train([str(tmp_path / "absent")], tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="cannot be made a folder"):
        train([str(photos(tmp_path / "in", 4))], tmp_path / "out", TINY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose the device auto or cpu"):
        train([str(tmp_path)], tmp_path / "out", TrainSettings(device="cuda"))


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loop.nt_xent
    calls = 0

    def wrong_in_the_second_epoch(*arguments: object) -> "torch.Tensor":
        nonlocal calls
        calls += 1
        return right(*arguments) * (float("nan") if calls == 4 else 1)

    monkeypatch.setattr(loop, "nt_xent", wrong_in_the_second_epoch)
    with pytest.raises(TrainingError, match=r"epoch 2, step 2 .*checkpoint of epoch 1 is in"):
        train([str(photos(tmp_path / "in", 16))], tmp_path / "out", TINY)
    network, provenance = load_checkpoint(tmp_path / "out")
    assert provenance.epoch == 1
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    assert not (tmp_path / "out" / "encoder.json").exists()


def test_weights_that_are_no_numbers_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "is_finite", lambda _: False)
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_ctrl_c_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    def stop(progress: TrainProgress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([str(photos(tmp_path / "in", 8))], tmp_path / "out", TINY, progress=stop)
    assert load_checkpoint(tmp_path / "out")[1].epoch == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"calibration.safetensors", "checkpoint.safetensors", "logs"}


def test_the_rate_falls_along_a_cosine_only_when_asked() -> None:
    settings = TrainSettings(schedule="cosine", learning_rate=0.1)
    rates = [loop._learning_rate(settings, step, 10) for step in range(11)]
    assert rates[0] == 0.1 and rates[5] == pytest.approx(0.05) and rates[10] == pytest.approx(0)
    assert loop._learning_rate(TrainSettings(learning_rate=0.1), 7, 10) == 0.1


def test_every_epoch_sees_every_image_once(tmp_path: Path) -> None:
    run = loop._Run(TrainSettings(batch=5), lambda _: None, torch.device("cpu"))
    run.pictures = range(10)  # type: ignore[assignment]
    rows = list(run._order(4, torch.Generator().manual_seed(0)))
    first, second = rows[0] + rows[1], rows[2] + rows[3]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
