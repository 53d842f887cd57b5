"""The rooms of src/longtail: data flows one way, and the rule that says so would notice a step the
other way.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict

import pytest

from longtail.store import paths

SOURCE = paths.ROOT / "src" / "longtail"


def linted(root):
    """Result of import-linter for the copy of the sources under ``root``."""
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path):
    """A copy of the sources that a test may change."""
    shutil.copytree(
        SOURCE, tmp_path / "src" / "longtail", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(paths.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_one_way(copied):
    done = linted(copied)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file, line",
    [
        ("learn/train.py", "from longtail.measure import evaluate"),
        ("pick/samplers.py", "from longtail.label import supervised"),
        ("store/runs.py", "from longtail.learn import models"),
        ("papers/tables.py", "from longtail.measure import evaluate"),
        ("command/reproduce.py", "from longtail.bench import timing"),
        ("own/pool.py", "from longtail.label import supervised"),
    ],
)
def test_an_import_that_breaks_the_rule_is_found(copied, file, line):
    path = copied / "src" / "longtail" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = linted(copied)
    broken = f"longtail.{file[:-3].replace('/', '.')} -> {line.split()[1]}.{line.split()[3]}"
    assert done.returncode == 1 and broken in done.stdout, done.stdout + done.stderr


def test_the_map_of_the_rooms_is_that_of_the_imports():
    found = {folder.name: set() for folder in SOURCE.iterdir() if (folder / "__init__.py").exists()}
    for path in SOURCE.rglob("*/*.py"):
        room = path.relative_to(SOURCE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            named = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            found[room] |= {
                name.split(".")[1] for name in named if name.startswith("longtail.")
            } - {room}
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\| ?([^|]*?) ?\|$", (paths.ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert {room: ", ".join(sorted(rooms)) for room, rooms in found.items()} == dict(rows)


def test_a_public_name_is_defined_once():
    """A name that two modules define is one idea twice, or two ideas under one name."""
    homes = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            else:
                names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            for name in names:
                if not name.startswith("_"):
                    homes[name].append(path.relative_to(SOURCE).as_posix())
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_text_cites_a_document_that_readers_do_not_have():
    texts = [*SOURCE.rglob("*.py"), *paths.ROOT.glob("*.md"), *paths.ROOT.glob("notebooks/*.*")]
    cited = {path.name: re.findall(r"\bspec\s+\d[\d.]*", path.read_text()) for path in texts}
    assert not {name: found for name, found in cited.items() if found}
