"""The rooms of src/longtail: data flows one way, and the rule that says so would notice a step the other way."""

import shutil
import subprocess
import sys

import pytest

from longtail.store import paths

SOURCE = paths.ROOT / "src" / "longtail"


def linted(root):
    """Result of import-linter for the copy of the sources under ``root``."""
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code,
               "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path):
    """A copy of the sources that a test may change."""
    shutil.copytree(SOURCE, tmp_path / "src" / "longtail", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_one_way(copied):
    done = linted(copied)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("file, line", [
    ("learn/train.py", "from longtail.measure import evaluate"), ("pick/samplers.py", "from longtail.label import supervised"),
    ("store/runs.py", "from longtail.learn import models"), ("papers/tables.py", "from longtail.measure import evaluate"),
    ("command/reproduce.py", "from longtail.bench import speed"), ("own/pool.py", "from longtail.label import supervised")])
def test_an_import_that_breaks_the_rule_is_found(copied, file, line):
    path = copied / "src" / "longtail" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = linted(copied)
    broken = f"longtail.{file[:-3].replace('/', '.')} -> {line.split()[1]}.{line.split()[3]}"
    assert done.returncode == 1 and broken in done.stdout, done.stdout + done.stderr
