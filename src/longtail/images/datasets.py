"""Data sets by name or path, before they are made long-tailed."""

import functools
import importlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from longtail.images import pixels, sources
from longtail.images.archives import Content, whole_file
from longtail.images.places import (
    container,
    files_of,
    is_list,
    lines_of,
    require,
    splits_in,
)
from longtail.images.sources import UNKNOWN, ImageSet, class_names, folder
from longtail.store import paths

PART_WORDS = {
    "train": {"train", "training", "trn", "trainval"},
    "test": {"test", "testing", "tst", "holdout", "heldout"},
    "validation": {
        "val",
        "valid",
        "validation",
        "validate",
        "dev",
        "devel",
        "development",
        "eval",
        "evaluation",
    },
}
JUDGED = {"eval", "evaluation"}  # the test part where there is another for validation
FILLERS = {
    "set",
    "sets",
    "image",
    "images",
    "img",
    "imgs",
    "data",
    "dataset",
    "split",
    "part",
}  # words beside those in a part's name


@dataclass(frozen=True)
class Source:
    """A data set before it is made long-tailed."""

    images: ImageSet  # all training images, in the official order
    labelled: np.ndarray  # positions of those that train the linear classifier
    validation: np.ndarray  # positions kept for model selection, in no other list
    test: ImageSet
    classes: tuple  # names
    published: Callable | None = (
        None  # split -> positions of the authors' own D_i, D_b, S_b, where their lists are used
    )


@dataclass(frozen=True)
class Named:
    """A data set that a profile can name."""

    load: Callable  # (size, folder of the authors' index lists, "" for none) -> Source
    classes: int
    listed: bool  # whether there are such lists, which name every image


NAMED = {}


def data_set(name, classes, listed=False):
    """Register the function below as what loads the data set of that name; to add a data set is to
    write one such function.
    """

    def register(load):
        NAMED[name] = Named(load, classes, listed)
        return load

    return register


def class_orders(labels, positions, classes, generator):
    """One random order of the given positions for each class: list of int64 arrays, of which lists
    are prefixes.
    """
    return [
        generator.permutation(positions[labels[positions] == label]) for label in range(classes)
    ]


@functools.lru_cache(maxsize=2)
def load(dataset, size, lists="", skip_broken=False):
    """The data set of that name, or the labelled class folders at that path, as a ``Source`` of
    ``size``-pixel squares.

    ``lists``: folder of the authors' index lists. The last two are kept in memory: each split of a
    study asks again.
    """
    known = NAMED.get(dataset)
    if lists and (skip_broken or not (known and known.listed)):
        with_lists = [name for name, data in NAMED.items() if data.listed]
        raise ValueError(
            f"lists are for {', '.join(with_lists)}, and name every image; leave them empty for "
            f"{dataset}, or give up "
            "skip_broken"
        )
    if known:
        return known.load(size, lists)
    if container(place := paths.DATA / Path(dataset).expanduser()):
        return class_folders(place, size, skip_broken)
    raise ValueError(
        f"no data set {dataset!r}: there are {', '.join(NAMED)}, and any folder or zip of class "
        "folders by its path "
        f"(looked for {place}; LONGTAIL_DATA says where data lie)"
    )


def class_folders(path, size, skip_broken):
    """A source from a folder for each class or a labelled list or table, or from several of them,
    the parts train, validation and test.

    With all three parts each is used as what it is; without a test part validation is the test set,
    and a twentieth of each class serves validation (20 images of 400, as many as ImageNet-100 has).
    What was recognised is printed, and what is no part is left out.
    """
    root, parts, others = parts_of(path)
    if not parts:
        return hold_out(*labelled(path, size, skip_broken))
    print(
        f"{path}: {', '.join(f'{name} is {part}' for part, name in sorted(parts.items()))}"
        + (
            ", and the test set, for there is no other"
            if parts.keys() == {"train", "validation"}
            else ""
        )
        + (f"; left out, as no part: {', '.join(others)}" if others else "")
    )
    found = {
        part: labelled(entered_part(root / name), size, skip_broken) for part, name in parts.items()
    }
    train, classes = found.pop("train")
    for part, (_, theirs) in found.items():
        if odd := set(classes) ^ set(theirs):
            raise ValueError(
                f"{path}: class {min(odd)} is in only one of {parts['train']} and {parts[part]}; "
                "give both the same classes"
            )
    if not found:
        return hold_out(train, classes)
    if len(found) == 1:
        return with_test(train, next(iter(found.values()))[0], classes, share=20)
    everything = train + found["validation"][0]  # test comes before val
    return Source(
        everything,
        np.arange(len(train)),
        np.arange(len(train), len(everything)),
        found["test"][0],
        classes,
    )


