"""The tables of the papers on learning with labels, ours beside theirs, and what those papers claim, judged on our runs.

CB: class-balanced loss (Cui et al. 2019). LDAM (Cao et al. 2019). DDC (Wang et al. 2023) as its repository prints it, and the methods that
it builds on, logit adjustment (Menon et al. 2021) and vector scaling (Kini et al. 2021).
"""

from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd

from longtail.label import adjusted, supervised
from longtail.papers import claim_forms, claims, tables
from longtail.store import arms

PAPERS = ("CB", "LDAM", "DDC")
HEAD = {"cifar10": 5000, "cifar100": 500}       # images of the largest class
PUBLISHED = {"architecture": supervised.PUBLISHED_NETWORK, "size": 32, "policy": "cifar_classifier", "split": 0,
             **asdict(supervised.PUBLISHED), "drops": "160 180"}       # precision is free
TAIL = ["dataset", "kind", "ratio"]
SETTINGS = ["largest", "architecture", "size", "policy", "precision", "jpeg", *(one.name for one in fields(supervised.Schedule))]
NOTE = ("Top-1 error on the balanced test set, percent, last epoch; ±: population standard deviation over seeds or splits. full: published "
        "settings; JPEG copy: the same on images decoded from JPEG; cut: the paper's data at other settings; own data: other images. A "
        "difference is shown for full rows only.")
SUMMARY = ("Percent, last epoch, mean ± population standard deviation over splits and seeds. gain: balanced accuracy above cross-entropy's "
           "on the same list and seed, points; se: its standard error.")
HEADS = ("Accuracy in percent, mean ± population standard deviation over splits and seeds: linear heads on frozen encoders, trained on the "
         "labels of the encoder's own long-tailed list.")


def reported():
    """The printed rows: paper, row, arm (``?``: of ours, but with settings that were not printed), dataset, kind, ratio, error as text."""
    rows = pd.read_csv(Path(__file__).with_name("reported_supervised.csv"), dtype=str, keep_default_na=False)
    rows["method"] = rows.arm.str.split(" ").str[0]
    rows["arm"] = [as_text(*adjusted.read_loss(arm)) if arm and "?" not in arm else arm for arm in rows.arm]
    return rows.astype({"ratio": float})


def as_text(method, parameters):
    """A method with all its parameters, as the runs have them."""
    return arms.written([method], parameters)


def measured(results):
    """Accuracies of all runs with labels, one row a run, method and group, with all fields of the run.

    Further columns: kind and ratio of the tail, imbalance (both), arm (the loss that the run was trained with, with its parameters), and
    ``status``: what the settings allow to compare.
    """
    done = results.finished("labels").rename(columns={"subset": "kind", "imbalance": "ratio"})
    done = done.assign(arm=(done.method + " " + done.options).str.strip(), imbalance=done.kind + " ratio=" + done.ratio.map("{:g}".format))
    scores = results.scores("labels").drop(columns="subset")
    scores = scores.merge(done[["run", *done.columns.difference(scores.columns)]], on="run")
    same = pd.DataFrame({key: scores[key] == value for key, value in PUBLISHED.items()}).all(axis=1)
    same &= scores.largest == scores.dataset.map(HEAD)
    status = scores.dataset.isin(list(HEAD)).map({True: "cut", False: "own data"}).astype(object)
    status[same] = scores.jpeg[same].map({True: "JPEG copy", False: "full"})
    how = scores.architecture + ", " + scores.epochs.astype(str) + " epochs, largest class " + scores.largest.astype(str)
    return scores.assign(status=status, settings=tables.told_apart(how, scores, SETTINGS))


def compare(results, paper):
    """A paper's table beside ours: one line a printed row and every kind of settings that we ran it at; then our runs on other data.

    Columns: dataset, kind, ratio, method, paper, ours, difference, status, settings.
    """
    printed, ours, lines = reported().query("paper == @paper"), measured(results).query("group == 'all'"), []
    on = dict(list(ours.groupby(TAIL)))
    for row in printed.to_dict("records"):
        here = on.get((row["dataset"], row["kind"], row["ratio"]), ours[:0])
        match = here[here.method == row["method"]] if "?" in row["arm"] else here[(here.arm == row["arm"]) & (here.method == row["method"])]
        lines += [_line(row, row["row"], row["error"], group) for group in (_alike(match) if len(match) else [match])]
    known = [method for method in printed.method.unique() if method]
    rest = ours[~ours.dataset.isin(printed.dataset) & ours.method.isin(known)]
    lines += [_line(group.iloc[0], group.arm.iloc[0], "other data", group) for group in _alike(rest)]
    return pd.DataFrame(lines)


def _alike(rows):
    """Groups of runs that differ in seed and split only."""
    return [group for _, group in rows.groupby([*TAIL, "arm", "method", "status", *SETTINGS], sort=False)]


