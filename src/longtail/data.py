"""Long-tailed studies: class sizes, splits, pools."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from longtail import paths
from longtail.sources import UNKNOWN, ImageSet, class_orders, container, files_of, folder, letters, listed, load, require

# ImageNet-100-LT's class sizes, sorted (SDCLR's list; neither exponential nor a power law, so the table itself; spec 5)
IMAGENET_100_LT = [
    1280, 679, 511, 456, 392, 354, 330, 305, 290, 282, 268, 248, 236, 229, 215, 201, 189, 184, 178, 172, 169, 165, 157, 152, 149, 143,
    138, 137, 133, 130, 126, 124, 120, 116, 113, 110, 108, 104, 102, 100, 96, 93, 89, 86, 85, 83, 82, 80, 78, 75, 73, 71, 69, 66, 65, 63,
    61, 59, 57, 55, 54, 52, 50, 48, 47, 45, 44, 43, 42, 41, 39, 37, 36, 35, 34, 32, 32, 31, 30, 28, 27, 26, 25, 23, 22, 21, 20, 19, 18,
    16, 15, 15, 14, 12, 11, 10, 9, 8, 7, 6,
]


@dataclass(frozen=True, eq=False)
class Study:
    """One split of a data set in its roles."""

    seed: ImageSet          # the long-tailed list, D_i
    balanced: ImageSet      # as many images, the same number of each class, D_b
    few: ImageSet           # labels of the few-shot protocols, S_b
    train: ImageSet         # labels of the linear protocol
    validation: ImageSet
    test: ImageSet
    pool: ImageSet          # images to pick from, disjoint from seed and balanced
    classes: tuple

    @property
    def counts(self):
        """Seed images of each class, by class index."""
        return torch.bincount(self.seed.labels, minlength=len(self.classes)).tolist()


# ---- long tails

def long_tail_counts(largest, classes, factor, kind):
    """Class sizes from head to tail: list of ``classes`` integers.

    ``exponential``: trunc(largest · factor^(rank / (classes − 1))) (Cao et al. 2019); ``step``: the second half has
    trunc(largest · factor); ``pareto_imagenet100``: ImageNet-100-LT's table scaled to ``largest`` (truncated, at least 2).
    """
    if kind == "exponential":
        counts = [int(largest * factor ** (rank / (classes - 1.0))) for rank in range(classes)]
    elif kind == "step":
        counts = [int(largest * (factor if rank >= classes // 2 else 1)) for rank in range(classes)]
    elif kind == "pareto_imagenet100":
        if classes != len(IMAGENET_100_LT):
            raise ValueError(f"pareto_imagenet100 is a table of {len(IMAGENET_100_LT)} classes, the data have {classes}; use exponential")
        counts = [max(2, int(largest * count / IMAGENET_100_LT[0])) for count in IMAGENET_100_LT]
    else:
        raise ValueError(f"no kind of long tail {kind!r}; there are exponential, step, pareto_imagenet100")
    if min(counts) < 1:
        raise ValueError(f"a class without images: largest {largest} and factor {factor} leave the smallest class {min(counts)}; raise one")
    return counts


def split_by_rule(orders, counts, ranks):
    """Positions of D_i, D_b and S_b, grouped by class (spec 5, the published rule).

    Each list takes a prefix of the class's one order: D_i the count of the class's rank, D_b their mean, S_b their minimum.
    """
    short = [label for label, order in enumerate(orders) if len(order) < counts[ranks[label]]]
    if short:
        raise ValueError(f"class {short[0]} has {len(orders[short[0]])} training images and the long tail needs "
                         f"{counts[ranks[short[0]]]} of it; lower `largest`")
    sizes = [counts[rank] for rank in ranks], [sum(counts) // len(counts)] * len(counts), [min(counts)] * len(counts)
    return [np.concatenate([order[:n] for order, n in zip(orders, size, strict=True)]) for size in sizes]


def published_lists(folder, dataset, split):
    """The authors' index arrays D_i, D_b, S_b of one split, into the official training order."""
    prefix = "" if dataset == "cifar10" else f"{dataset}_"
    files = [Path(folder) / f"{dataset}_imbSub_with_subsets" / f"{prefix}split{split}_{name}.npy" for name in ("D_i", "D_b", "S_b")]
    return [np.load(require(file, "SDCLR's repository has it in split/; set `lists` to that folder")) for file in files]


