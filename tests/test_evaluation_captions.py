"""Texts find the pictures that they are the captions of, or not."""

import io
import itertools
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from two_towers import COLOURS, add_text_tower, colour

from engine.cli.app import main
from engine.errors import EncoderError, UsageError
from engine.evaluation import EvalSettings, evaluate
from engine.evaluation.captions import by_chance, recall
from engine.evaluation.plot import draw
from engine.evaluation.report import text


def png(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def clip(tiny_encoder, tmp_path):
    pytest.importorskip("tokenizers")
    return str(add_text_tower(shutil.copytree(tiny_encoder, tmp_path / "clip")))


def table(path, rows):
    """A Parquet file of pictures and their captions."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": data, "path": f"{number}.png"} for number, (data, _) in enumerate(rows)]
    pq.write_table(pa.table({"image": images, "caption": [said for _, said in rows]}), path)
    return str(path)


def archive(path, rows):
    """A tar archive in the form of WebDataset."""
    with tarfile.open(path, "w") as file:
        for number, (data, said) in enumerate(rows):
            for name, content in (("png", data), ("json", json.dumps({"caption": said}).encode())):
                entry = tarfile.TarInfo(f"{number}.{name}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return str(path)


ROWS = [(png(colour(name)), f"a {name} picture") for name in COLOURS]


@pytest.mark.parametrize(("write", "suffix"), [(table, "parquet"), (archive, "tar")])
def test_captions_find_their_pictures_and_the_report_says_so(write, suffix, clip, tmp_path):
    rows = [*ROWS, (png(colour("red", 20)), ""), (png(colour("blue", 20)), " \n\t"), (b"no", "x")]
    source = write(tmp_path / f"source.{suffix}", rows)
    report = evaluate(["pixels", clip], captions=source, out=tmp_path / "out")
    assert (report.caption_pictures, report.caption_texts, report.caption_left_out) == (5, 5, 2)
    assert len(report.rejected) == 1
    pixels, tower = report.results
    assert pixels.text_recall == {}
    assert tower.text_recall == {"1": 1.0, "5": 1.0, "10": 1.0}
    assert report.captions_by_chance == pytest.approx({"1": 0.2, "5": 1.0, "10": 1.0})
    shown = text(report)
    assert "recall@10" in shown and "by chance" in shown and "without a caption" in shown
    body = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert body["results"][1]["text_recall"]["1"] == 1


def test_a_picture_with_several_rows_counts_once_with_all_its_captions(clip, tmp_path):
    rows = [*ROWS, (ROWS[0][0], "red"), (png(colour("red", 24)), "a red picture")]
    report = evaluate([clip], captions=table(tmp_path / "source.parquet", rows))
    # Two pictures have the caption "a red picture", of which one has another caption too.
    assert (report.caption_pictures, report.caption_texts) == (6, 6)
    assert report.captions_by_chance["1"] == pytest.approx((2 + 5) / 6 / 6)


def test_the_measure_is_drawn_for_encoders_that_have_it(clip, tmp_path):
    pytest.importorskip("matplotlib")
    report = evaluate(["pixels", clip], captions=table(tmp_path / "source.parquet", ROWS))
    drawn = draw(report)
    assert drawn is not None and drawn[:4] == b"\x89PNG"


def test_without_a_text_tower_there_is_one_line(tmp_path, capsys):
    source = table(tmp_path / "source.parquet", ROWS)
    assert main(["eval", "pixels", "pdq", "--captions", source]) != 0
    error = capsys.readouterr().err.strip()
    assert "text tower" in error and "\n" not in error


def test_pictures_without_captions_are_refused(clip, tmp_path):
    none = table(tmp_path / "none.parquet", [(data, "") for data, _ in ROWS])
    with pytest.raises(UsageError, match=r"no picture has a caption \(5 pictures"):
        evaluate([clip], captions=none)
    with pytest.raises(UsageError, match="only one picture"):
        evaluate([clip], captions=table(tmp_path / "one.parquet", ROWS[:1]))


def test_a_damaged_text_tower_is_an_error_of_the_encoder(clip, tmp_path):
    (tmp_path / "clip" / "text.onnx").write_bytes(b"nothing")
    with pytest.raises(EncoderError, match=r"text\.onnx"):
        evaluate([clip], captions=table(tmp_path / "source.parquet", ROWS))


def test_no_more_pictures_are_taken_than_asked_for(clip, tmp_path):
    source = table(tmp_path / "source.parquet", ROWS)
    report = evaluate([clip], captions=source, settings=EvalSettings(most_test=3))
    assert report.caption_pictures == 3


def test_recall_is_that_of_a_plain_ranking():
    draw_ = np.random.default_rng(0)
    pictures = draw_.standard_normal((40, 6)).astype(np.float32)
    texts = draw_.standard_normal((30, 6)).astype(np.float32)
    texts[7] = 0
    right = [set(draw_.choice(40, int(draw_.integers(1, 4)), replace=False)) for _ in texts]
    scores = texts @ pictures.T
    for k, found in recall(texts, pictures, right, compared=90).items():
        hits = [
            bool(set(np.argsort(-row)[:k]) & answers) and bool(query.any())
            for row, answers, query in zip(scores, right, texts, strict=True)
        ]
        assert found == pytest.approx(np.mean(hits))


def test_vectors_that_are_all_the_same_find_nothing():
    same = np.full((20, 4), 0.5, np.float32)
    assert recall(same, same, [{n} for n in range(20)]) == {1: 0, 5: 0, 10: 0}


def test_chance_is_the_share_of_draws_with_a_right_picture():
    draws = list(itertools.combinations(range(6), 3))
    wanted = np.mean([any(n < 2 for n in each) for each in draws])
    assert by_chance(6, [2, 2], 3) == pytest.approx(wanted)
    assert by_chance(6, [1], 10) == 1
