"""What people write in YAML: read, checked against what is known, refused in one line."""

import contextlib

import yaml

KINDS = {"str": str, "int": int, "float": float, "bool": bool}      # a setting is one of these or a list of one


class Refused(Exception):
    """What was asked for does not exist; nothing has been written."""


def conform(value, kind):
    """The value as its annotation says, else None; an int where a float belongs becomes one, so that equal settings give equal runs."""
    if kind.startswith("list["):
        items = [conform(item, kind[5:-1]) for item in value] if isinstance(value, list) else [None]
        return None if None in items else items
    if kind == "float" and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)     # YAML reads 1e-3 as text
    return value if type(value) is KINDS.get(kind) else None


def checked(kinds, settings):
    """Those settings that ``kinds`` knows, each of the right type."""
    known = {name: conform(settings[name], kind) for name, kind in kinds.items() if name in settings}
    for name in [name for name, value in known.items() if value is None]:
        kind = type(settings[name]).__name__
        raise Refused(f"{name} takes {kinds[name]}, not {settings[name]!r} ({kind}); values are YAML, such as 3, 0.5, text, \"[1, 2]\"")
    return known


def refuse_unknown(names, known, complaint):
    """Stop when a name is not among the known ones."""
    if unknown := sorted(set(names) - set(known)):
        raise Refused(f"{complaint} {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def read_yaml(path):
    """A mapping from a YAML file, or a refusal that names the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise Refused(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise Refused(f"{path} is no mapping of names to values; write lines such as `epochs: 10`")
    return content
