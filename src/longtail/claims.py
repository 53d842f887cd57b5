"""The verdict on every claim of ``statements.CLAIMS``, from the rows that a profile has.

A claim about numbers of a table is judged on the paper's own data at its published settings only. A claim about a direction is also
judged, apart and marked "own data", on whatever other data a profile has. Nothing printed in a paper ever enters our side.
"""

import numpy as np
import pandas as pd
from scipy import stats

from longtail import runs, tables
from longtail.statements import BUDGETS, CLAIMS, DATA, POOLS

NOTE = ("effect: mean paired difference over splits and seeds (for numbers: ours − paper's), low and high: its 95 % t interval, n: pairs. "
        "Direction: holds if the whole interval lies on the claimed side. Same: if it lies within ± tolerance. No gain: if it ends below "
        "the tolerance. Number: if the effect lies within ± tolerance. One pair has no interval, so anything but a number stays not run.")
_PAIR = ["architecture", "size", "policy", "batch_size", "learning_rate", "weight_decay", "precision", "largest", "drops", "drop", "jpeg",
         "split", "seed"]       # equal on both sides, as far as runs have them
_GAP = ["architecture", "size", "split", "seed"]     # of what the tail costs: each side has its own views and optimiser on both lists
_OWN = ["temperature", "prune_fraction", "warmup_epochs", "options", "arm"]     # in these the sides may differ, but not runs of one side
_COLUMNS = ["rows", "protocol", "sampling_set", "views", "M", "pool", "level", "measure", "value", "run", "seed_images", *runs.FIELDS,
            *tables.PICKING]


def evidence(results, selection="best_validation"):
    """All measurements of the long-tailed runs in one long frame: what was measured (rows, protocol, measure), its value, the run.

    Rows is scores, gap, phi, composition, diversity, disagreement or overhead; the last two are written by no notebook yet.
    """
    done = tables.finished(results)
    scores = tables.outcomes(results, selection)
    scores = scores.assign(tail=scores.few - scores.many)
    measures = [*tables.MEASURES, "tail"]
    scores = scores.melt([name for name in scores if name not in measures], measures, "measure").assign(rows="scores")
    phi = _extra(results, done, "phi").rename(columns={"group": "measure", "phi": "value"})
    pruned = _extra(results, done, "disagreement").rename(columns={"group": "measure", "phi": "value"})
    parts = _extra(results, done, "composition").rename(columns={"part": "measure", "share": "value"})
    spread = _extra(results, done, "diversity").rename(columns={"nearest_pick_distance": "value"}).assign(measure="distance")
    cost = _extra(results, done, "overhead").rename(columns={"equivalent_epochs": "value"}).assign(measure="epochs")
    frames = [frame.reindex(columns=_COLUMNS) for frame in (scores, _gaps(scores), _marked(phi), pruned, parts, spread, cost) if len(frame)]
    everything = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    return everything[everything.subset == "long_tail"].astype({"value": float})


def _extra(results, done, name):
    """Rows beside the scores with all fields of their run; a row's own budget and sampler take the place of the run's."""
    rows = results.read(name)
    rows = rows.loc[:, ~rows.columns.duplicated(keep="last")].rename(columns={"pool": "sampling_set"})
    if "sampler" in rows:
        rows = rows.drop(columns="added").rename(columns={"sampler": "added"})
    return rows.merge(done[["run", *done.columns.difference(rows.columns)]], on="run").assign(rows=name)


def _gaps(scores):
    """What each method loses by the long tail: its score on the balanced list of the same size less that on the long-tailed one."""
    own = ["method", "head_layers", "options", "added", "epochs", "temperature", "protocol", "measure", *_PAIR]
    own = [name for name in own if name in scores]
    balanced = scores[scores.subset == "balanced"].set_index(own).value.rename("partner")
    gaps = scores[scores.subset == "long_tail"].join(balanced, on=own, how="inner")
    return gaps.assign(rows="gap", value=gaps.partner - gaps.value)


def _marked(phi):
    """φ with its views marked as the least, 10, or the most beyond 10, and the ratio of few to many as one more measure."""
    if not len(phi):
        return phi
    wide = phi.pivot(index=["run", "protocol", "views"], columns="measure", values="value").reindex(columns=tables.GROUPS)
    ratio = (wide.few / wide.many).rename("value").reset_index().assign(measure="few/many")
    ratio = ratio.merge(phi[phi.measure == "few"].drop(columns=["value", "measure"]), on=["run", "protocol", "views"])
    phi = pd.concat([phi, ratio], ignore_index=True)
    least, most = (phi.groupby("run").views.transform(end) for end in ("min", "max"))
    marks = [phi.views == 10, phi.views == least, phi.views == most]
    return phi.assign(M=np.select(marks, ["10", "least", "most"], "between"))


def differences(claim, rows):
    """Left minus right for every pair of equal architecture, views, optimiser, split and seed, as a series.

    A constant on the right is subtracted as it is; gaps pair whatever views and optimiser a method has. Runs of several lengths: only
    the longest pairs count, and lengths must agree unless a side is the overhead control, whose point is to differ.
    """
    sides = [_matching(rows, side) for side in (claim.left, claim.right) if isinstance(side, dict)]
    if any(side.empty for side in sides):
        return pd.Series(dtype=float)
    late = any(side.schedule.eq("overhead").any() for side in sides)
    keys = _keys(claim, rows, late)
    left, *right = [side.groupby(keys).value.mean() for side in sides]
    paired = (left.sub(right[0]) if right else left - claim.right).dropna()
    if late or not len(paired):
        return paired
    epochs = paired.index.get_level_values("epochs")
    return paired[epochs == epochs.max()]


