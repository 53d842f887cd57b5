"""Tables: all outcomes of a profile, the papers' tables with our numbers beside theirs, gains; as
CSV, Markdown and LaTeX.
"""

import unicodedata

import numpy as np
import pandas as pd

from longtail.learn import methods
from longtail.papers import figures
from longtail.papers.printed import GROUPS, MEASURES, PICKING, ROW_KEYS, row_label
from longtail.store import runs

NOTE = (
    "Percent. balance: population standard deviation over many, medium and few inside one run, "
    "then averaged over runs (the papers' "
    "column Std). ±: population standard deviation over splits or seeds. full: the paper's data at "
    "its published settings; quarter: "
    "the same for a quarter of the epochs; JPEG copy: the same on images decoded from JPEG; cut: "
    "the paper's data at other settings; "
    "own data: other images. A difference is shown for full rows only."
)
LOSSES_NOTE = (
    "Percent, last epoch, mean ± population standard deviation over splits and seeds. gain: "
    "balanced accuracy above "
    "cross-entropy's on the same list and seed, points; se: its standard error."
)
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    **{
        letter: f"$\\{unicodedata.name(letter).split()[-1].lower()}$"
        for letter in "αβγδεζηθικμνξπρστυχψω"
    },
    "λ": r"$\lambda$",  # which Unicode calls lamda
    "φ": r"$\varphi$",
}
SINGLE = (
    "converged",
    "nearest",
)  # selections of protocols without a training length: nothing to choose
SETTINGS = [
    "largest",
    "architecture",
    "size",
    "epochs",
    "policy",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_epochs",
    "temperature",
    "prune_fraction",
    "options",
    "precision",
    "drops",
    "drop",
    "jpeg",
]
PAIRED = [
    "dataset",
    "imbalance",
    "architecture",
    "size",
    "policy",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "precision",
    "head_layers",
    "largest",
    "drops",
    "drop",
    "jpeg",
    "protocol",
    "group",
    "split",
    "seed",
]  # equal in a pair, if there
WORDED = ["protocol", "probe", "list", "encoder", "added", "schedule", "method", "against"]
CONTROLS = {"gh": "two_stage"}  # what a method is set against beside the one that it builds on


def told_apart(names, rows, keys):
    """The names, a series, each with those settings of ``rows`` that differ among rows so called:
    ``simclr, weight_decay 0.0005``.
    """
    for key in (key for key in keys if key in rows):
        several = rows[key].groupby(names).transform("nunique") > 1
        names = names.mask(several, names + f", {key} " + rows[key].astype(str))
    return names


def encoders(rows):
    """What each row's encoder is called: its method, its head where it is not the published one,
    and what else sets it apart.

    ``rows`` have all fields of their runs, as those of ``finished`` and ``outcomes``; series with
    their index. Networks trained on labels have no head: their arm is their name.
    """
    arms = rows.arm if "arm" in rows else pd.Series(np.nan, rows.index, dtype=object)
    published = {name: methods.find(name).head_layers for name in rows.method[arms.isna()].unique()}
    names = rows.method.where(
        rows.head_layers == rows.method.map(published),
        rows.method + ", " + rows.head_layers.astype(str) + "-layer head",
    )
    return told_apart(
        arms.where(arms.notna(), names),
        rows,
        [name for name in SETTINGS if name not in ("architecture", "size")],
    )


def outcomes(results, selection="last_epoch"):
    """One row per finished run and protocol: the run's fields, how its images were picked, and
    MEASURES in percent.

    ``selection`` chooses among the classifiers of a protocol: last_epoch, or best_validation, which
    papers use and which picks by luck too. Protocols that have one classifier only (converged,
    nearest) are always there. Networks trained on labels have the protocol ``labels``, one row for
    each way to decide, with their arm, their list (kind, ratio, largest), ``error`` and
    ``balanced``, the mean over classes. ``data`` is the data set, of theirs with the list: "cifar10
    exponential 100".
    """
    done, scores = results.finished(), results.scores()
    scores = scores[(scores.selection == selection) | scores.selection.isin(SINGLE)]
    wide = (
        scores.pivot(index=["run", "protocol"], columns="group", values="accuracy")
        .reindex(columns=[*GROUPS, "all"])
        .astype(float)
    )
    wide = wide.reset_index().merge(_picking(results, done), on="run")
    both = [
        frame for frame in (wide.assign(data=wide.dataset), _with_labels(results)) if len(frame)
    ]
    wide = pd.concat(both, ignore_index=True) if both else wide.assign(data=wide.dataset)
    wide = wide.assign(arm=wide.get("arm", pd.Series(index=wide.index, dtype=object)))
    return wide.assign(
        balance=np.std(wide[GROUPS].to_numpy(float), axis=1) if len(wide) else [],
        error=100 - wide["all"],
    )