def study(dataset, size, split, largest, factor, kind, lists="", labelled_per_class=0, pool_per_class=0, outsiders=(),
          outsider_count=0, outsider_classes=0, skip_broken=False):
    """All image sets of one split of a data set, a ``Study``.

    ``lists``: folder of published index lists, empty for the same rule applied here. ``labelled_per_class``: labels of the linear
    protocol, 0 for all. The pool is ``pool_per_class`` training images of each class that neither long-tailed nor balanced list
    uses, and images of ``outsiders`` (a place or a list of places, see ``outsider_set``), in an order that tells nothing of classes.
    """
    lists = lists and str(paths.DATA / lists)       # relative ones lie beside the images
    if dataset == "imagenet100":
        return imagenet100(size, Path(lists), labelled_per_class, pool_per_class)
    source = load(dataset, size, lists, skip_broken)
    labels, classes = source.images.labels.numpy(), len(source.classes)
    generator = np.random.default_rng(split)
    ranks = np.argsort(generator.permutation(classes))
    orders = class_orders(labels, np.setdiff1d(np.arange(len(labels)), source.validation), classes, generator)
    if lists:
        long_tail, balanced, few = published_lists(lists, dataset, split)
    else:
        long_tail, balanced, few = split_by_rule(orders, long_tail_counts(largest, classes, factor, kind), ranks)
    used = np.union1d(long_tail, balanced)
    rest = [order[~np.isin(order, used)] for order in orders]
    short = min(len(left) for left in rest)
    if short < pool_per_class:
        raise ValueError(f"a class has {short} images left for the pool, pool_per_class is {pool_per_class}; lower it, or `largest`")
    pool = source.images.subset(np.concatenate([left[:pool_per_class] for left in rest]))
    if outsider_count:
        pool += outsider_set(outsiders, size, outsider_count, outsider_classes, source.classes, skip_broken)
    labelled = class_orders(labels, source.labelled, classes, np.random.default_rng(0))
    labelled = np.concatenate([order[:labelled_per_class or None] for order in labelled])
    return Study(*(source.images.subset(index) for index in (long_tail, balanced, few, labelled, source.validation)), source.test,
                 pool.subset(np.random.default_rng(split).permutation(len(pool))), source.classes)


def imagenet100(size, lists, labelled_per_class, pool_per_class):
    """ImageNet-100 as SDCLR and MAK list it; the pool is ImageNet-900, the training images of all other classes.

    ``lists`` holds SDCLR's imagenet-100 index files; the images are under the data folder's ``imagenet`` (train/<wnid>, val/<wnid>).
    """
    root = require(paths.DATA / "imagenet", "ImageNet has to be unpacked there as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG "
                                            "(from image-net.org); LONGTAIL_DATA says where data lie")
    names = ("LT_train", "BL_train", "sub_balance_train_0.01"), ("val", "test")
    files = [f"imageNet_100_{name}.txt" for name in names[0]] + [f"ImageNet_100_{name}.txt" for name in names[1]]
    lines = [require(lists / "imagenet-100" / file, "SDCLR's repository has it in split/; set `lists` to that folder").read_text().split()
             for file in files]
    label_of = dict(zip((name.split("/")[1] for name in lines[0][::2]), map(int, lines[0][1::2]), strict=True))
    validation, labelled, pool = set(lines[3][::2]), [], []
    for wnid in sorted(path.name for path in (root / "train").iterdir() if path.is_dir()):
        found = sorted(f"train/{wnid}/{file.name}" for file in (root / "train" / wnid).iterdir())
        chosen = [name for name in found if name not in validation]
        if wnid in label_of:
            labelled += [(name, label_of[wnid]) for name in chosen[:labelled_per_class or None]]
        else:
            pool += [(name, UNKNOWN) for name in chosen[:pool_per_class or None]]
    seed, balanced, few, validation, test = (list(zip(part[::2], map(int, part[1::2]), strict=True)) for part in lines)
    return Study(*(listed(root, part, size) for part in (seed, balanced, few, labelled, validation, test, pool)),
                 tuple(sorted(label_of, key=label_of.get)))


def name_of(dataset):
    """What runs and tables call a data set: its own name, that of its folder, or of the zip that holds it."""
    return (container(paths.DATA / dataset) or Path(dataset)).name.removesuffix(".zip")


def outsider_set(places, size, count, classes, known, skip_broken):
    """Images that belong to no class of the study, their labels −1: of each place ``count`` drawn at random, −1 for all.

    A place is letters, or a folder or zip. Of its folders those named as a ``known`` class are left out; ``classes`` draws so many
    of the others, 0 for all.
    """
    places = [places] if isinstance(places, str) else list(places)
    if not any(places):
        raise ValueError(f"outsider_count is {count} but outsiders names none; give letters, or folders or zips of images")
    parts = [outsiders_of(place, size, count, classes, known, skip_broken) for place in places]
    if len(parts) > 1:
        parts = [replace(part, names=tuple(f"{place}/{name}" for name in part.names)) for place, part in zip(places, parts, strict=True)]
    return functools.reduce(ImageSet.__add__, parts)


@functools.lru_cache(maxsize=2)
def outsiders_of(place, size, count, classes, known, skip_broken):
    """The images of one place; the last two places are kept in memory, since each split of a study asks again."""
    if place == "letters":
        if count < 0:
            raise ValueError("letters are drawn as they are asked for, there is no all of them; say how many with outsider_count")
        return letters(size, count)
    folders = files_of(paths.DATA / place)[1]
    if folders and folders <= set(known):
        raise ValueError(f"{place} has only folders named as classes of the study ({min(folders)}, …); outsiders belong to none of them")
    drawn = np.random.default_rng(0).permutation(sorted(folders - set(known)))[:classes or None]
    found = folder(paths.DATA / place, size, skip_broken, without=folders - set(drawn.tolist()))
    if len(found) < count:
        raise ValueError(f"{place} has {len(found)} images, outsider_count is {count}")
    found = found.subset(np.random.default_rng(0).permutation(len(found))[:count if count > 0 else None])
    return replace(found, labels=torch.full_like(found.labels, UNKNOWN))
