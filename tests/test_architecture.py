"""The rules of the house: who may import whom, and what is loaded only when it is needed."""

import ast
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import engine
from engine.storage.rows import TABLES

PACKAGE = Path(engine.__file__).parent

# From the ground up. A module imports from lower floors only; what lies on one floor does not know
# of each other. A folder is one room: inside it, modules import as they like.
FLOORS = [
    {"errors", "records", "address_space", "forking", "memory", "stop"},
    {"config"},
    {"images"},
    {"sources", "encoders"},
    {"storage"},
    {"index"},
    {"ingest", "search"},
    {"maintenance", "training"},
    {"evaluation"},
    {"api"},
    {"engine"},  # the package's front, engine/__init__.py
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

ROOMS_OF = {
    "rocksdict": {"storage"},
    "faiss": {"index"},
    # They run encoders, and quantize them.
    "onnxruntime": {"encoders", "training"},
    "torch": {"training", "evaluation", "encoders"},
    "torchvision": {"training", "encoders"},
    "timm": {"encoders"},
    "open_clip": {"encoders"},
    "transformers": {"encoders"},
    "huggingface_hub": {"encoders"},
    "ftfy": {"encoders"},
    "onnx": {"training", "encoders"},
    "onnxscript": {"training", "encoders"},
    "safetensors": {"training", "encoders"},
    "tokenizers": {"encoders"},
    "platformdirs": {"encoders"},
    "tensorboard": {"training"},
    "scipy": {"evaluation"},
    "pdqhash": {"images"},
    "simplejpeg": {"images"},
    "pyarrow": {"sources", "maintenance"},  # one reads tables of images, the other writes tables
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"evaluation"},
    "pandas": set(),
}
HEAVY = {
    "torch",
    "timm",
    "open_clip",
    "transformers",
    "safetensors",
    "torchvision",
    "faiss",
    "onnxruntime",
    "onnx",
    "rich",
    "pdqhash",
    "pyarrow",
    "scipy",
    "tokenizers",
}
MAX_MODULE, MAX_CLASS, MAX_FUNCTION = 500, 400, 80  # lines


@dataclass(frozen=True)
class Import:
    """``module`` (of the package, dotted) imports ``name`` on ``line``."""

    module: str
    name: str
    line: int
    lazy: bool  # inside a function

    @property
    def room(self) -> str:
        return room_of(self.module)

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def room_of(module: str) -> str:
    package, *inside = module.split(".")
    return inside[0] if inside else package


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["engine", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(module: str, path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative imports hide the room"
            for alias in node.names:
                yield Import(module, f"{node.module}.{alias.name}", node.lineno, lazy)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


IMPORTS = [found for module, path in modules().items() for found in imports_of(module, path)]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in modules()} == set(FLOOR)


def test_rooms_import_downwards_only():
    wrong = []
    for found in IMPORTS:
        # The version is the one thing that every room may ask the front for.
        if not found.name.startswith("engine") or found.name == "engine.__version__":
            continue
        target = room_of(found.name)
        target = target if target in FLOOR else "engine"  # a name that the front exports
        if target != found.room and FLOOR[target] >= FLOOR[found.room]:
            wrong.append(str(found))
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for found in IMPORTS:
        target = found.name if found.name in graph else found.name.rpartition(".")[0]
        # A package that gives a name from a module of its own is that module.
        if target in graph and not found.module.startswith(f"{target}."):
            graph[found.module].add(target)
    with contextlib.suppress(StopIteration):
        while True:  # what imports nothing that is left is in no circle
            free = next(module for module in graph if not graph[module] - {module})
            del graph[free]
            for targets in graph.values():
                targets.discard(free)
    assert not graph


def test_no_module_class_or_function_is_too_long():
    long = []
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_MODULE:
            long.append(module)
        for node in ast.walk(ast.parse(text)):
            limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= limit:
                    long.append(f"{module}.{node.name}")
    assert not long


def test_no_two_public_classes_share_a_name():
    homes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in homes.items() if len(found) > 1}


def test_a_table_is_named_in_storage_only():
    """Others use the typed tables, and pack no keys."""
    calls = re.compile(r"\.(scan|get|get_many|at_or_before|put|delete)\(\s*\"[a-z]+\"")
    wrong = [
        f"{module}: {found.group()}"
        for module, path in modules().items()
        if room_of(module) != "storage"
        for found in calls.finditer(path.read_text(encoding="utf-8"))
        if re.search(f'"({"|".join(TABLES)})"', found.group())
    ]
    assert not wrong


@pytest.mark.parametrize("library", ROOMS_OF)
def test_a_library_is_imported_by_its_room_only(library):
    users = [found for found in IMPORTS if found.name.split(".")[0] == library]
    assert not [str(found) for found in users if found.room not in ROOMS_OF[library]]


def test_the_heavy_libraries_are_imported_inside_functions():
    early = [f for f in IMPORTS if f.name.split(".")[0] in HEAVY and not f.lazy]
    # An importer is itself imported when a model is.
    importers = "engine.encoders.importers."
    assert not [
        str(found)
        for found in early
        if found.room != "training" and not found.module.startswith(importers)
    ]


def test_only_the_importers_of_encoders_know_the_libraries_that_models_come_from():
    libraries = {name for name, rooms in ROOMS_OF.items() if "encoders" in rooms}
    # They run encoders, and are on the path of lookups.
    libraries -= {"onnxruntime", "platformdirs", "tokenizers"}
    known = [f for f in IMPORTS if f.room == "encoders" and f.name.split(".")[0] in libraries]
    assert known
    inside = "engine.encoders.importers."
    assert not [str(found) for found in known if not found.module.startswith(inside)]


def loaded(*command: str) -> set[str]:
    """The top-level packages that a Python process with these arguments imports."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import engine; engine.Store"],
        ["-m", "engine", "--version"],
        ["-m", "engine", "lookup", "--help"],
    ],
    ids=["import", "version", "help"],
)
def test_a_start_loads_nothing_heavy(command):
    found = loaded(*command)
    assert "numpy" in found
    assert not found & (HEAVY | {"matplotlib", "pandas"})


@pytest.mark.slow
def test_a_lookup_in_a_store_without_vectors_loads_no_faiss(tmp_path):
    with engine.Store.open(tmp_path / "store", create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=3")
    found = loaded("-m", "engine", "lookup", "synthetic:bits?seed=0#2", "--store", str(store.path))
    assert "rocksdict" in found
    assert not found & {"torch", "faiss", "onnxruntime", "pyarrow", "scipy"}


def test_the_top_level_has_what_it_should_and_nothing_else():
    listed = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    names = {name.partition("/")[0] for name in listed.stdout.split("\0") if name}
    assert names == {
        *(".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
        *("README.md", "bench", "constraints.txt", "docs", "engine", "mkdocs.yml"),
        *("pyproject.toml", "scripts", "tests"),
    }
