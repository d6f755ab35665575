"""Which tests run, as ``scripts/test`` is asked for it, and fixtures that several modules share.

CONTRIBUTING.md says which marker is for what.
"""

import hashlib
import json
import os
import random
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Examples are bounded so that the whole suite stays quick; no test depends on how long one takes.
# They are the same in each run, and none is kept from an earlier one: what passes here passes
# elsewhere. ``--hypothesis-seed random`` draws others, and prints the seed.
settings.register_profile("engine", max_examples=50, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "drawn", settings.get_profile("engine"), derandomize=False, print_blob=True
)
settings.load_profile("engine")


# A shell without job control has SIGINT ignored in what it puts in the background, and children
# inherit that: those of the tests are to get it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest by ``--costs``, the longest first. A worker takes a whole file, so one of
# these that began last would leave the other workers idle.
LONGEST = [
    f"test_{name}.py"
    for name in (
        *("bench_suite", "power_loss", "training_loop", "docs_pages", "docs", "bench_index_peers"),
        *("cli_train", "index_crash", "crash", "readers", "maintenance_repair", "index_search"),
        *("full_disk", "maintenance_backup", "bad_input", "maintenance_reorder", "cli"),
    )
]


def pytest_addoption(parser: pytest.Parser) -> None:
    tiers = parser.getgroup("tiers", "which tests run")
    tiers.addoption("--fast", action="store_true", help="leave out what is slow or exhaustive")
    tiers.addoption("--all", action="store_true", help="run what is exhaustive too")
    tiers.addoption(
        "--costs", metavar="FILE", help="append what each test took of a core, in seconds"
    )
    tiers.addoption("--shuffle", metavar="SEED", help="run in another order, drawn from SEED")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.all:
        os.environ["ENGINE_TESTS"] = "all"
    if config.getoption("--hypothesis-seed") is not None:
        settings.load_profile("drawn")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-k``, files that hold none of its words are not imported: torch alone takes seconds."""
    words = re.findall(r"\w+", config.option.keyword.lower())
    if not words or "not" in words or collection_path.suffix != ".py":
        return None
    text = (collection_path.name + collection_path.read_text()).lower()
    return None if any(word in text for word in words) else True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what a test takes of a core: how long it takes would tell of the load."""
    before = core_seconds()
    yield
    if item.config.option.costs:
        with Path(item.config.option.costs).open("a") as file:
            print(f"{core_seconds() - before:.3f} {item.nodeid}", file=file)


def core_seconds() -> float:
    """What this process and its children that ended have taken of a core so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for, and begin with the files that take longest."""
    left_out = set() if config.option.all else {"exhaustive"}
    if config.option.fast:
        left_out = {"slow", "exhaustive"}
    # What is named in full, or asked for by its marker, is meant.
    if config.option.markexpr or any("::" in argument for argument in config.args):
        left_out = set()
    deselected = {item for item in items if any(item.get_closest_marker(name) for name in left_out)}
    if "exhaustive" in left_out:
        deselected |= unusual([item for item in items if item not in deselected])
    config.hook.pytest_deselected(items=[item for item in items if item in deselected])
    kept = [item for item in items if item not in deselected]

    slow: dict[Path, int] = {}
    for item in kept:
        slow[item.path] = slow.get(item.path, 0) + bool(item.get_closest_marker("slow"))
    if config.option.shuffle is None:
        kept.sort(key=lambda item: (place(item.path), -slow[item.path]))
    else:
        shuffle(kept, random.Random(config.option.shuffle))
    items[:] = kept


def place(path: Path) -> int:
    """The place of a file among the longest; the others come after them."""
    return LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)


def unusual(items: list[pytest.Item]) -> set[pytest.Item]:
    """The parameter sets that are not needed for each value of each parameter to occur in its test.

    Only tests marked ``usual`` have such. The marker's arguments say which parameters count, if not all.
    """
    found: set[pytest.Item] = set()
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("usual") is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for sets in tests.values():
        new = {item: values_of(item) for item in sets}
        while any(new.values()):
            best = max(sets, key=lambda item: len(new[item]))
            occurs = new.pop(best)
            sets.remove(best)
            new = {item: values - occurs for item, values in new.items()}
        found.update(sets)
    return found


def values_of(item: pytest.Item) -> set[tuple[str, str]]:
    """The values that the parameters of a ``usual`` test have in one of its sets."""
    (mark,), spec = item.iter_markers("usual"), getattr(item, "callspec")  # noqa: B009
    return {(name, repr(spec.params[name])) for name in mark.args or spec.params}


def shuffle(items: list[pytest.Item], rng: random.Random) -> None:
    """Another order of the files, and of the tests in each."""
    files = sorted({item.path for item in items})
    rng.shuffle(files)
    rng.shuffle(items)
    items.sort(key=lambda item: files.index(item.path))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models are imported into a folder of the tests, not into the user's cache."""
    os.environ["ENGINE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small, working encoder: 16-d vectors from a picture's 4 × 4 mean colours."""
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny", dim=16, image_size=16)


def write_encoder(folder: Path, *, dim: int, image_size: int, seed: int = 0) -> Path:
    """Write an encoder in the form that ``engine.encoders.registry`` describes; returns ``folder``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    cell = image_size // 4
    weights = np.random.default_rng(seed).standard_normal((48, dim)).astype(np.float32)
    constants = {
        "cells": np.array([-1, 4, cell, 4, cell, 3], np.int64),
        "inside_a_cell": np.array([2, 4], np.int64),
        "row": np.array([-1, 48], np.int64),
        "weights": weights,
        "bias": np.full((1, dim), 0.1, np.float32),  # so that grey is not the zero vector
        "across": np.array([1], np.int64),
        "white": np.array(255, np.float32),
        "grey": np.array(0.5, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["zero_to_one"]),
        helper.make_node("Sub", ["zero_to_one", "grey"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "cells"], ["grid"]),
        helper.make_node("ReduceMean", ["grid", "inside_a_cell"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "row"], ["colours"]),
        helper.make_node("MatMul", ["colours", "weights"], ["projected"]),
        helper.make_node("Add", ["projected", "bias"], ["shifted"]),
        helper.make_node("ReduceL2", ["shifted", "across"], ["length"], keepdims=1),
        helper.make_node("Div", ["shifted", "length"], ["embedding"]),
    ]
    shape = ["n", image_size, image_size, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)

    folder.mkdir(parents=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    files = {"fp32": {"path": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}}
    body = {"name": folder.name, "dim": dim, "image_size": image_size, "files": files}
    (folder / "encoder.json").write_text(json.dumps(body))
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads of FAISS wait for each other longer than searches among so few vectors take."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)
