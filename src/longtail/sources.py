"""Where images come from: data sets by name, folders and zips; clear errors for what is missing or broken."""

import functools
import importlib
import io
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from longtail import paths, runs

UNKNOWN = -1        # the label of an image without one


@dataclass(frozen=True, eq=False)
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
        index = torch.tensor(np.asarray(index), dtype=torch.int64)
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


def class_orders(labels, positions, classes, generator):
    """One random order of the given positions for each class: list of int64 arrays, of which lists are prefixes."""
    return [generator.permutation(positions[labels[positions] == label]) for label in range(classes)]


@functools.lru_cache(maxsize=2)
def load(dataset, size, lists="", skip_broken=False):
    """The data set of that name, or the labelled class folders at that path, as a ``Source`` of ``size``-pixel squares.

    The last two are kept in memory: each split of a study asks again.
    """
    if dataset == "digits":
        return hold_out(digits(size), tuple("0123456789"), test=40, validation=10)
    if dataset in ("cifar10", "cifar100"):
        return cifar(dataset, size, lists)
    if container(paths.DATA / dataset):
        return class_folders(paths.DATA / dataset, size, skip_broken)
    raise ValueError(f"no data set {dataset!r}: there are digits, cifar10, cifar100, and any folder or zip of class folders by its path "
                     f"(looked for {paths.DATA / dataset}; LONGTAIL_DATA says where data lie)")


