"""What every notebook and profile must look like before anything runs."""

import ast
import json

import papermill
import pytest
import yaml

from longtail.command import profiles
from longtail.command.profiles import Notebook, is_parameters, source
from longtail.command.reproduce import make_plan
from longtail.store import paths
from longtail.store.settings import Refused, mistakes

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
PROFILES = ["demo", *yaml.safe_load((paths.NOTEBOOKS / "profiles.yaml").read_text())]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    """The texts of the code cells."""
    return [source(cell) for cell in Notebook(path).cells if cell["cell_type"] == "code"]


def test_numbers_are_unique_and_all_run():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert (
        numbers
        and len(set(numbers)) == len(numbers)
        and all(number.isdigit() for number in numbers)
    )


@every_notebook
def test_holds_no_trace_of_a_run(path):
    book = json.loads(path.read_text())
    assert book["metadata"].keys() <= {"kernelspec", "language_info"}
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    for cell in book["cells"]:
        tags = cell["metadata"].get("tags", [])
        assert len(tags) < 2 and {*tags} <= {"parameters", "key", "images"}
        assert cell["metadata"].keys() <= {"tags"}
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
    assert all(isinstance(line, ast.AnnAssign) for line in statements), (
        "one `name: kind = literal  # help` a line"
    )
    seen = papermill.inspect_notebook(
        str(path)
    )  # it cannot read a line whose value has an equals sign, but sets it all the same
    assert book.defaults.keys() - seen.keys() == {
        name for name, value in book.defaults.items() if "=" in str(value)
    }
    assert {name: ast.literal_eval(entry["default"]) for name, entry in seen.items()} == {
        name: book.defaults[name] for name in seen
    }
    assert {name: entry["inferred_type_name"] for name, entry in seen.items()} == {
        name: book.kinds[name] for name in seen
    }
    assert all(entry["help"] for entry in seen.values()), (
        "each parameter has a comment, without an equals sign"
    )
    assert "profile" in book.defaults and not book.defaults.keys() & {
        "about",
        "hours",
        "cores",
        "gpus",
        "base",
        "notebooks",
    }
    assert all(book.helps[name] for name in book.kinds)


@every_notebook
def test_defaults_pass_the_schema(path):
    book = Notebook(path)
    defaults = {name: value for name, value in book.defaults.items() if name != "profile"}
    given = {name: value for name, value in defaults.items() if value not in ("", [])}
    assert mistakes(profiles.parameters_schema([book]), given) == (given, [])


def test_every_parameter_has_one_kind_and_a_rule():
    """Numbers have limits, text has choices or names something; the others are titles and paths,
    listed here.
    """
    kinds = {}
    for book in profiles.notebooks_of(paths.NOTEBOOKS):
        for name, kind in book.kinds.items():
            assert kinds.setdefault(name, kind) == kind, name
    ruled = (
        profiles.LIMITS.keys()
        | profiles.by_single_name(profiles.NAMES).keys()
        | profiles.CHOICES.keys()
    )
    free = {"profile", "lists", "pool", "jpegs", "google_active_learning", "sdclr"}
    assert {name for name, kind in kinds.items() if kind != "bool"} == ruled | free
    assert not ruled & free and profiles.LEAST_ENTRIES.keys() <= kinds.keys()


@every_notebook
def test_cells_are_short_and_plain(path):
    for text in code(path):
        tree = ast.parse(text)  # a magic such as %run does not parse
        imports = sum(
            node.end_lineno - node.lineno + 1
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
        )
        assert text.strip() and len(text.splitlines()) - imports <= 20, text
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 5, f"{node.name} belongs in src/longtail"


@every_notebook
def test_leaves_to_the_runner_what_is_the_runners(path):
    """No installation, no path tricks, no branch on the profile, no way to stop early that looks
    like success.
    """
    for text in code(path):
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        assert not names & {"exit", "quit", "SystemExit", "get_ipython"}, text
        assert not any(
            word in text for word in ("sys.path", "pip install", "sys.exit", ".ipynb", "papermill")
        ), text
        tests = [
            node.test for node in ast.walk(ast.parse(text)) if isinstance(node, ast.If | ast.IfExp)
        ]
        assert "profile" not in {
            name.id for test in tests for name in ast.walk(test) if isinstance(name, ast.Name)
        }, text


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_only_parameters_of_the_right_type(profile):
    plan = make_plan([profile], {}, paths.NOTEBOOKS)
    assert plan.profile == profile and plan.jobs and len(plan.usual) == len(NOTEBOOKS)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "demo"])
def test_profile_says_what_it_is_and_costs(profile):
    plan = make_plan([profile], {}, paths.NOTEBOOKS)
    assert plan.about and plan.hours


@every_notebook
def test_refuses_by_hand_what_the_command_refuses(path):
    """JupyterLab and papermill pass by the command, so each notebook checks what it was given."""
    number = path.name[:2]
    (line,) = [
        line for text in code(path) for line in text.splitlines() if "check_parameters" in line
    ]
    assert line.startswith(f'profiles.check_parameters("{number}", globals())')
    defaults = Notebook(path).defaults
    profiles.check_parameters(number, {**defaults, "pd": None})
    for name, value in defaults.items():
        if name != "profile":
            with pytest.raises(Refused, match=rf"the parameters of {path.stem}: {name}"):
                profiles.check_parameters(number, {**defaults, name: {"no": value}})


@pytest.mark.parametrize(
    "number, name, value",
    [("01", "labelled_per_class", -5), ("01", "outsider_count", -5), ("03", "selection", "best")],
)
def test_values_that_would_mean_something_else_are_refused(number, name, value):
    (book,) = profiles.select([number], profiles.notebooks_of(paths.NOTEBOOKS))
    with pytest.raises(Refused, match=name):
        profiles.check_parameters(number, {**book.defaults, name: value})