def parts_of(path):
    """The parts of a data set: folder they lie in, part -> name there, and names that are no part;
    no parts where classes lie there.

    A train part beside a validation or test part, in any usual spelling; of lists and tables those
    that are named alike beside the path. One folder that holds everything is entered.
    """
    beside = []
    if is_list(path) and (names := splits_in(path)):
        place, name_of = path, {name: name for name in names}
    elif is_list(path):
        place, own = path.parent, part_of(path.stem)
        lists = [other for other in place.iterdir() if is_list(other)] if own[0] == "train" else []
        name_of = {other.stem: other.name for other in lists if part_of(other.stem)[1] == own[1]}
    else:
        lies = files_of(path)
        place, name_of = path, {name: name for name in lies.folders}
        beside = [file for file, _ in lies.files if "/" not in file]
        if len(name_of) == 1 and path.is_dir():
            [name] = name_of
            if not beside and not part_of(name)[0]:
                root, parts, others = parts_of(path / name)
                return (root, parts, others) if parts else (path, {}, [])
    alike = defaultdict(lambda: defaultdict(list))
    for name in sorted(name_of):
        part, others = part_of(name)
        if part:
            alike[others][part].append(name_of[name])
    for parts in alike.values():
        judged = [name for name in parts["validation"] if words_of(name) & JUDGED]
        if not parts["test"] and len(judged) < len(parts["validation"]):
            parts["test"], parts["validation"] = (
                judged,
                [name for name in parts["validation"] if name not in judged],
            )
    alike = {
        others: {part: names for part, names in parts.items() if names}
        for others, parts in alike.items()
    }
    whole = [parts for parts in alike.values() if "train" in parts and len(parts) > 1]
    alone = [
        parts for parts in alike.values() if sum(map(len, parts.values())) == len(name_of)
    ]  # every folder is a part
    if not whole and alone and "train" not in alone[0] and not is_list(path):
        raise ValueError(
            f"{path} has {', '.join(sorted(name_of))} and no part to train on; give the folder of "
            "one part that has classes"
        )
    chosen = (whole or (alone if not is_list(path) else []) or [{}])[0]
    if len(whole) > 1 or any(len(names) > 1 for names in chosen.values()):
        twice = next((names for names in chosen.values() if len(names) > 1), sorted(name_of))
        raise ValueError(
            f"{path}: {' and '.join(twice)} may be the same part of the data set; leave one of "
            "them there"
        )
    parts = {part: name for part, (name,) in chosen.items()}
    others = sorted(set(name_of.values()) - set(parts.values()))
    others += [f"{len(beside)} files such as {beside[0]}"] if beside else []
    return place, parts, others if parts else []


def entered_part(path):
    """The folder of a part, or the one of that part that is all it holds: seg_train/seg_train."""
    lies = files_of(path)
    same = [name for name in lies.folders if part_of(name)[0] == part_of(path.name)[0] != ""]
    return entered_part(path / same[0]) if len(same) == 1 == len(lies.folders) else path


def words_of(name):
    """The words of a name, in lower case."""
    return set(re.findall(r"[^\W\d_]+", name.lower()))


def part_of(name):
    """The part of a data set that a name stands for, empty for none, and the other words in it:
    "seg_train" is train, ("seg",).
    """
    words = [
        word.lower() for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    ]
    words = [
        next(
            (
                word.removesuffix(filler)
                for filler in FILLERS
                if word != filler
                and word.endswith(filler)
                and any(word.removesuffix(filler) in spellings for spellings in PART_WORDS.values())
            ),
            word,
        )
        for word in words
    ]
    for part, spellings in PART_WORDS.items():
        if "".join(words) in spellings:  # hold-out, train_val
            return part, ()
    for part, spellings in PART_WORDS.items():
        if found := [word for word in words if word in spellings]:
            return part, tuple(word for word in words if word not in FILLERS and word != found[0])
    return "", tuple(words)