def class_folders(path, size, skip_broken):
    """A source from a folder for each class, or from such folders below train beside val or test (or both); others are no part of it.

    With all three, val serves validation; else a twentieth of each class does (20 images of 400, as many as ImageNet-100 has).
    """
    held = sorted({"val", "test"} & (parts := files_of(path)[1]))
    if "train" not in parts or not held:
        images = labelled_folder(path, size, skip_broken)
        smallest = int(torch.bincount(images.labels).min())
        return hold_out(images, tuple(class_names(images.names)), test=smallest // 4, validation=max(1, smallest // 10))
    train, *others = (labelled_folder(path / part, size, skip_broken) for part in ["train", *held])
    classes = tuple(class_names(train.names))
    for part, images in zip(held, others, strict=True):
        if odd := set(classes) ^ set(class_names(images.names)):
            raise ValueError(f"{path}: class {min(odd)} is in only one of train and {part}; give both the same folders")
    if len(held) == 1:
        return with_test(train, others[0], classes, share=20)
    everything = train + others[1]          # test comes before val
    return Source(everything, np.arange(len(train)), np.arange(len(train), len(everything)), others[0], classes)


def labelled_folder(path, size, skip_broken):
    """``folder``, when its images lie in a folder for each class."""
    images = folder(path, size, skip_broken)
    if int(images.labels.min()) == UNKNOWN:
        raise ValueError(f"{path} is flat: evaluation needs a folder for each class")
    return images


def with_test(train, test, classes, share):
    """A source from a training and a test set: the first images of a fixed order, one of ``share``, are set apart for validation."""
    orders = class_orders(train.labels.numpy(), np.arange(len(train)), len(classes), np.random.default_rng(0))
    kept = np.concatenate([order[:max(1, len(order) // share)] for order in orders])
    return Source(train, np.setdiff1d(np.arange(len(train)), kept), kept, test, classes)


def hold_out(images, classes, test, validation):
    """A source from one labelled set: of each class the first ``test`` and ``validation`` images of a fixed order are set apart."""
    orders = class_orders(images.labels.numpy(), np.arange(len(images)), len(classes), np.random.default_rng(0))
    empty = [name for name, order in zip(classes, orders, strict=True) if len(order) <= test + validation or not test]
    if empty:
        few, name = min((len(order), name) for name, order in zip(classes, orders, strict=True))
        raise ValueError(f"class {name} has too few images ({few}) to set any apart for testing")
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
    faces = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono",
             "STIXGeneral", "cmr10", "cmtt10")
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
    names = [f"{'' if dataset == 'cifar10' else dataset + '_'}{part}IdxList.npy" for part in ("train", "val")]
    labelled, validation = (np.load(require(Path(lists) / dataset / name, "SDCLR's split/ folder has it")) for name in names)
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
                f"{dataset} is not in {paths.DATA} (torchvision's files or {dataset}-jpeg.zip) and no download succeeds ({error}); "
                f"put one there or set LONGTAIL_DATA to the folder that has it") from error
        labels = torch.tensor(part.targets)
        names = tuple(f"{'train' if train else 'test'}/{part.classes[label]}/{k:05d}" for k, label in enumerate(part.targets))
        parts.append(ImageSet(stack([square(Image.fromarray(image), size) for image in part.data]), labels, names))
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

def folder(path, size, skip_broken=False, without=frozenset()):
    """All images of a folder or zip as squares of ``size`` pixels: short side resized, centre cut.

    The path may go on inside a zip. A label is the first folder below it (sorted), −1 for all when images lie flat; folders ``without``
    are passed over. A file that is no readable image is an error naming it; ``skip_broken`` leaves such files out and prints their
    names instead.
    """
    files, folders = files_of(Path(path))
    files = [(name, read) for name, read in files if name.split("/")[0] not in without]
    pictures, names, broken = [], [], []
    for name, read in files:
        try:
            content = read()
            pictures.append(square(Image.open(io.BytesIO(content)).convert("RGB"), size))
            names.append(name)
        except UnidentifiedImageError:
            broken.append(f"{name} ({len(content)} bytes of no known kind)" if content else f"{name} (empty)")
        except (OSError, SyntaxError, Image.DecompressionBombError, zipfile.BadZipFile, zlib.error) as error:
            broken.append(f"{name} ({str(error).splitlines()[0][:80]})")
    if broken and not skip_broken:
        raise ValueError(f"{path}: {len(broken)} of {len(broken) + len(names)} files are no readable images: {', '.join(broken[:5])}"
                         f"{', …' if len(broken) > 5 else ''}; remove them, or skip them with skip_broken")
    if broken:
        print(f"skipped {len(broken)} files of {path}: {', '.join(broken)}")
    if not names:
        raise ValueError(f"{path} has no readable images")
    known = class_names(names)
    empty = sorted(folders - set(known) - without)
    if known and empty:
        raise ValueError(f"{path}: class {empty[0]} has no images; fill its folder or remove it")
    labels = [known.index(name.split("/")[0]) if known else UNKNOWN for name in names]
    return ImageSet(stack(pictures), torch.tensor(labels), tuple(names))


def listed(root, lines, size):
    """The images of a list of (path below ``root``, label)."""
    pictures = []
    for name, _ in lines:
        try:
            pictures.append(square(Image.open(require(root / name, "the list names it")).convert("RGB"), size))
        except FileNotFoundError:
            raise
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{root / name} is no readable image ({error})") from error
    return ImageSet(stack(pictures), torch.tensor([label for _, label in lines]), tuple(name for name, _ in lines))


def class_names(names):
    """Sorted first folders of the names, empty when any image lies outside a folder."""
    return sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else []


def container(path):
    """The folder or file that a path names or, inside a zip, goes through; None where there is neither."""
    return path if path.is_dir() else next((part for part in (path, *path.parents) if part.is_file()), None)


def files_of(path):
    """Sorted files of a folder or zip (name below the path, what reads its bytes), and its first folders; hidden ones left out."""
    if path.is_dir():
        found = ((file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*")) if file.is_file())
        folders = {child.name for child in path.glob("*/") if not hidden(child.name)}
        return [(name, file.read_bytes) for name, file in found if not hidden(name)], folders
    place = container(path) or require(path, "give a folder or a zip of images")
    try:
        archive = zipfile.ZipFile(place)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place} is no whole zip file ({error}); fetch it again") from error
    shown = sorted(name for name in archive.namelist() if not hidden(name))
    tops = {name.split("/")[0] for name in shown}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""        # archives commonly hold one folder that holds everything
    top += "".join(f"{part}/" for part in path.relative_to(place).parts)
    below = [(name.removeprefix(top), name) for name in shown if name.startswith(top)]
    folders = {name.split("/")[0] for name, _ in below if "/" in name}
    return [(name, functools.partial(archive.read, full)) for name, full in below if name and not name.endswith("/")], folders


def hidden(name):
    """Whether a file or one of its folders is what systems leave behind: names with a dot in front, and macOS's copies."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def square(picture, size):
    """A PIL image as uint8 (size, size, 3): short side resized (bilinear), centre cut."""
    scale = size / min(picture.size)
    wide, high = (max(size, round(side * scale)) for side in picture.size)
    if (wide, high) != picture.size:
        picture = picture.resize((wide, high), Image.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def stack(pictures):
    """Arrays (s, s, 3) as one tensor (n, 3, s, s)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def require(path, remedy):
    """The path, if it exists; else one line naming it and the remedy."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{Path(path).absolute()} is missing: {remedy}")
    return path
