"""Your own images, without labels: what a file asks for, checked; then an encoder, picks from a pool, a table and a page of them."""

import inspect
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import normalize

from longtail import gallery, given, models, runs, sampling, sources, train, views
from longtail.settings import Refused, checked, refuse_unknown

NEAREST = 5         # seed images kept for every image
TILE = 4096         # images compared with the seed at once


@dataclass(frozen=True)
class Request:
    """The settings of such a file; it may name every field but the first two."""

    name: str                       # of the file, and of the folder under results/
    folder: Path                    # of the file: other paths are relative to it
    seed_images: str                # what you have: a folder, a zip (zip/folder goes into one), or a .txt with a path on each line
    pool_images: str                # what to pick from, likewise; labels of neither are read
    budget: int = 100               # images that each sampler picks
    samplers: list[str] = field(default_factory=lambda: ["mak", "tailness", "proximity", "k_center", "random"])
    skip_broken: bool = False       # go on without files that are no readable images
    encoder: str = ""               # empty: train one on the seed; else a finished run's folder, or a file of torchvision weights
    architecture: str = "resnet10_small"    # torchvision/<name> with a file of weights
    size: int = 48                  # side of the squares the encoder sees, pixels; 224 with a file of weights
    method: str = "simclr"          # or sdclr
    epochs: int = 60                # passes over the seed
    batch_size: int = 64            # images an update; two views of each
    learning_rate: float = 0.15
    weight_decay: float = 1e-4
    warmup_epochs: int = 5
    prune_fraction: float = 0.9     # share of the convolution weights that SDCLR's twin lacks
    seed: int = 1                   # of weights, order of the images, views
    policy: str = "cifar"           # random views, in training and for ECLE
    temperature: float = 0.2        # of the contrastive loss
    precision: str = "float32"      # or bfloat16: faster where the processor has it
    views: int = 5                  # M, random views of each pool image
    ecle_batch: int = 512           # images contrasted with each other
    ecle_repeats: int = 2           # re-drawn batches for each pair of views
    alpha: float = 0.3              # weight of tailness against proximity
    ratio: float = 1.5              # candidates of MAK, as a multiple of the budget
    prototypes: int = 10            # of the seed
    shown: int = 100                # picks of each sampler on the page

    def place(self, text):
        """Where a path in the file leads."""
        return (self.folder / Path(text).expanduser()).absolute()


