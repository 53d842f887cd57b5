"""What the papers print and claim: each is one file here, ``<name>.yaml`` with its printed numbers
in ``<name>.csv``, found by being there.

A file has the name, year, title and profiles (data set: those that make its rows; a table or claim
may name others), perhaps digits and tolerance (of printed numbers), pools and budgets (which of its
own count as related or mixed, small or large), and then:

settings    what its tables are made at, fields of runs; left out where the files of the methods
            have them (``methods.published_settings``)
tables      file name: the table's title in the CSV and the protocol; missing: why nothing here can
            make it; nearest (profile: file): where another probe made the same comparison
figures     the paper's figure: file name, profile, number of the notebook that draws it
claims      id, claim, where, left, right (a constant, or a side), test (above, below, same, number;
            above unless named, for balance below), tolerance, cells (protocols, measures: one claim
            each), effect (data set: what is printed), primary, even (asked of lists with equal
            classes); a side is what its rows of ``claims.evidence`` have in common, beyond
            ``SIDES`` and ``usual``
tried       the same, for comparisons of ours that a paper does not make
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from longtail.label import adjusted
from longtail.learn import methods
from longtail.store import arms

FOLDER = Path(__file__).parent
GROUPS = ["many", "medium", "few"]
MEASURES = [*GROUPS, "balance", "all"]
PICKING = {
    "prototypes": 10.0,
    "alpha": 0.3,
    "ratio": 1.5,
}  # MAK's own defaults (section 3.1); its Table 3 varies them
ROW_KEYS = [
    "data",
    "subset",
    "sampling_set",
    "budget",
    "method",
    "arm",
    "head_layers",
    "added",
    "schedule",
    *PICKING,
]  # of a printed row
_USUAL = {
    "protocol": "labels",
    "subset": "long_tail",
    "sampling_set": "none",
    "budget": 0,
    "added": "none",
    "schedule": "epochs",
    **dict.fromkeys(PICKING, 0.0),
}
_KINDS = {"budget": int, "head_layers": int, **dict.fromkeys(PICKING, float)}
IN_WORDS = {
    "linear": "linear separability",
    "linear_converged": "converged linear probe",
    "fewshot_linear": "few-shot with a frozen encoder",
    "fewshot_finetune": "fine-tuned few-shot",
    "linear_longtail": "classifier trained on the long-tailed list",
    "linear_transfer": "linear separability on another data set",
    "adam_full": "BCL's probe, 40,000 labels",
    "adam_100shot": "BCL's probe, 10,000 labels",
    "adam_50shot": "BCL's probe, 5,000 labels",
    "linear_50000": "SimSiam's probe, 50,000 labels",
    "knn1": "nearest neighbour",
    "knn10": "votes of 10 neighbours",
    "knn": "votes of 200 neighbours",
    "svm_few": "linear SVM, few-shot",
    "svm_longtail": "linear SVM on the long-tailed list",
    "labels": "trained on labels",
    "error": "error",
    "all": "overall accuracy",
    "many": "accuracy on many",
    "medium": "accuracy on medium",
    "few": "accuracy on few",
    "balance": "balance (smaller is fairer)",
    "tail": "few minus many",
}
_STAND_INS = {
    "linear_converged": ("linear", "adam_full", "linear_50000", "fewshot_linear"),
    "linear": ("linear", "adam_full"),
}  # printed protocols that stand in for one that a paper has not, the nearest first


@dataclass(frozen=True, eq=False)
class Paper:
    """One paper's file, read; ``settings`` has a dict for each data set and method, ``rows`` the
    printed numbers (see ``_rows``).
    """

    name: str
    year: int
    title: str
    profiles: dict
    settings: list
    claims: list
    tables: dict = field(default_factory=dict)
    figures: dict = field(default_factory=dict)
    tried: list = field(default_factory=list)
    pools: dict = field(default_factory=dict)
    budgets: dict = field(default_factory=dict)
    usual: dict = field(default_factory=dict)
    digits: int = 1
    tolerance: float = 1.0
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def data(self):
        """What its claims are about: its data sets; of learning with labels its lists, such as
        "cifar10 exponential 100".
        """
        return list(
            dict.fromkeys(
                self.rows.data if self.usual else [one["dataset"] for one in self.settings]
            )
        )

    def table(self, name):
        """The printed rows of one of its tables, in their order; ``KeyError`` naming those that
        there are.
        """
        if name not in self.tables:
            raise KeyError(
                f"{self.name} has no table {name!r}; there are {', '.join(self.tables) or 'none'}"
            )
        title, protocol = self.tables[name]["table"], self.tables[name]["protocol"]
        return self.rows[
            self.rows.table.str.startswith(title)
            & (self.rows.protocol == protocol)
            & (self.rows.subset == "long_tail")
        ]

    def difference(self, left, right):
        """The printed difference of a claim's sides for each data set, ``{"cifar10": 6.45}``, and
        the protocol it was printed for.

        Where the paper has no such protocol the nearest one stands in. Empty, with no protocol,
        unless both sides are printed.
        """
        asked = left.get("protocol"), right.get("protocol")
        for protocol in _STAND_INS.get(asked[0], asked[:1]) if asked[0] == asked[1] else (None,):
            here, there = (
                self._values(side | ({"protocol": protocol} if protocol else {}))
                for side in (left, right)
            )
            if found := {
                data: round(here[data] - there[data], 4) for data in here if data in there
            }:
                return found, protocol or asked[0]
        return {}, ""

    def _values(self, side):
        """The printed value of one side for each data set that has it; of several that differ none
        is the side's.
        """
        if side["measure"] not in self.rows:
            return {}
        asked = {
            column: value
            for column, value in ({"subset": "long_tail"} | side).items()
            if column in self.rows
        }
        fits = np.logical_and.reduce(
            [self.rows[column].to_numpy(object) == value for column, value in asked.items()]
        )
        found = self.rows[fits & self.rows[side["measure"]].notna()].groupby("data")[
            side["measure"]
        ]
        return found.first()[found.nunique() == 1].to_dict() if fits.any() else {}


def papers():
    """All papers in the order of their years, name -> ``Paper``."""
    found = [read_paper(file) for file in sorted(FOLDER.glob("*.yaml"))]
    return {paper.name: paper for paper in sorted(found, key=lambda paper: paper.year)}


@cache
def read_paper(file):
    """One paper from its file; ``ValueError`` that names the file for a key that it cannot have or
    lacks.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        published = [
            {"dataset": dataset, "method": method, **settings}
            for (paper, dataset, method), settings in methods.published_settings().items()
            if paper == content["name"]
        ]
        paper = Paper(**{"settings": published} | content)
    except (TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(
            f"{file} is no paper's file: {' '.join(str(error).split())}; printed.py says what it "
            "holds"
        ) from error
    return replace(paper, rows=_rows(file.with_suffix(".csv"), paper))


def _rows(file, paper):
    """The printed rows: table, protocol, ROW_KEYS, each measure as a number and as
    ``<measure>_text``; what is not printed is NaN.

    The papers' column Std is called balance. Rows of learning with labels have ``error`` and, from
    it, ``all``; their arm is NaN where its settings were not printed, and what the paper calls the
    method is ``row``.
    """
    rows = (
        pd.read_csv(file, dtype=str)
        if file.exists()
        else pd.DataFrame(columns=["dataset", "method", "table"])
    )
    rows = rows.astype(object).rename(columns={"std": "balance", "std_err": "balance_err"})
    if "arm" in rows:
        known = rows.arm.mask(rows.arm.str.contains("?", regex=False, na=True))
        rows = rows.assign(
            method=rows.arm.str.split(" ").str[0], arm=known.map(_written, na_action="ignore")
        )
    rows["data"] = rows.dataset + (" " + rows.kind + " " + rows.ratio if "kind" in rows else "")
    rows = (
        rows.drop(columns=["kind", "ratio"]) if "kind" in rows else rows
    )  # of the list; MAK's ratio is something else
    for name, value in (
        _USUAL | {"table": next(iter(paper.tables.values()), {}).get("table")}
    ).items():
        rows[name] = rows[name].where(rows[name].notna(), value) if name in rows else value
    rows = rows.astype({name: kind for name, kind in _KINDS.items() if name in rows})
    measures = [name for name in (*MEASURES, "error") if name in rows]
    rows = rows.assign(
        **{f"{name}_text": rows[name] for name in measures},
        **{name: rows[name].astype(float) for name in measures},
        pool=rows.sampling_set.map(paper.pools),
        level=rows.budget.map({0: "none"} | paper.budgets),
    )
    return rows.assign(
        **{"all": 100 - rows.error} if "error" in rows else {},
        **{"tail": rows.few - rows.many} if {"few", "many"} <= set(rows) else {},
    )


def _written(arm):
    method, parameters = adjusted.read_loss(arm)
    return arms.written([method], parameters)


def row_label(row):
    """What sets a row of a table apart from its neighbours, in few words."""
    if row["protocol"] == "labels":
        return row["row"] if isinstance(row.get("row"), str) else row["arm"]
    if row["added"] == "none":
        return f"{row['method']}, {int(row['head_layers'])}-layer head"
    unusual = [
        f"{key} {row[key]:g}"
        for key, usual in PICKING.items()
        if row["added"] == "mak" and row[key] != usual
    ]
    return ", ".join(
        [row["added"], *unusual, *(["overhead"] if row["schedule"] == "overhead" else [])]
    )
