"""The verdict on every claim of ``statements.CLAIMS``, from the rows that a profile has.

A claim about numbers of a table is judged on the paper's own data at its published settings only. A claim about a direction is also
judged, apart and marked "own data", on whatever other data a profile has. Nothing printed in a paper ever enters our side.
"""

import textwrap

import numpy as np
import pandas as pd

from longtail.papers import inference, printed, tables
from longtail.papers.statements import CLAIMS, DATA
from longtail.store import runs

NEAR = 3.0      # points of accuracy above an untrained network; an encoder that is nearer has learned too little to test a claim
_PAIR = ["architecture", "size", "policy", "batch_size", "learning_rate", "weight_decay", "precision", "largest", "drops", "drop", "jpeg",
         "split", "seed"]       # equal on both sides of a pair, as far as runs have them
_GAP = ["architecture", "size", "split", "seed"]     # of what the tail costs: each side has its own views and optimiser on both lists
_OWN = ["temperature", "prune_fraction", "warmup_epochs", "options", "arm"]     # in these the sides may differ, but not runs of one side
_REPLICATE = ["split", "seed"]
_ARM = ["subset", "method", "head_layers", "added", "schedule", "budget", "reserve", "sampling_set", *tables.PICKING, *_OWN]
_CELL = ["rows", "protocol", "measure", "M"]      # what was measured: one linear model for each
_COLUMNS = ["rows", "protocol", "sampling_set", "views", "M", "pool", "level", "measure", "value", "balanced", "run", "seed_images",
            *runs.FIELDS, *tables.PICKING]
_UNITS = {"composition": "% of the picks", "phi": "φ", "disagreement": "φ", "diversity": "cosine distance", "overhead": "epochs"}
FIRST = ["id", "claim", "paper", "primary", "effect", "low", "high", "n", "paper_effect", "mde", "n_needed", "verdict"]


def evidence(results, selection="last_epoch"):
    """All measurements in one long frame: what was measured (rows, protocol, measure), its value, the run with all its fields.

    Rows is scores, gap, phi, composition, diversity, disagreement, mechanism or overhead.
    """
    done = results.finished()
    scores = tables.outcomes(results, selection)
    scores = scores.assign(tail=scores.few - scores.many)
    measures = [*tables.MEASURES, "tail"]
    scores = scores.melt([name for name in scores if name not in measures], measures, "measure").assign(rows="scores")
    phi = _extra(results, done, "phi").rename(columns={"group": "measure", "phi": "value"})
    pruned = _extra(results, done, "disagreement").rename(columns={"group": "measure", "phi": "value"})
    active = _extra(results, done, "mechanism*").rename(columns={"mechanism": "protocol", "group": "measure"})
    parts = _extra(results, done, "composition").rename(columns={"part": "measure", "share": "value"})
    spread = _extra(results, done, "diversity").rename(columns={"nearest_pick_distance": "value"}).assign(measure="distance")
    cost = _extra(results, done, "overhead").rename(columns={"equivalent_epochs": "value"}).assign(measure="epochs")
    frames = (scores, _gaps(scores), _marked(phi), pruned, active, parts, spread, cost)
    frames = [frame.reindex(columns=_COLUMNS) for frame in frames if len(frame)]
    everything = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    words = [name for name in everything if not pd.api.types.is_numeric_dtype(everything[name])]
    return everything.astype(dict.fromkeys(words, object) | {"value": float})


def _extra(results, done, name):
    """Rows beside the scores with all fields of their run; a row's own budget and sampler take the place of the run's."""
    rows = results.read(name)
    rows = rows.loc[:, ~rows.columns.duplicated(keep="last")].rename(columns={"pool": "sampling_set"})
    if "sampler" in rows:
        rows = rows.drop(columns="added").rename(columns={"sampler": "added"})
    return rows.merge(done[["run", *done.columns.difference(rows.columns)]], on="run").assign(rows=name.rstrip("*"))


def _gaps(scores):
    """What each method loses by the long tail: its score on the balanced list of the same size less that on the long-tailed one."""
    own = ["method", "head_layers", "options", "added", "epochs", "temperature", "protocol", "measure", *_PAIR]
    own = [name for name in own if name in scores]
    balanced = scores[scores.subset == "balanced"].set_index(own).value.rename("partner")
    gaps = scores[scores.subset == "long_tail"].join(balanced, on=own, how="inner")
    return gaps.assign(rows="gap", value=gaps.partner - gaps.value, balanced=gaps.partner)


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


