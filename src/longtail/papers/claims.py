"""The claims of the papers: their form, the rows they are judged by, the verdicts, and each as a
sentence.

A claim about numbers of a table is judged on the paper's own data at its published settings only. A
claim about a direction is also judged, apart and marked "own data", on whatever other data a
profile has. Nothing printed in a paper ever enters our side.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

import numpy as np
import pandas as pd

from longtail.learn import methods
from longtail.papers import inference, printed, tables
from longtail.papers.printed import GROUPS, IN_WORDS, MEASURES, PICKING
from longtail.pick import samplers
from longtail.store import runs
from longtail.store.settings import Damaged

# points of accuracy above an untrained network; an encoder that is nearer has learned too little to
# test a claim
NEAR = 3.0
# The mechanism that a method or sampler adds, as its rows are named, and the least contrast that
# could matter.
MECHANISMS = {
    **{
        name: kind.mechanism
        for name, kind in methods.METHODS.items()
        if vars(kind).get("mechanism")
    },
    **{
        name: (f"picks {name}", samplers.LEAST_EXCHANGED)
        for name, sampler in samplers.SAMPLERS.items()
        if sampler.balances
    },
}
SIDES = {  # what a side of a claim has unless it says otherwise, by the rows that it asks for
    "scores": {"method": "simclr", "added": "none", "schedule": "epochs"},
    "composition": {"level": "small"},
    "diversity": {"level": "small"},
    "phi": {"protocol": "test", "method": "simclr", "M": "10"},
}
_PAIR = [
    "architecture",
    "size",
    "policy",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "precision",
    "largest",
    "drops",
    "drop",
    "jpeg",
    "split",
    "seed",
]  # equal on both sides of a pair, as far as runs have them
_GAP = [
    "architecture",
    "size",
    "split",
    "seed",
]  # of what the tail costs: each side has its own views and optimiser on both lists
_OWN = [
    "temperature",
    "prune_fraction",
    "warmup_epochs",
    "options",
    "arm",
]  # in these the sides may differ, but not runs of one side
_REPLICATE = ["split", "seed"]
_ARM = [
    "subset",
    "method",
    "head_layers",
    "added",
    "schedule",
    "budget",
    "reserve",
    "sampling_set",
    *PICKING,
    *_OWN,
]
_CELL = ["rows", "protocol", "measure", "M"]  # what was measured: one linear model for each
_COLUMNS = [
    "rows",
    "protocol",
    "sampling_set",
    "views",
    "M",
    "pool",
    "level",
    "measure",
    "value",
    "balanced",
    "run",
    "seed_images",
    "data",
    "arm",
    *runs.FIELDS,
    *PICKING,
]
_UNITS = {
    "composition": "% of the picks",
    "phi": "φ",
    "disagreement": "φ",
    "diversity": "cosine distance",
    "overhead": "epochs",
}
_NOTEBOOKS = {
    "gap": "03_evaluate",
    "phi": "04_ecle",
    "composition": "05_sampling",
    "diversity": "06_diversity",
    "disagreement": "02_pretrain",
    "labels": "07_supervised",
}  # where rows are made
COLUMNS = [
    "id",
    "claim",
    "paper",
    "primary",
    "effect",
    "low",
    "high",
    "n",
    "paper_effect",
    "mde",
    "n_needed",
    "verdict",
]  # first


# ---- what is claimed


@dataclass(frozen=True)
class Claim:
    """One statement: where it stands, the rows on either side of the difference, and how that
    difference is judged.
    """

    id: str
    paper: str
    claim: str  # in our words
    where: str
    left: dict = field(hash=False)  # column -> value: the rows of ``evidence`` on the left
    right: dict | float = field(hash=False)  # those on the right, or a constant
    test: str  # above, below, same or number
    tolerance: float  # in the unit of the rows: points of accuracy, or φ
    effect: dict = field(
        default_factory=dict, hash=False
    )  # data -> what the paper prints for left − right; empty: nothing
    primary: bool = False
    # how many primary claims its paper has, which Holm's correction is over; 1 for an exploratory
    # one
    family: int = 1
    even: bool = False  # asked of lists with equal classes, and of no others
    data: str = ""  # the one data set that a printed number is for
    entry: dict = field(default_factory=dict, hash=False)  # as the paper's file has it

    @property
    def mechanism(self):
        """What must be at work on the left and is absent on the right, as (mechanism, method of the
        runs that show it, least contrast).

        Of a joined method that of its last part, of picks that of their sampler; None where nothing
        has to be.
        """
        left, right = self.left, self.right
        if (
            left["rows"] != "scores"
            or not isinstance(right, dict)
            or self.test not in ("above", "below")
        ):
            return None
        if (left["method"], left["added"]) == (right["method"], right["added"]):
            return None
        adds = (
            left["added"]
            if left["added"] not in (right["added"], "none")
            else left["method"].rpartition("+")[2]
        )
        return (
            (MECHANISMS[adds][0], left["method"], MECHANISMS[adds][1])
            if adds in MECHANISMS
            else None
        )

    @property
    def notebook(self):
        """Where the rows are made; empty when no notebook makes them yet."""
        picks = self.left["rows"] == "scores" and self.left["added"] != "none"
        return {"scores": "05_sampling" if picks else "03_evaluate", **_NOTEBOOKS}.get(
            self.left["rows"], ""
        )

    def printed(self, data):
        """The paper's effect and the data it is printed for; on other data the smallest one
        printed, (NaN, "") if there is none.
        """
        if not self.effect:
            return np.nan, ""
        data = (
            data
            if data in self.effect
            else min(self.effect, key=lambda name: abs(self.effect[name]))
        )
        return self.effect[data], data


@cache
def claims_of(paper, kind="claims"):
    """All claims of a paper: those that its file names (or, by ``kind``, its ``tried`` ones) and
    one for each number in its tables.
    """
    named = [claim for entry in getattr(paper, kind) for claim in _named(paper, entry)]
    family = sum(claim.primary for claim in named)
    named = [replace(claim, family=family) if claim.primary else claim for claim in named]
    return named + (list(_numbers(paper)) if kind == "claims" else [])


def _named(paper, entry):
    """The claims of one entry, one for each protocol and measure of its cells."""
    for protocol, measure in product(*entry.get("cells", ([None], [None]))):
        cell = {"protocol": protocol, "measure": measure}
        cell = {name: value for name, value in cell.items() if value}
        left, right = (_side(paper, entry[name], cell) for name in ("left", "right"))
        test = entry.get("test", "below" if measure == "balance" else "above")
        effect, where = entry.get("effect", {}), f"{paper.name}, {entry['where']}"
        words = ", ".join(IN_WORDS.get(name, name) for name in (measure, protocol) if name)
        if isinstance(right, dict) and left["rows"] in ("scores", "labels"):
            effect, nearest = paper.difference(left, right)
            effect = {
                data: value
                for data, value in effect.items()
                if _even(data) == entry.get("even", False)
            }
            where += (
                f"; its effect: {IN_WORDS[nearest]}"
                if effect and nearest not in (left["protocol"], right["protocol"])
                else ""
            )
        gain = (
            f", is {next(iter(effect.values())):g}" if test == "number" and cell and effect else ""
        )
        half = (
            min((abs(value) / 2 for value in effect.values()), default=0.0)
            if test == "number"
            else 0.0
        )  # no gain is no support
        yield Claim(
            "-".join([entry["id"], *cell.values()]),
            paper.name,
            entry["claim"] + (f": {words}" if words else "") + gain,
            where,
            left,
            right,
            test,
            entry.get("tolerance", min(1.0, half)),
            effect,
            entry.get("primary", False),
            even=entry.get("even", False),
            entry=entry,
        )


def _side(paper, given, cell):
    """A side as columns and values of ``evidence``; a constant is one already."""
    if not isinstance(given, dict):
        return float(given)
    side = {"rows": "scores"} | paper.usual | cell | given
    side = SIDES.get(side["rows"], {}) | side
    if side["rows"] in ("scores", "phi", "disagreement"):
        side = {"head_layers": methods.find(side["method"]).head_layers} | side
    if side["rows"] == "scores" and side["added"] != "none":
        side = (
            {"pool": "related", "level": "small"}
            | (PICKING if side["added"] == "mak" else {})
            | side
        )
    return side


def _numbers(paper):
    """Every printed number of every row, tolerance: the paper's, 1 point as a rule, + 2 standard
    errors of the printed mean.
    """
    keys = [name for name in (*printed.ROW_KEYS, "protocol", "pool", "level") if name in paper.rows]
    shown = paper.rows[paper.rows.subset == "long_tail"].drop_duplicates(keys)
    shown = shown[shown.arm.notna()] if "arm" in shown else shown
    measures = [name for name in (*MEASURES, "error") if f"{name}_text" in shown]
    for (_, row), measure in product(shown.iterrows(), measures):
        if pd.notna(row[measure]) and isinstance(row[f"{measure}_text"], str):
            error, count = (row.get(name) for name in (f"{measure}_err", "runs"))
            spread = (
                2 * float(error) / float(count if pd.notna(count) else 1) ** 0.5
                if pd.notna(error)
                else 0.0
            )
            name = printed.row_label(row) + (
                "" if row.added == "none" else f" from {row.sampling_set}, {row.budget}"
            )
            named = (
                "-".join(["number", paper.name, row.table, name, row.protocol, measure])
                .replace(", ", "-")
                .replace(" ", "-")
            )
            unasked = {"data", "sampling_set", "budget"} | (
                {"pool", "level"} if row.added == "none" else set()
            )
            side = {key: row[key] for key in keys if key not in unasked}
            yield Claim(
                named,
                paper.name,
                f"{name}: {IN_WORDS[measure]}, {IN_WORDS[row.protocol]}, is "
                f"{row[f'{measure}_text']}",
                f"{paper.name}, {row.table}",
                {"rows": paper.usual.get("rows", "scores"), "measure": measure} | side,
                0.0,
                "number",
                round(paper.tolerance + spread, 2),
                {row["data"]: float(row[measure])},
                even=_even(row["data"]),
                data=row["data"],
            )


def _even(data):
    """Whether a list, such as "cifar10 exponential 1", has equal classes."""
    return data.endswith(" 1")


# ---- by what it is judged


def evidence(results, selection="last_epoch"):
    """All measurements in one long frame: what was measured (rows, protocol, measure), its value,
    the run with all its fields.

    Rows is scores, labels (scores of networks trained on labels), gap, phi, composition, diversity,
    disagreement, mechanism or overhead; ``data`` is the data set, of labels with the list.
    """
    done = results.finished()
    scores = tables.outcomes(results, selection)
    measures = [*MEASURES, "error", "tail"]
    scores = scores.assign(
        tail=scores.few - scores.many,
        rows=scores.protocol.eq("labels").map({True: "labels", False: "scores"}),
    )
    scores = scores.melt([name for name in scores if name not in measures], measures, "measure")
    phi = _extra(results, done, "phi").rename(columns={"group": "measure", "phi": "value"})
    pruned = _extra(results, done, "disagreement").rename(
        columns={"group": "measure", "phi": "value"}
    )
    active = _extra(results, done, "mechanism*").rename(
        columns={"mechanism": "protocol", "group": "measure"}
    )
    parts = _extra(results, done, "composition").rename(
        columns={"part": "measure", "share": "value"}
    )
    spread = (
        _extra(results, done, "diversity")
        .rename(columns={"nearest_pick_distance": "value"})
        .assign(measure="distance")
    )
    cost = (
        _extra(results, done, "overhead")
        .rename(columns={"equivalent_epochs": "value"})
        .assign(measure="epochs")
    )
    frames = (
        scores,
        _gaps(scores[scores.rows == "scores"]),
        _marked(phi),
        pruned,
        active,
        parts,
        spread,
        cost,
    )
    frames = [frame.reindex(columns=_COLUMNS) for frame in frames if len(frame)]
    everything = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    everything["data"] = everything.data.fillna(everything.dataset)
    words = [name for name in everything if not pd.api.types.is_numeric_dtype(everything[name])]
    return everything.astype(dict.fromkeys(words, object) | {"value": float})


def _extra(results, done, name):
    """Rows beside the scores with all fields of their run; a row's own budget and sampler take the
    place of the run's.
    """
    rows = results.read(name)
    rows = rows.loc[:, ~rows.columns.duplicated(keep="last")].rename(
        columns={"pool": "sampling_set"}
    )
    if "sampler" in rows:
        rows = rows.drop(columns="added").rename(columns={"sampler": "added"})
    return rows.merge(done[["run", *done.columns.difference(rows.columns)]], on="run").assign(
        rows=name.rstrip("*")
    )


def _gaps(scores):
    """What each method loses by the long tail: its score on the balanced list of the same size less
    that on the long-tailed one.
    """
    own = [
        "method",
        "head_layers",
        "options",
        "added",
        "epochs",
        "temperature",
        "protocol",
        "measure",
        *_PAIR,
    ]
    own = [name for name in own if name in scores]
    balanced = scores[scores.subset == "balanced"].set_index(own).value.rename("partner")
    gaps = scores[scores.subset == "long_tail"].join(balanced, on=own, how="inner")
    return gaps.assign(rows="gap", value=gaps.partner - gaps.value, balanced=gaps.partner)


def _marked(phi):
    """φ with its views marked as the least, 10, or the most beyond 10, and the ratio of few to many
    as one more measure.
    """
    if not len(phi):
        return phi
    wide = phi.pivot(index=["run", "protocol", "views"], columns="measure", values="value").reindex(
        columns=GROUPS
    )
    ratio = (wide.few / wide.many).rename("value").reset_index().assign(measure="few/many")
    ratio = ratio.merge(
        phi[phi.measure == "few"].drop(columns=["value", "measure"]),
        on=["run", "protocol", "views"],
    )
    phi = pd.concat([phi, ratio], ignore_index=True)
    least, most = (phi.groupby("run").views.transform(end) for end in ("min", "max"))
    marks = [phi.views == 10, phi.views == least, phi.views == most]
    return phi.assign(M=np.select(marks, ["10", "least", "most"], "between"))


# ---- one claim


def judge(claim, rows, floor=None):
    """Everything about one claim on rows of ``evidence``, as a dict: a verdict before any
    correction, and what stands beside it.

    The effect is left minus right from one linear model of the measure, value = arm + replicate; a
    replicate is a split and seed, and all arms at the same settings share their noise. Against a
    constant, or between two measures of the same encoders, there is no second arm: the one-sample t
    interval. Of several lengths only the longest counts, and the lengths of both sides are equal
    unless a side is the overhead control, whose point is to differ. One replicate has no interval
    and decides nothing. Where a claim cannot be judged the note says why. ``floor``: rows of
    untrained networks. Keys: those of COLUMNS from effect on, tolerance, p, relative, above_floor,
    check, note, runs.
    """
    asked = [side for side in (claim.left, claim.right) if isinstance(side, dict)]
    sides = [_matching(rows, side) for side in asked]
    if not all(map(len, sides)):
        return _unjudged(_lacking(rows, asked[0] if not len(sides[0]) else asked[1]))
    late = any(side.schedule.eq("overhead").any() for side in sides)
    keys = _keys(claim, rows, late)
    shared = _shared(sides, keys, late)
    if not len(shared):
        return _unjudged("the two sides share no split, seed and settings")
    if mixed := _mixed(sides, rows, _keys(claim, rows, late=False)):
        return _unjudged(
            f"runs of several {', '.join(mixed)} on one side; judge them in profiles of their own"
        )
    sides = [side[_at(side, keys).isin(shared)] for side in sides]
    estimate = _estimate(claim, rows, sides, keys, shared)
    alone = estimate.replicates == 1
    low, high = (np.nan, np.nan) if alone else map(float, estimate.interval)
    paper, printed_for = claim.printed(sides[0].data.iloc[0])
    found = str(inference.verdict(claim.test, low, high, paper, claim.tolerance, paper))
    tested, beside = _tested(claim, rows, sides, floor)
    note = "one replicate has no interval; run another split or seed" if alone else ""
    effect, error, freedom = (
        float(estimate.effect),
        float(estimate.error),
        0 if alone else estimate.freedom,
    )
    level = inference.LEVEL / claim.family  # what Holm's correction asks of the first of them
    return {
        "effect": effect,
        "low": low,
        "high": high,
        "n": estimate.replicates,
        "paper_effect": paper,
        "paper_data": printed_for,
        "mde": inference.detectable(error, freedom, level),
        "verdict": found if tested else "not tested",
        "note": note,
        "n_needed": inference.needed(
            0.0 if claim.test == "number" else paper, estimate, claim.tolerance, level
        ),
        "p": np.nan if alone else float(estimate.p),
        "relative": _relative(claim, effect, sides, floor),
        **beside,
        "runs": runs.short_names(pd.concat(sides).run),
    }


def _unjudged(note):
    return {"verdict": "not run", "note": note, "n": 0}


def _lacking(rows, side):
    """What a side asks for that there is none of, in words."""
    if unknown := [name for name in side if name not in rows]:
        return f"rows have no column {', '.join(unknown)}; there are {', '.join(rows)}"
    alone = [
        name for name, value in side.items() if not (rows[name].to_numpy(object) == value).any()
    ]
    return "no rows with " + ", ".join(f"{name} {side[name]}" for name in alone or side)


def _keys(claim, rows, late):
    """The columns that have to be equal on both sides of a pair: all but those that both name."""
    said = claim.left.keys() & (claim.right.keys() if isinstance(claim.right, dict) else set())
    equal = [
        name
        for name in (_GAP if claim.left["rows"] == "gap" else _PAIR)
        if name in rows and name not in said
    ]
    return equal if late else [*equal, "epochs"]


def _matching(rows, side):
    """The rows whose columns have the side's values; of the long-tailed list unless the side says
    another.
    """
    if not side.keys() <= set(rows):
        return rows[:0]
    places = np.arange(len(rows))
    for column, value in sorted(
        ({"subset": "long_tail"} | side).items()
    ):  # measure and protocol early: they leave few rows
        places = places[rows[column].to_numpy(object)[places] == value]
        if not len(places):
            return rows[:0]
    return rows.iloc[places[rows.value.notna().to_numpy()[places]]]


def _at(rows, columns):
    """The values in some columns as one text a row."""
    parts = (map(str, rows[name]) for name in columns if name in rows)
    return pd.Series(map(", ".join, zip(*parts, strict=True)), rows.index, dtype=object)


def _shared(sides, keys, late):
    """The places (keys as text) where all sides have rows, those of the longest training that they
    share.
    """
    common = set.intersection(*(set(_at(side, keys)) for side in sides))
    first = sides[0][_at(sides[0], keys).isin(common)]
    return set(_at(first if late else first[first.epochs == first.epochs.max()], keys))


def _mixed(sides, rows, keys):
    """Settings in which one side of a pair has runs that differ, so that their mean would be of
    unlike things.
    """
    found = set()
    settings = [name for name in (*_PAIR, *_OWN) if name in rows and name not in keys]
    for side in sides:
        several = [
            name for name in settings if side[name].nunique(dropna=False) > 1
        ]  # seldom any: pairs need not be asked
        each = (
            side.groupby(keys, dropna=False)[several].nunique(dropna=False)
            if several
            else pd.DataFrame()
        )
        found |= set(each.columns[(each > 1).any()])
    return sorted(found)


def _estimate(claim, rows, sides, keys, shared):
    """Left minus right as an ``inference.Estimate``."""
    means = [side.groupby(_at(side, _REPLICATE)).value.mean() for side in sides]
    cells = [
        {name: side[name] for name in _CELL if name in side}
        for side in (claim.left, claim.right)
        if isinstance(side, dict)
    ]
    if len(sides) == 1 or cells[0] != cells[1]:
        return inference.mean((means[0] - (means[1] if len(sides) > 1 else claim.right)).to_numpy())
    named = [side.assign(named=name) for side, name in zip(sides, ("left", "right"), strict=True)]
    beside = pd.concat(
        [_matching(rows, cells[0] | {"subset": subset}) for subset in rows.subset.unique()]
    )
    beside = beside[
        _at(beside, keys).isin(shared) & ~beside.index.isin([*sides[0].index, *sides[1].index])
    ]
    table = pd.concat([*named, beside.assign(named="beside: " + _at(beside, [*_ARM, "epochs"]))])
    table = (
        table.assign(place=_at(table, _REPLICATE))
        .groupby(["named", "place"], as_index=False)
        .value.mean()
    )
    return inference.fit_arms(table.value, table.named, table.place).contrast("left", "right")


def _level(rows, like, measure):
    """Mean accuracy of the rows on the data, network and protocol of ``like``; NaN if there are
    none.
    """
    same = (rows.rows == "scores") & (rows.measure == measure)
    for name in ("dataset", "architecture", "size", "protocol"):
        same &= rows[name] == like[name].iloc[0]
    return rows[same].value.mean()


def _tested(claim, rows, sides, floor):
    """Whether encoders and mechanism are fit to test a claim, and the columns that show it:
    above_floor (points, the worse side), check.

    What was not measured, an untrained network or a mechanism, stands in no claim's way; the
    columns say so.
    """
    beside, tested = {"above_floor": np.nan, "check": ""}, True
    if floor is not None and len(floor) and claim.left["rows"] in ("scores", "gap"):
        levels = [_level(rows[rows.run.isin(side.run)], side, "all") for side in sides]
        beside["above_floor"] = min(levels) - _level(floor, sides[0], "all")
        tested = not beside["above_floor"] < NEAR
    if claim.mechanism:
        mechanism, method, least = claim.mechanism
        asked = {"rows": "mechanism", "protocol": mechanism, "method": method}
        found = [
            _matching(rows, asked | {"measure": measure}) for measure in ("contrast", "chance")
        ]
        contrast, chance = (part.value[part.epochs.isin(sides[0].epochs)].mean() for part in found)
        bound = max(chance, least)
        beside["check"] = f"{mechanism}: " + (
            "not measured" if np.isnan(contrast) else f"{contrast:.2g}, needs {bound:.2g}"
        )
        tested = tested and not contrast <= bound
    return tested, beside


def _relative(claim, effect, sides, floor):
    """An effect in percent of what the right side has above an untrained network; of a gap, of what
    balanced training has above it.

    NaN where no untrained network was measured or none is beaten, and for measures that are no
    accuracy.
    """
    if (
        floor is None
        or not len(floor)
        or len(sides) < 2
        or claim.left["rows"] not in ("scores", "gap")
    ):
        return np.nan
    if (
        claim.left["measure"] not in ("all", *GROUPS)
        or claim.left["measure"] != claim.right["measure"]
    ):
        return np.nan
    ground = [_level(floor, side, claim.left["measure"]) for side in sides]
    above = [
        side["balanced" if claim.left["rows"] == "gap" else "value"].mean() - level
        for side, level in zip(sides, ground, strict=True)
    ]
    if not min(above) > 0:
        return np.nan
    if claim.left["rows"] == "gap":
        return 100 * (sides[0].value.mean() / above[0] - sides[1].value.mean() / above[1])
    return 100 * effect / above[1]


# ---- all claims


def judged(results, selection="last_epoch", kind="claims"):
    """Judge every claim on its paper's own data, and those about directions also on whatever other
    data the profile has.

    One row per claim and data. Columns: COLUMNS (effect ours, low to high its 95 % interval, n
    replicates, paper_effect in the same unit, mde: minimum detectable effect, n_needed: replicates
    that would find the paper's effect, both at 80 % power, of primary claims at 5 % shared among
    those of the paper, which is what Holm's correction asks of the first), then paper_data, where,
    scope (paper's data, own data), data, test, tolerance, p, p_holm, relative (percent of what lies
    above an untrained network), above_floor, check, note, unit, notebook, runs (digests of those on
    either side). Runs on a paper's data at other settings count as own data, named "cifar10 (cut)".

    Primary claims: their p values are corrected by Holm's method within each paper and data over
    all that have one; *supported* and *contradicted* then also need a corrected p of at most 0.05.
    The interval shown stays the plain one.
    """
    everything, lines = evidence(results, selection), []
    floor, everything = (
        everything[everything.method == "untrained"],
        everything[everything.method != "untrained"],
    )
    for paper in printed.papers().values():
        claims = claims_of(paper, kind)
        status = tables.status(
            everything.assign(subset="long_tail"), paper
        )  # a balanced list counts with the long-tailed one
        status = status.replace("quarter", "cut").mask(
            everything.rows.eq("gap") & status.ne("own data"), "cut"
        )
        theirs = _placed(everything[status == "full"], paper.pools, {0: "none"} | paper.budgets)
        lines += [
            _line(claim, "paper's data", data, theirs[theirs.data == data], floor)
            for claim in claims
            for data in ([claim.data] if claim.data else paper.data)
            if claim.even == _even(data)
        ]
        for (data, kind_of_data), here in everything[status != "full"].groupby(
            ["data", status[status != "full"]]
        ):
            name = data if kind_of_data == "own data" else f"{data} ({kind_of_data})"
            lists = kind_of_data != "JPEG copy" and not _even(data)
            here = (
                _as_lists(_placed(here, *_own_places(here)))
                if lists
                else _placed(here, *_own_places(here))
            )
            asked = [
                claim for claim in claims if claim.test != "number" and claim.even == _even(data)
            ]
            own = [_line(claim, "own data", name, here, floor, lists) for claim in asked]
            lines += own if any(line["n"] for line in own) else []
    return corrected(pd.DataFrame(lines))


def _placed(rows, pools, budgets):
    """Say which of the paper's pools and budgets ours stand for."""
    return rows.assign(pool=rows.sampling_set.map(pools), level=rows.budget.map(budgets))


def _own_places(rows):
    """On own data the smallest budget stands for 10K, the largest for 20K; a pool is mixed when its
    name says mix, else related.
    """
    budgets = sorted(set(rows.budget[rows.budget > 0]))
    levels = (
        {0: "none"}
        | dict(zip(budgets[-1:], ["large"], strict=False))
        | dict(zip(budgets[:1], ["small"], strict=False))
    )
    return {
        name: "mixed" if "mix" in str(name) else "related"
        for name in set(rows.sampling_set.dropna())
    }, levels


def _as_lists(rows):
    """Rows of learning with labels with one seed, so that lists are the replicates and seeds of one
    list are averaged.

    Who claims that a loss is better speaks of tails, not of the one list that a table used. On the
    paper's own list at its settings the question is that list, so there seeds are the replicates;
    with equal classes all lists are one.
    """
    return rows.assign(seed=rows.seed.mask(rows.rows == "labels", 0))


def _line(claim, scope, data, rows, floor, lists=False):
    """One row of ``judged``, before the correction."""
    blank = dict.fromkeys(
        ["effect", "low", "high", "mde", "n_needed", "p", "p_holm", "relative", "above_floor"],
        np.nan,
    )
    paper, printed_for = claim.printed(data.partition(" (")[0])
    found = (
        blank
        | {"paper_effect": paper, "paper_data": printed_for, "check": "", "runs": ""}
        | judge(claim, rows, floor)
    )
    if lists and found["n"] == 1 and claim.left["rows"] == "labels":
        found["note"] = "one list has no interval, whatever its seeds; run other splits"
    line = {
        "id": f"{claim.id}@{data.replace(' ', '-')}",
        "claim": claim.claim,
        "paper": claim.paper,
        "primary": claim.primary,
    }
    line |= {name: found[name] for name in COLUMNS[4:]} | {
        "paper_data": found["paper_data"],
        "where": claim.where,
        "scope": scope,
        "data": data,
        "test": claim.test,
        "tolerance": claim.tolerance,
    }
    return (
        line
        | {
            name: found[name]
            for name in ("p", "p_holm", "relative", "above_floor", "check", "note")
        }
        | {
            "unit": _UNITS.get(claim.left["rows"], "points"),
            "notebook": claim.notebook,
            "runs": found["runs"],
        }
    )


def corrected(lines):
    """Lines with Holm's p values of primary claims within each paper, scope and data, and the
    verdicts that these leave.
    """
    lines = lines.copy()
    for _, family in lines[lines.primary].groupby(["paper", "scope", "data"]):
        lines.loc[family.index, "p_holm"] = inference.holm(family.p)
    lost = (
        lines.primary
        & lines.verdict.isin(["supported", "contradicted"])
        & ~(lines.p_holm <= inference.LEVEL)
    )
    lines.loc[lost, "note"] = lines.verdict[lost] + " before Holm's correction within the paper"
    lines.loc[lost, "verdict"] = "undecided"
    return lines


def counts(checked):
    """How many claims got each of the six verdicts, primary and exploratory ones apart, for each
    paper and scope.
    """
    kind = checked.primary.map({True: "primary", False: "exploratory"}).rename("kind")
    found = pd.crosstab([kind, checked.scope, checked.paper], checked.verdict).reindex(
        columns=inference.VERDICTS, fill_value=0
    )
    return found.sort_index(ascending=[False, True, True]).reset_index()


def write_claims(checked, folder):
    """Write ``claims.csv``: the lines of ``judged`` that have rows, numbers with four significant
    digits, primary as true or false.

    What was not run is counted, with its reasons, by 10_claims, and stands once for all profiles in
    REPRODUCE.md.
    """
    shown = checked[checked.n > 0]
    numbers = checked.select_dtypes("float").columns
    shown = shown.assign(
        primary=shown.primary.map({True: "true", False: "false"}),
        **shown[numbers].map(lambda value: float(f"{value:.4g}")),
    )
    runs.write(folder / "claims.csv", text := shown.to_csv(index=False))
    runs.write_record(folder / "claims.json", {"sha256": runs.sha256(text.encode())})


def read_claims(folder):
    """The lines of a ``claims.csv`` that have rows; none where there is no file, ``Damaged`` where
    it is not as it was written.
    """
    file = folder / "claims.csv"
    if not file.exists():
        return pd.DataFrame(columns=[*COLUMNS, "scope", "data", "unit", "notebook", "runs"])
    if not file.with_suffix(".json").exists():
        raise Damaged(f"{file} has no claims.json beside it; delete it and run 10_claims again")
    found = runs.read_rows(file, dtype={"runs": str})
    if lost := set(COLUMNS) - set(found):
        raise Damaged(f"{file} has no column {min(lost)}; delete it and run 10_claims again")
    return found[found.n > 0]


def finding(line):
    """One line of ``judged`` or of a claims.csv as a sentence: the claim, effect, interval, n, the
    paper's effect and the verdict.

    SDCLR improves on SimCLR: accuracy on few, linear separability, on digits: +5.0 points (95 %
    interval +2.5 to +7.5, n = 3; the paper +4.9), supported.
    """
    unit = line["unit"] if line["unit"].startswith("%") else f" {line['unit']}"
    interval = (
        f"95 % interval {line['low']:+.3g} to {line['high']:+.3g}, "
        if pd.notna(line["low"])
        else ""
    )
    paper = f"; the paper {line['paper_effect']:+.3g}" if pd.notna(line["paper_effect"]) else ""
    effect = f"{line['effect']:+.3g}{unit} ({interval}n = {line['n']}{paper})"
    return f"{line['claim']}, on {line['data']}: {effect}, {line['verdict']}."
