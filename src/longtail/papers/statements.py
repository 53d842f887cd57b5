"""Every claim of the papers as something that can be computed: what it says, where it stands, the rows it needs, its test.

Those of ``_primary`` were named before any run of theirs: accuracies by the converged probe, corrected for their number within a paper. All
others are exploratory and keep the papers' protocols.
"""

from itertools import product

from longtail.papers import printed, tables
from longtail.papers.claim_forms import SAMPLERS, WORDS, Claim, claim, encoder, picked, versus

WITH = {"random": "Random picks", "k_center": "K-center's picks", "mak": "MAK's picks"}
DATA = {"SDCLR": ("cifar10", "cifar100", "imagenet100"), "MAK": ("imagenet100",), "rwSAM": ("cifar10",), "BCL": ("cifar100",),
        "GH": ("cifar100",), "COLT": ("cifar10", "cifar100")}
BOTH = ("linear", "fewshot_finetune")       # MAK's two protocols


def _primary():
    """The claims that decide, named before their runs; the paper's effect is that of the nearest printed protocol."""
    probe = "linear_converged"
    for measure in ("few", "all", "balance"):
        yield from versus("sdclr-vs-simclr", "SDCLR improves on SimCLR", "SDCLR slides, tables", encoder("sdclr", 3), encoder(),
                          [(probe, measure)], "SDCLR", primary=True)
    yield from versus("balanced-vs-long-tailed", "Contrastive learning is not immune to the long tail: SimCLR learns more from the "
                      "balanced list than from the long-tailed one", "SDCLR slides, Observation; tutorial slides",
                      encoder(subset="balanced"), encoder(), [(probe, "few")], "SDCLR", primary=True)
    yield claim("sdclr-pruning-finds-tail", "SDCLR", "Images on which the pruned and the dense model disagree come from rare classes: φ "
                "of few among them", "SDCLR slides, PIE samples", _disagreement("sdclr", 3), 1.0, "above", primary=True)
    for rival, measure in (("random", "all"), ("none", "all"), ("k_center", "all"), ("random", "few")):
        yield from versus(f"mak-vs-{rival}", f"MAK beats {SAMPLERS[rival]}", "MAK 3.2, Table 1", picked("mak"), picked(rival),
                          [(probe, measure)], primary=True)
    yield from versus("tailness-alone", "Tailness alone is worse than random picks", "MAK 3.3, Table 2", picked("tailness"),
                      picked("random"), [(probe, "all")], test="below", primary=True)
    picks = {"rows": "composition", "measure": "outsider", "level": "small"}
    yield claim("composition-mak-outsider-vs-tailness", "MAK", "MAK rejects outsiders that tailness picks", "MAK 2.3, 2.4",
                picks | {"added": "mak"}, picks | {"added": "tailness"}, "below", primary=True)
    yield claim("phi-few", "MAK", "The extractor of the long-tailed list finds few harder than that of the balanced list: φ at M = 10",
                "MAK 3.4, Figure 2", *_extractors("few"), "above", primary=True)
    yield _gap("simsiam", probe, primary=True)
    for paper, where, left, right, sentence in (
            ("BCL", "README", "bcl", "simclr", "Boosted views improve SimCLR (BCL-I)"),
            ("GH", "control of ours", "gh", "two_stage", "Harmony improves SimCLR at GH's own rates")):
        yield from versus(f"{left}-vs-{right}", sentence, f"{paper}, {where}", encoder(left), encoder(right), [(probe, "all")], paper,
                          primary=True)
    yield from versus("colt-vs-random", "COLT beats random picks at the same budget", "COLT, Table 2", encoder("colt", level="small"),
                      picked("random"), [(probe, "all")], "COLT", primary=True)


def _disagreement(method, head_layers, **more):
    return {"rows": "disagreement", "method": method, "head_layers": head_layers, "measure": "few"} | more


def _extractors(measure):
    """φ of a size group by SimCLR of the long-tailed list, and by SimCLR of the balanced one.

    Their difference, split by split, is about the tail alone: classes differ in difficulty, so φ is seldom 1 even after balanced training.
    """
    phi = {"rows": "phi", "protocol": "test", "method": "simclr", "head_layers": 2, "M": "10", "measure": measure}
    return phi, phi | {"subset": "balanced"}


