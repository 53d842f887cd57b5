"""What a file of settings for one's own images may ask, checked as a whole: every mistake is told at once, with its line and a remedy."""

import inspect
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path

from longtail.images import places, views
from longtail.learn import models
from longtail.pick import samplers
from longtail.store import runs
from longtail.store.settings import Refused, help_of, mistakes, refusal, schema
from longtail.store.settings import field as setting

PLACES = ("seed_images", "pool_images", "test_images")
POLICIES = [name for name in views.POLICIES if not name.endswith("_classifier")]


def among(default, *choices):
    """A setting that is one of ``choices``, or a list of some."""
    rule = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**rule, metadata={"choices": choices, "least": 1})


def between(default, least, most):
    """A setting that is a number in these limits."""
    return field(default=default, metadata={"limits": (least, most)})


def default_of(entry):
    """What a setting is when a file does not name it; ``...`` when every file has to."""
    return entry.default_factory() if entry.default_factory is not MISSING else ... if entry.default is MISSING else entry.default


@dataclass(frozen=True)
class Request:
    """The settings of such a file; it may name every field but the first two."""

    name: str                       # of the file, and of the folder under results/
    folder: Path                    # of the file: other paths are relative to it
    seed_images: str                # what you have: a folder, zip (zip/folder goes into one), tar, list (.txt) or table (.csv) of paths
    pool_images: str                # what to pick from, likewise; labels of neither are read
    test_images: str = ""           # likewise what a model is tested on: none of it, nor a copy of it, is picked
    budget: int = between(100, 1, 10**9)        # images that each sampler picks
    samplers: list[str] = among(["mak", "tailness", "proximity", "k_center", "random"], *samplers.SAMPLERS)
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
    shown: int = between(100, 1, 10**6)         # picks of each sampler on the page

    def place(self, text):
        """Where a path in the file leads."""
        return (self.folder / Path(text).expanduser()).absolute()


FIELDS = {entry.name: entry for entry in fields(Request) if entry.name not in ("name", "folder")}
HELP = help_of(inspect.getsource(Request))
MODEL = schema("Request", {name: setting(entry.type, default_of(entry), HELP.get(name, ""), **entry.metadata)
                           for name, entry in FIELDS.items()})
TRAINING = {"method", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs", "prune_fraction"}
DECIDED = TRAINING | {"architecture", "size", "seed", "policy", "temperature", "precision"}      # what a finished run has decided


def ask(name, settings, folder, lines=None):
    """The request of a file's settings; or a refusal that lists all that is wrong, each with its line in the file."""
    values, wrong = mistakes(MODEL, settings)
    request = Request(name, folder, **{"seed_images": "", "pool_images": "", **values})
    for key in [*PLACES, "encoder"]:
        if (text := values.get(key)) and not places.container(place := request.place(text)):
            wrong.append((key, f"{key}: {place} is missing; paths are relative to the file that names them"))
        elif text and key in PLACES:
            try:
                places.files_of(place)
            except ValueError as error:
                wrong.append((key, f"{key}: {error}"))
    if not wrong:
        try:
            return with_encoder(request, settings.keys())
        except Refused as error:
            wrong.append(("encoder" if "encoder" in settings else "architecture", str(error)))
    raise refusal(name, wrong, lines)


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
    least, most = FIELDS["size"].metadata["limits"]
    if not least <= trained.size <= most:
        raise Refused(f"encoder: size is {trained.size} in {place / 'run.json'}; it lies between {least} and {most}")
    return replace(request, **{key: getattr(trained, key) for key in DECIDED})