def labelled(path, size, skip_broken):
    """``folder`` and the names of its classes; an error unless every image has a class and there
    are at least two.
    """
    images = folder(path, size, skip_broken)
    place = files_of(path)
    if is_list(container(path)) and not place.labels:
        raise ValueError(f"{path} has no label for each image; give one in every row")
    if int(images.labels.min()) == UNKNOWN:
        beside = [name for name in images.names if "/" not in name]
        if len(beside) < len(images):
            raise ValueError(
                f"{path}: {len(beside)} images lie beside the class folders, such as {beside[0]}; "
                "move them into one or away"
            )
        raise ValueError(
            f"{path} is flat: evaluation needs a folder for each class, or a list or table that "
            "gives labels"
        )
    classes = tuple(sources.classes_of(images.names, place))
    if len(classes) < 2:
        raise ValueError(
            f"{path} has one class, {classes[0]}; a long tail needs several, a folder for each"
        )
    return images, classes


def with_test(train, test, classes, share):
    """A source from a training and a test set: the first images of a fixed order, one of ``share``,
    are set apart for validation.

    Classes of one or two images keep them for training.
    """
    orders = class_orders(
        train.labels.numpy(), np.arange(len(train)), len(classes), np.random.default_rng(0)
    )
    kept = np.concatenate(
        [order[: max(1, len(order) // share) if len(order) > 2 else 0] for order in orders]
    )
    return Source(train, np.setdiff1d(np.arange(len(train)), kept), kept, test, classes)


def hold_out(images, classes, test=0, validation=0):
    """A source from one labelled set: of each class the first ``test`` and ``validation`` images of
    a fixed order are set apart.

    Without numbers, a quarter and a tenth of the smallest class, the same of each; where that is
    none, a quarter and a tenth of each class, at least one, but no test image of a single one and
    no validation image of three.
    """
    orders = class_orders(
        images.labels.numpy(), np.arange(len(images)), len(classes), np.random.default_rng(0)
    )
    sizes = np.array([len(order) for order in orders])
    tests, kept = (
        np.full(len(orders), count)
        for count in (test or sizes.min() // 4, validation or max(1, sizes.min() // 10))
    )
    if not (tests.all() and (sizes > tests + kept).all()):
        tests, kept = np.maximum(sizes // 4, sizes > 1), np.maximum(sizes // 10, sizes > 3)
        print(
            f"classes have {sizes.min()} to {sizes.max()} images, so that a quarter of each is for "
            "testing; "
            f"{(tests == 0).sum()} of {len(sizes)} classes have a single image and no test"
        )
    train = images.subset(
        np.concatenate([order[count:] for order, count in zip(orders, tests, strict=True)])
    )
    ends = np.cumsum([0, *(sizes - tests)])[:-1]
    chosen = np.concatenate(
        [start + np.arange(count) for start, count in zip(ends, kept, strict=True)]
    )
    return Source(
        train,
        np.setdiff1d(np.arange(len(train)), chosen),
        chosen,
        images.subset(
            np.concatenate([order[:count] for order, count in zip(orders, tests, strict=True)])
        ),
        classes,
    )


@data_set("digits", classes=10)
def digits_apart(size, lists):
    """The digits with 40 images of each class for testing and 10 for validation."""
    return hold_out(digits(size), tuple("0123456789"), test=40, validation=10)


def digits(size):
    """Handwritten digits (UCI, in scikit-learn): 1,797 images of 8×8 pixels, enlarged."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return ImageSet(
        upscaled(bunch.images, size),
        torch.tensor(bunch.target, dtype=torch.int64),
        tuple(f"digits/{label}/{k:04d}" for k, label in enumerate(bunch.target)),
    )


def upscaled(grey, size):
    """8×8 images with levels 0 … 16 as uint8 (n, 3, size, size), bicubic."""
    pictures = (
        Image.fromarray((np.asarray(image) * 255 / 16).astype(np.uint8)).resize(
            (size, size), Image.BICUBIC
        )
        for image in grey
    )
    return (
        torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))[:, None]
        .expand(-1, 3, -1, -1)
        .contiguous()
    )


def letters(size, count):
    """Letters drawn from matplotlib's own fonts, reduced to 8×8 as the digits were: images that are
    surely no digit.

    Fonts, widths and slants vary; letters that look like a digit (I, O, l, o, …) are left out.
    """
    import matplotlib

    faces = (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "DejaVuSansMono",
        "STIXGeneral",
        "cmr10",
        "cmtt10",
    )
    fonts = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf" for face in faces]
    generator, drawn, names = np.random.default_rng(0), [], []
    for k in range(count):
        letter, font = (
            generator.choice(list("ABCDEFGHJKLMNPQRTUVWXYabcdefhkmnprtuvwxy")),
            generator.integers(len(fonts)),
        )
        canvas = Image.new("L", (128, 128))
        face = ImageFont.truetype(str(fonts[font]), 64)
        ImageDraw.Draw(canvas).text((64, 64), letter, fill=255, font=face, anchor="mm")
        slant = generator.uniform(-0.3, 0.3)
        canvas = canvas.transform(
            (128, 128), Image.AFFINE, (1, slant, -64 * slant, 0, 1, 0), Image.BILINEAR
        )
        canvas = canvas.crop(
            canvas.getbbox()
        )  # the digits fill their field from top to bottom, too
        width = int(np.clip(64 * canvas.width / canvas.height, 24, 56) * generator.uniform(0.85, 1))
        picture = Image.new("L", (64, 64))
        picture.paste(canvas.resize((width, 64), Image.BILINEAR), ((64 - width) // 2, 0))
        drawn.append(np.rint(np.asarray(picture.resize((8, 8), Image.BOX), dtype=float) * 16 / 255))
        names.append(f"letters/{letter}/{k:04d}")
    return ImageSet(upscaled(drawn, size), torch.full((count,), UNKNOWN), tuple(names))


@data_set("cifar10", classes=10, listed=True)
def cifar10(size, lists):
    """CIFAR-10: see ``cifar``."""
    return cifar("cifar10", size, lists)


@data_set("cifar100", classes=100, listed=True)
def cifar100(size, lists):
    """CIFAR-100: see ``cifar``."""
    return cifar("cifar100", size, lists)


def cifar(dataset, size, lists):
    """CIFAR-10 or -100: torchvision's own files if they are under the data folder, else the JPEG
    copy, else a download.
    """
    archive = paths.DATA / f"{dataset}-jpeg.zip"
    own = paths.DATA / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[dataset]
    if archive.exists() and not own.exists():
        train, test = folder(archive / "train", size), folder(archive / "test", size)
        classes = tuple(class_names(train.names))
        if lists:
            train = official_order(train, Path(lists) / f"{dataset}_train_labels.npy")
    else:
        train, test, classes = torchvision_cifar(dataset, size)
    if not lists:
        return with_test(train, test, classes, share=10)
    names = [
        f"{'' if dataset == 'cifar10' else dataset + '_'}{part}IdxList.npy"
        for part in ("train", "val")
    ]
    labelled, validation = (
        np.load(require(Path(lists) / dataset / name, "SDCLR's split/ folder has it"))
        for name in names
    )
    return Source(
        train, labelled, validation, test, classes, functools.partial(cifar_lists, lists, dataset)
    )


def cifar_lists(folder, dataset, split):
    """The authors' index arrays D_i, D_b, S_b of one split, into the official training order."""
    prefix = "" if dataset == "cifar10" else f"{dataset}_"
    files = [
        Path(folder) / f"{dataset}_imbSub_with_subsets" / f"{prefix}split{split}_{name}.npy"
        for name in ("D_i", "D_b", "S_b")
    ]
    return [
        np.load(require(file, "SDCLR's repository has it in split/; set `lists` to that folder"))
        for file in files
    ]


def official_order(images, file):
    """Reorder class folders, each in the official order, by the official labels, so that published
    index lists apply.
    """
    labels = np.load(
        require(
            file,
            "published lists index the official order: the JPEG copy needs its labels, or use "
            "torchvision's files",
        )
    )
    position = np.empty(len(labels), dtype=np.int64)
    for label in range(labels.max() + 1):
        position[labels == label] = np.flatnonzero(images.labels.numpy() == label)
    return images.subset(position)


def torchvision_cifar(dataset, size):
    """Training set, test set and class names from torchvision, downloaded when absent and
    reachable.
    """
    datasets = importlib.import_module(f"{sources.import_torchvision().__name__}.datasets")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    parts = []
    for train in (True, False):
        try:
            part = kind(paths.DATA, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{dataset} is not in {paths.DATA} (torchvision's files or {dataset}-jpeg.zip) and "
                f"no download succeeds ({error}); "
                f"put one there or set LONGTAIL_DATA to the folder that has it"
            ) from error
        labels = torch.tensor(part.targets)
        names = tuple(
            f"{'train' if train else 'test'}/{part.classes[label]}/{k:05d}"
            for k, label in enumerate(part.targets)
        )
        squares = np.stack([pixels.square(Image.fromarray(image), size) for image in part.data])
        images = torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()
        parts.append(ImageSet(images, labels, names))
    return *parts, tuple(part.classes)


# ImageNet-100 as SDCLR and MAK list it: of each list the file, and what it is
IMAGENET_LISTS = {
    "long_tail": "imageNet_100_LT_train",
    "balanced": "imageNet_100_BL_train",
    "few": "imageNet_100_sub_balance_train_0.01",
    "validation": "ImageNet_100_val",
    "test": "ImageNet_100_test",
}


@data_set("imagenet100", classes=100, listed=True)
def imagenet100(size, lists):
    """ImageNet-100 by SDCLR's index lists, one split; its images stay in their files, below
    ``imagenet`` in the data folder.

    An image is kept as its centre square: random crops never reach what lies beside it, nor details
    finer than ``size`` pixels.
    """
    if not lists:
        raise ValueError(
            "imagenet100 is what SDCLR's lists name; set `lists` to the folder split of its "
            "repository"
        )
    root = require(
        paths.DATA / "imagenet",
        "ImageNet has to be unpacked there as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG "
        "(from image-net.org); LONGTAIL_DATA says where data lie",
    )
    place = Path(lists) / "imagenet-100"
    lines = {
        part: lines_of(
            require(
                place / f"{file}.txt",
                "SDCLR's repository has it in split/; set `lists` to that folder",
            )
        )
        for part, file in IMAGENET_LISTS.items()
    }
    label_of = {name.split("/")[1]: int(label) for name, label, _ in lines["long_tail"]}
    named = {part: [name for name, *_ in listed] for part, listed in lines.items()}
    train = listed_files(
        root,
        [
            f"train/{wnid}/{file.name}"
            for wnid in sorted(label_of)
            for file in sorted(require(root / "train" / wnid, "a list names it").iterdir())
        ],
        size,
        label_of,
    )
    test = listed_files(root, named.pop("test"), size, label_of)
    index = {part: positions(train.names, names, root) for part, names in named.items()}
    positions({name for name in test.names if (root / name).exists()}, test.names, root)
    return Source(
        train,
        np.setdiff1d(np.arange(len(train)), index["validation"]),
        index["validation"],
        test.subset(range(len(test))),
        tuple(sorted(label_of, key=label_of.get)),
        lambda split: [index[part] for part in ("long_tail", "balanced", "few")],
    )


def positions(names, wanted, root):
    """Where the ``wanted`` names stand among all: int64; an error naming the first file that is not
    there.
    """
    place = {name: position for position, name in enumerate(names)}
    if lost := [name for name in wanted if name not in place]:
        raise FileNotFoundError(
            f"{root / lost[0]} is missing: a list names it, and {len(lost) - 1} more that are not "
            "there"
        )
    return np.array([place[name] for name in wanted])


def listed_files(root, names, size, label_of):
    """Files below ``root`` by their names <part>/<wnid>/<file>, left where they are."""
    files = sources.Files([(name, Content(whole_file, root / name)) for name in names], size)
    return sources.FileSet(
        files, torch.tensor([label_of[name.split("/")[1]] for name in names]), tuple(names)
    )