def _gap(method, protocol, **more):
    """What the long tail costs a method without labels against what it costs with them: rwSAM's hypothesis."""
    lost = {"rows": "gap", "measure": "all", "protocol": protocol}
    return claim(f"gap-{method}-{protocol}", "rwSAM", f"The long tail costs {method} less than it costs supervised training: "
                 f"{WORDS[protocol]}", "rwSAM, abstract", lost | {"method": method}, lost | {"method": "supervised"}, "below", **more)


def _sdclr():
    """Claims of the SDCLR slides."""
    gains = [*product(("linear", "fewshot_linear"), ("all", "medium", "few", "balance")), ("linear", "many")]
    few = encoder(measure="few")
    yield from versus("sdclr-gain", "SDCLR improves on SimCLR", "SDCLR slides, tables", encoder("sdclr", 3), encoder(), gains, "SDCLR")
    for protocol in ("linear", "fewshot_linear"):
        yield claim(f"simclr-favours-head-{protocol}", "SDCLR", f"SimCLR serves frequent classes better than rare ones: {WORDS[protocol]}",
                    "SDCLR slides, Observation", encoder(protocol=protocol, measure="many"), few | {"protocol": protocol}, "above")
    yield claim("pruning-finds-tail-not-difficulty", "SDCLR", "Pruning a trained SimCLR forgets few after the long-tailed list more than "
                "after the balanced one: φ of few", "SDCLR slides, PIE samples; control of ours", _disagreement("simclr", 2),
                _disagreement("simclr", 2, subset="balanced"), "above")
    yield claim("simclr-fewshot-bias", "SDCLR", "SimCLR's imbalance is larger with few labels than with many", "SDCLR slides, Observation",
                encoder(protocol="fewshot_linear", measure="balance"), encoder(protocol="linear", measure="balance"), "above")


def _sampling():
    """Claims about Table 1: both pools, both budgets, against no picks, random picks and K-center."""
    for added in ("random", "k_center", "mak"):
        yield from versus(f"{added}-vs-none", f"{WITH[added]} improve on the seed alone", "MAK 3.2, Table 1", picked(added),
                          picked("none"), product(BOTH, ("all",)))
    yield from versus("mak-vs-none", "MAK makes the features fairer than the seed alone", "MAK abstract, Table 1", picked("mak"),
                      picked("none"), product(BOTH, ("few", "balance")))
    yield from versus("random-vs-none-same", "Random picks hardly change the balance of linear separability", "MAK 1, Table 1",
                      picked("random"), picked("none"), [("linear", "balance")], test="same", tolerance=0.5)
    for rival in ("random", "k_center"):
        yield from versus(f"mak-vs-{rival}", f"MAK beats {SAMPLERS[rival]}", "MAK 3.2, Table 1", picked("mak"), picked(rival),
                          product(BOTH, ("all", "few", "balance")))
    yield from versus("mak-vs-random-20k", "MAK beats random picks at the larger budget", "MAK 3.2, Table 1",
                      picked("mak", level="large"), picked("random", level="large"), product(BOTH, ("all", "few", "balance")))
    yield from versus("k_center-vs-random", "K-center, diversity alone, is worse than random picks", "MAK 3.2, 3.3",
                      picked("k_center"), picked("random"), product(BOTH, ("all",)), test="below")
    mixed = picked("mak", pool="mixed")
    yield from versus("mak-vs-random-mix", "MAK beats random picks where most of the pool is foreign", "MAK 3.2, Table 1", mixed,
                      picked("random", pool="mixed"), product(BOTH, ("all", "few", "balance")))
    yield from versus("mak-vs-k_center-mix", "MAK beats K-center where most of the pool is foreign", "MAK 3.2, Table 1", mixed,
                      picked("k_center", pool="mixed"), product(BOTH, ("all", "many", "few")))
    yield from versus("mak-vs-k_center-mix-same", "MAK and K-center are about equally fair where most of the pool is foreign",
                      "MAK 3.2, Table 1", mixed, picked("k_center", pool="mixed"), [("linear", "balance")], test="same", tolerance=0.5)