def with_labels(results):
    """Accuracies of networks trained on labels, one row a run, method of deciding and group, with
    all fields of the run.

    Further columns: kind and ratio of the list, imbalance (both), arm (the loss, with its
    parameters).
    """
    done = results.finished("labels").rename(columns={"subset": "kind", "imbalance": "ratio"})
    done = done.assign(
        arm=(done.method + " " + done.options).str.strip(),
        imbalance=done.kind + " ratio=" + done.ratio.map("{:g}".format),
    )
    scores = results.scores("labels").drop(columns="subset")
    return scores.merge(done[["run", *done.columns.difference(scores.columns)]], on="run")


def _with_labels(results):
    """The rows of ``outcomes`` from networks trained on labels; fields that only other runs have
    are 0 or empty.
    """
    scores = with_labels(results)
    scores = scores[scores.group.isin([*GROUPS, "all", "balanced"])]
    wide = scores.pivot(index=["run", "method"], columns="group", values="accuracy").reindex(
        columns=[*GROUPS, "all", "balanced"]
    )
    known = scores.drop(columns=["group", "accuracy", "images"]).drop_duplicates(["run", "method"])
    usual = {
        "subset": "long_tail",
        "added": "none",
        "schedule": "epochs",
        "sampling_set": "none",
        **dict.fromkeys(PICKING, 0.0),
    }
    wide = wide.reset_index().merge(known, on=["run", "method"])
    return wide.assign(
        **usual,
        protocol="labels",
        data=wide.dataset + " " + wide.kind + " " + wide.ratio.map("{:g}".format),
    )


def _picking(results, done):
    """The runs with the pool and the parameters their extra images were picked with, as
    ``sampling_set`` and PICKING.
    """
    picked = results.read("picked")
    picked = picked.loc[:, ~picked.columns.duplicated(keep="last")].rename(
        columns={"pool": "sampling_set"}
    )
    picked = picked.reindex(columns=["run", "sampling_set", *PICKING]).drop_duplicates("run")
    frame = done.merge(picked, on="run", how="left").astype(dict.fromkeys(PICKING, float))
    frame.loc[frame.added != "mak", list(PICKING)] = 0.0
    unnamed = frame.added.map(lambda added: "none" if added == "none" else "unnamed pool")
    return frame.assign(sampling_set=frame.sampling_set.astype(object).fillna(unnamed))


def status(rows, paper):
    """What each row's settings allow to compare, series of text: full, JPEG copy, quarter, cut (the
    paper's data) or own data.
    """
    full, quarter = (_as_published(rows, paper.settings, length) for length in (1, 1 / 4))
    jpeg = rows.jpeg.eq(True) if "jpeg" in rows else np.zeros(len(rows), bool)
    here = rows.dataset.isin([one["dataset"] for one in paper.settings])
    return pd.Series(
        np.select(
            [full & jpeg, full, quarter, here], ["JPEG copy", "full", "quarter", "cut"], "own data"
        ),
        rows.index,
        object,
    )


def _as_published(rows, settings, length):
    """Which rows have one of the settings, in each field that it names, for this share of its
    epochs.
    """
    found = np.zeros(len(rows), bool)
    for wanted in settings:
        wanted = wanted | {"epochs": length * wanted["epochs"]}
        listed = {
            name: value if isinstance(value, list) else [value] for name, value in wanted.items()
        } | {"subset": ["long_tail"]}
        found |= np.logical_and.reduce(
            [
                rows[name].isin(values) if name in rows else found & False
                for name, values in listed.items()
            ]
        )
    return found


