"""What may be asked of the notebooks: their parameters with type, range and names that exist, and
the profiles made of them.
"""

import ast
import json
from pathlib import Path

from longtail.store import paths
from longtail.store.settings import (
    LIMITS,
    PRECISIONS,
    Refused,
    by_single_name,
    field,
    help_of,
    mistakes,
    read_yaml,
    refusal,
    schema,
)

KINDS = {"str": str, "int": int, "float": float, "bool": bool}
KINDS |= {f"list[{name}]": list[kind] for name, kind in KINDS.items()}  # what a parameter can be
OWN = {
    "seed_images",
    "pool_images",
}  # a file that names one of them asks for picks from images of one's own
CUSTOM = "-custom"  # ends the name of a profile whose parameters were changed by -p

CHOICES = {
    "kind": ("exponential", "step", "pareto_imagenet100", "as_is"),
    "group_rule": ("thirds", "thresholds"),
    "precision": PRECISIONS,
    "picked_precision": ("", *PRECISIONS),
    "selection": ("last_epoch", "best_validation"),
}
LEAST_ENTRIES = {
    "splits": 1,
    "seeds": 1,
    "supervised_splits": 1,
    "supervised_seeds": 1,
    "halves_seeds": 1,
    "protocols": 1,
    "methods": 1,
    "tails": 1,
    "l2_grid": 1,
    "contrasted": 1,
    "mak_sizes": 4,
    "pool_sizes": 4,
}  # entries of a list


# ---- the notebooks


class Notebook:
    """What is known of a notebook before it runs: title, question, its parameters' kinds, defaults
    and help.
    """

    def __init__(self, path):
        self.path, self.name, self.number = path, path.stem, path.stem[:2]
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title, _, below = source(self.cells[0]).strip().partition("\n")
        question, mark, _ = below.partition("?")
        self.title, self.question = (
            title.lstrip("# 0123456789"),
            " ".join(question.split()).strip("*_ ") + mark if mark else "",
        )
        text = "\n".join(source(cell) for cell in self.cells if is_parameters(cell))
        code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        self.imports = next((cell for cell in code if not is_parameters(cell)), None)
        parameters = [node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)]
        self.kinds = {node.target.id: ast.unparse(node.annotation) for node in parameters}
        self.defaults = {node.target.id: ast.literal_eval(node.value) for node in parameters}
        self.helps = help_of(text)

    def own(self, settings):
        """Those of the settings that are parameters of this notebook."""
        return {name: value for name, value in settings.items() if name in self.kinds}


def source(cell):
    """A cell's text; the format allows one string or a list of lines."""
    return "".join(cell["source"])


def is_parameters(cell):
    """Whether papermill would put a profile's values after this cell."""
    return "parameters" in cell["metadata"].get("tags", [])