def _ablation():
    """Claims about Table 2: what each component is worth."""
    for alone in ("tailness", "proximity"):     # diversity alone is K-center, in Table 1
        yield from versus(f"{alone}-alone", f"{SAMPLERS[alone].capitalize()} is worse than random picks", "MAK 3.3, Table 2",
                          picked(alone), picked("random"), product(BOTH, ("all",)), test="below")
    yield from versus("tailness_proximity-vs-random", "Tailness with proximity beats random picks", "MAK 3.3, Table 2",
                      picked("tailness_proximity"), picked("random"), product(BOTH, ("all", "balance")))
    for test, measure, sentence in (("above", "all", "Diversity adds accuracy"), ("same", "balance", "Diversity leaves the balance alone")):
        yield from versus("diversity-added", sentence, "MAK 3.3, Table 2", picked("mak"), picked("tailness_proximity"),
                          product(BOTH, (measure,)), test=test, tolerance=0.5 if test == "same" else 0.0)


def _sensitivity():
    """Claims about Table 3: little changes with the parameters, and the small trends that the text names."""
    trends = {("prototypes", "linear", "all"): "below", ("prototypes", "fewshot_finetune", "balance"): "above",
              ("alpha", "fewshot_finetune", "balance"): "above", ("ratio", "linear", "all"): "below",
              ("ratio", "linear", "balance"): "below", ("ratio", "fewshot_finetune", "all"): "above"}
    for key, values in {"prototypes": (20.0, 50.0), "alpha": (0.5, 0.7), "ratio": (2.0, 2.5)}.items():
        for value, cell in product(values, product(BOTH, ("all", "balance"))):
            changed, stem = picked("mak", **{key: value}), f"{key}-{value:g}"
            if stem == "ratio-2" and cell == ("linear", "balance"):
                continue        # the paper's own difference there is a whole point: a trend, below
            yield from versus(f"{stem}-same", f"MAK hardly changes with {key} {value:g}", "MAK 3.3, Table 3", changed, picked("mak"),
                              [cell], test="same", tolerance=1.0)
            if (key, *cell) in trends:
                word = {"above": "slightly higher", "below": "slightly lower"}[trends[key, *cell]]
                yield from versus(f"{stem}-trend", f"MAK with {key} {value:g} is {word}", "MAK 3.3, Table 3", changed, picked("mak"),
                                  [cell], test=trends[key, *cell])


def _phi():
    """Claims about ECLE: whom φ points at, and how that changes with the number of views M.

    That φ is steady from M = 10 on is not asked: our views at larger M contain those at 10, so φ could hardly move.
    """
    where, phi = "MAK 3.4, Figure 2", {"rows": "phi", "protocol": "test", "method": "simclr", "head_layers": 2, "M": "10"}
    yield claim("phi-many", "MAK", "The extractor of the long-tailed list finds many easier than that of the balanced list: φ at M = 10",
                where, *_extractors("many"), "below")
    for group, test, word in (("few", "above", "rises"), ("medium", "above", "rises"), ("many", "below", "falls")):
        yield claim(f"phi-{group}-with-views", "MAK", f"φ of {group} {word} with the number of views", where, phi | {"measure": group},
                    phi | {"measure": group, "M": "least"}, test)
    yield Claim("phi-few-over-many", "MAK", "φ of few is nearly twice that of many", where, phi | {"measure": "few/many"}, 0.0,
                "number", 0.5, {"imagenet100": 2.0})


