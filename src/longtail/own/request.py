"""What a file of settings for one's own images may ask, checked as a whole: every mistake is told at once, with its line and a remedy."""

import difflib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from longtail.images import places, views
from longtail.learn import models
from longtail.pick import samplers
from longtail.store import runs
from longtail.store.settings import Refused, conform

PLACES = ("seed_images", "pool_images", "test_images")
POLICIES = [name for name in views.POLICIES if not name.endswith("_classifier")]
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list[str]: "a list",
         str | list[str]: "text or a list"}


def among(default, *choices):
    """A setting that is one of ``choices``, or a list of some."""
    rule = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**rule, metadata={"choices": choices})


def between(default, least, most):
    """A setting that is a number in these limits."""
    return field(default=default, metadata={"ge": least, "le": most})


@dataclass(frozen=True)
class Request:
    """The settings of such a file; it may name every field but the first two."""

    name: str                       # of the file, and of the folder under results/
    folder: Path                    # of the file: other paths are relative to it
    seed_images: str | list[str]    # what you have: a folder, zip (zip/folder goes into one), tar, list (.txt) or table (.csv), or several
    pool_images: str | list[str]    # what to pick from, likewise
    test_images: str | list[str] = ""           # likewise what a model is tested on: none of it, nor a copy of it, is picked
    rejects: str = ""               # a list of pool images that are not to be picked, nor copies of them; the gallery saves one
    budget: int = between(100, 1, 10**9)        # images that each sampler picks
    samplers: list[str] = among(["mak", "tailness", "proximity", "k_center", "random"], *samplers.SAMPLERS)
    quotas: str = among("none", "none", "prototypes", "classes")       # share the budget evenly among nearest prototypes, or classes
    picked_files: str = among("links", "links", "copies", "none")      # what picks/<sampler> holds
    skip_broken: bool = False       # go on without files that are no readable images
    keep_near_copies: bool = False  # near copies of a picture may be picked, too; copies of its content never are
    encoder: str = ""               # empty: train one on the seed; else a finished run's folder, or a file of torchvision weights
    architecture: str = "resnet10_small"        # torchvision/<name> with a file of weights
    size: int = between(48, 8, 1024)            # side of the squares the encoder sees, pixels; 224 with a file of weights
    method: str = among("simclr", "simclr", "sdclr")
    epochs: int = between(60, 1, 10**6)         # passes over the seed
    batch_size: int = between(64, 2, 10**6)     # images an update; two views of each
    learning_rate: float = between(0.15, 0, 100)
    weight_decay: float = between(1e-4, 0, 1)
    warmup_epochs: int = between(5, 0, 10**6)
    prune_fraction: float = between(0.9, 0, 1)  # share of the convolution weights that SDCLR's twin lacks
    seed: int = between(1, 0, 2**31)            # of weights, order of the images, views
    policy: str = among("cifar", *POLICIES)       # random views, also for ECLE
    temperature: float = between(0.2, 0.001, 100)           # of the contrastive loss
    precision: str = among("float32", "float32", "bfloat16")        # bfloat16 is faster where the processor has it
    views: int = between(5, 2, 1000)            # M, random views of each pool image
    ecle_batch: int = between(512, 2, 10**6)    # images contrasted with each other
    ecle_repeats: int = between(2, 1, 1000)     # re-drawn batches for each pair of views
    alpha: float = between(0.3, 0, 1)           # weight of tailness against proximity
    ratio: float = between(1.5, 1, 10**9)       # candidates of MAK, as a multiple of the budget
    prototypes: int = between(10, 1, 10**6)     # of the seed
    shown: int = between(2000, 1, 10**6)        # picks of each sampler on the page

    def place(self, text):
        """Where a path in the file leads."""
        return (self.folder / Path(text).expanduser()).absolute()

    def texts(self, key):
        """The places that a setting names, one or several."""
        named = getattr(self, key)
        return [named] if isinstance(named, str) and named else list(named)


