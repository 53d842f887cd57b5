"""The one grammar of what people write in a line: words, then settings as name=value. Parsed here
into data, which is what is compared.

An arm is "sdclr long_tail prune_fraction=0.3", a row of picks "mak alpha=0.5", a loss "vs gamma=0.2
tau=1.2", a tail "exponential ratio=100".
"""

import math
from dataclasses import fields

from longtail.store import runs
from longtail.store.settings import LIMITS, PRECISIONS, SHARE, by_single_name

OF_AN_ARM = {
    "head_layers",
    "architecture",
    "policy",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_epochs",
    "temperature",
    "prune_fraction",
    "precision",
    "budget",
}  # fields of a run that an arm may set for itself
BOOLS = {"True": True, "False": False}
OF_A_LINE = LIMITS | by_single_name(
    {  # least and most of each number that a line sets
        "head_layers": (0, 16),
        "memory past late_past domain middle b": SHARE,
        "draws clusters nearest repick refresh period": (1, 10**6),
        "floor": (0, 30),
        "begin ramp least warm start": (0, 10**6),
        "classes": (2, 10**6),
        "focus harmony phi gamma tau late_tau nu max_m margin": (0, 100),
        "rho clip s": (0, 1000),
    }
)


def read_line(text):
    """Words and settings of a line, as a list and a dict name -> text; ``ValueError`` for a setting
    without value or given twice.
    """
    words, settings = [], {}
    for word in text.split():
        name, sign, value = word.partition("=")
        if not sign:
            words.append(word)
        elif not name or not value or name in settings:
            raise ValueError(f"{text!r} cannot be read: write each setting once, as name=value")
        else:
            settings[name] = value
    return words, settings


def typed(text, settings, kinds):
    """Settings of a line ``text`` as the types of ``kinds`` say (name -> type); ``ValueError`` for
    other names and for no such values, or values out of range.
    """
    found = {}
    for name, value in settings.items():
        try:
            found[name] = BOOLS[value] if kinds[name] is bool else kinds[name](value)
            if isinstance(found[name], float) and not math.isfinite(found[name]):
                raise ValueError
        except (KeyError, ValueError):
            takes = ", ".join(f"{key}=…" for key in kinds) or "nothing"
            raise ValueError(
                f"{name}={value} of {text!r} cannot be read; what can be set is {takes}"
            ) from None
        in_range(name, found[name], text)
    return found


def in_range(name, value, text):
    """Refuse a value of a line ``text`` that is out of range."""
    least, most = OF_A_LINE.get(name, (-math.inf, math.inf))
    if not isinstance(value, str) and not least <= value <= most:
        raise ValueError(f"{name} is {value} in {text!r}; it lies between {least} and {most}")
    if name == "precision" and value not in PRECISIONS:
        raise ValueError(f"no precision {value} in {text!r}; there are {', '.join(PRECISIONS)}")


def written(words, settings):
    """The line that says this; settings in alphabetical order, so that equal data give equal
    text.
    """
    return " ".join([*words, *(f"{name}={value}" for name, value in sorted(settings.items()))])


def read_arm(arm):
    """What an arm says, as two dicts: fields of ``Run``, and whatever else it sets by name (options
    of its method), as text.

    An arm is "method list [name=value …]", e.g. "simclr long_tail", "simclr balanced
    head_layers=3", "bcl long_tail weight_decay=5e-4 draws=1": a method, the study's long_tail or
    balanced list, then what differs from the settings of all arms.
    """
    words, named = read_line(arm)
    if len(words) != 2 or words[1] not in ("long_tail", "balanced"):
        raise ValueError(
            f"no arm {arm!r}: name a method, long_tail or balanced, and further settings as "
            "name=value, such as head_layers=3"
        )
    own = {name: named.pop(name) for name in sorted(OF_AN_ARM & named.keys())}
    kinds = {field.name: field.type for field in fields(runs.Run) if field.name in OF_AN_ARM}
    return {"method": words[0], "subset": words[1], **typed(arm, own, kinds)}, named
