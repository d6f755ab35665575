"""What a SOURCE or an IMAGE on the command line is, and how a result's name leads back to it."""

import io
import os
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageError, UsageError
from engine.images.canonical import from_array
from engine.sources import files
from engine.sources.arrays import NpyArray
from engine.sources.items import FileItem, Reject, Skipped
from engine.sources.name_patterns import expand
from engine.sources.path_lists import listed
from engine.sources.query import Query, open_images
from engine.sources.source_stream import Sources
from engine.sources.synthetic import SyntheticBits, generate
from engine.sources.tar_archive import TarArchive
from engine.sources.zip_archive import ZipArchive

RNG = np.random.default_rng(11)
COLOUR = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
BITS = RNG.integers(0, 2, (3, 4, 6, 3), np.uint8)
MOST = 1 << 20


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder with one of everything, as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ["photos/a.png", "photos/more/b.png", "one.png"]:
        Image.fromarray(COLOUR[0]).save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("notes")
    np.save(tmp_path / "a.npy", COLOUR)
    np.save(tmp_path / "bits.npy", BITS)
    np.savez(tmp_path / "several.npz", x=COLOUR, y=COLOUR[::-1])
    np.savez_compressed(tmp_path / "single.npz", x=COLOUR)
    (tmp_path / "broken.npy").write_bytes(b"text")
    return tmp_path


