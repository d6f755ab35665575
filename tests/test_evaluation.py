"""Evaluations as a whole, through the command and the function behind it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.cli.app import main
from engine.errors import EncoderError, UsageError
from engine.evaluation import EvalSettings, evaluate
from engine.evaluation.distort import DISTORTIONS
from engine.evaluation.report import text


def picture(seed: int, side: int = 96) -> np.ndarray:
    """Smooth colours, unlike those of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures to be queries, and folders of distractors and of classes beside them."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(12):
        save(root / "queries" / f"{seed:02d}.png", picture(seed))
    for seed in range(100, 130):
        save(root / "more" / f"{seed}.png", picture(seed))
    (root / "more" / "broken.jpg").write_bytes(b"nothing")
    save(root / "more" / "smaller.png", np.asarray(Image.fromarray(picture(3)).resize((70, 70))))
    for part, start in (("train", 0), ("test", 50)):
        for number in range(start, start + 20):
            for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
                noisy = picture(number, 20) // 4 + np.array(colour, np.uint8)
                save(root / part / name / f"{number}.png", noisy)
    return root


def run(photos, tiny_encoder, **more):
    settings = more.pop("settings", EvalSettings(ks=(5, 1000)))
    return evaluate(
        ["pixels", "pdq", str(tiny_encoder)],
        images=[str(photos / "queries")],
        distractors=[str(photos / "more")],
        labels=(str(photos / "train"), str(photos / "test")),
        settings=settings,
        **more,
    )


@pytest.fixture(scope="module")
def report(photos, tiny_encoder, tmp_path_factory):
    return run(photos, tiny_encoder, out=tmp_path_factory.mktemp("out") / "deep" / "report")


@pytest.mark.slow
def test_counts_say_what_it_was_measured_on(report, photos):
    assert (report.queries, report.unfit) == (12, 0)
    assert report.distractors == 30
    assert report.left_out == 1  # a smaller copy of a query would be a right answer
    assert [each.source for each in report.rejected] == [str(photos / "more" / "broken.jpg")]
    assert (report.train, report.test, report.classes) == (40, 40, 2)
    assert [each.images for each in report.results] == [12 * 12 + 30 + 80] * 3


@pytest.mark.slow
def test_copies_are_found_where_the_vectors_are_good_for_it(report):
    pixels, pdq, tiny = report.results
    assert [each.name for each in report.results] == ["pixels", "pdq", "tiny"]
    for each in report.results:
        assert list(each.recall_at_1) == list(DISTORTIONS)
        assert 0 < each.micro_average_precision <= 1
        assert each.images_per_second > 0
    assert pixels.recall_at_1["jpeg30"] == pdq.recall_at_1["jpeg30"] == 1
    assert pdq.recall_at_1["flip"] < 0.2  # no fingerprint of this kind is the mirrored one's
    assert pdq.recall_at_1["grey"] == 1
    assert tiny.recall_at_1["half"] == 1


@pytest.mark.slow
def test_classes_of_two_colours_are_told_apart_in_colour(report):
    pixels, pdq, _ = report.results
    assert pixels.knn["5"] == pixels.probe == 1
    assert set(pixels.knn) == {"5", "1000"}
    assert pdq.knn["5"] < 0.8


@pytest.mark.slow
def test_the_same_is_measured_each_time(report, photos, tiny_encoder):
    again = run(photos, tiny_encoder)
    for one, other in zip(report.results, again.results, strict=True):
        assert one.recall_at_1 == other.recall_at_1
        assert one.micro_average_precision == other.micro_average_precision
        assert (one.knn, one.probe, one.worst) == (other.knn, other.probe, other.worst)


