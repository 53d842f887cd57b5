"""Two pages that are generated: results/README.md, what every profile found, and REPRODUCE.md, how
each printed thing is reproduced.
"""

import os
from functools import cache
from urllib.parse import quote

import pandas as pd

from longtail.papers import claims, printed, tables
from longtail.store import paths, runs
from longtail.store.settings import read_yaml

STATES = """- **available**: code, settings and the command are here; nothing of it has been run.
- **functional**: it has run on other data or at other settings; such numbers are never held
  against the paper's. What was made, and the command for that alone, are named.
- **reproduced**: it has run on the paper's data at its published settings (3 of 5: three of its
  five rows or claims)."""

PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper, textwidth=7in, textheight=10in]{geometry}
\usepackage{adjustbox, booktabs, caption, graphicx, pdflscape}
\setlength\parindent{0pt}
\begin{document}
"""
TITLES = {
    "balanced_and_long_tail": "SimCLR on balanced and on long-tailed lists, accuracy in percent",
    "encoders": "Every encoder by each probe, accuracy in percent",
    "family_gains": "Gain of each method over the one that it builds on, points",
    "reseeding": "How far a probe moves when it is seeded anew, points",
    "supervised_heads": "Other heads on the same features, accuracy in percent",
    "supervised_methods": "Learning with labels, percent",
    "tail_costs": "Accuracy of the balanced list less that of the long-tailed one, points",
    "tried": "Comparisons with one thing changed",
}
LONG = 150  # signs of a line from which a table lies across the page
PART = r"""\begin{{minipage}}{{\linewidth}}\centering\captionof{{{0}}}{{{1}}}
\adjustbox{{max width=\linewidth, max totalheight=0.85\vsize}}{{{2}}}
\end{{minipage}}\par\bigskip
"""
ACROSS = "\\begin{landscape}\n", "\\end{landscape}\n"
END = "\\end{document}\n"


def write_reports():
    """Write both pages anew from the papers' files, the profiles, and the tables and claims that
    profiles have.
    """
    runs.write(paths.RESULTS / "README.md", results_page())
    runs.write(paths.OUTPUT / "REPRODUCE.md", reproduce_page())


@cache
def profiles():
    """Every profile, name -> its settings."""
    return read_yaml(paths.NOTEBOOKS / "profiles.yaml")


@cache
def shipped():
    """Profiles whose results are kept with the code; one that git ignores, such as the demo, is
    yours alone.
    """
    ignored = (paths.ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return [name for name in profiles() if f"results/{name}/" not in ignored]


def worth_telling(judged):
    """Of lines of ``claims.judged`` or ``claims.read_claims`` the primary ones, then the
    exploratory ones that were decided, by kind.
    """
    primary = judged.primary.astype(str).str.lower().eq("true")
    decided = judged.verdict.isin(["supported", "contradicted", "smaller"])
    kinds = {"primary": judged[primary], "exploratory": judged[~primary & decided]}
    return {kind: lines.to_dict("records") for kind, lines in kinds.items()}


def findings(judged):
    """Sentences on ``worth_telling`` claims."""
    return [
        f"{claims.finding(line)} ({line['paper']}, {kind})"
        for kind, lines in worth_telling(judged).items()
        for line in lines
    ]


def findings_table(judged):
    """The primary claims of ``claims.read_claims`` as a table in Markdown: claim, effect with 95 %
    interval, n, paper's effect, verdict.
    """
    lines = [
        [
            f"{line['claim']} ({line['paper']})",
            f"{line['effect']:+.2f} [{line['low']:+.2f}, {line['high']:+.2f}]",
            line["n"],
            f"{line['paper_effect']:+.2f}" if pd.notna(line["paper_effect"]) else "not printed",
            line["verdict"],
        ]
        for line in worth_telling(judged)["primary"]
    ]
    return _table(["claim", "effect [95 % interval]", "n", "the paper's", "verdict"], lines)


def results_page():
    """results/README.md: for every profile its findings in sentences and its tables."""
    parts = [
        "# Results\n\nWritten by `10_claims` from the rows of every profile; do not edit. How "
        "things are reproduced, and what was "
        "not run: [REPRODUCE.md](../REPRODUCE.md)."
    ]
    for name in shipped():
        tables = sorted((paths.RESULTS / name / "tables").glob("*.md"))
        judged = claims.read_claims(paths.RESULTS / name)
        if not len(judged) and not tables:
            continue
        sentences = findings(judged)
        undecided = len(judged) - len(sentences)
        parts.append(f"## {name}\n\n{' '.join(profiles()[name].get('about', '').split())}")
        parts.append(
            "\n".join(
                [
                    *(f"- {sentence}" for sentence in sentences),
                    *(
                        [
                            f"- {undecided} further exploratory claims are undecided or not "
                            "tested: "
                            f"[claims.csv]({name}/claims.csv)."
                        ]
                        if undecided
                        else []
                    ),
                ]
            )
            or "No claim has been judged."
        )
        notes = {}
        for file in tables:
            table, _, note = file.read_text(encoding="utf-8").strip().partition("\n\n")
            notes.setdefault(note, []).append(file.stem)
            parts.append(f"### {name}: {file.stem}\n\n{table}")
        parts += [f"{', '.join(names)}: {note}" for note, names in notes.items() if note]
    return "\n\n".join(parts) + "\n"


def reproduce_page(here=""):
    """REPRODUCE.md: each table, figure and claim of the papers with its command, hardware, cost and
    state.

    With the name of a profile the first list says too what that profile has of each thing.
    """
    known = profiles()
    lines = [
        "# How each table, figure and claim is reproduced\n\nWritten by `10_claims` from the "
        "papers' files, the profiles and the "
        "results; do not edit. A command makes everything that its profile has; finished runs are "
        "reused. `./run_all.sh cifar10-small --redraw` draws the figures and tables of its shipped "
        "rows anew, in a minute, without data, weights or GPU; figures made of pictures need the "
        "data.\n\n" + STATES,
        "## Finder: tables and figures",
        _table(
            [
                "paper",
                "table or figure",
                "data",
                *(["here"] if here else []),
                "file",
                "command",
                "hardware",
                "cost",
                "state",
            ],
            [
                line
                for paper in printed.papers().values()
                for line in _printed_things(paper, known, here)
            ],
        ),
        "## Claims",
        "Each line is one statement of a paper, asked of several protocols, measures and data "
        "sets. Whether a printed "
        "number is met is a claim as well; those go with the tables above.",
    ]
    for paper in printed.papers().values():
        names = ["claim", "where", "command", "hardware", "cost", "state"]
        lines += [f"### {paper.name}: {paper.title}", _table(names, _claim_lines(paper, known))]
    return "\n\n".join(lines) + "\n"


def document(profile, captions):
    """LaTeX that puts the tables of a profile and its figures (name -> caption) into one document,
    for ``results/<profile>/notebooks``.
    """
    tabulars = sorted((paths.RESULTS / profile / "tables").glob("*.tex"))
    figures = os.path.relpath(paths.FIGURES / profile, paths.RESULTS / profile / "notebooks")
    titles, like = table_titles(), {}
    for paper in printed.papers().values():
        like |= {
            figure["file"]: f"{paper.name}, {title}" for title, figure in paper.figures.items()
        }
    content = [
        ("table", titles.get(file.stem, file.stem), rf"\input{{../tables/{file.name}}}", wide(file))
        for file in tabulars
    ]
    content += [
        (
            "figure",
            (f"(As {like[name]}.) " if name in like else "") + (caption or name),
            rf"\includegraphics{{{figures}/{name}.pdf}}",
            False,
        )
        for name, caption in captions.items()
    ]
    return (
        PREAMBLE
        + "".join(
            across[0] + PART.format(kind, tables.latex(caption.replace("_", " ")), part) + across[1]
            for kind, caption, part, lies in content
            for across in [ACROSS if lies else ("", "")]
        )
        + END
    )


def wide(tabular):
    """Whether a table has a line too long for an upright page."""
    lines = tabular.read_text(encoding="utf-8").replace(r"$\pm$", "±").splitlines()
    return max(len(line) for line in lines if not line.startswith("%")) > LONG


def table_titles():
    """What each table is called, by the name of its file."""
    return TITLES | {
        name: f"{paper.name}, {table['table']}: {printed.IN_WORDS[table['protocol']]}"
        for paper in printed.papers().values()
        for name, table in paper.tables.items()
    }


def _table(names, lines):
    rows = [names, ["---"] * len(names), *lines]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _costs(names, known):
    """Commands, hardware and cost of some profiles; of none: that there is none."""
    if not names:
        return ["no profile makes it", "", ""]
    kind = "gpus" if "gpus" in known[names[0]] else "cores"
    counts, words = (
        [known[name][kind] for name in names],
        {"gpus": ("GPU", "GPU-hours"), "cores": ("CPU core", "core-hours")}[kind],
    )
    hours = sum(count * known[name]["hours"] for count, name in zip(counts, names, strict=True))
    return [
        ", ".join(f"`./run_all.sh {name}`" for name in names),
        f"{max(counts)} {words[0]}{'s' if max(counts) > 1 else ''}",
        f"{hours:g} {words[1]}",
    ]


def _printed_things(paper, known, here):
    """The lines of a paper's tables, by data set, and of its figures; ``here`` as for
    ``reproduce_page``.
    """
    for name, table in paper.tables.items():
        rows = paper.table(name)
        for dataset, theirs in rows.groupby("dataset", sort=False):
            made = (
                table.get("profiles", paper.profiles.get(dataset, []))
                if "missing" not in table
                else []
            )
            ours = {where: _ours(where, name) for where in shipped()}
            full = sum(
                (lines.status.eq("full") & lines.data.str.startswith(dataset + " ")).sum()
                for lines in ours.values()
            )
            others = [
                _shown(where, "09", f"results/{where}/tables/{name}.md")
                for where, lines in ours.items()
                if len(lines)
            ]
            files = ", ".join(_link(f"results/{profile}/tables/{name}.md") for profile in made)
            yield [
                paper.name,
                f"{table['table']}: {printed.IN_WORDS[table['protocol']]}",
                dataset,
                *_here(here, paths.RESULTS, f"tables/{name}.md"),
                files,
                *_costs(made, known),
                _state(full, len(theirs), others, made)
                + (f": {table['missing']}" if "missing" in table else "")
                + "".join(
                    f"; the same comparison by another probe: {_shown(where, '09', file)}"
                    for where, file in table.get("nearest", {}).items()
                    if not others
                ),
            ]
    for title, figure in paper.figures.items():
        drawn = {name: f"figures/{name}/{figure['file']}.pdf" for name in shipped()}
        drawn = {name: file for name, file in drawn.items() if (paths.OUTPUT / file).exists()}
        wanted = f"figures/{figure['profile']}/{figure['file']}.pdf"
        others = [_shown(name, figure["notebook"], file) for name, file in drawn.items()]
        state = _state(int(figure["profile"] in drawn), 1, others, [figure["profile"]])
        yield [
            paper.name,
            title,
            "",
            *_here(here, paths.FIGURES, f"{figure['file']}.pdf"),
            _link(wanted),
            *_costs([figure["profile"]], known),
            state,
        ]


def _ours(profile, name):
    """The lines of a written table of a paper that have our numbers."""
    file = paths.RESULTS / profile / "tables" / f"{name}.csv"
    table = (pd.read_csv(file, dtype=str) if file.exists() else pd.DataFrame(dtype=str)).reindex(
        columns=["data", "source", "status"]
    )
    return table[table.source == "ours"].astype(str)


def _claim_lines(paper, known):
    """One line for each statement of a paper, over the protocols, measures and data that it is
    asked of.
    """
    asked = {}
    for claim in claims.claims_of(paper):
        if not claim.data:
            asked.setdefault((claim.entry["claim"], claim.entry["where"]), []).append(claim)
    judged = {
        name: lines for name in shipped() if len(lines := claims.read_claims(paths.RESULTS / name))
    }
    for (statement, where), group in asked.items():
        ids = {claim.id for claim in group}
        found = {
            name: lines[lines.id.str.split("@").str[0].isin(ids)] for name, lines in judged.items()
        }
        done = len(
            {one for lines in found.values() for one in lines.id[lines.scope == "paper's data"]}
        )
        own = [name for name, lines in found.items() if lines.scope.eq("own data").any()]
        every = sum(claim.even == data.endswith(" 1") for claim in group for data in paper.data)
        usual = list(dict.fromkeys(name for names in paper.profiles.values() for name in names))
        made = group[0].entry.get("profiles", usual)
        yield [
            statement,
            where,
            *_costs(made, known),
            _state(done, every, own, made),
        ]


def _here(profile, root, file):
    """The cell that says what a profile, if one is named, has of a thing."""
    there = root / profile / file
    return (
        [f"[{there.name}]({quote(os.path.relpath(there, paths.OUTPUT))})" if there.exists() else ""]
        if profile
        else []
    )


def _shown(profile, notebook, file):
    """A file of a profile, with the command that makes it of the runs that are there."""
    return f"{_link(file)} (`./run_all.sh {profile} {notebook}`)"


def _link(file):
    return f"[{file.rpartition('/')[2]}]({file})" if (paths.OUTPUT / file).exists() else f"`{file}`"


def _state(done, all_of_them, others, available):
    if done:
        return "reproduced" if done >= all_of_them else f"reproduced ({done} of {all_of_them})"
    if others:
        return f"functional: {', '.join(others)}"
    return "available, not run" if available else "not available"