def notebooks_of(folder):
    """All notebooks of a folder, by number."""
    return [Notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def select(words, notebooks):
    """The notebooks of the given numbers, all of them when there are none."""
    if unknown := (numbers := {word.zfill(2) for word in words}) - {
        notebook.number for notebook in notebooks
    }:
        raise Refused(
            f"there is no notebook {', '.join(sorted(unknown))}; there are "
            f"{', '.join(book.name for book in notebooks)}"
        )
    return [notebook for notebook in notebooks if not numbers or notebook.number in numbers]


def check_parameters(number, namespace):
    """Refuse, as ``-p`` would, what a notebook was given that is run by hand: ``namespace`` holds
    its parameters, ``number`` is its own.
    """
    (book,) = select([number], notebooks_of(paths.NOTEBOOKS))
    given = {name: namespace[name] for name in book.kinds if name != "profile"}
    _, wrong = mistakes(parameters_schema([book]), given)
    if wrong:
        raise refusal(f"the parameters of {book.name}", wrong)


# ---- the schema


def parameters_schema(notebooks):
    """What ``-p`` may set: every parameter of these notebooks but the profile."""
    return schema("Parameters", fields_of(notebooks))


def profile_schema(notebooks):
    """What a profile may say: parameters, what it is, how long it takes, what it starts from, which
    notebooks belong to it.
    """
    extra = {
        "about": field(str, "", "what the profile is, in a sentence"),
        "hours": field(float, 0.0, "how long all of it takes", (0, 10**5)),
        "cores": field(int, 0, "processor cores that this is for", (0, 1024)),
        "gpus": field(int, 0, "GPUs, likewise", (0, 1024)),
        "base": field(str, "", "profile that it starts from; only in a file of your own"),
        "notebooks": field(
            list[str],
            [],
            "numbers of its notebooks; empty for all",
            check=lambda number: select([number], notebooks),
        ),
    }
    return schema("Profile", extra | fields_of(notebooks))


def fields_of(notebooks):
    """A pydantic field for every parameter of the notebooks."""
    names = by_single_name(NAMES)
    first = {
        name: book for book in reversed(notebooks) for name in book.kinds
    }  # several notebooks share some
    return {
        name: field(
            KINDS[book.kinds[name]],
            book.defaults[name],
            f"{book.number}: {book.helps[name]}",
            LIMITS.get(name, ()),
            CHOICES.get(name, ()),
            names.get(name),
            LEAST_ENTRIES.get(name, 0),
        )
        for name, book in sorted(first.items(), key=lambda entry: entry[1].number)
        if name != "profile"
    }


def among(found, names, what):
    """Stop at a name that is not among those there are."""
    if found not in names:
        raise ValueError(f"there is no {what} {found!r}; there are {', '.join(names)}")


def check_arm(text):
    """An arm as 02_pretrain reads it: its method, the options of that, the names among its
    settings.
    """
    from longtail.learn import methods
    from longtail.learn.methods.simclr import read_options
    from longtail.store.arms import read_arm

    fields, options = read_arm(text)
    read_options(methods.find(fields["method"]), options)
    for name in fields.keys() & by_single_name(NAMES).keys():
        by_single_name(NAMES)[name](fields[name])


def check_method(name):
    from longtail.learn import methods

    methods.find(name)


def check_network(name):
    from longtail.learn import models

    among(name, ["perceptron", *models.ARCHITECTURES], "architecture")


def check_policy(name):
    from longtail.images import views

    among(
        name, [policy for policy in views.POLICIES if not policy.endswith("_classifier")], "policy"
    )


def check_classifier_policy(name):
    from longtail.images import views

    among(name, ["", *views.POLICIES], "policy")


def check_protocol(name):
    from longtail.measure import evaluate

    among(name, evaluate.PROTOCOLS, "protocol")


def check_sampler(name):
    from longtail.pick import samplers

    among(name, samplers.SAMPLERS, "sampler")


def check_row(text):
    from longtail.pick import samplers

    samplers.row(text, {"budget": 1, "alpha": 0.5, "ratio": 1.0, "prototypes": 1})


def check_loss(text):
    from longtail.label import adjusted

    adjusted.read_loss(text)


def check_head(text):
    from longtail.label import adjusted, classical

    if text not in classical.CLASSICAL:
        adjusted.read_loss(text)


def check_tail(text):
    from longtail.label import supervised

    among(supervised.kind_and_ratio(text)[0], CHOICES["kind"], "kind of tail")


def check_data_set(name):
    """One of the named data sets, something in the data folder, or what a shipped profile names:
    its notebook tells what to fetch.
    """
    from longtail.images.datasets import NAMED
    from longtail.images.places import container

    shipped = {
        item
        for settings in read_yaml(paths.NOTEBOOKS / "profiles.yaml").values()
        for key in ("dataset", "transfer", "outsiders")
        for item in [settings.get(key, [])]
        for item in (item if isinstance(item, list) else [item])
    }
    if name and name not in {"letters", *NAMED, *shipped} and not container(paths.DATA / name):
        raise ValueError(
            f"there is no data set {name!r}; there are {', '.join(NAMED)}, and what is in "
            f"{paths.DATA}"
        )


# what text has to name: told before anything runs, by the functions that read it when a notebook
# does
NAMES = {
    "arms once": check_arm,
    "methods curves": check_method,
    "architecture network timed_network": check_network,
    "policy": check_policy,
    "classifier_policy network_policy": check_classifier_policy,
    "protocols": check_protocol,
    "samplers": check_sampler,
    "retrain equal_updates": check_row,
    "losses further_losses": check_loss,
    "head_losses": check_head,
    "tails further_tails": check_tail,
    "dataset transfer outsiders": check_data_set,
}


def at_odds(values):
    """(name, what is wrong) of values that are right each by itself but not together."""
    from longtail.store.runs import pairs

    for splits, seeds in (("splits", "seeds"), ("supervised_splits", "supervised_seeds")):
        if values.keys() >= {splits, seeds}:
            try:
                pairs(values[splits], values[seeds])
            except ValueError as error:
                yield seeds, str(error)
    for key in ("arms", "once"):
        from longtail.learn import methods
        from longtail.store.arms import read_arm

        for arm in values.get(key, []):
            run = {**values, **(own := read_arm(arm)[0]), **methods.find(own["method"]).fixed}
            if 0 < run["epochs"] <= run.get("warmup_epochs", 0):
                yield (
                    key,
                    f"{arm}: {run['warmup_epochs']} warm-up epochs leave nothing of "
                    f"{run['epochs']} epochs; lower warmup_epochs",
                )
    from longtail.images.datasets import NAMED

    data = NAMED.get(values.get("dataset"))
    if (
        data
        and values.keys() >= {"largest", "factor", "kind", "group_rule"}
        and not values["lists"]
        and values["kind"] != "as_is"
    ):
        from longtail.images.studies import long_tail_counts
        from longtail.measure.groups import SIZE_GROUPS, size_groups

        try:
            counts = long_tail_counts(
                values["largest"], data.classes, values["factor"], values["kind"]
            )
        except ValueError as error:
            yield "factor", str(error)
            return
        empty = [
            name for name in SIZE_GROUPS if name not in size_groups(counts, values["group_rule"])
        ]
        if empty and values["group_rule"] == "thresholds":
            yield (
                "group_rule",
                (
                    f"by thresholds at 100 and 20 images no class is {' or '.join(empty)}: classes "
                    f"have {max(counts)} to "
                    f"{min(counts)}; use thirds, or change largest or factor"
                ),
            )


# ---- profiles


def find_profile(words, folder):
    """Name of the profile among the command's words and its settings as written, a ``Written``; or
    those of a file of one's own.
    """
    [word, *more] = [word for word in words if not word.isdigit()] or ["demo"]
    if more:
        raise Refused(
            f"one profile at a time, not {' and '.join([word, *more])}; notebooks are given by "
            "number, such as 02"
        )
    known = {"demo": None, **read_yaml(folder / "profiles.yaml")}
    if not is_file_name(word):
        if word not in known:
            raise Refused(
                f"there is no profile {word}; there are {', '.join(known)}, or give a file that "
                "ends in .yaml"
            )
        return word, known[word] or {}
    name, settings = check_name(Path(word), known), read_yaml(Path(word))
    if not settings:
        raise Refused(f"{word} holds no settings; OWN_IMAGES.md has some to start from")
    return name, settings


def is_file_name(word):
    """Whether a word of the command is a file of settings, not a profile."""
    return word.endswith((".yaml", ".yml"))


def check_name(path, known):
    """The name that a file gives to its folder of results: the one check of every path that is made
    from what people write.
    """
    name = path.stem
    plain = name.isprintable() and name[:1].isalnum() and not set(name) & set("/\\{}$")
    if (
        not plain
        or len(name.encode(errors="replace")) > 200
        or name in known
        or name == "runs"
        or name.endswith(CUSTOM)
    ):
        raise Refused(
            f"{path} would write to results/{name}; give the file another name: letters and digits "
            "first, not that of a profile, "
            f"not runs, not ending in {CUSTOM}"
        )
    return name


def todays(written, base, notebooks):
    """The settings of a file in today's words. ``schedules``, of earlier versions, named how chosen
    rows are trained: with as many passes as the seed alone, and perhaps with as many updates, too.
    """
    if written.get("schedules") not in (["epochs"], ["epochs", "updates"], ["updates", "epochs"]):
        return {**base, **written}
    settings = {**base, "equal_updates": [], **written}
    if "updates" in settings.pop("schedules"):
        default = [book.defaults["retrain"] for book in notebooks if "retrain" in book.kinds]
        settings["equal_updates"] = settings.get("retrain", sum(default, []))
    return settings


def settled(name, written, changes, notebooks, selected, known, names=True):
    """All settings of a plan, checked together: those of the profile's ``base``, its own, and the
    ``changes`` by -p.

    Returns (what the profile says, what -p says). Every mistake is told at once, before anything is
    written.
    """
    base = (
        written.get("base") if isinstance(written.get("base"), str) else None
    )  # of another type: the schema tells
    if base and base not in known:
        raise Refused(
            f"{name} has the base {base}, which does not exist; there are {', '.join(known)}"
        )
    own, wrong = mistakes(
        profile_schema(notebooks),
        todays(written, (known[base] if base else None) or {}, notebooks),
        names=names,
    )
    changed, wrong_changes = mistakes(parameters_schema(selected), changes, names=names)
    wrong += wrong_changes
    if names and not wrong:
        merged = {
            **{key: value for book in reversed(notebooks) for key, value in book.defaults.items()},
            **own,
            **changed,
        }
        asked = {key for book in selected for key in book.kinds}
        wrong = list(at_odds({key: merged[key] for key in asked if key in merged}))
    if wrong:
        raise refusal(
            "-p" if wrong == wrong_changes else name, wrong, getattr(written, "lines", None)
        )
    return own, changed