def tarred(path: Path, files: dict[str, Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, file in files.items():
            archive.add(file, name)
    return path


def items(*specs: str, **options) -> list:
    return list(Sources(specs, **options))


def queries(spec: str) -> list[Query]:
    found = list(open_images(spec, MOST))
    assert all(isinstance(query, Query) for query in found), found
    return found


def pixels(spec: str) -> bytes:
    (query,) = queries(spec)
    return bytes(query.decode(MOST).pixels.canonical)


def problem(spec: str) -> Reject:
    (found,) = open_images(spec, MOST)
    assert isinstance(found, Reject), found
    assert found.name == os.fsencode(spec)
    assert len(found.reason.splitlines()) == 1
    return found


def of(array: np.ndarray) -> bytes:
    return bytes(from_array(array).canonical)


# --- SOURCE ---------------------------------------------------------------------------------------


def test_sources_of_every_kind_come_in_the_order_they_were_named():
    kinds = [type(item) for item in items("one.png", "a.npy", "photos", "synthetic:bits?n=3")]
    assert kinds == [FileItem, NpyArray, FileItem, Skipped, FileItem, SyntheticBits]


def test_subfolders_are_left_out_when_asked_to():
    assert [item.name[-5:] for item in items("photos", recursive=False)] == [b"a.png", b"s.txt"]


def test_an_archive_of_arrays_is_several_sources(here):
    assert [item.name for item in items("several.npz")] == [
        os.fsencode(here / "several.npz") + b"#" + name for name in (b"x", b"y")
    ]


def test_the_kind_of_an_array_may_be_given(here):
    (item,) = items("bits.npy?kind=8bit")
    assert item.name == os.fsencode(here / "bits.npy?kind=8bit")
    assert item.kind.name == "U8"


@pytest.mark.parametrize(
    "spec",
    [
        "nowhere",
        "nowhere.npy?kind=8bit",
        "a.npy?kind=9bit",
        "a.npy?size=3",
        "a.npy?kind=8bit&size=3",
        "one.png?kind=8bit",
        "a.npy#3",
        "synthetic:photos",
        "synthetic:bits?n=-1",
        "nul\0byte",
        "",
    ],
)
def test_a_source_that_is_not_there_is_a_usage_error_before_anything_is_read(spec):
    with pytest.raises(UsageError) as caught:
        Sources(["one.png", spec])
    assert len(str(caught.value).splitlines()) == 1


def test_no_source_at_all_is_a_usage_error():
    with pytest.raises(UsageError, match="name at least one"):
        Sources([])


def test_an_array_that_cannot_be_read_is_a_problem_and_the_rest_is_read(here):
    broken, image = items("broken.npy", "one.png")
    assert broken.name == os.fsencode(here / "broken.npy")
    assert "not an .npy array" in broken.reason
    assert isinstance(image, FileItem)


def test_a_source_that_went_between_is_a_problem(here):
    sources = Sources(["one.png", "a.npy"])
    (here / "one.png").unlink()
    (here / "a.npy").unlink()
    assert [type(item) for item in sources] == [Reject, Reject]


def test_the_count_includes_the_rows_of_arrays():
    assert Sources(["a.npy"]).count() == 5
    assert Sources(["several.npz", "one.png", "photos", "synthetic:bits?n=1e3"]).count() == 1014
    assert Sources(["photos"], recursive=False).count() == 2
    assert Sources(["broken.npy", "one.png"]).count() == 2


# --- archives -------------------------------------------------------------------------------------


def test_an_archive_is_one_source_and_in_a_folder_none(here):
    tarred(here / "a.tar", {"x.png": here / "one.png"})
    tarred(here / "photos" / "a.tar", {"x.png": here / "one.png"})
    with zipfile.ZipFile(here / "a.zip", "w") as archive:
        archive.write(here / "one.png")
    kinds = [type(item) for item in items("a.tar", "a.zip", "photos")]
    assert kinds == [TarArchive, ZipArchive, FileItem, Skipped, Skipped, FileItem]
    assert Sources(["a.zip", "one.png"]).count() == 2
    assert Sources(["a.tar", "one.png"]).count() is None


def test_a_pattern_stands_for_several_sources(here):
    for number in (8, 9, 10):
        np.save(here / f"part-{number:03d}.npy", COLOUR)
    found = items("part-{008..010}.npy", "{one,two}.png", "part-{010..009}.npy?kind=8bit")
    assert [Path(os.fsdecode(item.name)).name for item in found] == [
        "part-008.npy",
        "part-009.npy",
        "part-010.npy",
        "one.png",
        "two.png",
        "part-010.npy?kind=8bit",
        "part-009.npy?kind=8bit",
    ]
    assert isinstance(found[4], Reject) and "No such file" in found[4].reason
    assert Sources(["part-{008..010}.npy"]).count() == 15


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..011}", ["008", "009", "010", "011"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{1..2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("x{,y}", ["x", "xy"]),
        ("plain", None),
        ("{plain}", None),
        ("{a..c}", None),
        ("{1..}", None),
        ("{-1..3}", None),
    ],
)
def test_patterns_are_those_of_the_shell(pattern, names):
    found = expand(pattern)
    assert names == (None if found is None else list(found))


@pytest.mark.parametrize(
    "pattern",
    ["{0..1000000000000}.tar", "{0..999}{0..999}.tar", "{1..2}" * 60, "{0..999999999999999999}"],
)
def test_a_pattern_for_too_many_is_a_usage_error(pattern):
    with pytest.raises(UsageError, match="at most 100,000"):
        Sources([pattern])


@pytest.mark.parametrize("pattern", ["no-{000..150}.tar", "{a,b}.tar", "no-{0..3}.npy?kind=8bit"])
def test_a_pattern_of_which_nothing_is_there_is_a_usage_error(pattern):
    with pytest.raises(UsageError, match="no such file"):
        Sources([pattern])


def test_what_is_wrong_with_one_shard_is_its_problem(here):
    tarred(here / "s-0.tar", {"x.png": here / "one.png"})
    (here / "s-1.tar").write_text("text")
    first, second = items("s-{0..1}.tar?metadata=")
    assert isinstance(first, TarArchive) and isinstance(second, TarArchive)
    with pytest.raises(UsageError, match="metadata="):
        Sources(["s-{0..1}.tar?wrong=1"])
    (here / "s-{0..1}.tar").write_bytes((here / "s-0.tar").read_bytes())
    assert len(items("s-{0..1}.tar")) == 1  # a path that exists wins


