"""The form of a claim, and short ways to write many: what is compared, the paper's effect, the mechanism that must be at work."""

from dataclasses import dataclass, field

from longtail.papers import printed, tables
from longtail.pick import samplers

WORDS = {"linear": "linear separability", "linear_converged": "converged linear probe",
         "fewshot_linear": "few-shot with a frozen encoder", "fewshot_finetune": "fine-tuned few-shot",
         "linear_longtail": "classifier trained on the long-tailed list",
         "linear_transfer": "linear separability on another data set", "adam_full": "BCL's probe, 40,000 labels",
         "adam_100shot": "BCL's probe, 10,000 labels", "adam_50shot": "BCL's probe, 5,000 labels",
         "linear_50000": "SimSiam's probe, 50,000 labels", "all": "overall accuracy", "many": "accuracy on many",
         "medium": "accuracy on medium", "few": "accuracy on few", "balance": "balance (smaller is fairer)",
         "tail": "few minus many"}
SAMPLERS = {"none": "no extra images", **{name: sampler.wording for name, sampler in samplers.SAMPLERS.items()}}
# The mechanism that a method or sampler adds, as its rows are named, and the least contrast that could matter (reasons: ``mechanisms``).
MECHANISMS = {"sdclr": ("pruning", 0.2), "bcl": ("strength", 0.05), "rwsam": ("importance", 0.2), "gh": ("prior", 0.1),
              "colt": ("picks colt", 0.1),
              **{name: (f"picks {name}", 0.1) for name, sampler in samplers.SAMPLERS.items() if sampler.balances}}


@dataclass(frozen=True)
class Check:
    """The mechanism behind a claim: active if its contrast exceeds both what shuffled classes give by chance and ``least``."""

    mechanism: str
    method: str             # of the runs that show it: the method itself, or the extractor that picked
    least: float


@dataclass(frozen=True)
class Claim:
    """One statement: where it stands, the rows on either side of the difference, and how that difference is judged."""

    id: str
    paper: str
    claim: str              # in our words
    where: str
    left: dict = field(hash=False)      # column -> value: the rows of ``evidence`` on the left
    right: dict | float = field(hash=False)     # those on the right, or a constant
    test: str               # above, below, same or number
    tolerance: float = 0.0  # in the unit of the rows: points of accuracy, or φ
    effect: dict = field(default_factory=dict, hash=False)      # data set -> what the paper prints for left − right; empty: nothing
    primary: bool = False
    check: Check | None = None
    datasets: tuple = ()    # the paper's own data for this claim; empty: all of the paper's

    def printed(self, dataset):
        """The paper's effect and the data set it is printed for; on other data the smallest one printed, (NaN, "") if there is none."""
        if not self.effect:
            return float("nan"), ""
        data = dataset if dataset in self.effect else min(self.effect, key=lambda name: abs(self.effect[name]))
        return self.effect[data], data

    @property
    def notebook(self):
        """Where the rows are made; empty when no notebook makes them yet."""
        scores = "03_evaluate" if self.left.get("added", "none") == "none" else "05_sampling"
        return {"scores": scores, "gap": "03_evaluate", "phi": "04_ecle", "composition": "05_sampling",
                "diversity": "06_diversity", "disagreement": "02_pretrain"}.get(self.left["rows"], "")


def claim(name, paper, sentence, where, left, right, test, tolerance=0.0, **more):
    """A claim with its mechanism, and the paper's effect where both sides are printed; ``where`` then says if for another protocol."""
    compared = left["rows"] == "scores" and isinstance(right, dict)
    effect, protocol = printed.effects(paper, left, right) if compared else ({}, "")
    nearest = f"; its effect: {printed.WORDS[protocol]}" if effect and protocol not in (left["protocol"], right["protocol"]) else ""
    asked = mechanism_of(left, right) if compared and test in ("above", "below") else None
    return Claim(name, paper, sentence, where + nearest, left, right, test, tolerance, effect, check=asked, **more)


def mechanism_of(left, right):
    """What must be at work on the left and is absent on the right: of a joined method its last part, of picks their sampler."""
    adds = left["added"] if left["added"] != right["added"] and left["added"] != "none" else left["method"].rpartition("+")[2]
    if adds not in MECHANISMS or (left["method"], left["added"]) == (right["method"], right["added"]):
        return None
    mechanism, least = MECHANISMS[adds]
    return Check(mechanism, left["method"], least)


def versus(stem, sentence, where, left, right, cells, paper="MAK", test=None, tolerance=0.0, **more):
    """One claim for every (protocol, measure): a better left side unless ``test`` says otherwise; a better balance is a smaller one."""
    return [claim(f"{stem}-{protocol}-{measure}", paper, f"{sentence}: {WORDS[measure]}, {WORDS[protocol]}", where,
                  {"protocol": protocol, "measure": measure} | left, {"protocol": protocol, "measure": measure} | right,
                  test or ("below" if measure == "balance" else "above"), tolerance, **more) for protocol, measure in cells]


def encoder(method="simclr", head_layers=2, **more):
    return {"rows": "scores", "method": method, "head_layers": head_layers, "added": "none", "schedule": "epochs"} | more


def picked(added, pool="related", level="small", **more):
    """Encoders retrained with extra images; MAK's at its default parameters unless told otherwise."""
    usual = tables.PICKING if added == "mak" else {}
    return encoder(added=added, **({} if added == "none" else {"pool": pool, "level": level} | usual)) | more
