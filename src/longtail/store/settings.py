"""What people write in YAML: read whatever its encoding, checked against what is known, refused in one line."""

import contextlib

import yaml

KINDS = {"str": str, "int": int, "float": float, "bool": bool}      # a setting is one of these or a list of one
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}     # what a text of these encodings begins with
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class Refused(Exception):
    """What was asked for does not exist; nothing has been written."""


class Written(dict):
    """Settings as a file has them; ``lines`` tells the line of each."""

    lines = {}


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


def text_of(path, what):
    """The text of a file that people wrote: UTF-8, UTF-16 with its mark, else Windows-1252; ``ValueError`` when it is none."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        with contextlib.suppress(UnicodeDecodeError):
            if "\0" not in (text := content.decode(name)):
                return text
    raise ValueError(f"{path} is no text; save {what} as UTF-8")


def read_yaml(path):
    """A mapping from a YAML file, as ``Written``, its keys as text; a refusal that names file, line and remedy."""
    try:
        loader = yaml.SafeLoader(text := text_of(path, "the settings"))
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise Refused(f"{path} is no mapping of names to values; write lines such as `epochs: 10`")
        refuse_twice(path, node)
        keys = [key for key, _ in node.value if key.tag != MERGE] if node else []
        for key in keys:
            key.tag = TEXT if isinstance(key, yaml.ScalarNode) else key.tag     # YAML reads the keys on and 5 as True and 5
        settings = Written(loader.construct_document(node) if node else {})
        settings.lines = {key.value: key.start_mark.line + 1 for key in keys}
        return settings
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"line {mark.line + 1}: {error.problem}{remedy(text.splitlines(), mark.line)}"
        raise Refused(f"{path} cannot be read as YAML: {what}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refused(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None


def remedy(lines, number):
    """What usually mends a line that is no YAML."""
    line = lines[number] if number < len(lines) else ""
    if "\t" in line:
        return "; it has a tab: use blanks"
    if '"' in line and "\\" in line:
        return "; in double quotes \\ begins an escape: use single quotes, or / in paths"
    return "; write `name: value`, text with : or # in quotes"


def refuse_twice(path, node):
    """Stop when a mapping of a YAML document has a key twice: YAML would take the last one."""
    if isinstance(node, yaml.MappingNode):
        lines = {}
        for key, value in node.value:
            if key.tag != MERGE and str(key.value) in lines:
                raise Refused(f"{path} line {key.start_mark.line + 1}: {key.value} is there twice, first in line {lines[str(key.value)]}; "
                              f"keep one of them")
            lines[str(key.value)] = key.start_mark.line + 1
            refuse_twice(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            refuse_twice(path, item)
