"""The site of a profile, for people who run nothing: findings, notebooks, tables, cost, and the
runs behind each number.
"""

import base64
import contextlib
import html
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from longtail.command.profiles import source
from longtail.papers import claims, figures, reports, tables
from longtail.store import paths, runs

SAVED = re.compile(r'figures\.save\([^"]*"(\w+)')  # the name of a figure, or how it begins
MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.S)
# what may be wider than a phone scrolls by itself
WIDE = '<div class="wide" tabindex="0" role="group" aria-label="{}">'
_CELLS = f"""{{%- extends 'display_priority.j2' -%}}
{{% block markdowncell %}}{{{{ cell.source | markdown2html | formulas }}}}{{% endblock %}}
{{% block input %}}{WIDE.format("code")}
{{{{- cell.source | highlight_code(metadata=cell.metadata) }}}}</div>{{% endblock %}}
{{% block stream %}}{WIDE.format("printed text")}<pre>
{{{{- output.text | ansi2html }}}}</pre></div>{{% endblock %}}
{{% block execute_result %}}{{% block data_priority scoped %}}{{{{ super() }}}}
{{%- endblock %}}{{% endblock %}}
{{% block data_text %}}{WIDE.format("printed text")}<pre>
{{{{- output.data['text/plain'] | ansi2html }}}}</pre></div>{{% endblock %}}
{{% block data_html %}}{WIDE.format("table")}
{{{{- output.data['text/html'] }}}}</div>{{% endblock %}}
{{% block data_png %}}<figure><img
alt="{{{{ output.metadata.alt | escape_html }}}}" src="data:image/png;base64,
{{{{- output.data['image/png'] | escape_html }}}}">
{{%- if output.metadata.caption %}}<figcaption>
{{{{- output.metadata.caption | escape_html }}}}</figcaption>
{{%- endif %}}</figure>{{% endblock %}}"""
ARM = [
    name for name in runs.FIELDS if name not in ("split", "seed", "images", "recipe")
]  # equal in the runs of one arm


def write_site(plan, known):
    """Every page of the profile, those of notebooks where they are older than the copy."""
    results, trouble = runs.Results(plan.profile), ""
    try:
        arms = arms_of(results)
    except ValueError as error:  # a damaged record, which says so itself
        arms, trouble = [], str(error)
    shown, judged = pictures(results.figures), claims.read_claims(results.root)
    books = [
        card(notebook, plan.folder, shown, judged) | known.get(notebook.name, {})
        for notebook, _ in plan.usual
    ]
    for book in books:
        if book["status"] == "executed":
            write_page(book["notebook"], plan.folder, shown)
    site = {
        "profile": plan.profile,
        "about": plan.about,
        "trouble": trouble,
        "complete": "" if trouble else results.complete(),
        "arms": arms,
        "books": books,
        "figures": shown,
        "findings": reports.worth_telling(judged),
        "judged": len(judged),
        "claims": results.root / "claims.csv",
        "tables": list(shown_tables(results.root / "tables")),
        "costs": costs(arms),
    }
    for page, title in {
        "index.html": plan.profile,
        "runs.html": f"Runs of {plan.profile}",
        "finder.html": "Finder",
    }.items():
        write_html(
            plan.folder / page,
            page,
            title,
            **site,
            finder=finder(plan) if page == "finder.html" else "",
        )
    runs.write(
        plan.folder / "document.tex",
        reports.document(plan.profile, {name: one["caption"] for name, one in shown.items()}),
    )