def _controls():
    """Claims of section 3.4 about cost, and about tasks other than the two main protocols."""
    late = {"schedule": "overhead"}
    yield from versus("mak-vs-overhead", "MAK beats random picks trained for MAK's extra cost", "MAK 3.4", picked("mak"),
                      picked("random", **late), product(BOTH, ("all", "balance")))
    yield from versus("overhead-same", "Longer training of random picks changes nothing", "MAK 3.4", picked("random", **late),
                      picked("random"), [*product(BOTH, ("all",)), ("linear", "balance")], test="same", tolerance=0.5)
    yield from versus("overhead-hurts", "Longer training of random picks costs fairness", "MAK 3.4", picked("random", **late),
                      picked("random"), [("fewshot_finetune", "balance")], test="above")
    yield Claim("overhead-epochs", "MAK", "Extractor and ECLE cost as much as 700 epochs", "MAK 3.4", {"rows": "overhead"}, 0.0,
                "number", 70.0, {"imagenet100": 700.0})
    yield from versus("mak-downstream", "MAK beats random picks on an imbalanced task", "MAK 3.4", picked("mak"), picked("random"),
                      product(("linear_longtail",), ("all", "balance")))
    for added in ("none", "random", "mak"):
        yield claim(f"finetune-vs-frozen-{added}", "MAK", f"Fine-tuning the encoder beats freezing it with few labels, {SAMPLERS[added]}",
                    "MAK 3.1", picked(added, protocol="fewshot_finetune", measure="all"),
                    picked(added, protocol="fewshot_linear", measure="all"), "above")


def _picks():
    """Claims about the picks themselves."""
    for rows, measure, left, test, right, sentence, where in (
            ("diversity", "distance", "tailness_proximity", "below", "random", "Without diversity the picks collapse", "MAK 3.4, Figure 3"),
            ("diversity", "distance", "mak", "above", "tailness_proximity", "Diversity spreads the picks", "MAK 3.4, Figure 3"),
            ("diversity", "distance", "proximity", "below", "random", "Proximity alone picks redundant images", "MAK 3.3"),
            ("composition", "outsider", "tailness", "above", "random", "Tailness alone picks many outsiders", "MAK 3.3"),
            ("composition", "few", "mak", "above", "random", "MAK's picks favour rare classes", "MAK 2.4, Figure 1"),
            ("composition", "many", "mak", "below", "random", "MAK's picks avoid frequent classes", "MAK 2.4, Figure 1")):
        side = {"rows": rows, "measure": measure, "level": "small"}
        yield claim(f"{rows}-{left}-{measure}-vs-{right}", "MAK", f"{sentence} ({SAMPLERS[left]} against {SAMPLERS[right]})", where,
                    side | {"added": left}, side | {"added": right}, test)


def _numbers():
    """All and balance of every printed row, tolerance 1 point + 2 standard errors of the printed mean; and the gains in the text."""
    shown = tables.reported().drop_duplicates([*tables.SETTING, "paper", "protocol"])
    for (_, row), measure in product(shown.iterrows(), ("all", "balance")):
        if not isinstance(row[measure], str):
            continue
        side = picked(row.added, printed.POOLS.get(row.sampling_set), printed.BUDGETS[row.budget], **row[["schedule", *tables.PICKING]])
        error = float(row[f"{measure}_err"]) if isinstance(row[f"{measure}_err"], str) else 0.0
        runs_printed = float(row.runs) if isinstance(row.runs, str) else 1.0
        label = tables.label(row) + ("" if row.added == "none" else f" from {row.sampling_set}, {row.budget}")
        name = "-".join(["number", row.table, label, row.protocol, measure]).replace(", ", "-").replace(" ", "-")
        yield Claim(name, row.paper, f"{label}: {WORDS[measure]}, {WORDS[row.protocol]}, is {row[measure]}", f"{row.paper} {row.table}",
                    side | {"method": row.method, "head_layers": row.head_layers, "protocol": row.protocol, "measure": measure},
                    0.0, "number", round(1 + 2 * error / runs_printed**0.5, 2), {row.dataset: float(row[measure])}, datasets=(row.dataset,))
    for pool, protocol in (("related", "linear"), ("related", "fewshot_finetune"), ("related", "linear_longtail"), ("mixed", "linear"),
                           ("mixed", "fewshot_finetune")):       # mixed, linear, all: 1.3 by Table 1, where the text has 0.3
        for measure in ("all", "balance"):
            sides = [picked(added, pool, protocol=protocol, measure=measure) for added in ("mak", "random")]
            effect, _ = printed.effects("MAK", *sides)
            [gain] = effect.values()        # half of it is allowed, so that no gain at all is no support
            yield Claim(f"number-gain-{pool}-{protocol}-{measure}", "MAK", f"MAK's gain over random picks, {pool} pool: {WORDS[measure]}, "
                        f"{WORDS[protocol]}, is {gain:g}", "MAK 3.2, 3.4", *sides, "number", min(1.0, abs(gain) / 2), effect)