def judge(claim, rows, floor=None):
    """Everything about one claim on rows of ``evidence``, as a dict: a verdict before any correction, and what stands beside it.

    The effect is left minus right from one linear model of the measure, value = arm + replicate; a replicate is a split and seed, and
    all arms at the same settings share their noise. Against a constant, or between two measures of the same encoders, there is no
    second arm: the one-sample t interval. Of several lengths only the longest counts, and the lengths of both sides are equal unless a
    side is the overhead control, whose point is to differ. One replicate has no interval and decides nothing.
    ``floor``: rows of untrained networks. Keys: those of FIRST from effect on, test, tolerance, p, relative, above_floor, check, note.
    """
    sides = [_matching(rows, side) for side in (claim.left, claim.right) if isinstance(side, dict)] if len(rows) else [rows]
    if not all(map(len, sides)):
        return {"verdict": "not run", "note": "", "n": 0}
    late = any(side.schedule.eq("overhead").any() for side in sides)
    keys = _keys(claim, rows, late)
    shared = _shared(sides, keys, late)
    mixed = _mixed(sides, rows, _keys(claim, rows, late=False)) if len(shared) else []
    if mixed or not len(shared):
        note = f"runs of several {', '.join(mixed)} on one side; judge them in profiles of their own" if mixed else ""
        return {"verdict": "not run", "note": note, "n": 0}
    sides = [side[_at(side, keys).isin(shared)] for side in sides]
    estimate = _estimate(claim, rows, sides, keys, shared)
    alone = estimate.replicates == 1
    low, high = (np.nan, np.nan) if alone else map(float, estimate.interval)
    paper, printed_for = claim.printed(sides[0].dataset.iloc[0])
    found = str(inference.verdict(claim.test, low, high, paper, claim.tolerance, paper))
    tested, beside = _tested(claim, rows, sides, floor)
    note = "one replicate has no interval; run another split or seed" if alone else ""
    effect, error, freedom = float(estimate.effect), float(estimate.error), 0 if alone else estimate.freedom
    return {"effect": effect, "low": low, "high": high, "n": estimate.replicates, "paper_effect": paper, "paper_data": printed_for,
            "mde": inference.detectable(error, freedom), "verdict": found if tested else "not tested", "note": note,
            "n_needed": inference.needed(0.0 if claim.test == "number" else paper, estimate, claim.tolerance),
            "p": np.nan if alone else float(estimate.p), "relative": _relative(claim, effect, sides, floor), **beside}


def _keys(claim, rows, late):
    """The columns that are equal on both sides of a pair."""
    equal = [name for name in (_GAP if claim.left["rows"] == "gap" else _PAIR) if name in rows]
    return equal if late else [*equal, "epochs"]


def _matching(rows, side):
    """The rows whose columns have the side's values; of the long-tailed list unless the side says another."""
    places = np.arange(len(rows))
    for column, value in sorted(({"subset": "long_tail"} | side).items()):     # measure and protocol early: they leave few rows
        places = places[rows[column].to_numpy(object)[places] == value]
    return rows.iloc[places[rows.value.notna().to_numpy()[places]]]


def _at(rows, columns):
    """The values in some columns as one text a row."""
    parts = (map(str, rows[name]) for name in columns if name in rows)
    return pd.Series(map(", ".join, zip(*parts, strict=True)), rows.index, dtype=object)


def _shared(sides, keys, late):
    """The places (keys as text) where all sides have rows, those of the longest training that they share."""
    common = set.intersection(*(set(_at(side, keys)) for side in sides))
    first = sides[0][_at(sides[0], keys).isin(common)]
    return set(_at(first if late else first[first.epochs == first.epochs.max()], keys))


def _mixed(sides, rows, keys):
    """Settings in which one side of a pair has runs that differ, so that their mean would be of unlike things."""
    found = set()
    settings = [name for name in (*_PAIR, *_OWN) if name in rows and name not in keys]
    for side in sides:
        several = [name for name in settings if side[name].nunique(dropna=False) > 1]       # seldom any: pairs need not be asked
        each = side.groupby(keys)[several].nunique(dropna=False) if several else pd.DataFrame()
        found |= set(each.columns[(each > 1).any()])
    return sorted(found)


