"""Every claim of the two papers as something that can be computed: what it says, the rows it needs, its test, its verdict.

A claim about numbers of a table is judged on the paper's own data at its published settings only. A claim about a direction is also
judged, apart and marked "own data", on whatever other data a profile has. Nothing printed in a paper ever enters our side.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from longtail import runs, tables

NOTE = ("effect: mean paired difference over splits and seeds (for numbers: ours − paper's), low and high: its 95 % t interval, n: pairs. "
        "Direction: holds if the whole interval lies on the claimed side. Same: if it lies within ± tolerance. No gain: if it ends below "
        "the tolerance. Number: if the effect lies within ± tolerance. One pair has no interval, so anything but a number stays not run.")
WORDS = {"linear": "linear separability", "fewshot_linear": "few-shot with a frozen encoder", "fewshot_finetune": "fine-tuned few-shot",
         "linear_longtail": "classifier trained on the long-tailed list", "all": "overall accuracy", "many": "accuracy on many",
         "medium": "accuracy on medium", "few": "accuracy on few", "balance": "balance (smaller is fairer)"}
SAMPLERS = {"none": "no extra images", "random": "random picks", "k_center": "K-center", "tailness": "tailness alone",
            "proximity": "proximity alone", "tailness_proximity": "tailness with proximity", "mak": "MAK"}
WITH = {"random": "Random picks", "k_center": "K-center's picks", "mak": "MAK's picks"}
DATA = {"SDCLR": ("cifar10", "cifar100", "imagenet100"), "MAK": ("imagenet100",)}
BOTH = ("linear", "fewshot_finetune")       # MAK's two protocols
POOLS = {"imagenet900": "related", "imagenet_places_mix": "mixed"}
BUDGETS = {0: "none", 10_000: "small", 20_000: "large"}
_PAIR = ["architecture", "size", "policy", "batch_size", "learning_rate", "precision", "split", "seed"]     # equal on both sides
_COLUMNS = ["rows", "protocol", "sampling_set", "views", "M", "pool", "level", "measure", "value", "run", "seed_images", *runs.FIELDS,
            *tables.PICKING]


@dataclass(frozen=True)
class Claim:
    """One statement: where it stands, the rows on either side of the difference, and how that difference is judged."""

    id: str
    paper: str
    claim: str              # in our words
    where: str
    left: dict = field(hash=False)      # column -> value: the rows of ``evidence`` on the left
    right: dict | float = field(hash=False)     # those on the right, or a constant
    test: str               # above, below, same, no gain or number
    tolerance: float = 0.0  # in the unit of the rows: points of accuracy, or φ
    value: float = 0.0      # the difference that the paper prints, for numbers
    datasets: tuple = ()    # the paper's own data for this claim; empty: all of the paper's

    @property
    def notebook(self):
        """Where the rows are made; empty when no notebook makes them yet."""
        scores = "03_evaluate" if self.left.get("added") == "none" else "05_sampling"
        return {"scores": scores, "phi": "04_ecle", "composition": "05_sampling", "diversity": "06_diversity"}.get(self.left["rows"], "")


def evidence(results, selection="best_validation"):
    """All measurements of the long-tailed runs in one long frame: what was measured (rows, protocol, measure), its value, the run.

    Rows is scores, phi, composition, diversity, disagreement or overhead; the last two are written by no notebook yet.
    """
    done = tables.finished(results)
    scores = tables.outcomes(results, selection)
    scores = scores.melt([name for name in scores if name not in tables.MEASURES], tables.MEASURES, "measure").assign(rows="scores")
    phi = _extra(results, done, "phi").rename(columns={"group": "measure", "phi": "value"})
    pruned = _extra(results, done, "disagreement").rename(columns={"group": "measure", "phi": "value"})
    parts = _extra(results, done, "composition").rename(columns={"part": "measure", "share": "value"})
    spread = _extra(results, done, "diversity").rename(columns={"nearest_pick_distance": "value"}).assign(measure="distance")
    cost = _extra(results, done, "overhead").rename(columns={"equivalent_epochs": "value"}).assign(measure="epochs")
    frames = [frame.reindex(columns=_COLUMNS) for frame in (scores, _marked(phi), pruned, parts, spread, cost) if len(frame)]
    everything = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    return everything[everything.subset == "long_tail"].astype({"value": float})


def _extra(results, done, name):
    """Rows beside the scores with all fields of their run; a row's own budget and sampler take the place of the run's."""
    rows = results.read(name)
    rows = rows.loc[:, ~rows.columns.duplicated(keep="last")].rename(columns={"pool": "sampling_set"})
    if "sampler" in rows:
        rows = rows.drop(columns="added").rename(columns={"sampler": "added"})
    return rows.merge(done[["run", *done.columns.difference(rows.columns)]], on="run").assign(rows=name)


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


def _versus(stem, sentence, where, left, right, cells, paper="MAK", test=None, tolerance=0.0):
    """One claim for every (protocol, measure): a better left side unless ``test`` says otherwise; a better balance is a smaller one."""
    return [Claim(f"{stem}-{protocol}-{measure}", paper, f"{sentence}: {WORDS[measure]}, {WORDS[protocol]}", where,
                  {"protocol": protocol, "measure": measure} | left, {"protocol": protocol, "measure": measure} | right,
                  test or ("below" if measure == "balance" else "above"), tolerance) for protocol, measure in cells]


def _encoder(method="simclr", head_layers=2, **more):
    return {"rows": "scores", "method": method, "head_layers": head_layers, "added": "none", "schedule": "epochs"} | more


def _picked(added, pool="related", level="small", **more):
    """Encoders retrained with extra images; MAK's at its default parameters unless told otherwise."""
    usual = tables.PICKING if added == "mak" else {}
    return _encoder(added=added, **({} if added == "none" else {"pool": pool, "level": level} | usual)) | more