SETTINGS = {entry.name: inspect.formatannotation(entry.type) for entry in fields(Request) if entry.name not in ("name", "folder")}
TRAINING = {"method", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs", "prune_fraction"}
DECIDED = TRAINING | {"architecture", "size", "seed", "policy", "temperature", "precision"}      # what a finished run has decided
LIMITS = {  # least and most
    "budget": (1, 10**9), "size": (8, 1024), "epochs": (1, 10**6), "batch_size": (2, 10**6), "warmup_epochs": (0, 10**6),
    "learning_rate": (0, 100), "weight_decay": (0, 1), "prune_fraction": (0, 1), "temperature": (0.001, 100), "views": (2, 1000),
    "ecle_batch": (2, 10**6), "ecle_repeats": (1, 1000), "alpha": (0, 1), "ratio": (1, 10**9), "prototypes": (1, 10**6),
    "shown": (1, 10**6), "seed": (0, 2**31)}
CHOICES = {"samplers": set(sampling.SAMPLERS), "method": {"simclr", "sdclr"}, "precision": {"float32", "bfloat16"},
           "policy": {name for name in views.POLICIES if not name.endswith("_classifier")}}


@dataclass(frozen=True, eq=False)
class Found:
    """What lies in one place; ``files`` name -> what reads its bytes, ``broken`` is a line for each that is no readable image."""

    images: sources.ImageSet
    files: dict
    broken: list


@dataclass(frozen=True, eq=False)
class Study:
    """The two image sets that training and sampling ask for; what lies there is taken to be long-tailed."""

    seed: sources.ImageSet
    pool: sources.ImageSet


# ---- the request

def ask(name, settings, folder):
    """The request of a file's settings, and the number of files in each place; or a refusal."""
    refuse_unknown(settings, SETTINGS, f"{name}: picking from images of your own has no setting")
    if missing := sorted({"seed_images", "pool_images"} - settings.keys()):
        raise Refused(f"{name}: {missing[0]} is missing; picking from images of your own takes seed_images and pool_images")
    request = Request(name, folder, **checked(SETTINGS, settings))
    for key in [key for key in LIMITS if key in settings]:
        least, most = LIMITS[key]
        if not least <= getattr(request, key) <= most:
            raise Refused(f"{key} is {getattr(request, key)}; it lies between {least} and {most}")
    for key in [key for key in CHOICES if key in settings]:
        value = getattr(request, key)
        refuse_unknown(value if isinstance(value, list) else [value], CHOICES[key], f"{key}: there is no")
    if not request.samplers:
        raise Refused(f"samplers is empty; name some of {', '.join(sampling.SAMPLERS)}")
    for key in ("seed_images", "pool_images", "encoder"):
        if not sources.container(place := request.place(getattr(request, key))):
            raise Refused(f"{key}: {place} is missing; paths are relative to the file that names them")
    try:
        counts = {key: len(sources.files_of(request.place(getattr(request, key)))[0]) for key in ("seed_images", "pool_images")}
        return with_encoder(request, settings.keys()), counts
    except ValueError as error:
        raise Refused(str(error)) from None


def with_encoder(request, named):
    """The request with the settings that its encoder decides; those that it would not use are refused."""
    place, foreign = request.place(request.encoder), request.architecture.startswith("torchvision/")
    if not request.encoder:
        if request.architecture not in models.ARCHITECTURES:
            raise Refused(f"architecture {request.architecture}: {', '.join(models.ARCHITECTURES)} are trained here; "
                          f"torchvision/<name> needs a file of its weights as encoder")
        return request
    if place.is_file() and not foreign:
        raise Refused("a file of weights as encoder needs an architecture, such as torchvision/resnet50; runs of ours are given by folder")
    if place.is_dir() and not (place / "run.json").exists():
        raise Refused(f"encoder: {place} is no run; give the folder of a finished one, results/<profile>/runs/<run>")
    if unused := sorted(named & (TRAINING if foreign else DECIDED)):
        raise Refused(f"the encoder is given, so that {', '.join(unused)} would change nothing; leave out what its training decided")
    if foreign:
        return replace(request, size=request.size if "size" in named else 224)
    trained = runs.recorded(place / "run.json")
    if missing := DECIDED - trained.keys():
        raise Refused(f"encoder: {place / 'run.json'} does not say {min(missing)}; give the folder of a run made here")
    return replace(request, **{key: trained[key] for key in DECIDED})


# ---- what is made of it

def make(request):
    """Do what is asked: ``picks.csv``, ``gallery.html`` and, where files are broken, ``broken.txt`` appear in results/<name>/."""
    results = runs.Results(request.name)
    seed, pool = (find(request.place(text), request.size) for text in (request.seed_images, request.pool_images))
    report_broken(request, results, seed, pool)
    study = Study(seed.images, without(pool.images, seed.images))
    check_counts(request, study)
    run = extractor(request, results, study)
    scoring = {"prototypes": request.prototypes, "views": request.views, "batch": request.ecle_batch, "repeats": request.ecle_repeats}
    picks = pd.concat(sampling.pick(run, results, study, sampler, request.budget, request.alpha, request.ratio, **scoring)
                      for sampler in request.samplers)
    near = neighbours(run, results, study, request.prototypes)
    picks = picks.join(near.iloc[len(study.seed):].reset_index(drop=True).drop(columns="name"), on="index")
    runs.write(results.root / "picks.csv", table(request, study, picks).to_csv(index=False))
    measured = pd.DataFrame(dict(zip(("ecle", "distance"), sampling.score_pool(run, results, study, **scoring), strict=True)))
    page = gallery.render(request, run, study, (seed, pool), picks, near.iloc[:len(study.seed)], measured.mean())
    runs.write(results.root / "gallery.html", page)
    print(os.path.relpath(results.root / "gallery.html"), flush=True)


# ---- images

def find(place, size):
    """The images of a folder, zip or list as squares without labels, and what is wrong with the other files."""
    files, _ = sources.files_of(place)
    print(f"reading {len(files)} files of {place}", flush=True)
    images, names, broken = sources.read_images(files, size)
    found = sources.ImageSet(images, torch.full((len(names),), sources.UNKNOWN), tuple(names))
    return Found(found, dict(files), broken)


def path_of(text, name):
    """Path of an image, relative to the file of the request, from the text that names its place there."""
    return str((Path(text).parent if text.endswith(".txt") else Path(text)) / name)


def report_broken(request, results, seed, pool):
    """Name every file that is no readable image in ``broken.txt``; they stop the request unless it skips them."""
    report = results.root / "broken.txt"
    report.unlink(missing_ok=True)
    lines = [path_of(text, line) for text, found in ((request.seed_images, seed), (request.pool_images, pool)) for line in found.broken]
    if not lines:
        return
    runs.write(report, "\n".join(lines) + "\n")
    if not request.skip_broken:
        raise ValueError(f"{len(lines)} files are no readable images, such as {lines[0]}; {os.path.relpath(report)} names them all: "
                         f"remove them, or leave them out with skip_broken: true")
    print(f"left out {len(lines)} files that are no readable images, named in {os.path.relpath(report)}", flush=True)


def without(pool, seed):
    """The pool images that are none of the seed's, pixel by pixel: a seed is often cut out of its pool."""
    known = {image.tobytes() for image in seed.images.numpy()}
    return pool.subset([place for place, image in enumerate(pool.images.numpy()) if image.tobytes() not in known])


def check_counts(request, study):
    """Refuse before training what the images are too few for."""
    for key, images, place in (("budget", study.pool, request.pool_images), ("prototypes", study.seed, request.seed_images)):
        if getattr(request, key) > len(images):
            raise ValueError(f"{key} is {getattr(request, key)}, but {place} has {len(images)} images for it; lower {key}, or give more")


# ---- encoder and picks

def extractor(request, results, study):
    """The run whose encoder scores the pool: trained on the seed now or before, or given."""
    place = request.place(request.encoder)
    if request.encoder and place.is_dir():
        return given.own_run(place, results)
    settings = {name: getattr(request, name) for name in DECIDED - {"method", "seed"}}
    run, images = train.plan(study, f"{request.method} long_tail", 0, request.seed, {"dataset": request.name, **settings})
    if request.encoder:
        unknown = dict.fromkeys(TRAINING, 0) | {"method": "given", "head_layers": 0}
        return given.torchvision_weights(place, replace(run, **unknown), results)
    train.pretrain(run, images, results)
    return run


def neighbours(run, results, study, prototypes):
    """The nearest prototype and the nearest seed images of every image, by cosine: read from disk when measured before.

    Rows, the seed's before the pool's: name, prototype (1 has the most seed images), closeness to it, then the positions
    ``seed_1`` … in the seed and their ``similarity_1`` …
    """
    def rows():
        pool, seed = sampling.pool_and_seed(run, results, study)
        means, seed = normalize(sampling.centroids(seed, prototypes).to(seed)), normalize(seed)
        means = means[torch.bincount((seed @ means.T).argmax(1), minlength=prototypes).argsort(descending=True, stable=True)]
        parts = [compare(normalize(tile.to(seed)), seed, means) for some in (seed, pool) for tile in some.split(TILE)]
        return pd.concat(parts).assign(name=study.seed.names + study.pool.names)

    settings = {"pool": study.pool.digest, "seed": study.seed.digest, "precision": run.precision}
    return runs.remember(results.folder(run), f"neighbours-k{prototypes}", settings, rows)


def compare(tile, seed, means):
    """Rows of ``neighbours`` for unit features (n, d) against those of the seed (s, d) and the prototypes (k, d)."""
    closeness, prototype = (tile @ means.T).max(1)
    similarity, nearest = (tile @ seed.T).topk(min(NEAREST, len(seed)))
    columns = {"prototype": prototype + 1, "closeness": closeness}
    for place in range(nearest.shape[1]):
        columns |= {f"seed_{place + 1}": nearest[:, place], f"similarity_{place + 1}": similarity[:, place]}
    return pd.DataFrame({name: values.numpy(force=True) for name, values in columns.items()})


def table(request, study, picks):
    """The picks as people use them: where the file is, what was measured, which prototype and which seed image is nearest."""
    return pd.DataFrame({
        "sampler": picks.sampler, "rank": picks["rank"], "path": [path_of(request.pool_images, name) for name in picks.name],
        "ecle": picks.ecle, "distance": picks.distance, "score": picks.score, "nearest_prototype": picks.prototype,
        "nearest_seed": [path_of(request.seed_images, study.seed.names[place]) for place in picks.seed_1]})
