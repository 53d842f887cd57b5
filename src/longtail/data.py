"""Image sets (images, labels or none, names), long-tailed subsets and splits, pools; checksums; clear errors."""

import functools
import importlib
import io
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from longtail import paths, runs

# ImageNet-100-LT's class sizes, sorted (SDCLR's list; neither exponential nor a power law, so the table itself; spec 5)
IMAGENET_100_LT = [int(count) for count in """
1280 679 511 456 392 354 330 305 290 282 268 248 236 229 215 201 189 184 178 172 169 165 157 152 149 143 138 137 133 130 126 124 120 116
113 110 108 104 102 100 96 93 89 86 85 83 82 80 78 75 73 71 69 66 65 63 61 59 57 55 54 52 50 48 47 45 44 43 42 41 39 37 36 35 34 32 32 31
30 28 27 26 25 23 22 21 20 19 18 16 15 15 14 12 11 10 9 8 7 6""".split()]
UNKNOWN = -1        # the label of an image without one


@dataclass(frozen=True)
class ImageSet:
    """Images with what is known of them; labels serve evaluation only and never reach training or sampling."""

    images: torch.Tensor    # uint8 (n, 3, s, s)
    labels: torch.Tensor    # int64 (n,), −1 when unknown
    names: tuple            # n strings

    def __len__(self):
        return len(self.images)

    def __add__(self, other):
        return ImageSet(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]), self.names + other.names)

    def subset(self, index):
        """The images at the given positions, in that order."""
        index = torch.as_tensor(index, dtype=torch.int64)
        return ImageSet(self.images[index], self.labels[index], tuple(self.names[i] for i in index.tolist()))

    @functools.cached_property
    def digest(self):
        """First 16 hex digits of SHA-256 over content and order, labels left out."""
        return runs.sha256(self.images.numpy(force=True).tobytes() + "\n".join(self.names).encode())[:16]


@dataclass(frozen=True)
class Source:
    """A data set before it is made long-tailed."""

    images: ImageSet        # all training images, in the official order
    labelled: np.ndarray    # positions of those that train the linear classifier
    validation: np.ndarray  # positions kept for model selection, in no other list
    test: ImageSet
    classes: tuple          # names


@dataclass(frozen=True)
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


def class_orders(labels, positions, classes, generator):
    """One random order of the given positions for each class: list of int64 arrays, of which lists are prefixes."""
    return [generator.permutation(positions[labels[positions] == label]) for label in range(classes)]


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


def study(dataset, size, split, largest, factor, kind, lists="", labelled_per_class=0, pool_per_class=0, outsiders="",
          outsider_count=0):
    """All image sets of one split of a data set, a ``Study``.

    ``lists``: folder of published index lists, empty for the same rule applied here. ``labelled_per_class``: labels of the linear
    protocol, 0 for all. The pool is ``pool_per_class`` training images of each class that neither long-tailed nor balanced list
    uses, and ``outsider_count`` images of ``outsiders`` (letters, or a folder or zip), in an order that tells nothing of classes.
    """
    source = load(dataset, size, lists)
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
        raise ValueError(f"a class has {short} images left for the pool, {pool_per_class} are asked for; lower `pool_per_class` or `largest`")
    pool = source.images.subset(np.concatenate([left[:pool_per_class] for left in rest]))
    if outsider_count:
        pool += outsider_set(outsiders, size, outsider_count)
    labelled = class_orders(labels, source.labelled, classes, np.random.default_rng(0))
    labelled = np.concatenate([order[:labelled_per_class or None] for order in labelled])
    return Study(*(source.images.subset(index) for index in (long_tail, balanced, few, labelled, source.validation)), source.test,
                 pool.subset(np.random.default_rng(split).permutation(len(pool))), source.classes)


def outsider_set(outsiders, size, count):
    """``count`` images that belong to no class of the study; their label is −1."""
    if outsiders == "letters":
        return letters(size, count)
    found = folder(outsiders, size)
    if len(found) < count:
        raise ValueError(f"{outsiders} has {len(found)} images, outsider_count is {count}")
    found = found.subset(np.random.default_rng(0).permutation(len(found))[:count])
    return replace(found, labels=torch.full_like(found.labels, UNKNOWN))


# ---- sources

