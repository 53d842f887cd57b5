"""HTML for people who run nothing: a page for each executed notebook, and the index that leads to them."""

import os
from pathlib import Path

from longtail.store import paths

PAGE = """{% extends 'lab/index.html.j2' %}{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}{% block html_head_js_mermaidjs %}{% endblock %}"""     # no script from elsewhere


def write_page(executed, title, path):
    """One executed notebook as a page that loads nothing from elsewhere."""
    from nbconvert import HTMLExporter
    executed.metadata["title"] = title
    path.write_text(HTMLExporter(raw_template=PAGE).from_notebook_node(executed)[0], encoding="utf-8")


def write_index(plan, known):
    """The page that leads to every notebook, table and figure of the profile; returns its path for the terminal."""
    import jinja2
    rows, tables = [], {}
    for notebook, _ in plan.usual:
        links = {status: f"{notebook.name}{ending}" for status, ending in [("failed", ".failed.ipynb"), ("executed", ".html")]
                 if (plan.folder / f"{notebook.name}{ending}").exists()}
        status = next(iter(links), "not run")
        rows.append({"notebook": notebook, "status": status, "link": links.get(status), **known.get(notebook.name, {})})
    for path in sorted((plan.folder.parent / "tables").glob("*")):
        tables.setdefault(path.stem, []).append(os.path.relpath(path, plan.folder))
    figures = [os.path.relpath(path, plan.folder) for path in sorted((paths.FIGURES / plan.profile).glob("*.png"))]
    page = jinja2.Template(Path(__file__).with_name("index.html").read_text(encoding="utf-8"), autoescape=True)
    text = page.render(profile=plan.profile, about=plan.about, rows=rows, tables=tables, figures=figures)
    (plan.folder / "index.html").write_text(text, encoding="utf-8")
    return os.path.relpath(plan.folder / "index.html")
