"""What people write in YAML: read whatever its encoding, checked against what is known, refused in
one line.
"""

import contextlib
import difflib
import functools
import io
import json
import tokenize
import typing

import pydantic
import yaml

MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}  # what a text of these encodings begins with
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
VALUES, DEPTH, LONGEST = (
    20_000,
    20,
    3_000,
)  # of one document: values, aliases counted again; nesting; characters of a value


COUNT, SEED, SHARE = (0, 10**9), (0, 2**31 - 1), (0, 1)


def by_single_name(table):
    """The table with one entry for each of the names that share a line."""
    return {name: value for names, value in table.items() for name in names.split()}


LIMITS = by_single_name(
    {  # least and most of each number that people set; those of one meaning share a line
        "size supervised_size side": (8, 1024),
        "splits supervised_splits seeds supervised_seeds tsne_seed theory_seed halves_seeds": SEED,
        "largest largest_class halves_images": (2, 10**9),
        "factor halves_factor": (1e-6, 1),
        "labelled_per_class test_per_class transfer_per_class": COUNT,
        "few_per_class pool_per_class outsider_classes": COUNT,
        "outsider_count": (-1, 10**9),
        "epochs supervised_epochs halves_epochs": (1, 10**6),
        "warmup_epochs overhead_epochs supervised_drops drop_shift": (0, 10**6),
        "batch_size supervised_batch classifier_batch ecle_batch contrasted updated": (2, 10**6),
        "learning_rate supervised_rate": (0, 100),
        "weight_decay prune_fraction alpha supervised_drop": SHARE,
        "temperature": (0.001, 100),
        "converged_l2 l2_grid": (1e-12, 1e6),
        "classifier_seeds label_sets ecle_repeats validation_top validation_stride rounds": (
            1,
            1000,
        ),
        "reseeded phi_views views": (2, 1000),
        "budget mak_sizes pool_sizes timed_pools": (1, 10**9),
        "ratio": (1, 10**9),
        "prototypes map_images scored problems": (1, 10**6),
        "photographs": (4, 10**6),
        "perplexity": (1, 1000),
        "iterations": (1, 10**5),
        "processes": (1, 1024),
    }
)
PRECISIONS = ("float32", "bfloat16", "bfloat16_gpu")


class Refused(Exception):
    """What was asked for does not exist; nothing has been written."""


class Damaged(ValueError):
    """A file of the results is not as it was written; the message names it and a remedy."""


class Written(dict):
    """Settings as a file has them; ``lines`` tells the line of each."""

    lines = {}


def field(kind, default=..., help="", limits=(), choices=(), check=None, least=0):
    """Annotation and rule of one setting, as ``pydantic.create_model`` takes them.

    ``kind`` is str, int, float, bool or a list of one of these. ``limits`` (least, most) hold for
    each number and ``choices`` for each text; ``check`` takes each text and raises ``ValueError``
    for one that names nothing. A list has ``least`` entries or more.
    """
    items = typing.get_args(kind) if typing.get_origin(kind) is list else ()
    entry, rules = (items or (kind,))[0], []
    if limits:
        rules.append(pydantic.Field(ge=limits[0], le=limits[1]))
    if entry is float:
        rules.append(pydantic.BeforeValidator(as_number))
    if check:
        rules.append(pydantic.AfterValidator(functools.partial(named, check)))
    if choices:
        entry = typing.Literal[tuple(choices)]
    for rule in rules:
        entry = typing.Annotated[entry, rule]
    return (list[entry] if items else entry), pydantic.Field(
        default, description=help, **{"min_length": least} if items and least else {}
    )


def named(check, text, info):
    """The text, where ``check`` knows what it names; not asked when the context of the validation
    says ``names=False``.
    """
    if (info.context or {}).get("names", True):
        check(text)
    return text


def as_number(value):
    """A number from a text such as 1e-3, which YAML does not take for one."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def help_of(text):
    """The comments of lines such as ``name: kind = value  # help`` in Python code: name -> help."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.line.partition(":")[0].strip(): token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def schema(name, fields, **more):
    """The model of some settings: types are exact, unknown names are refused."""
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.create_model(name, __config__=config, **fields, **more)


def mistakes(model, given, **context):
    """The settings that are as the ``model`` says, and (name, what is wrong with it) of each of the
    others.
    """
    try:
        return model.model_validate(given, context=context).model_dump(exclude_unset=True), []
    except pydantic.ValidationError as error:
        wrong = {}
        for fault in error.errors():
            wrong.setdefault(
                str((*fault["loc"], "")[0]), in_one_line(explained(fault, model, given))
            )
        return {name: value for name, value in given.items() if name not in wrong}, list(
            wrong.items()
        )