@functools.lru_cache(maxsize=2)
def load(dataset, size, lists=""):
    """The data set of that name, or the labelled class folders at that path, as a ``Source`` of ``size``-pixel squares."""
    if dataset == "digits":
        return hold_out(digits(size), tuple("0123456789"), test=40, validation=10)
    if dataset in ("cifar10", "cifar100"):
        return cifar(dataset, size, lists)
    if Path(dataset).exists():
        images = folder(dataset, size)
        if int(images.labels.min()) == UNKNOWN:
            raise ValueError(f"{dataset} is flat: evaluation needs a folder for each class")
        smallest = int(torch.bincount(images.labels).min())
        return hold_out(images, tuple(class_names(images.names)), test=smallest // 4, validation=smallest // 10)
    raise ValueError(f"no data set {dataset!r}: there are digits, cifar10, cifar100, and any folder or zip of class folders by its path "
                     f"(looked for {Path(dataset).absolute()})")


def hold_out(images, classes, test, validation):
    """A source from one labelled set: of each class the first ``test`` and ``validation`` images of a fixed order are set apart."""
    orders = class_orders(images.labels.numpy(), np.arange(len(images)), len(classes), np.random.default_rng(0))
    empty = [name for name, order in zip(classes, orders, strict=True) if len(order) <= test + validation or not test]
    if empty:
        raise ValueError(f"class {empty[0]} has too few images ({min(map(len, orders))}) to set any apart for testing")
    train = images.subset(np.concatenate([order[test:] for order in orders]))
    ends = np.cumsum([0] + [len(order) - test for order in orders])[:-1]
    kept = np.concatenate([start + np.arange(validation) for start in ends])
    return Source(train, np.setdiff1d(np.arange(len(train)), kept), kept,
                  images.subset(np.concatenate([order[:test] for order in orders])), classes)


def digits(size):
    """Handwritten digits (UCI, in scikit-learn): 1,797 images of 8×8 pixels, enlarged."""
    from sklearn.datasets import load_digits
    bunch = load_digits()
    return ImageSet(enlarge(bunch.images, size), torch.tensor(bunch.target, dtype=torch.int64),
                    tuple(f"digits/{label}/{k:04d}" for k, label in enumerate(bunch.target)))


def enlarge(grey, size):
    """8×8 images with levels 0 … 16 as uint8 (n, 3, size, size), bicubic."""
    pictures = (Image.fromarray((np.asarray(image) * 255 / 16).astype(np.uint8)).resize((size, size), Image.BICUBIC) for image in grey)
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))[:, None].expand(-1, 3, -1, -1).contiguous()