def _sdclr():
    """Claims of the SDCLR slides."""
    gains = [*product(("linear", "fewshot_linear"), ("all", "medium", "few", "balance")), ("linear", "many")]
    few = _encoder(measure="few")
    yield from _versus("sdclr-gain", "SDCLR improves on SimCLR", "SDCLR slides, tables", _encoder("sdclr", 3), _encoder(), gains, "SDCLR")
    for protocol in ("linear", "fewshot_linear"):
        yield Claim(f"simclr-favours-head-{protocol}", "SDCLR", f"SimCLR serves frequent classes better than rare ones: {WORDS[protocol]}",
                    "SDCLR slides, Observation", _encoder(protocol=protocol, measure="many"), few | {"protocol": protocol}, "above")
    yield Claim("simclr-fewshot-bias", "SDCLR", "SimCLR's imbalance is larger with few labels than with many", "SDCLR slides, Observation",
                _encoder(protocol="fewshot_linear", measure="balance"), _encoder(protocol="linear", measure="balance"), "above")
    yield Claim("sdclr-pruning-finds-tail", "SDCLR", "Images on which the pruned and the dense model disagree come from rare classes",
                "SDCLR slides, PIE samples", {"rows": "disagreement", "measure": "few"}, 1.0, "above")


def _sampling():
    """Claims about Table 1: both pools, both budgets, against no picks, random picks and K-center."""
    for added in ("random", "k_center", "mak"):
        yield from _versus(f"{added}-vs-none", f"{WITH[added]} improve on the seed alone", "MAK 3.2, Table 1", _picked(added),
                           _picked("none"), product(BOTH, ("all",)))
    yield from _versus("mak-vs-none", "MAK makes the features fairer than the seed alone", "MAK abstract, Table 1", _picked("mak"),
                       _picked("none"), product(BOTH, ("few", "balance")))
    yield from _versus("random-vs-none-same", "Random picks hardly change the balance of linear separability", "MAK 1, Table 1",
                       _picked("random"), _picked("none"), [("linear", "balance")], test="same", tolerance=0.5)
    for rival in ("random", "k_center"):
        yield from _versus(f"mak-vs-{rival}", f"MAK beats {SAMPLERS[rival]}", "MAK 3.2, Table 1", _picked("mak"), _picked(rival),
                           product(BOTH, ("all", "few", "balance")))
    yield from _versus("mak-vs-random-20k", "MAK beats random picks at the larger budget", "MAK 3.2, Table 1",
                       _picked("mak", level="large"), _picked("random", level="large"), product(BOTH, ("all", "few", "balance")))
    yield from _versus("k_center-vs-random", "K-center, diversity alone, is worse than random picks", "MAK 3.2, 3.3",
                       _picked("k_center"), _picked("random"), product(BOTH, ("all",)), test="below")
    mixed = _picked("mak", pool="mixed")
    yield from _versus("mak-vs-random-mix", "MAK beats random picks where most of the pool is foreign", "MAK 3.2, Table 1", mixed,
                       _picked("random", pool="mixed"), product(BOTH, ("all", "few", "balance")))
    yield from _versus("mak-vs-k_center-mix", "MAK beats K-center where most of the pool is foreign", "MAK 3.2, Table 1", mixed,
                       _picked("k_center", pool="mixed"), product(BOTH, ("all", "many", "few")))
    yield from _versus("mak-vs-k_center-mix-same", "MAK and K-center are about equally fair where most of the pool is foreign",
                       "MAK 3.2, Table 1", mixed, _picked("k_center", pool="mixed"), [("linear", "balance")], test="same", tolerance=0.5)


