"""The papers' effects: differences between two printed rows, signed as a claim has its sides. Only the papers' side; ours never enters."""

from functools import cache

import pandas as pd

from longtail.papers import tables

POOLS = {"imagenet900": "related", "imagenet_places_mix": "mixed"}
BUDGETS = {0: "none", 10_000: "small", 20_000: "large"}
WORDS = {"linear": "linear separability", "adam_full": "BCL's probe with 40,000 labels", "linear_50000": "SimSiam's probe",
         "fewshot_linear": "few-shot"}
NEAREST = {"linear_converged": tuple(WORDS), "linear": ("linear", "adam_full")}     # printed protocols that stand in, the nearest first
_PLACE = ("method", "head_layers", "added", "schedule", "pool", "level", "subset", *tables.PICKING)


@cache
def rows():
    """All printed rows of encoders: ``tables.reported`` and those of balanced lists, with pool, level, subset and ``tail``."""
    balanced = tables.reported("reported_balanced")
    found = pd.concat([tables.reported().assign(subset="long_tail"), balanced.assign(subset="balanced")], ignore_index=True)
    found[tables.MEASURES] = found[tables.MEASURES].astype(float)
    return found.assign(pool=found.sampling_set.map(POOLS), level=found.budget.map(BUDGETS), tail=found.few - found.many)


def effects(paper, left, right):
    """The printed difference of a claim's sides for each data set, ``{"cifar10": 6.45}``, and the protocol it was printed for.

    Sides are dicts as in ``statements``. Where a paper has no such protocol the nearest one stands in. Empty, with no protocol, unless
    both sides are printed. ``ValueError`` if a side fits rows that differ.
    """
    asked = left["protocol"], right["protocol"]
    stand_ins = NEAREST.get(asked[0], asked[:1]) if asked[0] == asked[1] else (None,)
    for protocol in stand_ins:
        here, there = (_of(paper, side | ({"protocol": protocol} if protocol else {})) for side in (left, right))
        found = {data: round(here[data] - there[data], 4) for data in here if data in there}
        if found:
            return found, protocol or asked[0]
    return {}, ""


def _of(paper, side):
    """The printed value of one side for each data set that has it."""
    wanted = {"subset": "long_tail"} | {key: side[key] for key in (*_PLACE, "protocol") if key in side}
    found = rows()[rows().paper == paper]
    for column, value in wanted.items():
        found = found[found[column].to_numpy(object) == value]
    found = found[found[side["measure"]].notna()].groupby("dataset")[side["measure"]]
    if (found.nunique() > 1).any():
        raise ValueError(f"{paper} prints several values for {wanted}")
    return found.first().to_dict()