def letters(size, count):
    """Letters drawn from matplotlib's own fonts, reduced to 8×8 as the digits were: images that are surely no digit.

    Fonts, widths and slants vary; letters that look like a digit (I, O, l, o, …) are left out.
    """
    import matplotlib
    faces = "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSerif DejaVuSerif-Italic DejaVuSansMono STIXGeneral cmr10 cmtt10".split()
    fonts = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf" for face in faces]
    generator, drawn, names = np.random.default_rng(0), [], []
    for k in range(count):
        letter, font = generator.choice(list("ABCDEFGHJKLMNPQRTUVWXYabcdefhkmnprtuvwxy")), generator.integers(len(fonts))
        canvas = Image.new("L", (128, 128))
        face = ImageFont.truetype(str(fonts[font]), 64)
        ImageDraw.Draw(canvas).text((64, 64), letter, fill=255, font=face, anchor="mm")
        slant = generator.uniform(-0.3, 0.3)
        canvas = canvas.transform((128, 128), Image.AFFINE, (1, slant, -64 * slant, 0, 1, 0), Image.BILINEAR)
        canvas = canvas.crop(canvas.getbbox())      # the digits fill their field from top to bottom, too
        width = int(np.clip(64 * canvas.width / canvas.height, 24, 56) * generator.uniform(0.85, 1))
        picture = Image.new("L", (64, 64))
        picture.paste(canvas.resize((width, 64), Image.BILINEAR), ((64 - width) // 2, 0))
        drawn.append(np.rint(np.asarray(picture.resize((8, 8), Image.BOX), dtype=float) * 16 / 255))
        names.append(f"letters/{letter}/{k:04d}")
    return ImageSet(enlarge(drawn, size), torch.full((count,), UNKNOWN), tuple(names))


def cifar(dataset, size, lists):
    """CIFAR-10 or -100: torchvision's own files if they are under the data folder, else the JPEG copy, else a download."""
    archive = paths.DATA / f"{dataset}-jpeg.zip"
    if archive.exists() and not any((paths.DATA / name).exists() for name in ("cifar-10-batches-py", "cifar-100-python")):
        train, test = folder(archive, size, "train/"), folder(archive, size, "test/")
        classes = tuple(class_names(train.names))
        if lists:
            train = official_order(train, Path(lists) / f"{dataset}_train_labels.npy")
    else:
        train, test, classes = torchvision_cifar(dataset, size)
    labels = train.labels.numpy()
    if lists:
        names = [f"{'' if dataset == 'cifar10' else dataset + '_'}{part}IdxList.npy" for part in ("train", "val")]
        labelled, validation = (np.load(require(Path(lists) / dataset / name, "SDCLR's split/ folder has it")) for name in names)
    else:
        orders = class_orders(labels, np.arange(len(labels)), len(classes), np.random.default_rng(0))
        validation = np.concatenate([order[:len(order) // 10] for order in orders])
        labelled = np.setdiff1d(np.arange(len(labels)), validation)
    return Source(train, labelled, validation, test, classes)


def official_order(images, file):
    """Reorder class folders, each in the official order, by the official labels, so that published index lists apply."""
    labels = np.load(require(file, "published lists index the official order: the JPEG copy needs its labels, or use torchvision's files"))
    position = np.empty(len(labels), dtype=np.int64)
    for label in range(labels.max() + 1):
        position[labels == label] = np.flatnonzero(images.labels.numpy() == label)
    return images.subset(position)


def torchvision_cifar(dataset, size):
    """Training set, test set and class names from torchvision, downloaded when absent and reachable."""
    datasets = importlib.import_module(f"{import_torchvision().__name__}.datasets")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    parts = []
    for train in (True, False):
        try:
            part = kind(paths.DATA, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{dataset} is not in {paths.DATA} (neither torchvision's files nor {dataset}-jpeg.zip) and cannot be downloaded ({error}); "
                f"put one there or set LONGTAIL_DATA to the folder that has it") from error
        labels = torch.tensor(part.targets)
        names = tuple(f"{'train' if train else 'test'}/{part.classes[label]}/{k:05d}" for k, label in enumerate(part.targets))
        parts.append(ImageSet(squares([Image.fromarray(image) for image in part.data], size), labels, names))
    return *parts, tuple(part.classes)


def import_torchvision():
    """torchvision, also where its compiled part does not fit the installed torch (a CPU build beside a CUDA wheel).

    Its Python parts work once the two operators it looks for are declared; where the compiled part loads, nothing is touched.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = importlib.import_module("torchvision")
    module.declared = library       # the declaration lives as long as this object
    return module


# ---- folders and zips of images

def folder(path, size, prefix="", skip_broken=False):
    """All images of a folder or zip as squares of ``size`` pixels: short side resized, centre cut.

    A label is the first folder below ``prefix`` (sorted), −1 for all when images lie flat. A file that is no readable image is an
    error naming it; ``skip_broken`` leaves such files out and prints their names instead.
    """
    files = files_of(Path(path), prefix)
    pictures, names, broken = [], [], []
    for name, content in files:
        try:
            pictures.append(Image.open(io.BytesIO(content)).convert("RGB"))
            names.append(name)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{name} ({len(content)} bytes: {str(error).splitlines()[0][:80] if content else 'empty'})")
    if broken and not skip_broken:
        raise ValueError(f"{path}: {len(broken)} of {len(broken) + len(names)} files are no readable images: {', '.join(broken[:5])}"
                         f"{', …' if len(broken) > 5 else ''}; remove them, or skip them with skip_broken")
    if broken:
        print(f"skipped {len(broken)} files of {path}: {', '.join(broken)}")
    if not names:
        raise ValueError(f"{path} has no readable images{' under ' + prefix if prefix else ''}")
    known = class_names(names)
    labels = [known.index(name.split("/")[0]) if known else UNKNOWN for name in names]
    return ImageSet(squares(pictures, size), torch.tensor(labels), tuple(names))


def class_names(names):
    """Sorted first folders of the names, empty when any image lies outside a folder."""
    return sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else []


def files_of(path, prefix):
    """(name below ``prefix``, bytes) of every file of a folder or zip, sorted by name; hidden files are passed over."""
    if path.is_dir():
        found = sorted(file for file in (path / prefix).rglob("*") if file.is_file() and not file.name.startswith("."))
        return ((file.relative_to(path / prefix).as_posix(), file.read_bytes()) for file in found)
    try:
        archive = zipfile.ZipFile(require(path, "give a folder or a zip of images"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file ({error}); fetch it again") from error
    tops = {name.split("/")[0] for name in archive.namelist()}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""        # archives commonly hold one folder that holds everything
    found = sorted(name for name in archive.namelist() if name.startswith(top + prefix) and not name.endswith("/"))
    return ((name.removeprefix(top + prefix), archive.read(name)) for name in found)


def squares(pictures, size):
    """PIL images as uint8 (n, 3, size, size): short side resized (bilinear), centre cut."""
    result = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    for k, picture in enumerate(pictures):
        scale = size / min(picture.size)
        wide, high = (max(size, round(side * scale)) for side in picture.size)
        if (wide, high) != picture.size:
            picture = picture.resize((wide, high), Image.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        result[k] = np.asarray(picture.crop((left, top, left + size, top + size)))
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def require(path, remedy):
    """The path, if it exists; else one line naming it and the remedy."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{Path(path).absolute()} is missing: {remedy}")
    return path