def _estimate(claim, rows, sides, keys, shared):
    """Left minus right as an ``inference.Estimate``."""
    means = [side.groupby(_at(side, _REPLICATE)).value.mean() for side in sides]
    cells = [{name: side[name] for name in _CELL if name in side} for side in (claim.left, claim.right) if isinstance(side, dict)]
    if len(sides) == 1 or cells[0] != cells[1]:
        return inference.mean((means[0] - (means[1] if len(sides) > 1 else claim.right)).to_numpy())
    named = [side.assign(named=name) for side, name in zip(sides, ("left", "right"), strict=True)]
    beside = pd.concat([_matching(rows, cells[0] | {"subset": subset}) for subset in rows.subset.unique()])
    beside = beside[_at(beside, keys).isin(shared) & ~beside.index.isin([*sides[0].index, *sides[1].index])]
    table = pd.concat([*named, beside.assign(named="beside: " + _at(beside, [*_ARM, "epochs"]))])
    table = table.assign(place=_at(table, _REPLICATE)).groupby(["named", "place"], as_index=False).value.mean()
    return inference.fit(table.value, table.named, table.place).contrast("left", "right")


# ---- what stands beside an effect: the untrained floor and the mechanism

def _level(rows, like, measure):
    """Mean accuracy of the rows on the data, network and protocol of ``like``; NaN if there are none."""
    same = (rows.rows == "scores") & (rows.measure == measure)
    for name in ("dataset", "architecture", "size", "protocol"):
        same &= rows[name] == like[name].iloc[0]
    return rows[same].value.mean()


def _tested(claim, rows, sides, floor):
    """Whether encoders and mechanism are fit to test a claim, and the columns that show it: above_floor (points, the worse side), check.

    What was not measured, an untrained network or a mechanism, stands in no claim's way; the columns say so.
    """
    beside, tested = {"above_floor": np.nan, "check": ""}, True
    if floor is not None and len(floor) and claim.left["rows"] in ("scores", "gap"):
        levels = [_level(rows[rows.run.isin(side.run)], side, "all") for side in sides]
        beside["above_floor"] = min(levels) - _level(floor, sides[0], "all")
        tested = not beside["above_floor"] < NEAR
    if claim.check:
        asked = {"rows": "mechanism", "protocol": claim.check.mechanism, "method": claim.check.method}
        found = [_matching(rows, asked | {"measure": measure}) for measure in ("contrast", "chance")]
        contrast, chance = (part.value[part.epochs.isin(sides[0].epochs)].mean() for part in found)
        bound = max(chance, claim.check.least)
        beside["check"] = f"{claim.check.mechanism}: " + ("not measured" if np.isnan(contrast) else f"{contrast:.2g}, needs {bound:.2g}")
        tested = tested and not contrast <= bound
    return tested, beside


def _relative(claim, effect, sides, floor):
    """An effect in percent of what the right side has above an untrained network; of a gap, of what balanced training has above it.

    NaN where no untrained network was measured or none is beaten, and for measures that are no accuracy.
    """
    if floor is None or not len(floor) or len(sides) < 2 or claim.left["rows"] not in ("scores", "gap"):
        return np.nan
    if claim.left["measure"] not in ("all", *tables.GROUPS) or claim.left["measure"] != claim.right["measure"]:
        return np.nan
    ground = [_level(floor, side, claim.left["measure"]) for side in sides]
    above = [side["balanced" if claim.left["rows"] == "gap" else "value"].mean() - level for side, level in zip(sides, ground, strict=True)]
    if not min(above) > 0:
        return np.nan
    if claim.left["rows"] == "gap":
        return 100 * (sides[0].value.mean() / above[0] - sides[1].value.mean() / above[1])
    return 100 * effect / above[1]


# ---- all claims

def check(results, selection="last_epoch", asked=CLAIMS):
    """Judge every claim that is ``asked`` on the paper's own data, and those about directions also on whatever other data the profile has.

    One row per claim and data set. Columns: FIRST (effect ours, low to high its 95 % interval, n replicates, paper_effect in the same unit,
    mde: minimum detectable effect, n_needed: replicates that would find the paper's effect, both at 80 % power), then paper_data, where,
    scope (paper's data, own data), data, test, tolerance, p, p_holm, relative (percent of what lies above an untrained network),
    above_floor, check, note, unit, notebook. Runs on a paper's data at other settings count as own data.

    Primary claims: their p values are corrected by Holm's method within each paper and data set over all that have one; *supported* and
    *contradicted* then also need a corrected p of at most 0.05. The interval shown stays the plain one.
    """
    rows, lines = evidence(results, selection), []
    floor, rows = rows[rows.method == "untrained"], rows[rows.method != "untrained"]
    for paper, datasets in DATA.items():
        full = _full(rows, paper)
        theirs, own = _placed(rows[full], printed.POOLS, printed.BUDGETS), rows[~full]
        claims = [claim for claim in asked if claim.paper == paper]
        lines += [verdict_line(claim, "paper's data", data, theirs[theirs.dataset == data], floor)
                  for claim in claims for data in claim.datasets or datasets]
        for data, here in own.groupby("dataset"):
            name = f"{data} (cut)" if data in datasets else data
            here = _placed(here, *_own_places(here))
            judged = [verdict_line(claim, "own data", name, here, floor) for claim in claims if claim.test != "number"]
            lines += judged if any(line["n"] for line in judged) else []
    return corrected(pd.DataFrame(lines))