def _line(where, name, printed, ours):
    """One line of a table."""
    errors = 100 - ours.accuracy
    status = ours.status.iloc[0] if len(ours) else "not run"
    return {**{key: where[key] for key in TAIL}, "method": name, "paper": printed, "ours": tables.spread(errors, 2),
            "difference": f"{errors.mean() - float(printed):+.2f}" if status == "full" else "", "status": status,
            "settings": ours.settings.iloc[0] if len(ours) else ""}


def as_printed(table):
    """The printed cells of ``compare`` as the paper lays them out, each with ours behind it: ``29.64 | 30.12 ± 0.20 (n=3), full``."""
    shown = table[table.paper != "other data"]
    ours = (shown.ours + ", " + shown.status).mask(shown.status == "not run", "–")
    cells = shown.assign(cell=ours).groupby(["method", *TAIL], sort=False).agg(paper=("paper", "first"), cell=("cell", " | ".join))
    return (cells.paper + " | " + cells.cell).unstack(TAIL, sort=False).fillna("")


def gains(scores, baseline="ce"):
    """Scores with ``gain``, the accuracy above a baseline's on the same list and seed, in points; the baseline's own rows left out."""
    keys = ["dataset", "imbalance", *SETTINGS, "split", "seed", "group"]
    plain = scores[scores.method == baseline].set_index(keys).accuracy.rename("plain")
    paired = scores[scores.method != baseline].join(plain, on=keys)
    return paired.assign(gain=paired.accuracy - paired.plain)


def summary(scores):
    """One line a list and method, best first: errors and accuracies as mean ± sd (n), and the paired gain over cross-entropy.

    Columns: imbalance, method, settings, error, balanced error, many, medium, few, gain (balanced accuracy, points), se (of the gain).
    """
    scores = scores.assign(arm=tables.told_apart(scores.arm, scores, SETTINGS))
    gained = gains(scores).query("group == 'balanced'").groupby(["imbalance", "method", "arm"]).gain.agg(["mean", "sem"])
    lines = []
    for (tail, method, arm), rows in scores.groupby(["imbalance", "method", "arm"], sort=False):
        of = {group: part.accuracy for group, part in rows.groupby("group")}
        gain, error = gained.loc[tail, method, arm] if (tail, method, arm) in gained.index else (0.0, float("nan"))
        lines.append({"imbalance": tail, "method": method, "settings": arm.partition(" ")[2], "error": tables.spread(100 - of["all"]),
                      "balanced error": tables.spread(100 - of["balanced"]),
                      **{group: tables.spread(of[group]) if group in of else "" for group in tables.GROUPS},
                      "gain": round(gain, 2), "se": round(error, 2)})
    order = {tail: place for place, tail in enumerate(scores.imbalance.unique())}
    return pd.DataFrame(lines).sort_values(["imbalance", "gain"], key=lambda part: part.map(order) if part.name == "imbalance" else -part)


# ---- claims

# Who claims that a loss is better speaks of tails, not of the one list that a table used: lists (class permutations) are the replicates and
# their seeds are averaged. On the paper's own list at its settings the question is that list, so there seeds are the replicates; with equal
# classes all lists are one.

def _claim(stem, paper, sentence, where, left, right, test="above", measure="all", tolerance=0.0):
    side = {"rows": "supervised", "measure": measure}
    return claim_forms.Claim(stem, paper, sentence, where, side | {"method": left}, side | {"method": right}, test, tolerance)


CLAIMS = [      # about every tail, on the data that a paper prints and on our own
    _claim("cb-vs-ce", "CB", "Weights by the effective number lower the error", "CB, CIFAR tables", "cb", "ce"),
    _claim("ldam-vs-ce", "LDAM", "Margins that grow with rarity lower the error", "LDAM, table 2", "ldam", "ce"),
    _claim("ldam_drw-vs-ldam", "LDAM", "Deferred re-weighting adds to the margins", "LDAM, table 2", "ldam_drw", "ldam"),
    _claim("ldam_drw-vs-ce", "LDAM", "Both together beat cross-entropy", "LDAM, table 2", "ldam_drw", "ce"),
    _claim("ldam_drw-vs-reweighting", "LDAM", "Both together beat weights from the first epoch on", "LDAM, table 2", "ldam_drw",
           "cb_weighted"),
    _claim("ldam_drw-vs-resampling", "LDAM", "Both together beat re-sampling", "LDAM, table 2", "ldam_drw", "resampling"),
    _claim("focal-vs-ce", "LDAM", "The focal loss is no remedy: it changes less than a point", "LDAM, table 2, there its sigmoid form",
           "focal", "ce", "same", tolerance=1.0),
    _claim("la-vs-ce", "DDC", "Logit adjustment beats cross-entropy", "DDC, tables; Menon et al. 2021", "la", "ce"),
    _claim("posthoc-vs-ce", "DDC", "Adjusting the logits of a finished network helps too", "Menon et al. 2021, table 3", "posthoc_la",
           "ce"),
    _claim("la-vs-posthoc", "DDC", "In the loss or afterwards is about the same", "Menon et al. 2021, table 3", "la", "posthoc_la", "same",
           tolerance=1.0),
    _claim("vs-vs-ldam_drw", "DDC", "Vector scaling beats LDAM with deferred re-weighting", "DDC, tables", "vs", "ldam_drw"),
    _claim("ddc-vs-vs", "DDC", "Truncated scaling with aligned weights beats vector scaling", "DDC, tables", "ddc", "vs"),
    *(_claim(f"{method}-few", paper, f"{method} lifts rare classes above cross-entropy", f"{paper}, introduction", method, "ce",
             measure="few") for paper, method in (("CB", "cb"), ("LDAM", "ldam_drw"), ("DDC", "la"), ("DDC", "vs"), ("DDC", "ddc"))),
]
BALANCED = [    # about ratio 1
    _claim(f"{method}-balanced", "CB", f"Without imbalance {method} changes less than a point", "CB, CIFAR tables, ratio 1", method, "ce",
           "same", tolerance=1.0) for method in ("cb", "focal", "resampling", "ldam_drw", "la", "vs", "ddc")]