@pytest.mark.slow
def test_the_worst_cases_are_named_and_drawn(report):
    pdq = report.results[1]
    missed = [name for name, share in pdq.recall_at_1.items() if share < 1]
    assert missed
    assert sorted(case.distortion for case in pdq.worst) == sorted(missed)
    for case in pdq.worst:
        assert case.found_score >= case.right_score
        assert case.query != case.found
        assert case.query.endswith(".png")
    assert pdq.worst[0].found_score - pdq.worst[0].right_score >= (
        pdq.worst[-1].found_score - pdq.worst[-1].right_score
    )
    sheets = [name for name in report.files if name.endswith(".png")]
    assert any("pdq" in name for name in sheets)
    with Image.open(sheets[0]) as sheet:
        assert (
            len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000
        )  # pictures, in colour


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["queries", "more"])
def test_what_was_found_is_named_wherever_it_is(tmp_path, folder):
    for seed in range(6):
        save(tmp_path / "queries" / f"{seed}.png", picture(seed))
    for seed in range(6):
        save(tmp_path / folder / f"{seed}-mirrored.png", picture(seed)[:, ::-1].copy())
    (tmp_path / "more").mkdir(exist_ok=True)
    found = evaluate(
        ["pdq"],
        images=[str(tmp_path / "queries")],
        distractors=[str(tmp_path / "more")],
        settings=EvalSettings(queries=3),
    )
    (case,) = [each for each in found.results[0].worst if each.distortion == "flip"]
    stem = case.query.rpartition("/")[2].removesuffix(".png").removesuffix("-mirrored")
    assert case.found in {
        str(tmp_path / "queries" / f"{stem}.png"),
        str(tmp_path / folder / f"{stem}-mirrored.png"),
    }
    assert case.found != case.query


def test_the_report_is_json_with_everything(report):
    body = json.loads(open(report.files[-1]).read())  # noqa: PTH123, SIM115
    assert body["settings"] == {**body["settings"], "seed": 0, "ks": [5, 1000]}
    assert body["results"][0]["recall_at_1"] == report.results[0].recall_at_1
    assert body["files"] == list(report.files)


def test_of_many_images_some_are_queries_and_the_rest_distractors(photos):
    found = evaluate(["pixels"], images=[str(photos / "queries")], settings=EvalSettings(queries=5))
    assert (found.queries, found.distractors) == (5, 7)


def test_small_and_flat_pictures_and_second_copies_are_no_queries(tmp_path):
    save(tmp_path / "good.png", picture(1))
    save(tmp_path / "copy.png", np.asarray(Image.fromarray(picture(1)).resize((80, 90))))
    save(tmp_path / "small.png", picture(2, 40))
    save(tmp_path / "flat.png", np.full((90, 90, 3), 9, np.uint8))
    found = evaluate(["pixels"], images=[str(tmp_path)])
    assert (found.queries, found.unfit) == (1, 3)
    assert (found.distractors, found.left_out) == (2, 1)


