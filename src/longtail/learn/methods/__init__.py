"""Self-supervised methods, one file each: its class, its formulas and the settings that its paper
prints.

A file here with ``class VICReg(SimCLR, name="vicreg")`` adds the method ``vicreg``; nothing lists
it. Methods joined by + do all that each of them does ("sdclr+bcl"): every class calls the one it
builds on, so that no pair needs code.
"""

import functools
import importlib
import pkgutil

from longtail.learn.methods.simclr import (
    CHANGES,
    METHODS,
    RECIPES,
    SimCLR,
    gathered,
    read_options,
    write_options,
)

__all__ = [
    "METHODS",
    "SimCLR",
    "find",
    "gathered",
    "published_settings",
    "read_options",
    "write_options",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def joining_order(names):
    """Names of methods as a joined name has them: what is trained first, what is added to it after
    that (``CHANGES``).
    """
    return sorted(names, key=lambda name: (CHANGES.index(METHODS[name].changes), name))


def find(name):
    """The class of a method by its name, or of several joined by +, the later on the earlier;
    ``ValueError`` where there is none.
    """
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise ValueError(
            f"no method {unknown[0]!r}; there are {', '.join(METHODS)}, and several joined by +"
        )
    kinds = tuple(METHODS[part] for part in parts)
    if parts != joining_order(set(parts)) or any(
        a is not b and issubclass(a, b) for a in kinds for b in kinds
    ):
        raise ValueError(
            f"{name!r} names a method twice or out of order; join them in the order "
            f"{', '.join(joining_order(METHODS))}, "
            f"without simclr"
        )
    if clash := [
        part
        for part in parts
        for kind in kinds
        if part in kind.clashes or METHODS[part].alone and len(parts) > 1
    ]:
        raise ValueError(f"{name!r} makes no sense: {clash[0]} does not go with the rest")
    return joined(name, kinds) if len(kinds) > 1 else kinds[0]


@functools.cache
def joined(name, kinds):
    """One class of several; the last one acts first and calls those before it."""
    return type(
        name, kinds[::-1], {"__doc__": " + ".join(kind.__doc__.splitlines()[0] for kind in kinds)}
    )


def published_settings():
    """What papers trained, as their methods' files have it: (paper, data set, method) -> fields of
    ``Run``, options as a run keeps them.

    A row starts from the recipe of its data set; then come the settings of the methods it names,
    then its own.
    """
    found = {}
    for row, own in [
        entry for kind in METHODS.values() for entry in vars(kind).get("published", {}).items()
    ]:
        kind = find(row[-1])
        settings, options = (
            RECIPES[row[1]] | gathered(kind, "settings") | own,
            gathered(kind, "options"),
        )
        found[row] = {name: value for name, value in settings.items() if name not in options} | {
            "options": write_options(
                {name: settings.get(name, value) for name, value in options.items()}
            )
        }
    return found
