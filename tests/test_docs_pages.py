"""The pages of docs/ and README.md: every example is run, and prints what its page says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
USUAL_PAGES = ("README.md", "docs/recipes/duplicates.md")  # whose examples each run tries


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    return module


pages = script("pages")


@pytest.fixture(scope="module")
def example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    script("examples").make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page in USUAL_PAGES else pytest.mark.exhaustive)
        for page in ["README.md", *PAGES]
    ],
)
def test_the_examples_of_a_page_print_what_it_says(
    page: str, example_files: Path, tmp_path: Path
) -> None:
    work = tmp_path / "me"
    shutil.copytree(example_files, work)
    assert not (problems := pages.check(ROOT / page, work)), "\n".join(problems)


def test_every_page_is_of_blocks_that_are_run_or_only_shown() -> None:
    count = sum(
        1 for page in PAGES for _ in pages.examples((ROOT / page).read_text(encoding="utf-8"))
    )
    assert count > 50


@pytest.mark.slow
def test_the_reference_pages_are_as_the_code_has_them() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_the_readme_takes_five_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|<[^>]+>|\(http[^)]*\)", " ", text, flags=re.DOTALL)
    assert len(prose.split()) <= 900
    sentences = re.split(r"(?<=[.!?:])\s|\n\n|\n[-|#]|\|", prose)
    assert [one for one in sentences if len(one.split()) > 30] == []


def test_a_page_agrees_where_only_times_sizes_and_paths_differ(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "```console\n$ echo took 3.5 s\ntook 9 ms\n```\n"
    page.write_text(text)
    assert pages.check(page, tmp_path) == []
    page.write_text(text.replace("9 ms", "long"))
    (problem,) = pages.check(page, tmp_path)
    assert "page.md:2: echo took 3.5 s" in problem
    assert pages.check(page, tmp_path, write=True) == []
    assert page.read_text() == "```console\n$ echo took 3.5 s\ntook 3.5 s\n```\n"


def test_a_program_is_compared_with_the_text_right_behind_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\nprint(2)\n```\n\n```text\n1\n...\n```\n")
    assert pages.check(page, tmp_path) == []
    page.write_text("```python\nprint(1)\n```\n\nsomething\n\n```text\n1\n```\n")
    assert len(pages.check(page, tmp_path)) == 1
    page.write_text("<!-- not run: it takes a GPU -->\n```python\nprint(1)\n```\n")
    assert pages.check(page, tmp_path) == []
    page.write_text("```bash\nls\n```\n")
    with pytest.raises(pages.PageError, match="'bash' is not of a kind"):
        pages.check(page, tmp_path)