def with_ours(ours, paper, name, whole=False):
    """A paper's table with our numbers (rows of ``outcomes``): for each of its rows that we ran a
    line for theirs and a line for ours.

    Columns: data, pool (where images were added), row, source (paper, ours, ours with equal
    updates, difference), the measures that the paper prints, status, runs. Rows of ours that the
    paper has not come last. A row without a number of ours is left out, ``not_run`` counts; in the
    ``whole`` table it stands as printed, with the status "not run".
    """
    printed, ours = paper.table(name), _candidates(ours, paper.table(name))
    ours = ours.assign(status=status(ours, paper))
    lines, used = [], set()
    for _, row in printed.iterrows():
        match = ours[_same(ours, row)]
        used |= set(match.index)
        for group in _alike(match):
            lines += _lines(group, row, paper.digits, printed)
        if whole and not len(match):
            told = {measure: _printed(row, measure) for measure in _measures(printed)}
            head = {"data": row.get("data", row["dataset"]), "row": row_label(row)}
            pool = "none" if row["added"] == "none" else f"{row['sampling_set']}, {row['budget']}"
            lines.append({**head, "pool": pool, "source": "paper", **told, "status": "not run"})
    own = ours.drop(index=list(used))
    own = own.assign(
        label=told_apart(
            pd.Series([row_label(row) for _, row in own.iterrows()], own.index, dtype=object),
            own,
            SETTINGS,
        )
    )
    places = {
        pair: place for place, pair in enumerate(zip(printed.method, printed.added, strict=True))
    }
    own = own.assign(
        order=[places[pair] for pair in zip(own.method, own.added, strict=True)]
    ).sort_values("order", kind="stable")
    for group in _alike(own):
        lines += _lines(group, None, paper.digits, printed)
    table = pd.DataFrame(
        lines, columns=["data", "pool", "row", "source", *_measures(printed), "status", "runs"]
    )
    return table.drop(columns="pool") if table.pool.eq("none").all() else table


def not_run(ours, paper, name):
    """How many rows of a paper's table have no number of ours at the published settings, and how
    many rows there are.
    """
    printed, ours = (
        paper.table(name),
        ours[status(ours, paper).eq("full") & ~ours.schedule.eq("updates")],
    )
    ours = _candidates(ours, printed)
    return sum(not _same(ours, row).any() for _, row in printed.iterrows()), len(printed)


def _measures(printed):
    return [
        name
        for name in (*MEASURES, "error")
        if f"{name}_text" in printed and printed[f"{name}_text"].notna().any()
    ]


def _same(ours, row):
    """Which of our rows are what a printed row is about; a key that was not printed fits all, but a
    method that we do not have fits none.
    """
    if pd.isna(row["method"]):
        return pd.Series(False, ours.index)
    keys = [key for key in ROW_KEYS if key in row and pd.notna(row[key])]
    return (ours[keys] == row[keys]).all(axis=1)


def _candidates(ours, printed):
    """Our rows that have a place in the table; equal updates become a column ``updates``, so that
    they stand beside equal epochs.
    """
    ours = ours.assign(
        updates=ours.schedule.eq("updates"), schedule=ours.schedule.replace("updates", "epochs")
    )
    kinds = pd.MultiIndex.from_frame(ours[["protocol", "subset", "method", "added", "schedule"]])
    asked = pd.MultiIndex.from_frame(printed[kinds.names])
    return ours[kinds.isin(asked) & (usual(ours) | ~usual(printed).all())]


def usual(rows):
    """Which rows are no part of a sensitivity study: MAK with its own parameters, and everything
    else.
    """
    return (rows.added != "mak") | (rows[list(PICKING)] == pd.Series(PICKING)).all(axis=1)


def _alike(rows):
    """Groups of rows that differ in split, seed and the images that these bring alone, those at
    published settings first.
    """
    place = [name for name in ("status", "seed_images", *SETTINGS, *ROW_KEYS) if name in rows]
    return sorted(
        (group for _, group in rows.groupby(place, dropna=False, sort=False)),
        key=lambda group: group.status.iloc[0] != "full",
    )


