"""Shared by the tests: one run of the whole demo, and throw-away notebooks."""

import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported: numbers repeat only for one count of threads
os.environ.setdefault("MPLBACKEND", "Agg")

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from longtail.store import paths

PYTHON3 = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = 'profile: str = "demo"  # folder\nseeds: list[int] = [1, 2]  # one run for each\nrate: float = 0.5  # step'


def reproduce(*arguments, output, **environment):
    """The command as a user starts it, in a process of its own, with results and figures under
    ``output``.
    """
    command = [sys.executable, "-m", "longtail.command.reproduce", *arguments]
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, "LONGTAIL_OUTPUT": str(output), **environment},
        capture_output=True,
        text=True,
    )
    return SimpleNamespace(
        status=done.returncode,
        out=done.stdout,
        err=done.stderr,
        seconds=time.perf_counter() - began,
    )


def pytest_collection_modifyitems(items):
    """The tests of the whole demo, which takes minutes, come first, those of speed last, when less
    runs beside them.
    """
    items.sort(
        key=lambda item: (
            2 if item.path.parent.name == "bench" else int("demo" not in item.fixturenames)
        )
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo, run once for all tests: ``root`` with results/ and figures/, and how the command
    ended.
    """
    root = tmp_path_factory.mktemp("demo")
    yield SimpleNamespace(
        root=root,
        first=reproduce(output=root),
        results=root / "results/demo",
        figures=root / "figures/demo",
    )
    shutil.rmtree(root)


@pytest.fixture(
    params={"stand-in": paths.ROOT / "tests" / "sdclr", "checkout": paths.DATA / "SDCLR"}.items(),
    ids=lambda named: named[0],
)
def sdclr(request):
    """A folder with the names and habits of SDCLR's authors' code, and that code itself where the
    data folder has a checkout.
    """
    if not request.param[1].exists():
        pytest.skip("no checkout of VITA-Group/SDCLR in the data folder")
    return str(request.param[1])


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Write a throw-away notebook; results and figures go to the test's folder too."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "profiles.yaml").write_text(
        "demo:\nlong: {about: the long one, hours: 3, seeds: [1, 2, 3], rate: 1}\n"
    )

    def write(name, *cells, parameters=PARAMETERS):
        first = [
            new_markdown_cell("# A title\n\nA question?"),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        ]
        nbformat.write(
            new_notebook(cells=[*first, *map(new_code_cell, cells)], metadata=PYTHON3),
            folder / f"{name}.ipynb",
        )
        return folder

    return write