def test_progress_ends_where_it_said(photos):
    told = []
    evaluate(
        ["pixels"],
        images=[str(photos / "queries")],
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (12 * 12, 12 * 12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "name images"),
        ({"distractors": ["."]}, "name images"),
        ({"labels": (".", "."), "distractors": ["."]}, "distractors= go with images="),
        ({"images": ["/nowhere/at/all"]}, "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        evaluate(["pixels"], **arguments)


@pytest.mark.parametrize(
    "wrong", [{"queries": 0}, {"ks": ()}, {"ks": (0,)}, {"most_test": -1}, {"seed": -1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        EvalSettings(**wrong)


def test_images_without_classes_and_one_class_are_refused(photos, tmp_path):
    queries = str(photos / "queries")
    with pytest.raises(UsageError, match="have no class"):
        evaluate(["pixels"], labels=(queries, queries))
    save(tmp_path / "one" / "a.png", picture(1))
    with pytest.raises(UsageError, match="only one class"):
        evaluate(["pixels"], labels=(str(tmp_path), str(tmp_path)))
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no labelled pictures to learn from"):
        evaluate(["pixels"], labels=(str(tmp_path / "none"), str(tmp_path)))


def test_a_picture_without_a_class_among_others_is_reported(photos, tmp_path):
    for name in ("cats", "dogs"):
        for number in range(3):
            save(tmp_path / name / f"{number}.png", picture(7 * number + len(name) + ord(name[0])))
    save(tmp_path / "stray.png", picture(1))
    report = evaluate(["pixels"], labels=(str(tmp_path), str(tmp_path)))
    assert {each.source for each in report.rejected} == {str(tmp_path / "stray.png")}
    assert "no class" in report.rejected[0].reason
    assert report.train == report.test == 6


def test_pictures_that_are_in_both_sets_are_counted_and_told(photos, tmp_path):
    def both(test: str) -> int:
        report = evaluate(["pixels"], labels=(str(tmp_path / "train"), str(tmp_path / test)))
        assert (f"{report.shared} of the test pictures" in text(report)) == (report.shared > 0)
        return report.shared

    for number, name in enumerate(("cats", "dogs")):
        save(tmp_path / "train" / name / "a.png", picture(number))
        save(tmp_path / "other" / name / "a.png", picture(number + 10))
        save(tmp_path / "some" / name / "b.png", picture(10 * number))
    assert (both("other"), both("some"), both("train")) == (0, 1, 2)


def test_labels_that_no_picture_to_test_has_are_refused(photos, tmp_path):
    for name in ("cats", "dogs"):
        save(tmp_path / name / "one.png", picture(1))
    with pytest.raises(UsageError, match="'cats' is not among them"):
        evaluate(["pixels"], labels=(str(photos / "train"), str(tmp_path)))


def test_more_classes_than_can_be_fitted_are_refused(photos, monkeypatch):
    monkeypatch.setattr("engine.evaluation.classes.MAX_BYTES", 700_000)
    with pytest.raises(UsageError, match="separating 2 classes would take"):
        evaluate(["pixels"], labels=(str(photos / "train"), str(photos / "test")))


def test_one_picture_has_nothing_to_be_confused_with(photos):
    one = str(photos / "queries" / "00.png")
    with pytest.raises(UsageError, match="only one picture"):
        evaluate(["pixels"], images=[one])
    found = evaluate(["pixels"], images=[one], distractors=[str(photos / "more")])
    assert found.queries == 1


def test_a_folder_that_is_not_empty_is_left_alone(photos, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        evaluate(["pixels"], images=[str(photos / "queries")], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_more_vectors_than_fit_are_refused_before_they_are_made(photos, monkeypatch):
    monkeypatch.setattr("engine.evaluation.copies._MAX_BYTES", 1 << 20)
    with pytest.raises(UsageError, match=r"queries="):
        evaluate(["pixels"], images=[str(photos / "queries")])
    monkeypatch.setattr("engine.evaluation.embedded.MAX_BYTES", 1 << 16)
    with pytest.raises(UsageError, match=r"most_train="):
        evaluate(["pixels"], labels=(str(photos / "train"), str(photos / "test")))


def test_a_damaged_encoder_is_one_line(photos, tmp_path):
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"encoder\.json"):
        evaluate([str(tmp_path)], images=[str(photos / "queries")])


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_a_table(photos, capsys):
    status = main(
        [
            *("eval", "pixels", "pdq", "--images", str(photos / "queries"), "--queries", "4"),
            *("--labels", str(photos / "train"), str(photos / "test"), "--k", "1,5"),
            *("--labelled-most", "30", "20"),
        ]
    )
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["recall@1", *DISTORTIONS, "mean", "µAP"]
    assert [line.split()[0] for line in lines[1:3]] == ["pixels", "pdq"]
    assert "4 pictures" in out
    assert "2 classes, 30 pictures to learn from, 20 to test" in out
    assert "kNN 1" in out


@pytest.mark.slow
def test_the_command_says_what_was_rejected_with_status_3(photos, capsys):
    status = main(
        [
            *("eval", "pixels", "--images", str(photos / "queries"), "--json"),
            *("--distractors", str(photos / "more")),
        ]
    )
    out, err = capsys.readouterr()
    assert status == 3
    assert "broken.jpg: not an image" in err
    body = json.loads(out)
    assert body["rejected"][0]["source"].endswith("broken.jpg")
    assert body["distractors"] == 30


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["pixels"],
        ["nonsense", "--images", "."],
        ["pixels", "--images", ".", "--k", "x"],
        ["pixels", "--images", "/nowhere"],
        ["pixels", "--images", "."],
    ],
)
def test_the_command_fails_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main(["eval", *arguments])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("engine: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_it_runs_where_torch_is_not_installed(photos):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from engine.cli.app import main\n"
        f"sys.exit(main(['eval', 'simclr', 'untrained', '--images', {str(photos / 'queries')!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "untrained is left out: needs torch" in ran.stdout