def _keys(claim, rows, late):
    """The columns by which a claim's sides are paired."""
    equal = [name for name in (_GAP if claim.left["rows"] == "gap" else _PAIR) if name in rows]
    return equal if late else [*equal, "epochs"]


def _mixed(claim, rows):
    """Settings in which one side of a pair has runs that differ, so that their mean would be of unlike things."""
    keys, found = _keys(claim, rows, late=False), set()
    settings = [name for name in (*_PAIR, *_OWN) if name in rows and name not in keys]
    for side in (_matching(rows, side) for side in (claim.left, claim.right) if isinstance(side, dict)):
        several = [name for name in settings if side[name].nunique(dropna=False) > 1]       # seldom any: pairs need not be asked
        each = side.groupby(keys)[several].nunique(dropna=False) if several else pd.DataFrame()
        found |= set(each.columns[(each > 1).any()])
    return sorted(found)


def _matching(rows, side):
    """The rows whose columns have the side's values."""
    keep = np.ones(len(rows), bool)
    for column, value in side.items():
        keep &= rows[column].to_numpy(object) == value
    return rows[keep]


def judge(claim, rows):
    """Effect, interval, n and verdict of one claim on rows of ``evidence``.

    Verdicts: holds, differs, not run. A direction or a sameness needs two pairs, one pair has no interval: it stays not run and the
    note says so; a number is judged from one run on. The note of *differs* tells a reversed effect from one too small for this n.
    """
    found = differences(claim, rows)
    mixed = _mixed(claim, rows) if len(found) else []
    if not (n := 0 if mixed else len(found)):
        note = f"runs of several {', '.join(mixed)} on one side; judge them in profiles of their own" if mixed else ""
        return {"effect": np.nan, "low": np.nan, "high": np.nan, "n": 0, "verdict": "not run", "note": note}
    effect = found.mean() - claim.value
    half = stats.t.ppf(0.975, n - 1) * found.std() / n**0.5 if n > 1 else np.inf
    low, high = effect - half, effect + half
    holds, sign = {"above": (low > 0, effect > 0), "below": (high < 0, effect < 0), "number": (abs(effect) <= claim.tolerance, False),
                   "same": (max(-low, high) <= claim.tolerance, abs(effect) <= claim.tolerance),
                   "no gain": (high <= claim.tolerance, effect <= claim.tolerance)}[claim.test]
    verdict, note = "holds" if holds else "differs", ""
    if n == 1 and claim.test != "number":
        verdict, note = "not run", "one pair has no interval; run another seed or split"
    elif not holds and claim.test != "number":
        note = "as claimed on average, interval too wide" if sign else "not as claimed on average"
    return {"effect": effect, "low": low, "high": high, "n": n, "verdict": verdict, "note": note}


def check(results, selection="best_validation", asked=CLAIMS):
    """Judge every claim that is ``asked`` on the paper's own data, and those about directions also on whatever other data the profile has.

    One row per claim and data set: id, claim, paper, where, scope (paper's data, own data), data, test, effect, low, high, n,
    tolerance, verdict, note, notebook. Runs on a paper's data at other settings count as own data, named with their epochs.
    """
    rows, lines = evidence(results, selection), []
    for paper, datasets in DATA.items():
        full = tables.published(rows, paper).astype(bool)
        theirs, own = _placed(rows[full], POOLS, BUDGETS), rows[~full]
        claims = [claim for claim in asked if claim.paper == paper]
        lines += [verdict_line(claim, "paper's data", data, theirs[theirs.dataset == data])
                  for claim in claims for data in claim.datasets or datasets]
        for data, here in own.groupby("dataset"):
            name = f"{data} (cut)" if data in datasets else data
            here = _placed(here, *_own_places(here))
            judged = [verdict_line(claim, "own data", name, here) for claim in claims if claim.test != "number"]
            lines += judged if any(line["n"] for line in judged) else []
    return pd.DataFrame(lines)


def _placed(rows, pools, budgets):
    """Say which of the paper's pools and budgets ours stand for."""
    return rows.assign(pool=rows.sampling_set.map(pools), level=rows.budget.map(budgets))


def _own_places(rows):
    """On own data the smallest budget stands for 10K, the largest for 20K; a pool is mixed when its name says mix, else related."""
    budgets = sorted(set(rows.budget[rows.budget > 0]))
    levels = {0: "none"} | dict(zip(budgets[-1:], ["large"], strict=False)) | dict(zip(budgets[:1], ["small"], strict=False))
    return {name: "mixed" if "mix" in str(name) else "related" for name in set(rows.sampling_set.dropna())}, levels


def verdict_line(claim, scope, data, rows):
    """One row of ``check``."""
    verdict = judge(claim, rows)
    numbers = {key: round(verdict[key], 3) if np.isfinite(verdict[key]) else np.nan for key in ("effect", "low", "high")}
    return {"id": f"{claim.id}@{data.replace(' ', '-')}", "claim": claim.claim, "paper": claim.paper, "where": claim.where, "scope": scope,
            "data": data, "test": {"above": "direction", "below": "direction"}.get(claim.test, claim.test), **numbers, "n": verdict["n"],
            "tolerance": claim.tolerance, "verdict": verdict["verdict"], "note": verdict["note"], "notebook": claim.notebook}


def counts(checked):
    """How many claims hold, differ and were not run, for each scope and kind of test."""
    verdicts = ["holds", "differs", "not run"]
    return pd.crosstab([checked.scope, checked.test], checked.verdict).reindex(columns=verdicts, fill_value=0).reset_index()
