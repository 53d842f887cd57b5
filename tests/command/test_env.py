"""The environment has one source, its pins carry no machine's build, and src needs little."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from longtail.store import paths

LIGHT = {
    "torch",
    "filelock",
    "safetensors",
    "numpy",
    "scipy",
    "sklearn",
    "threadpoolctl",
    "pandas",
    "matplotlib",
    "seaborn",
    "yaml",
    "tqdm",
    "PIL",
    "pydantic",
    "longtail",
}


def direct():
    """The pip part of env.yml without options."""
    listed = yaml.safe_load((paths.ROOT / "env.yml").read_text())["dependencies"][-1]["pip"]
    return [entry for entry in listed if not entry.startswith("-")]


def test_run_all_reads_the_list_that_conda_reads():
    script = (paths.ROOT / "run_all.sh").read_text()
    function = re.search(r"^requirements\(\).*$", script, re.M).group()
    command = ["bash", "-c", f"root=$1; {function}; requirements", "-", paths.ROOT]
    shell = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == direct()


def test_every_direct_package_is_pinned_and_agrees():
    lines = (paths.ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for wanted in map(Requirement, direct()):
        exact = [
            next(iter(pin.specifier)).version
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
        ]
        assert exact and all(wanted.specifier.contains(number) for number in exact), wanted


def test_constraints_hold_on_any_machine():
    for line in (paths.ROOT / "constraints.txt").read_text().splitlines():
        assert re.match(r"[\w.-]+==[\w.]+( ;|$)", line), (
            f"{line}: no address, no local version such as +cpu, one exact version"
        )


@pytest.mark.parametrize("package, least", [("torch", (2, 11)), ("torchvision", (0, 26))])
def test_versions_that_were_tried(package, least):
    assert tuple(int(part) for part in version(package).split(".")[:2]) >= least
    assert (3, 11) <= sys.version_info[:2] <= (3, 12)


@pytest.mark.parametrize(
    "path", sorted((paths.ROOT / "src/longtail").rglob("*.py")), ids=lambda path: path.name
)
def test_importing_src_needs_little(path):
    """Training on a bare node and ``--plain`` must not pull in Jupyter, openTSNE or torchvision."""
    for node in outside_functions(ast.parse(path.read_text())):
        names = (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        heavy = {name.split(".")[0] for name in names} - LIGHT - sys.stdlib_module_names
        assert not heavy, (
            f"{path.name} line {node.lineno}: import {', '.join(heavy)} inside the function that "
            "needs it"
        )


def outside_functions(tree):
    """The import statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from outside_functions(node)


@pytest.mark.parametrize("words", [["check", "."], ["format", "--check", "src", "tests"]])
def test_lint(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["--schema"], ["--dry-run"], ["cifar10", "09", "--dry-run"]]
)
def test_a_look_on_a_fresh_clone_needs_two_small_packages(tmp_path, words):
    """Everything but the standard library, PyYAML and pydantic is hidden."""
    hidden = LIGHT - {"yaml", "pydantic", "longtail"} | {
        "papermill",
        "nbformat",
        "nbconvert",
        "jinja2",
        "IPython",
    }
    code = (
        f"import sys\nfor name in {sorted(hidden)}: sys.modules[name] = None\n"
        f"from longtail.command.reproduce import main\nsys.exit(main({words}))"
    )
    environment = {**os.environ, "LONGTAIL_OUTPUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_readme_gives_the_two_commands():
    lines = (paths.ROOT / "README.md").read_text().splitlines()
    assert any(line.strip().startswith("./run_all.sh --test") for line in lines)
    assert any(re.match(r"\s*\./run_all\.sh(\s+#.*)?\s*$", line) for line in lines)
