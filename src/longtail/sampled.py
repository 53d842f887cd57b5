"""What samplers took, measured afterwards: whose classes the picks are. Labels are read here, never by a sampler."""

import csv
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from longtail.evaluate import SIZE_GROUPS, size_groups

PARTS = ("outsider", *SIZE_GROUPS)      # of a pool


# ---- whose classes

@functools.lru_cache(maxsize=1)
def counterparts():
    """Which of CIFAR-10's classes a class of Tiny-ImageNet is: WordNet id -> name, from ``wordnet_cifar10.csv``.

    The rule, fixed before any picks were looked at: each class of CIFAR-10 stands for the first noun sense of its name in WordNet 3.0,
    but ``ship`` for the sense "vessel, craft designed for water transportation", since CIFAR-10's ships include boats. A class is its
    counterpart where that sense is the class itself or one of its hypernyms. So a cougar is a cat (wildcat, cat), a tailed toad is a
    frog (the sense is "frog, toad"), a moving van is a truck; a lion (big cat), a school bus, a tractor and a go-kart are outsiders.
    """
    with open(Path(__file__).with_name("wordnet_cifar10.csv")) as file:
        return {row["wnid"]: row["cifar10"] for row in csv.DictReader(file)}


def pool_labels(study):
    """The class of each pool image in the study, −1 for outsiders: int64 (n,).

    An image without a label gets one where a folder in its name is a WordNet id of ``counterparts`` and the study has that class.
    """
    known = {wnid: study.classes.index(name) for wnid, name in counterparts().items() if name in study.classes}
    named = [next((known[part] for part in name.split("/") if part in known), -1) for name in study.pool.names]
    return torch.where(study.pool.labels < 0, torch.tensor(named, dtype=torch.int64), study.pool.labels)


def pool_parts(study, group_rule="thirds"):
    """What each pool image is: the size group of its class in the long-tailed list, or ``outsider``; array of n names."""
    return np.array([*size_groups(study.counts, group_rule), "outsider"])[pool_labels(study).numpy()]      # −1 finds the last


def composition(study, picks, group_rule="thirds"):
    """What samplers took: percent of the picks that are outsiders or of each size group.

    ``picks``: sampler -> rows with column index. Rows: sampler, budget, part, share, picks; none when every image of the pool is an
    outsider.
    """
    parts, rows = pool_parts(study, group_rule), []
    for sampler, taken in picks.items() if (parts != "outsider").any() else ():
        found = parts[taken["index"].to_numpy()]
        rows += [(sampler, len(found), part, 100 * (found == part).mean(), (found == part).sum()) for part in PARTS]
    return pd.DataFrame(rows, columns=["sampler", "budget", "part", "share", "picks"])