FIELDS = {entry.name: entry for entry in fields(Request) if entry.name not in ("name", "folder")}
TRAINING = {"method", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs", "prune_fraction"}
DECIDED = TRAINING | {"architecture", "size", "seed", "policy", "temperature", "precision"}      # what a finished run has decided


def ask(name, settings, folder, lines=None):
    """The request of a file's settings; or a refusal that lists all that is wrong, each with its line in the file."""
    values, wrong = validated(settings)
    request = Request(name, folder, **{"seed_images": "", "pool_images": "", **values})
    named = [(key, text) for key in (*PLACES, "rejects", "encoder") for text in request.texts(key)]
    for key, text in named:
        if not places.container(place := request.place(text)):
            wrong.append((key, f"{key}: {place} is missing; paths are relative to the file that names them"))
        elif key in PLACES:
            try:
                places.files_of(place)
            except ValueError as error:
                wrong.append((key, f"{key}: {error}"))
    if not wrong:
        try:
            return with_encoder(request, settings.keys())
        except Refused as error:
            wrong.append(("encoder" if "encoder" in settings else "architecture", str(error)))
    lines = lines or {}
    told = [f"{f'line {lines[key]}: ' if key in lines else ''}{text}" for key, text in sorted(wrong, key=lambda one: lines.get(one[0], 0))]
    raise Refused(f"{name}: {told[0]}" if len(told) == 1 else f"{name} has {len(told)} mistakes:\n  " + "\n  ".join(told))


def validated(settings):
    """The settings that are as they should be, and (name, what is wrong with it) of each of the others."""
    import pydantic
    kinds = {name: kind_of(entry, pydantic.Field) for name, entry in FIELDS.items()}
    model = pydantic.create_model("Settings", __config__=pydantic.ConfigDict(extra="forbid", strict=True), **kinds)
    values = {name: conform(value, "float") if name in FIELDS and FIELDS[name].type is float and isinstance(value, str) else value
              for name, value in settings.items()}      # YAML reads 1e-3 as text
    try:
        return model.model_validate(values).model_dump(exclude_unset=True), []
    except pydantic.ValidationError as error:
        wrong = {}
        for fault in error.errors():
            wrong.setdefault(str(fault["loc"][0]), explained(fault, settings))
        return {name: value for name, value in values.items() if name not in wrong}, list(wrong.items())


def kind_of(entry, rule):
    """A field of ``Request`` as pydantic takes it: its type and its rules."""
    choices, limits = entry.metadata.get("choices"), {key: entry.metadata[key] for key in ("ge", "le") if key in entry.metadata}
    default = entry.default if entry.default is not MISSING else entry.default_factory() if entry.default_factory is not MISSING else ...
    if entry.type is float:
        limits["allow_inf_nan"] = False
    if entry.type == list[str]:
        return list[Literal[choices]], rule(default, min_length=1)
    return (Literal[choices] if choices else entry.type), rule(default, **limits)


def explained(fault, settings):
    """What pydantic found, in plain words with a remedy."""
    name, kind, value = str(fault["loc"][0]), fault["type"], fault["input"]
    if kind == "extra_forbidden":
        meant = difflib.get_close_matches(name, FIELDS, 1)
        return f"no setting {name}; there are {', '.join(sorted(FIELDS))}{f'; perhaps {meant[0]} is meant' if meant else ''}"
    limits = FIELDS[name].metadata
    if kind == "missing" or settings[name] in (None, "", []):
        what = "is missing" if kind == "missing" else "is empty"
        return f"{name} {what}; picking from images of your own takes seed_images and pool_images" if name in PLACES else (
            f"{name} {what}; give it a value, or leave the line out")
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"{name} is {value}; it lies between {limits['ge']} and {limits['le']}"
    if kind == "literal_error":
        return f"{name}: there is no {value}; there are {', '.join(sorted(limits['choices']))}"
    return f"{name} takes {WORDS[FIELDS[name].type]}, not {settings[name]!r}; values are YAML, such as 3, 0.5, text, [mak, random]"


def with_encoder(request, named):
    """The request with the settings that its encoder decides; those that it would not use are refused."""
    place, foreign = request.place(request.encoder), request.architecture.startswith("torchvision/")
    if not request.encoder:
        if request.architecture not in models.ARCHITECTURES:
            raise Refused(f"architecture {request.architecture}: {', '.join(models.ARCHITECTURES)} are trained here; "
                          f"torchvision/<name> needs a file of its weights as encoder")
        return request
    if place.is_file() and not foreign:
        raise Refused(f"architecture {request.architecture}: a file of weights as encoder needs an architecture of torchvision, such as "
                      f"torchvision/resnet50; runs of ours are given by folder")
    if place.is_dir() and not (place / "run.json").exists():
        raise Refused(f"encoder: {place} is no run; give the folder of a finished one, results/runs/<run>")
    if unused := sorted(named & (TRAINING if foreign else DECIDED)):
        raise Refused(f"the encoder is given, so that {', '.join(unused)} would change nothing; leave out what its training decided")
    if foreign:
        return replace(request, size=request.size if "size" in named else 224)
    try:
        trained = runs.read_run(place)
    except ValueError as error:
        raise Refused(f"encoder: {error}") from None
    if not (limits := FIELDS["size"].metadata)["ge"] <= trained.size <= limits["le"]:
        raise Refused(f"encoder: size is {trained.size} in {place / 'run.json'}; it lies between {limits['ge']} and {limits['le']}")
    return replace(request, **{key: getattr(trained, key) for key in DECIDED})