def test_a_member_is_an_image(here):
    folder = here / "what?#1"
    folder.mkdir()
    files = {"x.png": here / "one.png", "in#side.png": here / "one.png"}
    for path in (folder / "a#2.tar", here / "b.tar"):
        tarred(path, files)
        for name in files:
            assert pixels(f"{path}#{name}") == of(COLOUR[0])
        assert "has no member 'gone'" in problem(f"{path}#gone").reason
    tarred(here / "b.tar#x", files)  # an archive of that name
    assert pixels("b.tar#in#side.png") == of(COLOUR[0])
    assert pixels("b.tar#x#x.png") == of(COLOUR[0])
    Image.fromarray(COLOUR[1]).save(here / "b.tar#in#side.png", "PNG")
    assert pixels("b.tar#in#side.png") == of(COLOUR[1])  # a path that exists wins


def test_an_archive_alone_is_all_of_its_images(here):
    (here / "text").write_text("text")
    tarred(here / "a.tar", {"x.png": here / "one.png", "notes": here / "text"})
    (query,) = queries("a.tar")
    assert query.name == f"{here}/a.tar#x.png"
    with (here / "a.tar").open("r+b") as file:
        file.truncate(2200)  # in the second member
    image, broken = open_images("a.tar", MOST)
    assert isinstance(image, Query) and isinstance(broken, Reject) and "cut short" in broken.reason
    assert "limit" in next(iter(open_images("a.tar#x.png", 5))).reason


# --- lists ----------------------------------------------------------------------------------------


def test_a_list_names_more_sources(here):
    (here / "list").write_text("photos\n\na.npy\r\nsynthetic:bits?n=2\n  \nnowhere.png\n")
    found = items("one.png", files_from="list")
    kinds = [FileItem, FileItem, Skipped, FileItem, NpyArray, SyntheticBits, Reject]
    assert [type(item) for item in found] == kinds
    assert found[-1].name == os.fsencode(here / "nowhere.png")
    assert Sources(["one.png"], files_from="list").count() is None


def test_a_listed_line_that_makes_no_sense_is_a_problem(here):
    lines = ["-", "nul\0byte", "x" * 70_000, "synthetic:photos", "a.npy?kind=9bit", "one.png"]
    (here / "list").write_text("\n".join(lines))
    *problems, image = items(files_from="list")
    assert [type(item) for item in problems] == [Reject] * 5
    assert all(len(item.name) <= 200 for item in problems)
    assert isinstance(image, FileItem)


@pytest.mark.parametrize("long", ["x" * 300 + ".png", "d/" * 3000 + "x.png", "ü" * 2100 + ".tar"])
def test_a_listed_line_that_is_too_long_for_a_path_is_a_problem(here, long):
    (here / "list").write_text(f"{long}\n{{a,{long}}}\n{long}?metadata=\none.png\n")
    *problems, image = items(files_from="list")
    assert [type(item) for item in problems] == [Reject] * 4
    assert all(len(item.name) <= 4096 and len(item.reason) < 1100 for item in problems)
    assert "File name too long" in problems[0].reason
    assert isinstance(image, FileItem)
    with pytest.raises(UsageError, match="no such file or folder") as caught:
        Sources([long])
    assert len(str(caught.value)) < 300
    assert Sources([f"{{one.png,{long}}}"]).count() == 2


def test_a_long_message_still_says_what_to_do(here):
    (here / "list").write_text(f"one.png\na.npy?kind={'x' * 5000}\n")
    _, found = items(files_from="list")
    assert len(found.reason) < 1100 and found.reason.endswith("write ?kind=8bit or ?kind=bits")