def _ablation():
    """Claims about Table 2: what each component is worth."""
    for alone in ("tailness", "proximity"):     # diversity alone is K-center, in Table 1
        yield from _versus(f"{alone}-alone", f"{SAMPLERS[alone].capitalize()} is worse than random picks", "MAK 3.3, Table 2",
                           _picked(alone), _picked("random"), product(BOTH, ("all",)), test="below")
    yield from _versus("tailness_proximity-vs-random", "Tailness with proximity beats random picks", "MAK 3.3, Table 2",
                       _picked("tailness_proximity"), _picked("random"), product(BOTH, ("all", "balance")))
    for test, measure, sentence in (("above", "all", "Diversity adds accuracy"), ("same", "balance", "Diversity leaves the balance alone")):
        yield from _versus("diversity-added", sentence, "MAK 3.3, Table 2", _picked("mak"), _picked("tailness_proximity"),
                           product(BOTH, (measure,)), test=test, tolerance=0.5 if test == "same" else 0.0)


def _sensitivity():
    """Claims about Table 3: little changes with the parameters, and the small trends that the text names."""
    trends = {("prototypes", "linear", "all"): "below", ("prototypes", "fewshot_finetune", "balance"): "above",
              ("alpha", "fewshot_finetune", "balance"): "above", ("ratio", "linear", "all"): "below",
              ("ratio", "linear", "balance"): "below", ("ratio", "fewshot_finetune", "all"): "above"}
    for key, values in {"prototypes": (20.0, 50.0), "alpha": (0.5, 0.7), "ratio": (2.0, 2.5)}.items():
        for value, cell in product(values, product(BOTH, ("all", "balance"))):
            changed, stem = _picked("mak", **{key: value}), f"{key}-{value:g}"
            if stem == "ratio-2" and cell == ("linear", "balance"):
                continue        # the paper's own difference there is a whole point: a trend, below
            yield from _versus(f"{stem}-same", f"MAK hardly changes with {key} {value:g}", "MAK 3.3, Table 3", changed, _picked("mak"),
                               [cell], test="same", tolerance=1.0)
            if (key, *cell) in trends:
                word = {"above": "slightly higher", "below": "slightly lower"}[trends[key, *cell]]
                yield from _versus(f"{stem}-trend", f"MAK with {key} {value:g} is {word}", "MAK 3.3, Table 3", changed, _picked("mak"),
                                   [cell], test=trends[key, *cell])