def write_html(path, template, title, arms=(), **content):
    """One page from its template; ``link`` in it is an address from the page to a file, ``arms``
    those that some runs belong to.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    home = {run["digest"]: arm for arm in arms for run in arm["runs"]}
    environment.filters |= {
        "link": lambda file: quote(os.path.relpath(file, path.parent)),
        "words": lambda name: name.replace("_", " "),
        "finding": claims.finding,
        "wide": WIDE.format,
        "worded": lambda value, column: figures.word(value) if column in tables.WORDED else value,
        "short": lambda commit: commit[:12] + commit[40:],
        "arms": lambda digests: list(
            {arm["id"]: arm for one in str(digests).split() if (arm := home.get(one))}.values()
        ),
    }
    page = environment.get_template(template)
    runs.write(path, page.render(title=title, here=path.name, all_arms=arms, **content))


# ---- what the pages show


def arms_of(results):
    """The finished runs of a profile by arm: name, settings, and of each run its fields, record and
    files; ``ValueError`` if damaged.
    """
    plan, arms = results.plan(), []
    rows = results.finished(list(plan["runs"]))
    amount = rows.imbalance.map(lambda ratio: f" {ratio:g}" if ratio else "")
    names = (
        rows.method
        + " on "
        + rows.dataset
        + ", "
        + rows.subset.str.replace("_", " ")
        + amount
        + rows.added.map(
            lambda added: "" if added == "none" else f", with images picked by {added}"
        )
    )
    rows = rows.assign(
        arm=tables.told_apart(names, rows, ["budget", "schedule", "head_layers", *tables.SETTINGS])
    )
    for (name, *_), part in rows.groupby(["arm", *ARM], sort=False):
        members = [
            record(results, one, plan["measured"].get(one["run"], {}))
            for one in part.sort_values("split").to_dict("records")
        ]
        settings = {
            field: part.iloc[0][field] for field in ARM if part.iloc[0][field] not in ("", 0)
        }
        arms.append(
            {
                "name": name,
                "id": f"arm-{members[0]['digest']}",
                "settings": settings,
                "runs": members,
            }
        )
    return sorted(arms, key=lambda arm: arm["name"])


def record(results, run, measured):
    """One finished run: its fields, what ``done.json`` says, its files, and the seconds that it
    took and its measurements took.
    """
    folder = paths.inside(results.store, run["run"])
    files = {name: folder / name for name in ("run.json", "done.json", "log.csv", "notes.csv.gz")}
    files |= {name: folder / f"{file}.csv" for name, file in measured.items()}
    told = [folder / f"{file}.json" for file in measured.values()]
    told = [runs.read_record(file) for file in told if file.exists()]
    return {
        **run,
        **runs.read_record(folder / "done.json"),
        "digest": run["run"].rpartition("-")[2],
        "files": {name: file for name, file in files.items() if file.exists()},
        "measuring": sum(one.get("seconds", 0) for one in told),
        "measured_at": sorted({one["commit"] for one in told if "commit" in one}),
    }


def costs(arms):
    """Core-hours (device-hours of a GPU) of training and of measuring on each machine that the runs
    name.
    """
    rows = pd.DataFrame([run for arm in arms for run in arm["runs"]])
    if not len(rows):
        return []
    units = rows.processes * rows.threads.where(rows.device == "cpu", 1) / 3600
    rows = rows.assign(training=rows.seconds * units, measuring=rows.measuring * units)
    machines = rows.groupby(["device", "threads", "processes", "torch"])
    return (
        machines.agg(
            runs=("run", "size"), training=("training", "sum"), measuring=("measuring", "sum")
        )
        .reset_index()
        .to_dict("records")
    )


def pictures(folder):
    """The figures of a folder: name -> files, width and height, and the caption and runs that the
    PNG holds, if it does.
    """
    from PIL import Image

    found = {}
    for png in sorted(folder.glob("*.png")):
        with Image.open(png) as image:
            size, text = image.size, getattr(image, "text", {}).get("Description", "{}")
        try:
            told = dict(json.loads(text))
        except (ValueError, TypeError):  # drawn by something else
            told = {}
        files = {
            kind: png.with_suffix(f".{kind}")
            for kind in ("png", "pdf", "csv")
            if png.with_suffix(f".{kind}").exists()
        }
        found[png.stem] = {
            "name": png.stem,
            "files": files,
            "size": size,
            "caption": str(told.get("caption") or ""),
            "runs": runs.short_names(told.get("runs", {})),
        }
    return found


def card(notebook, folder, shown, judged):
    """What the front page says of a notebook: its status, page, answer and figures, the key figure
    first.

    The cell with the tag ``key`` draws that figure. The answer is what it prints, and then the
    primary claims that the notebook's rows decide or leave open.
    """
    links = {
        status: folder / f"{notebook.name}{ending}"
        for status, ending in [("failed", ".failed.ipynb"), ("executed", ".ipynb")]
        if (folder / f"{notebook.name}{ending}").exists()
    }
    if not executed(folder / f"{notebook.name}.ipynb"):
        links.pop("executed", None)
    status = next(iter(links), "not run on this machine")
    saved = [begin for cell in key_first(notebook.cells) for begin in SAVED.findall(source(cell))]
    names = dict.fromkeys(
        name
        for begin in saved
        for name in shown
        if name == begin or begin.endswith("_") and name.startswith(begin)
    )
    mine = judged[judged.notebook == notebook.name]
    counts = mine.verdict.value_counts()
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return {
        "notebook": notebook,
        "status": status,
        "link": links.get(status),
        "figures": [shown[name] for name in names],
        "answer": printed_by_key(executed(links[status])) if status == "executed" else "",
        "claims": reports.worth_telling(mine)["primary"],
        "verdicts": f"Statements judged by its rows: {counts.sum()}, of them {verdicts}."
        if len(counts)
        else "",
    }


def key_first(cells):
    """Cells in their order, but the one that the tag ``key`` marks before the others."""
    return sorted(cells, key=lambda cell: "key" not in cell["metadata"].get("tags", []))


def executed(copy):
    """An executed notebook from its file; None where there is none, or a damaged one."""
    import nbformat

    with contextlib.suppress(Exception):  # whatever nbformat makes of a damaged file
        book = nbformat.read(copy, as_version=4)
        nbformat.validate(book)
        return book
    return None


def printed_by_key(book):
    """What the cell with the tag ``key`` of an executed notebook printed."""
    cell = key_first(book.cells)[0]
    return "".join(text for output in cell.get("outputs", []) for text in output.get("text", []))


def shown_tables(folder):
    """The written tables: name, title, note, files, what is the same in all lines, the other
    columns, the lines with the paper's beside.
    """
    titles = reports.table_titles()
    for csv in sorted(folder.glob("*.csv"), key=lambda file: (file.stem not in titles, file.stem)):
        lines = tables.with_papers_beside(
            runs.read_written(csv, "09_tables", dtype=str, keep_default_na=False)
        )
        note = (
            csv.with_suffix(".md").read_text(encoding="utf-8").strip().rpartition("\n\n")[2]
            if csv.with_suffix(".md").exists()
            else ""
        )
        names = [
            name
            for name in (lines[0] if lines else [])
            if name not in ("runs", "paper", "difference")
        ]
        same = {
            name: lines[0][name]
            for name in names
            if len(lines) > 1 and len({line[name] for line in lines}) == 1
        }
        yield {
            "name": csv.stem,
            "title": titles.get(csv.stem, csv.stem.replace("_", " ")),
            "note": note,
            "lines": lines,
            "columns": [name for name in names if name not in same],
            "same": {name: value for name, value in same.items() if value},
            "files": [
                file for file in sorted(folder.glob(f"{csv.stem}.*")) if file.stem == csv.stem
            ],
        }


def finder(plan):
    """REPRODUCE.md as HTML, with what this profile has of each thing, and its links as seen from
    the profile's pages.
    """
    import mistune

    above = quote(os.path.relpath(paths.OUTPUT, plan.folder))
    page = mistune.create_markdown(plugins=["table"])(
        reports.reproduce_page(plan.profile).replace("](", f"]({above}/")
    )
    return page.replace("<table>", WIDE.format("table") + "<table>").replace(
        "</table>", "</table></div>"
    )


# ---- notebooks


def write_page(notebook, folder, shown):
    """The executed copy of a notebook as a page, unless there is one that is newer than the copy
    and this module.
    """
    copy, page = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.html"
    if page.exists() and page.stat().st_mtime >= max(
        copy.stat().st_mtime, Path(__file__).stat().st_mtime
    ):
        return
    from nbconvert import HTMLExporter

    book, heading = executed(copy), notebook.title
    for cell in book.cells:
        if cell.cell_type == "markdown":
            heading = (
                [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
                or [heading]
            )[-1]
        captions = [shown[name]["caption"] for name in SAVED.findall(cell.source) if name in shown]
        for output in cell.get("outputs", []):
            output.setdefault("metadata", {}).update(
                alt=f"Figure: {heading}", caption=" ".join(filter(None, captions))
            )
    exporter = HTMLExporter(
        raw_template=_CELLS, exclude_anchor_links=True, filters={"formulas": formulas}
    )
    write_html(page, "notebook.html", notebook.title, cells=exporter.from_notebook_node(book)[0])


def formulas(text):
    """HTML with its TeX formulas as pictures inside the page, without script or font; what
    Matplotlib cannot draw stays TeX.
    """
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    def drawn(found):
        tex, file = " ".join(html.unescape(found[1] or found[2]).split()), io.BytesIO()
        known = tex.replace(r"\Bigl", r"\left").replace(r"\Bigr", r"\right")
        try:
            with matplotlib.rc_context({"savefig.transparent": True}):
                depth = math_to_image(
                    f"${known}$",
                    file,
                    prop=FontProperties(size=15 if found[1] else 12),
                    dpi=72,
                    format="svg",
                )
        except ValueError:  # Matplotlib knows a part of TeX
            return f"<code>{html.escape(tex)}</code>"
        kind = "display" if found[1] else "inline"
        return (
            f'<img class="formula {kind}" alt="{html.escape(tex)}" '
            f'style="vertical-align: -{depth / 12:.2f}em" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}">'
        )

    return MATH.sub(drawn, text)
