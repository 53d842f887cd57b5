"""Long-tailed studies: class sizes, splits, pools."""

import functools
import operator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from longtail.images import copies
from longtail.images.datasets import class_orders, letters, load
from longtail.images.memory import BUDGET
from longtail.images.places import files_of
from longtail.images.sources import UNKNOWN, FileSet, ImageSet, files, folder
from longtail.store import paths, runs

# ImageNet-100-LT's class sizes, sorted: counted in the list that SDCLR's authors published, since
# they are neither exponential nor a power law
IMAGENET_100_LT = [
    1280,
    679,
    511,
    456,
    392,
    354,
    330,
    305,
    290,
    282,
    268,
    248,
    236,
    229,
    215,
    201,
    189,
    184,
    178,
    172,
    169,
    165,
    157,
    152,
    149,
    143,
    138,
    137,
    133,
    130,
    126,
    124,
    120,
    116,
    113,
    110,
    108,
    104,
    102,
    100,
    96,
    93,
    89,
    86,
    85,
    83,
    82,
    80,
    78,
    75,
    73,
    71,
    69,
    66,
    65,
    63,
    61,
    59,
    57,
    55,
    54,
    52,
    50,
    48,
    47,
    45,
    44,
    43,
    42,
    41,
    39,
    37,
    36,
    35,
    34,
    32,
    32,
    31,
    30,
    28,
    27,
    26,
    25,
    23,
    22,
    21,
    20,
    19,
    18,
    16,
    15,
    15,
    14,
    12,
    11,
    10,
    9,
    8,
    7,
    6,
]

# images of a study, at most, among which near copies are looked for: some 30 seconds
NEAR_COPIES_OF = 10_000


@dataclass(frozen=True, eq=False)
class Study:
    """One split of a data set in its roles."""

    seed: ImageSet  # the long-tailed list, D_i
    balanced: ImageSet  # as many images, the same number of each class, D_b
    few: ImageSet  # labels of the few-shot protocols, S_b
    train: ImageSet  # labels of the linear protocol
    validation: ImageSet
    test: ImageSet
    pool: ImageSet  # images to pick from, disjoint from seed and balanced
    classes: tuple

    @property
    def counts(self):
        """Seed images of each class, by class index."""
        return torch.bincount(self.seed.labels, minlength=len(self.classes)).tolist()


# ---- long tails