def test_of_a_line_of_any_length_a_beginning_is_read(here):
    limit = 1 << 16
    longest = "y" * limit
    with (here / "list").open("w") as file:
        for line in ("ü" * 40_000, longest, longest + "\r", longest + "y", "x" * (32 << 20)):
            file.write(line + "\none.png\n")
    tracemalloc.start()
    lines = list(listed(here / "list"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines[1::2] == ["one.png"] * 5
    assert lines[2] == longest and lines[6] == longest + "y"
    assert peak < 2 << 20
    kinds = [type(item) for item in items(files_from="list")]
    assert kinds == [Reject, FileItem] * 5


def test_a_listed_name_that_is_no_utf_8_keeps_its_bytes(here):
    (here / "list").write_bytes(b"\xff\xfe.png\n")
    (gone,) = items(files_from="list")
    assert gone.name == os.fsencode(here) + b"/\xff\xfe.png"


def test_a_list_that_is_not_there_is_a_usage_error():
    with pytest.raises(UsageError, match="cannot be read"):
        items(files_from="nowhere")
    with pytest.raises(UsageError, match="cannot be read"):
        list(listed("photos"))
    for name in ("photos", "nul\0byte", "x" * 5000):
        with pytest.raises(UsageError, match="cannot be read"):
            Sources(["one.png"], files_from=name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_may_come_from_windows(here, end, mark):
    lines = ["one.png", "  ", "photos/a.png", ""]
    (here / "list").write_bytes((mark + end.join(lines)).encode())
    assert list(listed("list")) == ["one.png", "photos/a.png"]
    assert [type(item) for item in items(files_from="list")] == [FileItem] * 2
    (here / "list").write_bytes(("\ufeff" + "one.png").encode("utf-16-le"))
    with pytest.raises(UsageError, match="list is a list in UTF-16: save it as UTF-8"):
        Sources([], files_from="list")
    with pytest.raises(UsageError, match="UTF-16"):
        list(listed("list"))


def test_a_list_may_have_null_bytes_between_its_names(here):
    odd = ["new\nline.png", " \r", "\ufeffmark.png", "a\r.png"]
    for name in odd:
        Image.fromarray(COLOUR[0]).save(here / name, "PNG")
    for tail in ("", "\0", "\0\0"):
        (here / "list").write_bytes(os.fsencode("\0".join(["\ufeffmark.png", *odd]) + tail))
        assert list(listed("list", null=True)) == ["\ufeffmark.png", *odd]
    found = items(files_from="list", null=True)
    assert [type(item) for item in found] == [FileItem] * 5
    assert found[1].name == os.fsencode(here / odd[0])
    (here / "list").write_bytes(b"one.png\0" * 3)
    (wrong,) = items(files_from="list")
    assert "for null=True?" in wrong.reason
    (here / "list").write_bytes(b"x" * 200_000 + b"\0one.png")
    assert [len(name) for name in listed("list", null=True)] == [(1 << 16) + 1, 7]
    with pytest.raises(UsageError, match="null bytes"):
        Sources(["one.png"], null=True)


def test_an_array_of_an_archive_is_a_source(here):
    np.savez(
        here / "mix.npz", emb=COLOUR[:, 0, :, 0].astype("f"), labels=np.arange(5), images=COLOUR
    )
    (array,) = items("mix.npz#emb")
    assert array.name == os.fsencode(here / "mix.npz#emb") and array.count == 5
    assert Sources(["mix.npz#emb", "mix.npz#images"]).count() == 10
    (again,) = items(os.fsdecode(array.name))
    assert again.name == array.name
    (forced,) = items("several.npz?kind=8bit#x")
    assert forced.name == os.fsencode(here / "several.npz?kind=8bit#x")
    (here / "list").write_text("mix.npz#images\nmix.npz#nope\n")
    images, wrong = items(files_from="list")
    assert images.count == 5
    assert wrong.reason == "has no array 'nope': it holds emb, images, labels"
    with pytest.raises(
        UsageError, match=r"mix\.npz#nope: has no array 'nope': it holds emb, images"
    ):
        Sources(["mix.npz#nope"])
    assert len(queries("mix.npz#images")) == 5
    assert pixels("mix.npz#images#3") == of(COLOUR[3])
    assert "it holds emb, images, labels" in problem("mix.npz#nope").reason


def test_an_archive_of_arrays_that_do_not_go_together_says_which_there_are(here):
    vectors = np.ones((5, 7), np.float32)
    for arrays, why in (
        ({"emb": vectors, "labels": np.arange(5)}, "its array labels has dtype int64"),
        (
            {"emb": vectors, "scale": np.float32(1)},
            "its array scale has dtype float32 and shape ()",
        ),
        ({"emb": vectors, "images": COLOUR}, "holds arrays that cannot be read together"),
        ({"emb": vectors, "more": vectors[:, 1:]}, "holds arrays that cannot be read together"),
        ({"emb": vectors, "one": COLOUR[0]}, "which may be one image"),
    ):
        np.savez(here / "b.npz", **arrays)
        (wrong,) = items("b.npz")
        assert why in wrong.reason and wrong.name == os.fsencode(here / "b.npz")
        assert wrong.reason.endswith(
            f"it holds {', '.join(sorted(arrays))}: name one, as 'b.npz#emb'"
        )
        (array,) = items("b.npz#emb")
        assert array.count == 5
    np.savez(here / "b.npz", x=vectors, y=vectors)
    assert len(items("b.npz")) == 2


def test_every_line_of_a_pipe_is_taken():
    names = [f"{i}-{'x' * 100}.png" for i in range(2000)]  # more than one read takes
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "w") as file:
            file.write("\n".join(names))

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(2):  # as a command checks its sources first, and then ingests them
        sources = Sources([], files_from=f"/dev/fd/{out}")
    found = [Path(os.fsdecode(item.name)).name for item in sources]
    writer.join()
    os.close(out)
    assert found == names


def test_standard_input_lists_sources(here):
    (here / "list").write_text("one.png\na.npy\n")
    before = os.dup(0)
    try:
        with (here / "list").open("rb") as file:
            os.dup2(file.fileno(), 0)
        assert [type(item) for item in items("-")] == [FileItem, NpyArray]
    finally:
        os.dup2(before, 0)
        os.close(before)


# --- IMAGE ----------------------------------------------------------------------------------------


def test_an_image_file_is_looked_up_by_its_bytes(here):
    (query,) = queries("one.png")
    assert query.name == "one.png"
    assert query.data == (here / "one.png").read_bytes()
    assert bytes(query.decode(MOST).pixels.canonical) == of(COLOUR[0])
    assert query.decode(MOST).container == "png"


@pytest.mark.parametrize(
    ("spec", "array"),
    [
        ("a.npy#3", COLOUR[3]),
        ("bits.npy#1", BITS[1]),
        ("single.npz#4", COLOUR[4]),
        ("single.npz#x#4", COLOUR[4]),
        ("several.npz#x#0", COLOUR[0]),
        ("several.npz#y#0", COLOUR[4]),
        ("several.npz?kind=8bit#y#0", COLOUR[4]),
        ("a.npy?kind=8bit#2", COLOUR[2]),
    ],
)
def test_a_row_of_an_array_is_an_image(spec, array):
    (query,) = queries(spec)
    assert (query.name, query.data) == (spec, None)
    assert query.decode(MOST).container == "array"
    assert pixels(spec) == of(array)


def test_the_kind_changes_what_a_row_is():
    assert pixels("bits.npy?kind=8bit#1") != pixels("bits.npy#1")


def test_an_array_alone_is_all_of_its_rows(here):
    names = [query.name for query in queries("several.npz")]
    assert names == [f"{here}/several.npz#{array}#{row}" for array in "xy" for row in range(5)]


def test_a_synthetic_row_is_an_image():
    assert pixels("synthetic:bits?seed=4#17") == generate(4, 17, 1)[0].tobytes()
    assert pixels("synthetic:bits?n=5&seed=4#17") == generate(4, 17, 1)[0].tobytes()
    assert pixels("synthetic:bits#17") == generate(0, 17, 1)[0].tobytes()


@pytest.mark.parametrize(
    "spec", ["a.npy", "several.npz", "bits.npy?kind=8bit", "synthetic:bits?n=4"]
)
def test_each_name_in_a_result_can_be_looked_up_again(spec):
    for item in items(spec):
        (block,) = item.blocks(0, 100, MOST)
        for number, row in enumerate(block.rows):
            assert pixels(f"{os.fsdecode(item.name)}#{number}") == row.tobytes()


def test_names_may_hold_hashes_and_question_marks(here):
    folder = here / "what?#1"
    folder.mkdir()
    np.save(folder / "a#2?.npy", COLOUR)
    np.savez(folder / "b#2.npz", **{"in#side": COLOUR, "y": COLOUR})
    assert pixels("what?#1/a#2?.npy#3") == of(COLOUR[3])
    assert pixels("what?#1/b#2.npz#in#side#3") == of(COLOUR[3])
    assert pixels("what?#1/b#2.npz#y#3") == of(COLOUR[3])


def test_a_path_that_exists_wins(here):
    other = Image.fromarray(COLOUR[1])
    for name in ["a.npy#3", "synthetic:bits?seed=0#17", "a.npy?kind=8bit"]:
        other.save(here / name, "PNG")
        assert pixels(name) == of(COLOUR[1])
        assert [type(item) for item in items(name)] == [FileItem]
        assert Sources([name]).count() == 1


def test_standard_input_is_an_images_bytes(here, monkeypatch):
    data = (here / "one.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert pixels("-") == of(COLOUR[0])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(MOST + 1))))
    assert "limit" in problem("-").reason


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nowhere.png", "no such file"),
        ("nowhere.npy#3", "no such file"),
        ("nowhere#3", "no such file"),
        ("#3", "no such file"),
        ("a.npy#", "no such file"),
        ("a.npy#-1", "no such file"),
        ("a.npy#last", "no such file"),
        ("a.npy#" + "9" * 5000, "no such file"),
        ("a.npy#5", "rows 0 to 4"),
        ("several.npz#0", "name one of x, y"),
        ("several.npz#z#0", "z"),
        ("broken.npy", "not an .npy array"),
        ("broken.npy#0", "not an .npy array"),
        ("a.npy?kind=9bit", "?kind=8bit"),
        ("a.npy?kind=9bit#0", "?kind=8bit"),
        ("synthetic:bits", "name a row"),
        ("synthetic:bits#x", "name a row"),
        ("synthetic:bits#" + "9" * 5000, "name a row"),
        ("synthetic:photos#3", "synthetic:bits"),
        ("nul\0byte", "no such file"),
    ],
)
def test_an_image_that_cannot_be_read_is_a_problem_with_a_reason(spec, why):
    assert why in problem(spec).reason


def test_a_folder_is_one_query_for_each_of_its_images(here):
    items = files.walk(here / "photos", recursive=True)
    images = {os.fsdecode(item.name) for item in items if isinstance(item, FileItem)}
    names = {query.name for query in open_images("photos", MOST) if isinstance(query, Query)}
    assert names == images and images


def test_a_file_over_the_limit_is_a_problem(here):
    (here / "large.png").write_bytes(bytes(MOST + 1))
    assert "over the limit" in problem("large.png").reason


def test_a_file_that_is_no_image_says_so_when_it_is_decoded(here):
    (here / "text.png").write_text("text")
    (query,) = queries("text.png")
    with pytest.raises(ImageError):
        query.decode(MOST)


def test_a_pipe_is_a_problem(here):
    os.mkfifo(here / "pipe.png")
    os.mkfifo(here / "pipe.npy")
    assert "neither a file nor a folder" in problem("pipe.png").reason
    problem("pipe.npy")
    assert [type(item) for item in items("pipe.png", "pipe.npy")] == [Reject, Reject]
