"""Encoders and baselines, by name: all make unit vectors, and say in one line why one cannot."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EncoderError, EngineError, UsageError
from engine.evaluation.entrants import Absent, Entrant, find, find_all, unit
from engine.evaluation.timing import Timed


def pictures(n: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 6, 6, 3), np.uint8)
    return [np.kron(c, np.ones((16, 16 + i, 1), np.uint8)) for i, c in enumerate(coarse)]


def check(entrant: Entrant | Absent) -> np.ndarray:
    assert isinstance(entrant, Entrant)
    vectors = entrant.encode(pictures())
    assert vectors.shape == (3, entrant.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors @ vectors.T)[0, 1] < 0.9999
    return vectors


def network(path: Path, kind: str, shape: list, *, flat: bool = True) -> Path:
    """An ONNX file that gives its input back, scaled, and flat or not."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Cast", ["in"], ["float"], to=TensorProto.FLOAT)]
    if flat:
        nodes.append(helper.make_node("Reshape", ["float", "row"], ["out"]))
    else:
        nodes.append(helper.make_node("Identity", ["float"], ["out"]))
    size = [shape[0], None] if flat else shape
    graph = helper.make_graph(
        nodes,
        "same",
        [helper.make_tensor_value_info("in", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, size)],
        [numpy_helper.from_array(np.array([0, -1], np.int64), "row")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["pixels", "pdq", "simclr"])
def test_baselines_and_the_shipped_encoder(name):
    entrant = find(name, seed=0)
    check(entrant)
    assert entrant.name == name


def test_the_folder_of_an_encoder(tiny_encoder):
    entrant = find(str(tiny_encoder), seed=0)
    check(entrant)
    assert (entrant.name, entrant.dim) == ("tiny", 16)


def test_inner_products_of_fingerprints_are_their_distances():
    from engine.images import canonical, fingerprint

    a, b = (
        np.frombuffer(fingerprint.fingerprint(canonical.from_array(each))[0], np.uint8)
        for each in pictures(2)
    )
    x, y = find("pdq", seed=0).encode(pictures(2))
    assert float(x @ y) == 1 - np.bitwise_count(a ^ b).sum() / 128


def test_a_flat_picture_has_no_fingerprint_to_compare():
    flat = np.full((80, 80, 3), 200, np.uint8)
    assert not find("pdq", seed=0).encode([flat]).any()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("UINT8", ["n", 8, 8, 3]),
        ("FLOAT", ["n", 3, 8, 8]),
        ("FLOAT", [1, 3, 8, 8]),
        ("UINT8", ["n", "h", "w", 3]),
    ],
)
def test_any_network_of_one_picture(tmp_path, kind, shape):
    path = network(tmp_path / "mine.onnx", kind, shape)
    entrant = find(str(path), seed=0)
    vectors = check(entrant)
    assert entrant.name == "mine"
    side = 8 if 8 in shape else 224
    assert vectors.shape[1] == 3 * side * side
    assert (vectors.min() < 0) == (kind == "FLOAT")  # normalised


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("FLOAT", ["n", 8, 8, 3]), ("UINT8", ["n", 3, 8, 8]), ("FLOAT", ["n", 8])],
)
def test_a_network_of_something_else_is_refused(tmp_path, kind, shape):
    path = network(tmp_path / "other.onnx", kind, shape, flat=False)
    with pytest.raises(EncoderError, match="one input is needed"):
        find(str(path), seed=0)


def test_a_broken_network_and_none_are_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for name in ("broken.onnx", "missing.onnx"):
        with pytest.raises(EncoderError, match=name) as error:
            find(str(tmp_path / name), seed=0)
        assert "\n" not in str(error.value)
    with pytest.raises(EncoderError, match="no encoder 'simclrr': give one of simclr"):
        find("simclrr", seed=0)
    with pytest.raises(UsageError, match=r"efficientnet-lite0=FILE\.pth"):
        find("efficientnet-lite0", seed=0)


