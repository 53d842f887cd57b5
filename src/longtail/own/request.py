"""What a file of settings for one's own images may ask, checked as a whole: every mistake is told
at once, with its line and a remedy.
"""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from longtail.images import memory, places, views
from longtail.learn import models
from longtail.own import embeddings
from longtail.pick import samplers
from longtail.store import arms, runs
from longtail.store.settings import Refused, as_number, mistakes, refusal

PLACES = ("seed_images", "pool_images", "test_images")
Places = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
PolicyName = Literal[tuple(name for name in views.POLICIES if not name.endswith("_classifier"))]
SamplerName = Literal[tuple(samplers.SAMPLERS)]
Number = Annotated[float, Field(allow_inf_nan=False), pydantic.BeforeValidator(as_number)]
Memory = Annotated[
    str,
    pydantic.BeforeValidator(str),
    pydantic.AfterValidator(lambda text: memory.size_of(text) and text),
]


def without_repeats(names):
    """Names without those that are there before."""
    return list(dict.fromkeys(names))


def between(default, least, most, description):
    """A setting that is a number in these limits."""
    return Field(default, ge=least, le=most, description=description)


def given(default, description):
    """Any other setting."""
    return Field(default, description=description)


class Settings(pydantic.BaseModel):
    """The settings of a file that asks for picks from images of one's own; paths are relative to
    that file.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, title="Picks from images of one's own"
    )

    seed_images: Places = given(
        ...,
        "what you have: a folder, archive (zip, tar, arrays, Parquet), list or table, or several; "
        "or features",
    )
    pool_images: Places = given(..., "what to pick from, likewise")
    test_images: str | list[str] = given(
        "", "what a model is tested on, likewise: none of it, nor a copy of it, is picked"
    )
    rejects: str = given(
        "",
        "a list of pool images that are not to be picked, nor copies of them; the gallery saves "
        "one",
    )
    memory: Memory = given(
        "4 GB",
        "how much memory the work may take, 2 GB or more: pools are read and scored in chunks that "
        "fit it",
    )
    budget: int = between(100, 1, 10**9, "images that each sampler picks")
    samplers: Annotated[list[SamplerName], pydantic.AfterValidator(without_repeats)] = Field(
        ["mak", "tailness", "proximity", "k_center", "random"],
        min_length=1,
        description="methods that pick",
    )
    quotas: Literal["none", "prototypes", "classes"] = given(
        "none", "share the budget evenly among nearest prototypes, or classes"
    )
    picked_files: Literal["links", "copies", "none"] = given("links", "what picks/<sampler> holds")
    export: Literal["none", "npy", "parquet"] = given(
        "none", "write the features of seed and pool, too, for other tools"
    )
    skip_broken: bool = given(False, "go on without files that are no readable images")
    keep_near_copies: bool = given(
        False, "near copies of a picture may be picked, too; copies of its content never are"
    )
    encoder: str = given(
        "", "empty: train one on the seed; else a finished run's folder, or a file of weights"
    )
    architecture: str = given(
        "resnet10_small", "torchvision/<name> or timm/<name> with a file of weights"
    )
    size: int = between(
        48,
        8,
        1024,
        "side of the squares the encoder sees, pixels; with a file of weights what they were "
        "trained with",
    )
    method: Literal["simclr", "sdclr"] = given("simclr", "how the encoder is trained")
    epochs: int = between(60, 1, 10**6, "passes over the seed")
    batch_size: int = between(64, 2, 10**6, "images an update, two views of each")
    learning_rate: Number = between(0.15, 0, 100, "highest rate")
    weight_decay: Number = between(1e-4, 0, 1, "pull of the weights to zero")
    warmup_epochs: int = between(5, 0, 10**6, "epochs in which the rate rises")
    prune_fraction: Number = between(
        0.9, 0, 1, "share of the convolution weights that SDCLR's twin lacks"
    )
    seed: int = between(1, 0, 2**31, "of weights, order of the images, views")
    policy: PolicyName = given("cifar", "random views, also for ECLE")
    temperature: Number = between(0.2, 0.001, 100, "of the contrastive loss")
    precision: Literal["float32", "bfloat16"] = given(
        "float32", "bfloat16 is faster where the processor has it"
    )
    views: int = between(5, 2, 1000, "M, random views of each pool image")
    ecle_batch: int = between(512, 2, 10**6, "images contrasted with each other")
    ecle_repeats: int = between(2, 1, 1000, "re-drawn batches for each pair of views")
    alpha: Number = between(0.3, 0, 1, "weight of tailness against proximity")
    ratio: Number = between(1.5, 1, 10**9, "candidates of MAK, as a multiple of the budget")
    prototypes: int = between(10, 1, 10**6, "of the seed")
    shown: int = between(2000, 1, 10**6, "picks of each sampler on the page")


class Request(Settings):
    """Settings that have been checked, of a file of this ``name`` in this ``folder``; the results
    go to results/<name>.
    """

    name: str
    folder: Path

    def place(self, text):
        """Where a path in the file leads."""
        return lies_at(self.folder, text)

    def texts(self, key):
        """The places that a setting names, one or several."""
        return texts_of(getattr(self, key))

    @property
    def features(self):
        """Whether features are given instead of images."""
        return any(embeddings.holds(self.place(text)) for key in PLACES for text in self.texts(key))


ASKED = Settings.model_fields
TRAINING = {
    "method",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_epochs",
    "prune_fraction",
}
DECIDED = TRAINING | {
    "architecture",
    "size",
    "seed",
    "policy",
    "temperature",
    "precision",
}  # what a finished run has decided


def ask(name, settings, folder, lines=None):
    """The request of a file's settings; or a refusal that lists all that is wrong, each with its
    line in the file.
    """
    values, wrong = mistakes(Settings, settings)
    for key, text in [
        (one, text)
        for one in (*PLACES, "rejects", "encoder")
        for text in texts_of(values.get(one, ""))
    ]:
        if not places.container(place := lies_at(folder, text)):
            wrong.append(
                (key, f"{key}: {place} is missing; paths are relative to the file that names them")
            )
        elif key == "rejects" and not place.is_file():
            wrong.append((key, f"{key}: {place} is no list; give a file with a path on each line"))
        elif key in PLACES:
            try:
                if not embeddings.holds(place):
                    places.files_of(place)
            except ValueError as error:
                wrong.append((key, f"{key}: {error}"))
    if not wrong:
        try:
            request = Request(name=name, folder=folder, **values)
            return (
                with_encoder(request, settings.keys())
                if not request.features
                else of_features(request, settings.keys())
            )
        except Refused as error:
            wrong.append(
                (
                    next(
                        (one for one in ("encoder", "architecture") if one in settings),
                        "seed_images",
                    ),
                    str(error),
                )
            )
    raise refusal(name, wrong, lines)


def lies_at(folder, text):
    """Where a path leads that a file in this folder names."""
    with contextlib.suppress(RuntimeError):  # ~ of nobody: then it is a name like others
        text = Path(text).expanduser()
    return (folder / text).absolute()


def texts_of(named):
    """One text or several, as a list without empty ones."""
    return [text for text in ([named] if isinstance(named, str) else named) if text]


def of_features(request, named):
    """The request for picks by features alone; settings that would change nothing are refused."""
    if request.test_images or not all(
        len(request.texts(key)) == 1 and embeddings.holds(request.place(request.texts(key)[0]))
        for key in PLACES[:2]
    ):
        raise Refused(
            "features take the place of images in seed_images and pool_images, one file each, and "
            "there is no test_images"
        )
    if unused := sorted(
        named
        & (
            DECIDED
            | {
                "encoder",
                "views",
                "ecle_batch",
                "ecle_repeats",
                "export",
                "rejects",
                "quotas",
                "picked_files",
                "shown",
            }
            - {"seed"}
        )
    ):
        raise Refused(
            f"features are given, so that {', '.join(unused)} would change nothing; leave it out"
        )
    if "samplers" not in named:
        return request.model_copy(
            update={
                "samplers": [name for name in request.samplers if name in embeddings.WITHOUT_VIEWS]
            }
        )
    if lacking := [name for name in request.samplers if name not in embeddings.WITHOUT_VIEWS]:
        raise Refused(
            f"samplers: {', '.join(lacking)} takes random views of pixels, which features lack; "
            "there are "
            f"{', '.join(embeddings.WITHOUT_VIEWS)}"
        )
    return request


def with_encoder(request, named):
    """The request with the settings that its encoder decides; those that it would not use are
    refused.
    """
    place, foreign = (
        request.place(request.encoder),
        request.architecture.startswith(("torchvision/", "timm/")),
    )
    if not request.encoder:
        if request.architecture not in models.ARCHITECTURES:
            raise Refused(
                f"architecture {request.architecture}: {', '.join(models.ARCHITECTURES)} are "
                "trained here; "
                f"torchvision/<name> or timm/<name> needs a file of its weights as encoder"
            )
        return request
    if place.is_file() and not foreign:
        raise Refused(
            f"architecture {request.architecture}: a file of weights as encoder needs an "
            "architecture of torchvision or timm, "
            f"such as torchvision/resnet50; runs of ours are given by folder"
        )
    if place.is_dir() and not (place / "run.json").exists():
        raise Refused(
            f"encoder: {place} is no run; give the folder of a finished one, results/runs/<run>"
        )
    if unused := sorted(named & (TRAINING if foreign else DECIDED)):
        raise Refused(
            f"the encoder is given, so that {', '.join(unused)} would change nothing; leave out "
            "what its training decided"
        )
    if foreign:
        try:
            return (
                request
                if "size" in named
                else request.model_copy(update={"size": models.usual_size(request.architecture)})
            )
        except ValueError as error:
            raise Refused(str(error)) from None
    try:
        trained = runs.read_run(place)
    except ValueError as error:
        raise Refused(f"encoder: {error}") from None
    used = {key: getattr(trained, key) for key in ("size", "policy", "temperature", "seed")}
    if wrong := mistakes(Settings, {"seed_images": "-", "pool_images": "-", **used})[1]:
        raise Refused(f"encoder: {place / 'run.json'}: {wrong[0][1]}")
    try:
        for key in ("head_layers", "precision"):
            arms.in_range(key, getattr(trained, key), f"{place / 'run.json'}")
    except ValueError as error:
        raise Refused(f"encoder: {error}") from None
    return request.model_copy(update={key: getattr(trained, key) for key in DECIDED})