def _lines(ours, printed, digits, table):
    """One row of a table: the paper's line, if it has one, ours, and the difference where both are
    at the published settings.
    """
    first, measures = ours.iloc[0], _measures(table)
    head = {
        "data": f"{first['data']}, {first['architecture']}, {first['epochs']} epochs",
        "pool": "none"
        if first["added"] == "none"
        else f"{first['sampling_set']}, {first['budget']}",
        "row": first["label"] if printed is None else row_label(printed),
    }
    lines = (
        {} if printed is None else {"paper": {name: _printed(printed, name) for name in measures}}
    )
    for source, rows in (
        ("ours", ours[~ours.updates]),
        ("ours, equal updates", ours[ours.updates]),
    ):
        if len(rows):
            lines[source] = {name: spread(rows[name], digits) for name in measures} | {
                "runs": runs.short_names(rows.run)
            }
    if first["status"] == "full" and {"paper", "ours"} <= lines.keys():
        means = ours[~ours.updates][measures].mean()
        lines["difference"] = {
            name: f"{means[name] - printed[name]:+.{digits}f}"
            for name in measures
            if pd.notna(printed[name])
        }
    return [
        {**head, "source": source, **line, "status": first["status"]}
        for source, line in lines.items()
    ]


def _printed(row, measure):
    """The paper's number with the digits it was printed with."""
    error, count = row.get(f"{measure}_err"), row.get("runs")
    text = row[f"{measure}_text"]
    return (
        ""
        if pd.isna(text)
        else text
        + (f" ± {error}" if pd.notna(error) else "")
        + (f" (n={count})" if pd.notna(count) else "")
    )


def spread(values, digits=1):
    """``81.2 ± 0.4 (n=5)``: mean and population standard deviation over runs; one run has no ±,
    none is ``not run``.
    """
    values = np.asarray(values, float)
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation} (n={len(values)})" if len(values) else "not run"


def with_papers_beside(table):
    """The lines of a written table as dicts, the paper's and the difference not as lines of their
    own but with ours, by measure.
    """
    if "source" not in table:
        return table.to_dict("records")
    lines, printed, place = [], {}, ["data", "pool", "row"]
    for line in table.to_dict("records"):
        if line["source"] == "paper":
            printed = line
        elif line["source"] == "difference":
            next(one for one in reversed(lines) if one["source"] == "ours")["difference"] = line
        else:
            same = line["source"] == "ours" and [line.get(name) for name in place] == [
                printed.get(name) for name in place
            ]
            lines.append({**line, "paper": printed if same else {}})
    return lines


def spreads(rows, keys):
    """MEASURES of rows of ``outcomes`` as ``spread``, one line for each value of some keys, and the
    runs behind them.
    """
    groups = rows.groupby(keys)
    return groups[MEASURES].agg(spread).assign(runs=groups.run.agg(runs.short_names))


# ---- gains


def paired_gains(rows, bases):
    """Rows of scores (run, method, group, accuracy) with ``gain``, in points, over each method that
    they are set against, in ``against``.

    ``bases``: method -> names of those methods; rows of methods without any are left out. A pair is
    equal in PAIRED; a row without a partner, whose run is ``partner``, has no gain, NaN. Where rows
    have a column ``encoder``, partners are told apart by it.
    """
    keys, named = (
        [name for name in PAIRED if name in rows],
        "encoder" if "encoder" in rows else "method",
    )
    partners = rows[keys].assign(
        against=rows[named], base=rows.method, plain=rows.accuracy, partner=rows.run
    )
    asked = rows.assign(base=rows.method.map(bases)).explode("base").dropna(subset="base")
    found = asked.merge(partners, on=[*keys, "base"], how="left")
    return found.assign(gain=found.accuracy - found.plain)


def builds_on(method):
    """What a self-supervised method is set against: the one it builds on ("sdclr" for "sdclr+bcl",
    SimCLR for one), and its control.
    """
    return [
        name
        for name in (method.rpartition("+")[0] or "simclr", CONTROLS.get(method))
        if name not in (None, method)
    ]