def _full(rows, paper):
    """Which rows are the paper's data at its settings; a balanced list counts with the long-tailed one, what the tail costs never does."""
    return tables.published(rows.assign(subset="long_tail"), paper).astype(bool) & (rows.rows != "gap")


def _placed(rows, pools, budgets):
    """Say which of the paper's pools and budgets ours stand for."""
    return rows.assign(pool=rows.sampling_set.map(pools), level=rows.budget.map(budgets))


def _own_places(rows):
    """On own data the smallest budget stands for 10K, the largest for 20K; a pool is mixed when its name says mix, else related."""
    budgets = sorted(set(rows.budget[rows.budget > 0]))
    levels = {0: "none"} | dict(zip(budgets[-1:], ["large"], strict=False)) | dict(zip(budgets[:1], ["small"], strict=False))
    return {name: "mixed" if "mix" in str(name) else "related" for name in set(rows.sampling_set.dropna())}, levels


def verdict_line(claim, scope, data, rows, floor=None):
    """One row of ``check``, before the correction."""
    blank = dict.fromkeys(["effect", "low", "high", "mde", "n_needed", "p", "p_holm", "relative", "above_floor"], np.nan)
    paper, printed_for = claim.printed(data.split(" ")[0])
    found = blank | {"paper_effect": paper, "paper_data": printed_for, "check": ""} | judge(claim, rows, floor)
    line = {"id": f"{claim.id}@{data.replace(' ', '-')}", "claim": claim.claim, "paper": claim.paper, "primary": claim.primary}
    line |= {name: found[name] for name in FIRST[4:]} | {"paper_data": found["paper_data"], "where": claim.where, "scope": scope,
                                                         "data": data, "test": claim.test, "tolerance": claim.tolerance}
    return line | {name: found[name] for name in ("p", "p_holm", "relative", "above_floor", "check", "note")} | {
        "unit": _UNITS.get(claim.left["rows"], "points"), "notebook": claim.notebook}


def corrected(lines):
    """Lines with Holm's p values of primary claims within each paper, scope and data set, and the verdicts that these leave."""
    lines = lines.copy()
    for _, family in lines[lines.primary].groupby(["paper", "scope", "data"]):
        lines.loc[family.index, "p_holm"] = inference.holm(family.p)
    lost = lines.primary & lines.verdict.isin(["supported", "contradicted"]) & ~(lines.p_holm <= inference.LEVEL)
    lines.loc[lost, "note"] = lines.verdict[lost] + " before Holm's correction within the paper"
    lines.loc[lost, "verdict"] = "undecided"
    return lines


def aligned(checked):
    """The directions that have an interval, turned so that right is as claimed, primary ones first; with ``kind`` and a short ``label``."""
    shown = checked[checked.test.isin(["above", "below"]) & checked.low.notna()].sort_values(["primary", "unit"], ascending=[False, False],
                                                                                               kind="stable")
    turned = shown[["effect", "low", "high", "paper_effect"]].mul(shown.test.map({"above": 1, "below": -1}), axis=0)
    turned = turned.assign(low=turned[["low", "high"]].min(axis=1), high=turned[["low", "high"]].max(axis=1))
    label = shown.claim.where(shown.groupby("claim").data.transform("nunique") == 1, shown.claim + " (" + shown.data + ")")
    return shown.assign(**turned, label=label.map(lambda text: textwrap.fill(text, 64)),
                        kind=shown.primary.map({True: "primary", False: "exploratory"}))


def write(checked, folder):
    """Write ``claims.csv``: all lines of ``check``, numbers with four significant digits, primary as true or false."""
    numbers = checked.select_dtypes("float").columns
    shown = checked.assign(primary=checked.primary.map({True: "true", False: "false"}))
    shown[numbers] = shown[numbers].map(lambda value: float(f"{value:.4g}"))
    runs.write(folder / "claims.csv", shown.to_csv(index=False))


def counts(checked):
    """How many claims got each of the six verdicts, primary and exploratory ones apart, for each paper and scope."""
    kind = checked.primary.map({True: "primary", False: "exploratory"}).rename("kind")
    found = pd.crosstab([kind, checked.scope, checked.paper], checked.verdict).reindex(columns=inference.VERDICTS, fill_value=0)
    return found.sort_index(ascending=[False, True, True]).reset_index()