def long_tail_counts(largest, classes, factor, kind):
    """Class sizes from head to tail: list of ``classes`` integers.

    ``exponential``: trunc(largest · factor^(rank / (classes − 1))) (Cao et al. 2019); ``step``: the
    second half has trunc(largest · factor); ``pareto_imagenet100``: ImageNet-100-LT's table scaled
    to ``largest`` (truncated, at least 2).
    """
    if not 0 <= factor <= 1:  # nan neither
        raise ValueError(
            f"factor {factor} is no share; give the smallest class's share of the largest, above 0 "
            "and at most 1"
        )
    if kind == "exponential":
        counts = [int(largest * factor ** (rank / (classes - 1.0))) for rank in range(classes)]
    elif kind == "step":
        counts = [int(largest * (factor if rank >= classes // 2 else 1)) for rank in range(classes)]
    elif kind == "pareto_imagenet100":
        if classes != len(IMAGENET_100_LT):
            raise ValueError(
                f"pareto_imagenet100 is a table of {len(IMAGENET_100_LT)} classes, the data have "
                f"{classes}; use exponential"
            )
        counts = [max(2, int(largest * count / IMAGENET_100_LT[0])) for count in IMAGENET_100_LT]
    else:
        raise ValueError(
            f"no kind of long tail {kind!r}; there are exponential, step, pareto_imagenet100, as_is"
        )
    if min(counts) < 1:
        raise ValueError(
            f"a class without images: largest {largest} and factor {factor} leave the smallest "
            f"class {min(counts)}; raise one"
        )
    return counts


def split_by_rule(orders, counts, ranks, classes):
    """Positions of D_i, D_b and S_b, grouped by class, as in the lists published
    with SDCLR.

    Each list takes a prefix of the class's one order: D_i the count of the class's rank, D_b their
    mean, S_b their minimum.
    """
    short = [label for label, order in enumerate(orders) if len(order) < counts[ranks[label]]]
    if short:
        raise ValueError(
            f"class {classes[short[0]]} has {len(orders[short[0]])} training images and the long "
            "tail needs "
            f"{counts[ranks[short[0]]]} of it; lower `largest`, or take the classes as they are "
            "with kind as_is"
        )
    sizes = (
        [counts[rank] for rank in ranks],
        [sum(counts) // len(counts)] * len(counts),
        [min(counts)] * len(counts),
    )
    return [
        np.concatenate([order[:n] for order, n in zip(orders, size, strict=True)]) for size in sizes
    ]


def as_published(source, split, counts):
    """Positions of D_i, D_b and S_b as the authors list them; an error unless the long tail asked
    for is theirs.
    """
    lists = source.published(split)
    theirs = sorted(
        np.bincount(source.images.labels.numpy()[lists[0]], minlength=len(source.classes)).tolist(),
        reverse=True,
    )
    if theirs != counts:
        raise ValueError(
            f"the published list has classes of {theirs[0]} to {theirs[-1]} images, {sum(theirs)} "
            "in all; largest, factor and "
            f"kind ask for {counts[0]} to {counts[-1]}, {sum(counts)} in all; set them to the "
            "list's"
        )
    return lists


def study(
    dataset,
    size,
    split,
    largest,
    factor,
    kind,
    lists="",
    labelled_per_class=0,
    pool_per_class=0,
    outsiders=(),
    outsider_count=0,
    outsider_classes=0,
    pool_in_files=False,
    skip_broken=False,
):
    """All image sets of one split of a data set, a ``Study``.

    ``lists``: folder of published index lists, empty for the same rule applied here. ``kind`` as_is
    cuts nothing: all images of each class train, whatever ``largest`` and ``factor`` are.
    ``labelled_per_class``: labels of the linear protocol, 0 for all. The pool is ``pool_per_class``
    training images of each class that neither long-tailed nor balanced list uses, and images of
    ``outsiders`` (a place or a list of places, see ``outsider_set``), in an order that tells
    nothing of classes.
    """
    if pool_in_files and (pool_per_class or skip_broken):
        raise ValueError(
            "pool_in_files leaves the whole pool unread: it goes with pool_per_class 0 and without "
            "skip_broken"
        )
    source = load(
        dataset, size, lists and str(paths.DATA / lists), skip_broken
    )  # relative lists lie beside the images
    labels, classes = source.images.labels.numpy(), len(source.classes)
    generator = np.random.default_rng(split)
    ranks = np.argsort(generator.permutation(classes))
    orders = class_orders(
        labels, np.setdiff1d(np.arange(len(labels)), source.validation), classes, generator
    )
    if kind == "as_is":
        smallest = min(map(len, orders))
        long_tail = np.concatenate(orders)
        balanced = few = np.concatenate([order[:smallest] for order in orders])
    else:
        counts = long_tail_counts(largest, classes, factor, kind)
        long_tail, balanced, few = (
            as_published(source, split, counts)
            if lists
            else split_by_rule(orders, counts, ranks, source.classes)
        )
    left = leftovers(orders, np.union1d(long_tail, balanced), pool_per_class)
    in_files = pool_in_files or (False if pool_per_class or skip_broken else None)
    pool = outsider_set(
        outsiders, size, outsider_count, outsider_classes, source.classes, in_files, skip_broken
    )
    if len(left) or not pool:
        pool = [source.images.subset(left), *pool]
    lists = (
        long_tail,
        balanced,
        few,
        labelled_positions(source, labelled_per_class),
        source.validation,
    )
    return Study(
        *map(source.images.subset, lists),
        source.test,
        functools.reduce(operator.add, pool).shuffled(split),
        source.classes,
    )


def tell_copies(study):
    """Say which images of the test set training or the pool hold, too, and which of the seed the
    pool does: the same pixels or near copies.

    Rows of what was found: list, other (list), kind (exact or near), images, first (its name and
    the other's). Near copies are looked for in up to ``NEAR_COPIES_OF`` images, see ``copies``. A
    pool left in its files is not looked into.
    """

    def contents(images):
        return (
            {}
            if isinstance(images, FileSet)
            else {
                runs.sha256(image.tobytes()): place
                for place, image in enumerate(images.images.numpy(force=True))
            }
        )

    sets = {name: getattr(study, name) for name in ("test", "validation", "seed", "train", "pool")}
    known = {name: contents(images) for name, images in sets.items()}
    first = {
        content: sets[name].images[place].numpy(force=True)
        for name in reversed(known)
        for content, place in known[name].items()
    }
    order = list(dict.fromkeys(content for name in known for content in known[name]))
    original = dict(zip(order, near_copies([first[content] for content in order]), strict=True))
    rows = []
    for part, other in (
        ("seed", "test"),
        ("train", "test"),
        ("train", "validation"),
        ("pool", "test"),
        ("pool", "seed"),
    ):
        same = [(content, content) for content in known[part] if content in known[other]]
        near = [
            (content, order[original[content]])
            for content in known[part]
            if content not in known[other]
            and original[content] is not None
            and order[original[content]] in known[other]
        ]
        for kind, both in (("exact", same), ("near", near)):
            if both:
                pair = " = ".join(
                    sets[name].names[known[name][content]]
                    for name, content in zip((part, other), both[0], strict=True)
                )
                rows.append(
                    {"list": part, "other": other, "kind": kind, "images": len(both), "first": pair}
                )
                print(
                    f"{len(both)} {'near copies of ' * (kind == 'near')}images of {part} are in "
                    f"{other}, too ({pair}); "
                    f"remove them from one of the two"
                )
    return rows


def near_copies(pictures):
    """For each of n different pictures (3, s, s) the position of what it is a near copy of, None
    for none or where that is not told.
    """
    if len(pictures) > NEAR_COPIES_OF:
        print(
            f"near copies are looked for in up to {NEAR_COPIES_OF} images, and these are "
            f"{len(pictures)}"
        )
    if not 0 < len(pictures) <= NEAR_COPIES_OF:
        return [None] * len(pictures)
    hashes, colours = (
        np.stack(part)
        for part in zip(
            *(copies.prints(Image.fromarray(picture.transpose(1, 2, 0))) for picture in pictures),
            strict=True,
        )
    )
    leaders, _ = copies.leaders(list(range(len(pictures))), hashes, colours)
    found = [None if leader == place else int(leader) for place, leader in enumerate(leaders)]
    if len(pictures) - found.count(None) > len(pictures) / 10:
        print(
            "more than a tenth of the images look alike, as drawings do: near copies cannot be told"
        )
        return [None] * len(pictures)
    return found


def check_groups(study, groups):
    """Refuse before training what the tables could not show: class sizes that do not make many,
    medium and few.
    """
    if lacking := [group for group in ("many", "medium", "few") if group not in groups]:
        sizes = sorted(set(study.counts), reverse=True)
        raise ValueError(
            f"no class is {' or '.join(lacking)}: the {len(study.classes)} classes have "
            f"{', '.join(map(str, sizes[:5]))} "
            "images, and tables compare many, medium and few; give three or more classes of "
            "different sizes, or another "
            f"group_rule"
        )


def labelled_positions(source, count):
    """Positions of ``count`` labelled images of each class, 0 for all, the same in every split."""
    orders = class_orders(
        source.images.labels.numpy(), source.labelled, len(source.classes), np.random.default_rng(0)
    )
    return np.concatenate([order[: count or None] for order in orders])


def label_sets(study, count, per_class=0, seed=1):
    """So many label sets of the few-shot protocols, no image twice in one of them: list of image
    sets.

    The first is the study's own list, the others are drawn from the labels of the linear protocol,
    as many of each class as that list has. ``per_class`` asks for another size (MAK: 1 % of the
    full set); if it is not the list's, all sets are drawn.
    """
    own = torch.bincount(study.few.labels, minlength=len(study.classes)).tolist()
    sizes = [per_class] * len(own) if per_class else own
    labels, sets = study.train.labels.numpy(), [study.few][:count] if sizes == own else []
    for number in range(len(sets), count):
        orders = class_orders(
            labels, np.arange(len(labels)), len(sizes), np.random.default_rng([seed, number])
        )
        short = [label for label, size in enumerate(sizes) if size > len(orders[label])]
        if short:
            raise ValueError(
                f"class {study.classes[short[0]]} has {len(orders[short[0]])} labels and a "
                "few-shot set takes "
                f"{sizes[short[0]]} of it; lower few_per_class, or raise labelled_per_class of "
                "01_data"
            )
        sets.append(
            study.train.subset(
                np.concatenate([order[:size] for order, size in zip(orders, sizes, strict=True)])
            )
        )
    return sets


def elsewhere(study, dataset, size, labelled_per_class=0):
    """A study with the labels of another data set, so that ``evaluate`` asks encoders what they are
    worth there.

    Its classes are in no long-tailed list, so their counts are 0 and they have no size group.
    """
    source, nothing = load(dataset, size), []
    train, validation, none = map(
        source.images.subset,
        (labelled_positions(source, labelled_per_class), source.validation, nothing),
    )
    return replace(
        study,
        seed=none,
        balanced=none,
        few=none,
        train=train,
        validation=validation,
        test=source.test,
        classes=source.classes,
    )


def leftovers(orders, used, count):
    """Positions of the first ``count`` images of each class's order that are not ``used``."""
    rest = [order[~np.isin(order, used)] for order in orders]
    short = min(len(left) for left in rest)
    if short < count:
        raise ValueError(
            f"a class has {short} images left for the pool, pool_per_class is {count}; lower it, "
            "or `largest`"
        )
    return np.concatenate([left[:count] for left in rest])


def outsider_set(places, size, count, classes, known, in_files, skip_broken):
    """Images that belong to no class of the study, their labels −1: of each place ``count`` drawn
    at random, −1 for all.

    A place is letters, or a folder, zip or list. Of its folders those named as a ``known`` class
    are left out; ``classes`` draws so many of the others, 0 for all. ``in_files`` leaves images in
    their files; None leaves those that would take half of the memory budget. List of ``ImageSet``.
    """
    places = [places] if isinstance(places, str) else list(places)
    if not count:
        return []
    if not any(places):
        raise ValueError(
            f"outsider_count is {count} but outsiders names none; give letters, or folders or zips "
            "of images"
        )
    if in_files is None:
        images = [
            count if count > 0 else len(files_of(paths.DATA / place).files)
            for place in places
            if place != "letters"
        ]
        in_files = len(images) == len(places) and 3 * size**2 * sum(images) > BUDGET.total // 2
    parts = [
        outsiders_of(place, size, count, classes, known, in_files, skip_broken) for place in places
    ]
    if len(parts) == 1:
        return parts
    return [
        replace(part, names=tuple(f"{place}/{name}" for name in part.names))
        for place, part in zip(places, parts, strict=True)
    ]


@functools.lru_cache(maxsize=8)  # a study of more places would read all of them for each split
def outsiders_of(place, size, count, classes, known, in_files, skip_broken):
    """The images of one place; the last eight places are kept in memory, since each split of a
    study asks again.
    """
    if place == "letters":
        if count < 0 or in_files:
            raise ValueError(
                "letters are drawn, not read: there are no files of them, nor all of them; say how "
                "many with outsider_count"
            )
        return letters(size, count)
    folders = files_of(paths.DATA / place).folders
    if folders and folders <= set(known):
        raise ValueError(
            f"{place} has only folders named as classes of the study ({min(folders)}, …); "
            "outsiders belong to none of them"
        )
    if own := sorted(folders & set(known)):
        print(
            f"left out of {place}: {len(own)} folders named as classes of the study, {own[0]} first"
        )
    without = folders - set(
        np.random.default_rng(0)
        .permutation(sorted(folders - set(known)))[: classes or None]
        .tolist()
    )
    found = (
        files(paths.DATA / place, size, without)
        if in_files
        else folder(paths.DATA / place, size, skip_broken, without)
    )
    if len(found) < count:
        raise ValueError(f"{place} has {len(found)} images, outsider_count is {count}")
    found = found.shuffled(0, count if count > 0 else None)
    return replace(found, labels=torch.full_like(found.labels, UNKNOWN))