@pytest.mark.parametrize("shape", [["n", 8, 9, 3], ["n", 0, 0, 3], ["n", 60_000, 60_000, 3]])
def test_a_network_of_odd_sides_is_refused(tmp_path, shape):
    path = network(tmp_path / "odd.onnx", "UINT8", shape, flat=False)
    with pytest.raises(EncoderError, match=r"odd\.onnx takes pictures of .* square"):
        find(str(path), seed=0)


def test_a_folder_that_is_no_encoder_is_said_to_be_none(tmp_path):
    with pytest.raises(EncoderError, match=r"holds no encoder\.json"):
        find(str(tmp_path), seed=0)


def test_two_of_one_name_are_told_apart(tiny_encoder, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_encoder, other)
    entrants, absent = find_all([str(tiny_encoder), str(other), str(other), "pdq"], seed=0)
    assert [entrant.name for entrant in entrants] == ["tiny", "tiny-2", "pdq"]
    assert not absent


def test_vectors_become_unit_ones_and_what_is_no_number_nothing():
    x = np.array([[3.0, 4.0], [0, 0], [np.nan, 1], [np.inf, 1]])
    assert unit(x).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, 0], [0, 0]]


# --- torch ----------------------------------------------------------------------------------------


def test_without_torch_its_baselines_are_left_out(monkeypatch):
    for module in ("torch", "engine.training", "engine.training.model", "engine.evaluation.lite0"):
        monkeypatch.setitem(sys.modules, module, None)
    entrants, absent = find_all(["pixels", "untrained", "efficientnet-lite0=x.pth"], seed=0)
    assert [each.name for each in entrants] == ["pixels"]
    assert [each.name for each in absent] == ["untrained", "efficientnet-lite0"]
    assert all("pip install" in each.reason for each in absent)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        find_all(["untrained"], seed=0)


@pytest.mark.slow
def test_an_untrained_network_depends_on_the_seed():
    pytest.importorskip("torch")
    first, same, other = (check(find("untrained", seed=seed)) for seed in (0, 0, 1))
    assert np.allclose(first, same)
    assert not np.allclose(first, other)


@pytest.mark.slow
def test_weights_of_efficientnet_lite0(tmp_path):
    torch = pytest.importorskip("torch")
    from engine.evaluation.lite0 import Lite0

    torch.manual_seed(0)
    torch.save(Lite0().state_dict(), tmp_path / "weights.pth")
    entrant = find(f"efficientnet-lite0={tmp_path / 'weights.pth'}", seed=0)
    assert check(entrant).shape[1] == 1280


class Trap:
    """What a hostile file would have unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('sprung').touch()",)


@pytest.mark.slow
def test_a_file_of_other_weights_or_of_none_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(3)}, "other.pth")
    torch.save(Trap(), "trap.pth")
    torch.save([1, 2], "list.pth")
    Path("broken.pth").write_bytes(b"nothing")
    Path("empty.pth").write_bytes(b"")
    Path("cut.pth").write_bytes(Path("other.pth").read_bytes()[:200])
    for name in ("other", "trap", "list", "broken", "empty", "cut", "missing"):
        with pytest.raises(EngineError, match=f"{name}.pth") as error:
            find(f"efficientnet-lite0={name}.pth", seed=0)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)  # no advice to run what the file says
    assert not Path("sprung").exists()
    with zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data/0", bytes(129 << 20))
    with pytest.raises(EngineError, match="larger than 128 MiB"):
        find("efficientnet-lite0=bomb.pth", seed=0)
    with pytest.raises(UsageError, match=r"efficientnet-lite0=FILE\.pth"):
        find("efficientnet-lite0=", seed=0)


@pytest.mark.parametrize("shape", [(3, 1), (3, 9), (6, 4), (4,)])
def test_an_entrant_that_gives_another_shape_is_named(shape: tuple[int, ...]) -> None:
    timed = Timed(Entrant("odd", "odd", 4, lambda _: np.ones(shape, np.float32)))
    with pytest.raises(EncoderError, match="odd gave an array of"):
        timed.encode(pictures())
