"""The rules of the benchmarks' house: rooms import downwards, in no circle, through the public API."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bench

PACKAGE = Path(bench.__file__).parent

# From the ground up: a module imports from its own room and from lower ones.
ROOMS = ["harness", "data", "peers", "report", "suite", "questions"]

# What anybody may import of the engine.
PUBLIC = {"engine", "engine.errors", "engine.config", "engine.records"}
PUBLIC |= {"engine.evaluation", "engine.training"}

# Measurements that have to look inside, and what they look at. The list may only shrink.
INSIDE = {
    "data.bit_images": {"engine.images.canonical", "engine.sources.synthetic"},
    "data.descriptors": {"engine.cli.progress"},
    "data.image_sets": {
        "engine.images.decode",
        "engine.images.file_types",
        "engine.images.rgb_picture",
    },
    "data.photographs": {"engine.images.pil_images"},
    # The tables get the engine's own keys and proofs.
    "peers.key_lookups": {"engine.images", "engine.images.canonical"},
    "peers.key_tables": {"engine.images.hashing"},
    # An encoder is imported before there is a store.
    "questions.text_lookup_child": {
        "engine.encoders.importers.run",
        "engine.encoders.importers.specs",
    },
    "report.comparison": {"engine.cli.text"},
    "report.summary": {"engine.cli.text"},
    "suite.image_child": {"engine.encoders", "engine.images"},
    "suite.store_child": {"engine.encoders"},
    "suite.pdqhash_child": {"engine.images.decode", "engine.images.rgb_picture"},
    "suite.run": {"engine.storage.temp_folders"},
    "questions.cold_exact": {"engine.cli.progress"},
    "questions.cold_exact_child": {"engine.images.canonical"},
    "questions.decode_cost_child": {
        "engine.images",
        "engine.images.decode",
        "engine.images.preprocessing",
        "engine.images.rgb_picture",
    },
    "questions.exact_store": {"engine.cli.progress"},
    "questions.index_cold": {"engine.cli.progress"},
    "questions.index_growth": {"engine.cli.progress"},
    "questions.index_live": {"engine.cli.progress"},
    "questions.index_rounds": {"engine.cli.progress"},
    "questions.kills": {"engine.cli.progress"},
    "questions.reembed": {"engine.cli.progress"},
    # It tells of each commit before and after, and makes chunks and extents of a few rows.
    "questions.kills_child": {
        "engine.index.maintain",
        "engine.storage.changeset",
        "engine.storage.writer",
    },
    # The entrants of an evaluation by their names.
    "questions.looks_alike": {"engine.evaluation.entrants"},
    "questions.near_copies": {"engine.cli.progress"},
    "questions.removal": {"engine.storage.durable"},
    "questions.source_writers": {
        *("engine.sources", "engine.sources.decompress", "engine.sources.items"),
    },
    # The plain recipe beside it has the engine's own network and loss.
    "questions.train_speed_child": {
        *("engine.training.loss", "engine.training.malloc_pages", "engine.training.model"),
        *("engine.training.pictures", "engine.training.settings"),
    },
}


def modules() -> dict[str, ast.Module]:
    """Every module of the benchmarks by its dotted name inside ``bench``, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def packages() -> set[str]:
    """Those of them that are folders."""
    found = (path.parent.relative_to(PACKAGE).parts for path in PACKAGE.rglob("__init__.py"))
    return {".".join(parts) for parts in found}


PACKAGES = packages()


def imported_within(module: str) -> Iterator[str]:
    """The modules of the benchmarks that one imports, inside functions too."""
    own = module.split(".") if module else []
    package = own if module in PACKAGES else own[:-1]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in MODULES else ".".join(base)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bench":
            raise AssertionError(
                f"{module} imports {node.module}: inside bench imports are relative"
            )


def imported_of_the_engine(module: str) -> Iterator[tuple[str, str]]:
    """Module and name of everything that one imports of the engine; the name may be empty."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            if node.module.split(".")[0] == "engine":
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from ((name, "") for name in names if name.split(".")[0] == "engine")


def test_every_module_is_in_a_room() -> None:
    assert {name.split(".")[0] for name in MODULES} == {"", *ROOMS}
    assert {name for name in MODULES if name and "." not in name} == set(ROOMS)


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_rooms_import_downwards_only(module: str) -> None:
    floor = ROOMS.index(module.split(".")[0])
    for other in imported_within(module):
        assert other, f"{module} imports the front of the package"
        assert ROOMS.index(other.split(".")[0]) <= floor, f"{module} imports {other}"


def test_the_front_needs_no_script() -> None:
    assert not any(other.startswith("questions") for other in imported_within(""))


def test_there_is_no_circle() -> None:
    graph = {name: set(imported_within(name)) - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_the_engine_is_imported_through_its_public_api(module: str) -> None:
    inside = set()
    for source, name in imported_of_the_engine(module):
        private = any(part.startswith("_") for part in [*source.split("."), name])
        assert not private or name == "__version__", f"{module} imports {source}.{name}"
        if source not in PUBLIC:
            inside.add(source)
    assert inside == INSIDE.get(module, set())


def test_no_exception_is_left_of_a_module_that_is_gone() -> None:
    assert INSIDE.keys() <= MODULES.keys()


def _children() -> set[str]:
    """The children that are run by their names: ``"suite.store_child"``."""
    return {
        node.value
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.split(".")[0] in ROOMS
        and node.value.count(".") == 1
        and node.value.replace(".", "").isidentifier()
    }


def test_children_that_are_run_by_name_are_there() -> None:
    children = _children()
    assert {"peers.method_child", "peers.index_child"} <= children
    assert children <= MODULES.keys()