def evidence(results):
    """All scores with the columns that ``claims.judge`` pairs by, and the error as one more measure."""
    scores = measured(results).rename(columns={"group": "measure", "accuracy": "value"}).assign(rows="supervised", schedule="epochs",
                                                                                                        subset="long_tail")
    errors = scores[scores.measure == "all"]
    return pd.concat([scores, errors.assign(measure="error", value=100 - errors.value)], ignore_index=True)


def check(results):
    """Judge every claim on each printed tail at the published settings, then on each tail of our other runs; rows as ``claims.check``.

    On own data the replicates are lists: one list, whatever its seeds, has no interval and stays *undecided*.
    """
    rows, lines = evidence(results), []
    for paper in PAPERS:
        printed = reported().query("paper == @paper")
        for (dataset, kind, ratio), cells in printed.groupby(TAIL, sort=False):
            here = _on(rows[rows.status == "full"], dataset, kind, ratio)
            numbers = [_number(cell) for _, cell in cells.iterrows() if cell.arm and "?" not in cell.arm]
            asked = _asked(paper, dataset, kind, ratio) + numbers
            lines += [claims.verdict_line(claim, "paper's data", f"{dataset} {kind} {ratio:g}", here) for claim in asked]
        for (dataset, kind, ratio, status), here in rows[rows.status != "full"].groupby([*TAIL, "status"]):
            name = f"{dataset} {kind} {ratio:g}" + (f" ({status})" if status != "own data" else "")
            lists = ratio > 1 and status != "JPEG copy"
            here = _on(here, dataset, kind, ratio).assign(**{"seed": 0} if lists else {})
            judged = [claims.verdict_line(claim, "own data", name, here) for claim in _asked(paper, dataset, kind, ratio)]
            alone = {"note": "one list has no interval, whatever its seeds; run other splits"}
            lines += [line | (alone if lists and line["n"] == 1 else {}) for line in judged if line["n"]]
    return claims.corrected(pd.DataFrame(lines)).assign(notebook="07_supervised")


def _asked(paper, dataset, kind, ratio):
    """The claims of a paper that are about such a tail, with the effect printed there in points of accuracy: errors, right − left."""
    cells = reported().query("paper == @paper and dataset == @dataset and kind == @kind and ratio == @ratio")
    errors = cells.assign(error=cells.error.astype(float)).groupby("method").error.agg(["first", "size"])
    errors = errors["first"][errors["size"] == 1]       # of several printed variants none is the method's number
    asked = [claim for claim in (CLAIMS if ratio > 1 else BALANCED) if claim.paper == paper]
    sides = [(claim.left["method"], claim.right["method"]) for claim in asked]
    effects = [{dataset: round(errors[right] - errors[left], 4)}
               if claim.left["measure"] == "all" and {left, right} <= set(errors.index) else {}
               for claim, (left, right) in zip(asked, sides, strict=True)]
    return [replace(claim, effect=effect) for claim, effect in zip(asked, effects, strict=True)]


def _on(rows, dataset, kind, ratio):
    return rows[(rows.dataset == dataset) & (rows.kind == kind) & (rows.ratio == ratio)]


def _number(cell):
    """The error of one printed cell; the authors' own re-runs differ by up to 1.2 points, so two are allowed."""
    side = {"rows": "supervised", "measure": "error", "arm": cell.arm, "method": cell.method}
    return claim_forms.Claim(f"number-{cell.paper}-{cell.row.replace(' ', '-')}", cell.paper, f"{cell.row}: the error is {cell.error}",
                        f"{cell.paper}, table", side, 0.0, "number", 2.0, {cell.dataset: float(cell.error)})