def _phi():
    """Claims about ECLE: whom φ points at, and how that changes with the number of views M."""
    where, phi = "MAK 3.4, Figure 2", {"rows": "phi", "protocol": "test", "method": "simclr", "head_layers": 2, "M": "10"}
    for group, test, word in (("few", "above", "over"), ("many", "below", "under")):
        yield Claim(f"phi-{group}", "MAK", f"{group.capitalize()} is {word}-represented among the hardest images at M = 10", where,
                    phi | {"measure": group}, 1.0, test)
    for group, test, word in (("few", "above", "rises"), ("medium", "above", "rises"), ("many", "below", "falls")):
        yield Claim(f"phi-{group}-with-views", "MAK", f"φ of {group} {word} with the number of views", where, phi | {"measure": group},
                    phi | {"measure": group, "M": "least"}, test)
        yield Claim(f"phi-{group}-steady", "MAK", f"φ of {group} is steady from M = 10 on", where, phi | {"measure": group, "M": "most"},
                    phi | {"measure": group}, "same", 0.1)
    yield Claim("phi-few-over-many", "MAK", "φ of few is nearly twice that of many", where, phi | {"measure": "few/many"}, 0.0,
                "number", 0.5, 2.0)


def _controls():
    """Claims of section 3.4 about cost, and about tasks other than the two main protocols."""
    late = {"schedule": "overhead"}
    yield from _versus("mak-vs-overhead", "MAK beats random picks trained for MAK's extra cost", "MAK 3.4", _picked("mak"),
                       _picked("random", **late), product(BOTH, ("all", "balance")))
    yield from _versus("overhead-same", "Longer training of random picks changes nothing", "MAK 3.4", _picked("random", **late),
                       _picked("random"), [*product(BOTH, ("all",)), ("linear", "balance")], test="same", tolerance=0.5)
    yield from _versus("overhead-hurts", "Longer training of random picks costs fairness", "MAK 3.4", _picked("random", **late),
                       _picked("random"), [("fewshot_finetune", "balance")], test="above")
    yield Claim("overhead-epochs", "MAK", "Extractor and ECLE cost as much as 700 epochs", "MAK 3.4", {"rows": "overhead"}, 0.0,
                "number", 70.0, 700.0)
    yield from _versus("mak-downstream", "MAK beats random picks on an imbalanced task", "MAK 3.4", _picked("mak"), _picked("random"),
                       product(("linear_longtail",), ("all", "balance")))
    for added in ("none", "random", "mak"):
        yield Claim(f"finetune-vs-frozen-{added}", "MAK", f"Fine-tuning the encoder beats freezing it with few labels, {SAMPLERS[added]}",
                    "MAK 3.1", _picked(added, protocol="fewshot_finetune", measure="all"),
                    _picked(added, protocol="fewshot_linear", measure="all"), "above")


def _picks():
    """Claims about the picks themselves."""
    for rows, measure, left, test, right, sentence, where in (
            ("diversity", "distance", "tailness_proximity", "below", "random", "Without diversity the picks collapse", "MAK 3.4, Figure 3"),
            ("diversity", "distance", "mak", "above", "tailness_proximity", "Diversity spreads the picks", "MAK 3.4, Figure 3"),
            ("diversity", "distance", "proximity", "below", "random", "Proximity alone picks redundant images", "MAK 3.3"),
            ("composition", "outsider", "tailness", "above", "random", "Tailness alone picks many outsiders", "MAK 3.3"),
            ("composition", "outsider", "mak", "below", "tailness", "MAK rejects outsiders that tailness picks", "MAK 2.3, 2.4"),
            ("composition", "few", "mak", "above", "random", "MAK's picks favour rare classes", "MAK 2.4, Figure 1"),
            ("composition", "many", "mak", "below", "random", "MAK's picks avoid frequent classes", "MAK 2.4, Figure 1")):
        side = {"rows": rows, "measure": measure, "level": "small"}
        yield Claim(f"{rows}-{left}-{measure}-vs-{right}", "MAK", f"{sentence} ({SAMPLERS[left]} against {SAMPLERS[right]})", where,
                    side | {"added": left}, side | {"added": right}, test)


