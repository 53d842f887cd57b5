"""What every notebook and profile must look like before anything runs."""

import ast
import json

import papermill
import pytest
import yaml

from longtail.command.reproduce import RESERVED, Notebook, is_parameters, make_plan, source
from longtail.store import paths
from longtail.store.settings import KINDS, conform

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
PROFILES = ["demo", *yaml.safe_load((paths.NOTEBOOKS / "profiles.yaml").read_text())]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    """The texts of the code cells."""
    return [source(cell) for cell in Notebook(path).cells if cell["cell_type"] == "code"]


def test_numbers_are_unique_and_all_run():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers and len(set(numbers)) == len(numbers) and all(number.isdigit() for number in numbers)


@every_notebook
def test_holds_no_trace_of_a_run(path):
    book = json.loads(path.read_text())
    assert book["metadata"].keys() <= {"kernelspec", "language_info"}
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    for cell in book["cells"]:
        assert cell["metadata"] in ({}, {"tags": ["parameters"]}), cell["metadata"]
        assert not cell.get("outputs") and cell.get("execution_count") is None, "clear the outputs"


@every_notebook
def test_opens_with_title_and_question(path):
    first = Notebook(path).cells[0]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")
    assert Notebook(path).question, "the question follows the title"


@every_notebook
def test_parameters_are_annotated_literals_with_help_that_papermill_sees(path):
    book = Notebook(path)
    [cell] = [cell for cell in book.cells if is_parameters(cell)]
    statements = ast.parse(source(cell)).body
    assert all(isinstance(line, ast.AnnAssign) for line in statements), "one `name: kind = literal  # help` a line"
    seen = papermill.inspect_notebook(str(path))
    assert {name: ast.literal_eval(entry["default"]) for name, entry in seen.items()} == book.defaults
    assert {name: entry["inferred_type_name"] for name, entry in seen.items()} == book.kinds
    assert all(entry["help"] for entry in seen.values()), "each parameter has a comment, without an equals sign"
    assert "profile" in book.defaults and not book.defaults.keys() & RESERVED.keys()


@every_notebook
def test_defaults_have_the_annotated_type(path):
    book = Notebook(path)
    for name, kind in book.kinds.items():
        assert kind.removeprefix("list[").removesuffix("]") in KINDS, f"{name}: {kind}"
        assert conform(book.defaults[name], kind) == book.defaults[name], f"{name}: {kind}"


@every_notebook
def test_cells_are_short_and_plain(path):
    for text in code(path):
        assert text.strip() and len(text.splitlines()) <= 20, text
        for node in ast.walk(ast.parse(text)):      # a magic such as %run does not parse
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 5, f"{node.name} belongs in src/longtail"


@every_notebook
def test_leaves_to_the_runner_what_is_the_runners(path):
    """No installation, no path tricks, no branch on the profile, no way to stop early that looks like success."""
    for text in code(path):
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        assert not names & {"exit", "quit", "SystemExit", "get_ipython"}, text
        assert not any(word in text for word in ("sys.path", "pip install", "sys.exit", ".ipynb", "papermill")), text
        tests = [node.test for node in ast.walk(ast.parse(text)) if isinstance(node, ast.If | ast.IfExp)]
        assert "profile" not in {name.id for test in tests for name in ast.walk(test) if isinstance(name, ast.Name)}, text


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_only_parameters_of_the_right_type(profile):
    plan = make_plan([profile], {}, paths.NOTEBOOKS)
    assert plan.profile == profile and plan.jobs and len(plan.usual) == len(NOTEBOOKS)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "demo"])
def test_profile_says_what_it_is_and_costs(profile):
    plan = make_plan([profile], {}, paths.NOTEBOOKS)
    assert plan.about and plan.hours