def in_one_line(text):
    """Text with line breaks and what else a terminal would obey written out, such as \\n."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def refusal(title, wrong, lines=None):
    """All mistakes as one ``Refused``, each on its line, in the order and with the lines of the
    file.
    """
    lines = lines or {}
    told = [
        f"{f'line {lines[key]}: ' if key in lines else ''}{text}"
        for key, text in sorted(wrong, key=lambda one: lines.get(one[0], 0))
    ]
    return Refused(
        f"{title}: {told[0]}"
        if len(told) == 1
        else f"{title} has {len(told)} mistakes:\n  " + "\n  ".join(told)
    )


def explained(fault, model, given):
    """What pydantic found, in plain words with a remedy."""
    if not fault["loc"]:  # of the settings together
        return str(fault["ctx"]["error"])
    name, kind, value = str(fault["loc"][0]), fault["type"], fault["input"]
    if kind == "extra_forbidden":
        known, meant = (
            sorted(model.model_fields),
            difflib.get_close_matches(name, model.model_fields, 1),
        )
        there = (
            f"there are {', '.join(known)}"
            if len(known) < 40
            else "./run_all.sh --schema lists them"
        )
        return f"no setting {name}; {f'perhaps {meant[0]} is meant; ' if meant else ''}{there}"
    if kind == "missing":
        return f"{name} is missing; there has to be one"
    rule = rules_of(model)[name]
    if given[name] in (None, "", []):
        return f"{name} is empty; give it a value, or leave it out"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"{name} is {value}; it lies between {' and '.join(map(str, limits_of(rule)))}"
    if kind == "literal_error":
        return f"{name}: there is no {value}; there are {', '.join(sorted(entry_of(rule)['enum']))}"
    if kind == "value_error":
        return f"{name}: {fault['ctx']['error']}"
    wrong = f"{name} takes {described(rule)}, not {given[name]!r}"
    return f'{wrong}; values are YAML, such as 3, 0.5, text, "[1, 2]"'


@functools.cache
def rules_of(model):
    """The JSON schema of each setting."""
    return model.model_json_schema()["properties"]


def entry_of(rule):
    """The part of a JSON schema that is about one value, or about each of a list."""
    entry = rule.get("items", rule)
    return entry | {"enum": [entry["const"]]} if "const" in entry else entry


def limits_of(rule):
    """Least and most of a number in a JSON schema; empty without them."""
    entry = entry_of(rule)
    return (entry["minimum"], entry["maximum"]) if "minimum" in entry else ()


def described(rule):
    """What a JSON schema's entry takes, in words."""
    if "anyOf" in rule:
        return " or ".join(map(described, rule["anyOf"]))
    words = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
    }
    word = words[entry_of(rule).get("type", "string")]
    return (
        f"a list of {word.removeprefix('a ')}{'s' * word.endswith('number')}"
        if rule.get("type") == "array"
        else word
    )


def template(model):
    """The settings of a model as a file to start from: each in a comment, with its default, its
    range and its help.
    """
    lines = ["# Remove the # in front of what you change."]
    for name, rule in rules_of(model).items():
        entry, limits = entry_of(rule), limits_of(rule)
        takes = (
            " | ".join(entry["enum"])
            if "enum" in entry
            else described(rule) + (f" from {limits[0]} to {limits[1]}" if limits else "")
        )
        value = f"# {name}: {json.dumps(rule.get('default', ''), ensure_ascii=False)}"
        lines.append(
            f"{value:<40} # {'; '.join(part for part in (takes, rule.get('description')) if part)}"
        )
    return "\n".join(lines)


def text_of(path, what):
    """The text of a file that people wrote: UTF-8, UTF-16 with its mark, else Windows-1252;
    ``ValueError`` when it is none.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        with contextlib.suppress(UnicodeDecodeError):
            if "\0" not in (text := content.decode(name)):
                return text
    raise ValueError(f"{path} is no text; save {what} as UTF-8")


def bounded_yaml(root):
    """The root node of a YAML document; ``ValueError`` where it is larger than settings are, once
    aliases are written out.
    """
    waiting, count = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, yaml.CollectionNode):
            pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
            waiting += [(part, depth + 1) for pair in pairs for part in pair]
        elif node and len(node.value) > LONGEST:
            raise ValueError(
                f"a value has {len(node.value)} characters; settings have at most {LONGEST}"
            )
        count += 1
        if depth > DEPTH or count + len(waiting) > VALUES:
            raise ValueError(
                f"it has more than {VALUES} values, or they are nested more than {DEPTH} deep; "
                f"an alias (*name) counts as all that it stands for"
            )
    return root


def read_value(text):
    """What one YAML value means, as ``-p`` takes it; ``ValueError`` for what is none."""
    try:
        loader = yaml.SafeLoader(text)
        node = bounded_yaml(loader.get_single_node())
        return loader.construct_document(node) if node else None
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path):
    """A mapping from a YAML file, as ``Written``, its keys as text; a refusal that names file, line
    and remedy.
    """
    try:
        loader = yaml.SafeLoader(text := text_of(path, "the settings"))
        node = bounded_yaml(loader.get_single_node())
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise Refused(
                f"{path} is no mapping of names to values; write lines such as `epochs: 10`"
            )
        refuse_twice(path, node)
        keys = [key for key, _ in node.value if key.tag != MERGE] if node else []
        for key in keys:
            key.tag = (
                TEXT if isinstance(key, yaml.ScalarNode) else key.tag
            )  # YAML reads the keys on and 5 as True and 5
        settings = Written(loader.construct_document(node) if node else {})
        settings.lines = {key.value: key.start_mark.line + 1 for key in keys}
        return settings
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"line {mark.line + 1}: {error.problem}{remedy(text.splitlines(), mark.line)}"
        raise Refused(f"{path} cannot be read as YAML: {what}") from None
    except RecursionError:
        raise Refused(f"{path} cannot be read as YAML: it is nested too deep") from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}; give the path of a file") from None
    except (ValueError, yaml.YAMLError) as error:
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
                raise Refused(
                    f"{path} line {key.start_mark.line + 1}: {key.value} is there twice, first in "
                    f"line {lines[str(key.value)]}; "
                    f"keep one of them"
                )
            lines[str(key.value)] = key.start_mark.line + 1
            refuse_twice(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            refuse_twice(path, item)