FAMILY = [      # paper, where, what is claimed of the left method, the left method and the right one
    ("rwSAM", "abstract", "Weighted sharpness-aware steps improve SimSiam", "simsiam+rwsam", "simsiam"),
    ("BCL", "README", "Boosted views improve SimCLR (BCL-I)", "bcl", "simclr"),
    ("BCL", "README", "Boosted views improve SDCLR (BCL-D)", "sdclr+bcl", "sdclr"),
    ("GH", "abstract", "Harmony improves SimCLR", "gh", "simclr"),
    ("GH", "control of ours", "Harmony improves SimCLR at GH's own rates", "gh", "two_stage"),
    ("GH", "abstract", "Harmony improves SDCLR", "sdclr+gh", "sdclr"),
    ("GH", "abstract", "Harmony improves BCL", "bcl+gh", "bcl"),
    ("COLT", "Table 1", "Images fetched in training improve SimCLR", "colt", "simclr"),
    ("COLT", "Table 1", "Images fetched in training improve SDCLR", "sdclr+colt", "sdclr"),
    ("COLT", "Table 1", "Images fetched in training improve BCL", "bcl+colt", "bcl"),
]


def _family():
    """Claims of the papers on methods that join the loop: a gain over all, more of it in the tail; COLT's picks against fixed ones."""
    cells = [*product(("linear", "fewshot_linear"), ("all", "few", "balance", "tail"))]
    for paper, where, sentence, left, right in FAMILY:
        sides = [encoder(name, 3 if name.startswith("sdclr") else 2) for name in (left, right)]
        yield from versus(f"{left}-vs-{right}", sentence, f"{paper}, {where}", *sides, cells, paper)
    for rival in ("random", "mak"):
        yield from versus(f"colt-vs-{rival}", f"COLT beats {SAMPLERS[rival]} at the same budget", "COLT, Table 2",
                          encoder("colt", level="small"), picked(rival), [cell for cell in cells if cell[1] != "tail"], "COLT")
    for method, protocol in product(("simsiam", "simclr"), ("linear", "fewshot_linear", "linear_transfer")):
        yield _gap(method, protocol)


def _tried():
    """What could explain an effect other than a paper's: the comparison again with one thing changed, which stands in ``where``."""
    for protocol, schedule in product(BOTH, ("epochs", "updates")):
        cell = {"protocol": protocol, "measure": "all", "schedule": schedule}
        for rival, alpha in (("none", 0.3), ("random", 0.3), ("random", 0.5)):
            right = picked(rival) | cell | ({"schedule": "epochs"} if rival == "none" else {})
            yield claim(f"tried-mak-vs-{rival}-{protocol}-{schedule}-{alpha:g}", "MAK", f"MAK over {SAMPLERS[rival]}: {WORDS[protocol]}",
                        f"equal {schedule}, alpha {alpha:g}", picked("mak", alpha=alpha) | cell, right, "above")
    for group, (protocol, where) in product(("few", "many"), {"test": "balanced test images contrasted with each other",
                                                              "train": "long-tailed images contrasted with each other"}.items()):
        yield Claim(f"tried-phi-{group}-{protocol}", "MAK", f"φ of {group} less 1, at M = 10", where, {
            "rows": "phi", "protocol": protocol, "method": "simclr", "head_layers": 2, "M": "10", "measure": group}, 1.0, "above")
    for measure, layers in product(("all", "few"), (2, 3)):
        cell = {"protocol": "linear", "measure": measure}
        yield claim(f"tried-sdclr-{measure}-{layers}", "SDCLR", f"SDCLR over SimCLR: {WORDS[measure]}, {WORDS['linear']}",
                    f"SimCLR's head with {layers} layers, SDCLR's with 3", encoder("sdclr", 3) | cell, encoder(head_layers=layers) | cell,
                    "above")


TRIED = [*_tried()]
CLAIMS = [*_primary(), *_sdclr(), *_sampling(), *_ablation(), *_sensitivity(), *_phi(), *_controls(), *_picks(), *_family(), *_numbers()]