def _numbers():
    """All and balance of every printed row, tolerance 1 point + 2 standard errors of the printed mean; and the gains in the text."""
    printed = tables.reported().drop_duplicates([*tables.SETTING, "paper", "protocol"])
    for (_, row), measure in product(printed.iterrows(), ("all", "balance")):
        side = _picked(row.added, POOLS.get(row.sampling_set), BUDGETS[row.budget], **row[["schedule", *tables.PICKING]])
        error = float(row[f"{measure}_err"]) if isinstance(row[f"{measure}_err"], str) else 0.0
        runs_printed = float(row.runs) if isinstance(row.runs, str) else 1.0
        label = tables.label(row) + ("" if row.added == "none" else f" from {row.sampling_set}, {row.budget}")
        name = "-".join(["number", row.table, label, row.protocol, measure]).replace(", ", "-").replace(" ", "-")
        yield Claim(name, row.paper, f"{label}: {WORDS[measure]}, {WORDS[row.protocol]}, is {row[measure]}", f"{row.paper} {row.table}",
                    side | {"method": row.method, "head_layers": row.head_layers, "protocol": row.protocol, "measure": measure},
                    0.0, "number", round(1 + 2 * error / runs_printed**0.5, 2), float(row[measure]), (row.dataset,))
    gains = {("related", "linear"): (1.5, -0.5), ("related", "fewshot_finetune"): (0.8, -0.5), ("related", "linear_longtail"): (0.8, -0.6),
             ("mixed", "linear"): (1.3, -0.3), ("mixed", "fewshot_finetune"): (0.6, -0.7)}      # 1.3 by Table 1, where the text has 0.3
    for (pool, protocol), values in gains.items():
        for measure, value in zip(("all", "balance"), values, strict=True):
            sides = [_picked(added, pool, protocol=protocol, measure=measure) for added in ("mak", "random")]
            yield Claim(f"number-gain-{pool}-{protocol}-{measure}", "MAK", f"MAK's gain over random picks, {pool} pool: {WORDS[measure]}, "
                        f"{WORDS[protocol]}, is {value}", "MAK 3.2, 3.4", *sides, "number", 1.0, value)


CLAIMS = [*_sdclr(), *_sampling(), *_ablation(), *_sensitivity(), *_phi(), *_controls(), *_picks(), *_numbers()]


def differences(claim, rows):
    """Left minus right for every pair of equal architecture, views, optimiser, split and seed, as a series.

    A constant on the right is subtracted as it is. Runs of several lengths: only the longest pairs count, and lengths must agree
    unless a side is the overhead control, whose point is to differ.
    """
    sides = [_matching(rows, side) for side in (claim.left, claim.right) if isinstance(side, dict)]
    if any(side.empty for side in sides):
        return pd.Series(dtype=float)
    late = any(side.schedule.eq("overhead").any() for side in sides)
    keys = _PAIR if late else [*_PAIR, "epochs"]
    left, *right = [side.groupby(keys).value.mean() for side in sides]
    paired = (left.sub(right[0]) if right else left - claim.right).dropna()
    if late or not len(paired):
        return paired
    epochs = paired.index.get_level_values("epochs")
    return paired[epochs == epochs.max()]


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
    if not (n := len(found)):
        return {"effect": np.nan, "low": np.nan, "high": np.nan, "n": 0, "verdict": "not run", "note": ""}
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


def check(results, selection="best_validation"):
    """Judge every claim on the paper's own data, and those about directions also on whatever other data the profile has.

    One row per claim and data set: id, claim, paper, where, scope (paper's data, own data), data, test, effect, low, high, n,
    tolerance, verdict, note, notebook. Runs on a paper's data at other settings count as own data, named with their epochs.
    """
    rows, lines = evidence(results, selection), []
    for paper, datasets in DATA.items():
        full = tables.published(rows, paper).astype(bool)
        theirs, own = _placed(rows[full], POOLS, BUDGETS), rows[~full]
        claims = [claim for claim in CLAIMS if claim.paper == paper]
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
