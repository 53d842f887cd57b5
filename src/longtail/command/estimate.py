"""Which runs the notebooks make, which of them are done, and how long the others may take."""

import contextlib
import json
import statistics
from collections import Counter

from longtail.store import paths

LISTS = {
    "arms",
    "once",
    "retrain",
    "equal_updates",
    "overhead_epochs",
    "losses",
    "halves_seeds",
}  # parameters that ask for runs
LIKE = (
    ("dataset", "size", "architecture", "precision", "method"),
    ("dataset", "size", "architecture", "precision"),
)  # runs alike in these take alike, by epoch


def wanted(values):
    """The runs that a notebook with these parameters makes, each as fields that tell it from most
    others.

    ``values`` holds the parameters of the other notebooks too: 05_sampling trains with those of
    02_pretrain.
    """
    from longtail.images import places
    from longtail.store.runs import FIELDS, LATER, pairs

    common = {
        name: value
        for name, value in values.items()
        if name in FIELDS and name not in (*LATER, "budget") and not isinstance(value, list)
    }
    common |= {"dataset": places.name_of(values.get("dataset", ""))}
    replicates = pairs(values.get("splits", [1]), values.get("seeds", [1]))
    asked = arms_and_picks(values, replicates)
    found = [
        common | run | {"split": split, "seed": seed}
        for run, several in asked
        for split, seed in several
    ]
    if "losses" in values:
        found += labelled_networks(
            values, common, pairs(values["supervised_splits"], values["supervised_seeds"])
        )
    if "halves_seeds" in values:
        found += [
            {
                "dataset": "digits_halves",
                "split": seed,
                "seed": seed,
                "epochs": values["halves_epochs"] * trained,
            }
            for seed in values["halves_seeds"]
            for trained in (0, 1, 1, 1, 1)
        ]
    return found


def arms_and_picks(values, replicates):
    """(fields, replicates) of the arms of 02_pretrain and of the rows that 05_sampling trains
    again.
    """
    from longtail.learn import methods
    from longtail.pick import samplers
    from longtail.store.arms import read_arm

    for key, several in (("arms", replicates), ("once", replicates[:1])):
        for own in (read_arm(arm)[0] for arm in values.get(key, [])):
            yield {"added": "none", **own, **methods.find(own["method"]).fixed}, several
    picked = {"method": "simclr"}
    if apart := values.get("picked_precision"):  # then the seed alone is trained so too
        picked["precision"] = apart
        if values.get("retrain"):
            yield {**picked, "added": "none", "subset": "long_tail", "head_layers": 2}, replicates
    for key, schedule in (("retrain", "epochs"), ("equal_updates", "updates")):
        for text in values.get(key, []):
            row = samplers.row(
                text, {name: values[name] for name in ("budget", "alpha", "ratio", "prototypes")}
            )
            yield (
                picked
                | {
                    "added": row["sampler"],
                    "budget": row["budget"],
                    "schedule": schedule,
                },
                replicates,
            )
    if values.get("overhead_epochs"):
        yield (
            picked
            | {
                "added": "random",
                "schedule": "overhead",
                "epochs": values["overhead_epochs"],
            },
            replicates,
        )


def labelled_networks(values, common, replicates):
    """The networks of 07_supervised."""
    from longtail.label import adjusted, supervised

    for losses, tails in (("losses", "tails"), ("further_losses", "further_tails")):
        for tail, loss in [(tail, loss) for tail in values[tails] for loss in values[losses]]:
            kind, ratio = supervised.kind_and_ratio(tail)
            run = {
                "dataset": common["dataset"],
                "size": values["supervised_size"],
                "architecture": values["network"],
                "subset": kind,
                "imbalance": ratio,
                "method": adjusted.read_loss(loss)[0],
                "epochs": values["supervised_epochs"],
            }
            for split, seed in replicates:
                yield {**run, "split": split, "seed": seed}


def finished_runs():
    """Fields, and seconds, of every finished run in the store; what is damaged is not counted."""
    found = []
    for done in (paths.RESULTS / "runs").glob("*/done.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            run, seconds = (
                json.loads((done.parent / "run.json").read_text()),
                json.loads(done.read_text())["seconds"],
            )
            found.append({**run, "seconds": seconds})
    return found


class Expected:
    """Runs of some notebooks: how many are done, how many are missing, and the work of each missing
    one in epochs and seconds.
    """

    def __init__(self, asked, known):
        """``asked``: from ``wanted``; ``known``: from ``finished``. Runs that are equal in all that
        is told share what is done.
        """
        self.asked, self.missing, self.seconds = asked, [], []
        counted = Counter()
        for run in asked:
            key = json.dumps(run, sort_keys=True)
            counted[key] += 1
            if counted[key] > sum(
                all(one.get(name) == value for name, value in run.items()) for one in known
            ):
                self.missing.append(run)
                self.seconds += self.expected(run, known)
        self.done = len(asked) - len(self.missing)

    def expected(self, run, known):
        """Seconds of a missing run in a list, by the epochs of finished ones that are most like it;
        empty when there are none.
        """
        trained = [one for one in known if one.get("epochs")]
        for names in LIKE:
            alike = [
                one for one in trained if all(one.get(name) == run.get(name) for name in names)
            ]
            if alike:
                return [
                    statistics.median(one["seconds"] / one["epochs"] for one in alike)
                    * run["epochs"]
                ]
        return []

    def told(self, everything, hours):
        """How long the missing runs may take: by runs like them, else by the ``hours`` that the
        profile states for ``everything``.
        """
        if not self.missing:
            return "0 runs missing"
        missing = f"{len(self.missing)} runs missing"
        if len(self.seconds) == len(self.missing):
            hours = hours_in_words(sum(self.seconds))
            return f"{missing}: about {hours} of one process, by finished runs like them"
        if not hours:
            return f"{missing}: how long they take is known when the first is done"
        share = sum(run["epochs"] for run in self.missing) / max(
            1, sum(run["epochs"] for run in everything)
        )
        expected = hours_in_words(3600 * hours * share)
        return f"{missing}: about {expected}, by the {hours:g} hours that the profile states"


def hours_in_words(seconds):
    """A time as a person would say it."""
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} minutes"
    return f"{seconds / 3600:.{1 if seconds < 36000 else 0}f} hours"