def family_gains(ours):
    """What each method changes in the one that it builds on, with an equal head: points, mean ± sd
    over n pairs of split and seed.

    ``ours``: rows of ``outcomes``. Columns: data, protocol, method, against, n, each of MEASURES,
    and runs.
    """
    ours = ours[ours.subset.eq("long_tail") & ours.added.eq("none") & ours.protocol.ne("labels")]
    ours = ours.assign(encoder=encoders(ours))
    pairs = paired_gains(
        ours.melt([name for name in ours if name not in MEASURES], MEASURES, "group", "accuracy"),
        builds_on,
    )
    pairs = pairs[pairs.against.notna()].assign(
        data=pairs.dataset + ", " + pairs.epochs.astype(str) + " epochs"
    )
    kinds = ["data", "protocol", "encoder", "against"]
    of = pairs[pairs.group == "all"].groupby(kinds, sort=False)
    both = (of.run.agg(" ".join) + " " + of.partner.agg(" ".join)).str.split()
    known = pd.DataFrame({"n": of.size(), "runs": both.map(runs.short_names)})
    wide = (
        pairs.dropna(subset="gain")
        .groupby([*kinds, "group"], sort=False)
        .gain.agg(_gain)
        .unstack("group")
        .reindex(columns=MEASURES)
    )
    return (
        known[["n"]].join(wide).join(known.runs).reset_index().rename(columns={"encoder": "method"})
    )


def _gain(values):
    return f"{values.mean():+.1f}" + (f" ± {values.std(ddof=0):.1f}" if len(values) > 1 else "")


def loss_table(scores):
    """One line a list and method, best first, from ``with_labels``: errors and accuracies as mean ±
    sd (n), and the paired gain.

    Columns: imbalance, method, settings, error, balanced error, many, medium, few, gain (balanced
    accuracy over cross-entropy's, points), se (of the gain), runs.
    """
    scores = scores.assign(arm=told_apart(scores.arm, scores, SETTINGS))
    gained = paired_gains(
        scores[scores.group == "balanced"], lambda method: [] if method == "ce" else ["ce"]
    )
    gained = gained.groupby(["imbalance", "method", "arm"]).gain.agg(["mean", "sem"])
    lines = []
    for (tail, method, arm), rows in scores.groupby(["imbalance", "method", "arm"], sort=False):
        of = {group: part.accuracy for group, part in rows.groupby("group")}
        gain, error = (
            gained.loc[tail, method, arm]
            if (tail, method, arm) in gained.index
            else (0.0, float("nan"))
        )
        lines.append(
            {
                "imbalance": tail,
                "method": method,
                "settings": arm.partition(" ")[2],
                "error": spread(100 - of["all"]),
                "balanced error": spread(100 - of["balanced"]),
                **{group: spread(of[group]) if group in of else "" for group in GROUPS},
                "gain": round(gain, 2),
                "se": round(error, 2),
                "runs": runs.short_names(rows.run),
            }
        )
    order = {tail: place for place, tail in enumerate(scores.imbalance.unique())}
    return pd.DataFrame(lines).sort_values(
        ["imbalance", "gain"],
        key=lambda part: part.map(order) if part.name == "imbalance" else -part,
    )


# ---- files


def write_table(table, name, folder, note=NOTE):
    """Write a table as ``<name>.csv`` (every cell, names as in the code), ``.md`` and ``.tex``
    (words, repeated labels left blank, booktabs), with a note below.

    A column ``runs``, digests of the runs behind each line, is in the CSV alone.

    A table without rows is not written, and what an earlier run wrote under its name is removed.
    """
    files = [folder / f"{name}.{suffix}" for suffix in ("csv", "md", "tex")]
    if not len(table):
        for file in files:
            file.unlink(missing_ok=True)
        return
    shown = table.drop(columns="runs", errors="ignore").astype(object)
    shown = figures.worded(shown.where(shown.notna(), ""), *shown.columns.intersection(WORDED))
    labels = [
        name for name in ("data", "pool", "row", "status") if name in table and "row" in table
    ]
    for depth in range(len(labels), 0, -1):
        shown.loc[
            table[labels[:depth]].eq(table[labels[:depth]].shift()).all(axis=1), labels[depth - 1]
        ] = ""
    style = shown.style.hide(axis="index").format(latex).format_index(latex, axis=1)
    text = style.to_latex(hrules=True, column_format="l" * shown.shape[1]) + f"% {latex(note)}\n"
    content = (
        table.to_csv(index=False),
        shown.to_markdown(index=False, disable_numparse=True) + f"\n\n{note}\n",
        text,
    )
    for file, part in zip(files, content, strict=True):
        runs.write(file, part)


def latex(value):
    """A cell or a caption as LaTeX; numbers with three decimals."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return "".join(LATEX.get(sign, sign) for sign in text)
