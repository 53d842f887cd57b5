"""The site of a profile: every link leads somewhere, nothing comes from elsewhere, names are text,
numbers lead to their runs.
"""

import html
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
import shelf
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from longtail.command import pages
from longtail.command.profiles import Notebook
from longtail.command.reproduce import Plan
from longtail.papers import claims, tables
from longtail.store import paths, runs

EVIL = "<script>alert('x')</script> & \"100 %\" #1"
RUN = {
    "dataset": "digits",
    "subset": "long_tail",
    "seed": 1,
    "head_layers": 2,
    "architecture": "convnet",
    "size": 16,
    "policy": "digits",
    "epochs": 60,
    "batch_size": 128,
    "learning_rate": 0.5,
    "weight_decay": 1e-4,
    "warmup_epochs": 6,
    "temperature": 0.2,
    "prune_fraction": 0.9,
    "precision": "float32",
    "images": "00000000",
}
ENDED = {
    "seconds": 1800.0,
    "commit": "c" * 40,
    "device": "cpu",
    "threads": 2,
    "processes": 1,
    "torch": "2.13.0",
}
FORMULA = r"The loss $\ell_a < 1$ and $$\frac{\exp(z_a^\top z_b / \tau)}{\sum_{b \neq a} 2}$$ and $\oddity{a}$"


class Page(HTMLParser):
    """What a page links to, its anchors and its pictures."""

    def __init__(self, file):
        super().__init__()
        self.file, self.links, self.ids, self.images, self.tags = file, [], [], [], []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        self.tags.append(tag)
        self.ids += [said["id"]] if "id" in said else []
        self.links += [said[name] for name in ("href", "src") if name in said]
        self.images += [said] if tag == "img" else []


def draw(file, told):
    """A figure as ``figures.save`` leaves it, with what is said of it in the PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    note = PngInfo()
    if told is not None:
        note.add_text("Description", told if isinstance(told, str) else json.dumps(told))
    Image.new("RGB", (40, 30)).save(file, pnginfo=note)
    for kind in ("pdf", "csv"):
        file.with_suffix(f".{kind}").write_text("x")


def book(folder, plan_folder):
    """A notebook that draws two figures, the second its key, and its executed copy."""
    key = {"tags": ["key"]}
    cells = [
        new_markdown_cell(f"# A title\n\nIs 2 < 3 & 1?\n\n{FORMULA}"),
        new_code_cell('figures.save(figure, "other", rows, x)'),
        new_code_cell('figures.save(figures.image_grid(a, b=1), "phi", rows, x)', metadata=key),
    ]
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "04_ecle.ipynb")
    png = {"image/png": "iVBORw0KGgo="}
    cells[2].outputs = [
        new_output("stream", text=f"Few stand out {EVIL}."),
        new_output("display_data", data=png),
        new_output(
            "display_data",
            data={"text/html": "<table><tr><th>a</th></tr></table>", "text/plain": "a"},
        ),
    ]
    plan_folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), plan_folder / "04_ecle.ipynb")
    return Notebook(folder / "04_ecle.ipynb")


@pytest.fixture(params=["plain", "odd #1 50% <b>&'"])
def plan(request, tmp_path, monkeypatch):
    """A profile, also one with a name that means something to HTML and to addresses, with runs,
    tables, figures, claims and a notebook.
    """
    for name in ("RESULTS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setattr(paths, "OUTPUT", tmp_path)
    profile = request.param
    results = runs.Results(profile)
    made = [
        shelf.finished(
            results,
            runs.Run(**RUN | {"method": method, "split": split}),
            files={"log.csv": "loss\n1\n"},
            **ENDED,
        )
        for method in ("simclr", "sdclr")
        for split in (1, 2)
    ]
    for run in made:
        results.remember(run, "scores-linear", {}, lambda: pd.DataFrame({"few": [1.0]}))
    digests = runs.short_names(run.name for run in made)
    numbers = {
        "paper": "71.9",
        "ours": "70.0 ± 0.1 (n=2)",
        "ours, equal updates": "60.0 (n=1)",
        "difference": "-1.9",
    }
    lines = [
        {
            "data": "digits",
            "row": EVIL,
            "source": source,
            "few": few,
            "all": few,
            "status": "full",
            "runs": digests if "ours" in source else None,
        }
        for source, few in numbers.items()
    ]
    tables.write_table(pd.DataFrame(lines), "sdclr_linear", results.root / "tables")
    judged = {
        "id": "a",
        "claim": EVIL,
        "paper": "SDCLR",
        "primary": "true",
        "effect": 1.5,
        "low": 0.5,
        "high": 2.5,
        "n": 2,
        "paper_effect": 4.9,
        "mde": 1.0,
        "n_needed": 2,
        "verdict": "supported",
        "where": "Table 1",
        "scope": "own data",
        "data": "digits",
        "check": "",
        "note": "",
        "unit": "points",
        "notebook": "04_ecle",
        "runs": digests,
    }
    both = pd.DataFrame([judged, judged | {"primary": "false", "verdict": "undecided"}])
    claims.write_claims(both.assign(primary=both.primary == "true"), results.root)
    draw(results.figures / "phi.png", {"caption": f"φ, {EVIL}", "runs": {made[0].name: "c" * 40}})
    draw(results.figures / "other.png", None)
    draw(results.figures / "claims_primary.png", "no JSON")
    notebook = book(tmp_path / "books", results.root / "notebooks")
    return Plan(
        profile,
        f"About {EVIL}",
        1.0,
        [(notebook, {})],
        [(notebook, {})],
        results.root / "notebooks",
        {},
    )


@pytest.fixture
def site(plan):
    """The pages of the profile, by name."""
    pages.write_site(plan, {"04_ecle": {"seconds": 2.0}})
    return {file.name: Page(file) for file in plan.folder.glob("*.html")}


def test_every_link_leads_to_what_is_there_and_nothing_comes_from_elsewhere(site):
    assert set(site) == {"index.html", "runs.html", "finder.html", "04_ecle.html"}
    for name, page in site.items():
        assert len(page.ids) == len(set(page.ids)) and len(page.file.read_bytes()) < 3e6, name
        for link in page.links:
            place = urlsplit(link)
            assert place.scheme in ("", "data"), f"{name}: {link}"
            if not place.scheme:
                target = (
                    (page.file.parent / unquote(place.path)).resolve() if place.path else page.file
                )
                assert target.exists(), f"{name}: {link}"
                assert not place.fragment or place.fragment in Page(target).ids, f"{name}: {link}"


def test_names_are_text_and_pictures_have_words(site):
    for name, page in site.items():
        assert "script" not in page.tags and "b" not in page.tags, name
        assert all(image.get("alt") for image in page.images), name
    assert (
        html.unescape(site["index.html"].text).count(EVIL) > 4
        and "2 &lt; 3 &amp; 1?" in site["index.html"].text
    )
    [first, key] = [image["alt"] for image in site["index.html"].images]
    assert key == f"φ, {EVIL}" and first == "claims primary"  # without a caption its name stands in


def test_numbers_lead_to_their_runs(site):
    index, listed = site["index.html"], site["runs.html"]
    arms = {link for link in index.links if link.startswith("runs.html#arm-")}
    assert len(arms) == 2 and {link.partition("#")[2] for link in arms} <= set(listed.ids)
    assert (
        "c" * 12 in listed.text
        and "1800.0" in listed.text
        and sum(one.startswith("run-") for one in listed.ids) == 4
    )
    assert (
        sum("scores-linear-" in link for link in listed.links)
        == sum("log.csv" in link for link in listed.links)
        == 4
    )
    assert '<td class="number">4.00</td>' in index.text  # four runs of half an hour on two cores


def test_front_page_has_findings_then_notebooks_then_tables_then_cost(site):
    text = site["index.html"].text
    assert (
        text.index(
            "+1.5 points (95 % interval +0.5 to +2.5, n = 2; the paper +4.9), <strong>supported"
        )
        < text.index("Few stand out")
        < text.index("SDCLR, slides, linear separability")
        < text.index("hours of training")
    )
    row = re.search(r"<tr>(?:(?!</tr>).)*70\.0 ± 0\.1.*?</tr>", text, re.S)[0]
    assert "paper 71.9 (-1.9)" in " ".join(re.sub("<[^>]*>", " ", row).split())
    assert "71.9" not in re.search(r"<tr>(?:(?!</tr>).)*60\.0.*?</tr>", text, re.S)[0], (
        "the paper has no such runs"
    )
    assert text.count("1 undecided") == 1 and "claims.csv" in text


def test_formulas_are_drawn_with_their_source_as_words(site):
    page = site["04_ecle.html"]
    assert {r"\ell_a < 1", r"\frac{\exp(z_a^\top z_b / \tau)}{\sum_{b \neq a} 2}"} < {
        image["alt"] for image in page.images
    }
    assert "$" not in page.text and r"<code>\oddity{a}</code>" in page.text


def test_pages_of_notebooks_are_made_once_for_each_copy(plan):
    pages.write_site(plan, {})
    page, copy = plan.folder / "04_ecle.html", plan.folder / "04_ecle.ipynb"
    made = page.stat().st_mtime_ns
    pages.write_site(plan, {})
    assert page.stat().st_mtime_ns == made
    copy.write_text(copy.read_text().replace("Few stand out", "Many stand out"))
    pages.write_site(plan, {})
    assert (
        "Many stand out" in page.read_text()
        and "Many stand out" in (plan.folder / "index.html").read_text()
    )


def test_a_damaged_run_is_told_and_the_rest_is_shown(plan):
    damaged = next(paths.RESULTS.glob("runs/sdclr*/done.json"))
    damaged.write_text(damaged.read_text().replace("1800.0", "1.0"))
    pages.write_site(plan, {})
    index = (plan.folder / "index.html").read_text()
    assert "is cut or edited" in index and "+1.5 points" in index


def test_a_profile_without_results_has_a_site_that_says_so(plan):
    for file in (
        *paths.FIGURES.rglob("*.*"),
        *(plan.folder.parent / "tables").iterdir(),
        plan.folder.parent / "claims.csv",
        plan.folder.parent / "plan.json",
        plan.folder / "04_ecle.ipynb",
    ):
        file.unlink()
    pages.write_site(plan, {})
    text = (plan.folder / "index.html").read_text()
    assert all(
        words in text
        for words in (
            "No claim has been judged",
            "No table has numbers",
            "No run is done",
            "Not run",
        )
    )


def test_document_has_every_table_and_figure(plan):
    pages.write_site(plan, {})
    text = (plan.folder / "document.tex").read_text()
    assert (
        text.count(r"\captionof{figure}") == 3
        and text.count(r"\captionof{table}") == 1
        and r"100 \% \& " not in text
    )
    assert r"\textless{}script\textgreater{}" in text and r'\& "100 \%" \#1' in text


def test_claims_of_one_run_keep_its_name(tmp_path):
    """A digest that looks like a number is none."""
    line = dict.fromkeys(claims.COLUMNS, 1) | {"runs": "00123456"}
    claims.write_claims(pd.DataFrame([line | {"primary": True}]), tmp_path)
    assert claims.read_claims(tmp_path).runs.tolist() == ["00123456"]


def test_every_output_of_a_notebook_is_on_its_page(plan):
    """Results of cells, shown data, printed text: of each the text, the table or the picture."""
    copy = plan.folder / "04_ecle.ipynb"
    book = nbformat.read(copy, 4)
    kinds = {
        "<table><tr><td>of a result</td></tr></table>": new_output(
            "execute_result", {"text/html": "<table><tr><td>of a result</td></tr></table>"}
        ),
        "<table><tr><td>shown</td></tr></table>": new_output(
            "display_data", {"text/html": "<table><tr><td>shown</td></tr></table>"}
        ),
        "a plain result": new_output("execute_result", {"text/plain": "a plain result"}),
        "a line that was printed": new_output("stream", text="a line that was printed"),
        "iVBORw0KGgoAAAATHISONE=": new_output(
            "display_data", {"image/png": "iVBORw0KGgoAAAATHISONE="}
        ),
    }
    book.cells.append(new_code_cell("everything()", outputs=list(kinds.values())))
    nbformat.write(book, copy)
    pages.write_site(plan, {})
    page = (plan.folder / "04_ecle.html").read_text()
    assert [sign for sign in kinds if page.count(sign) != 1] == []
