"""Sets of images with names and labels, in memory or left in their files."""

import functools
import hashlib
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longtail.images.pixels import decoded, reason
from longtail.images.places import files_of

AHEAD = 256  # images that are decoded before the first of them is put in its place
UNKNOWN = -1  # the label of an image without one


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known of them; labels serve evaluation only and never reach training or
    sampling.
    """

    images: torch.Tensor  # uint8 (n, 3, s, s)
    labels: torch.Tensor  # int64 (n,), −1 when unknown
    names: tuple  # n strings

    def __len__(self):
        return len(self.images)

    def __add__(self, other):
        return ImageSet(
            torch.cat([self.images, other.images]),
            torch.cat([self.labels, other.labels]),
            self.names + other.names,
        )

    def subset(self, index):
        """The images at the given positions, in that order."""
        index = torch.tensor(np.asarray(index), dtype=torch.int64)
        return ImageSet(
            self.images[index], self.labels[index], tuple(self.names[i] for i in index.tolist())
        )

    def shuffled(self, seed, count=None):
        """All images in a random order, or the first ``count`` of it."""
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:count])

    @functools.cached_property
    def digest(self):
        """First 16 hex digits of SHA-256 over content and order, labels left out."""
        content = hashlib.sha256(
            np.ascontiguousarray(self.images.numpy(force=True))
        )  # by its memory, without a copy
        content.update("\n".join(self.names).encode())
        return content.hexdigest()[:16]


# ---- sets larger than memory


class Files:
    """Images that stay in their files until some of them are asked for: uint8 (k, 3, size, size).

    ``files``: (name, what reads its bytes), as ``files_of`` lists them. A file that is no image is
    an error naming it.
    """

    def __init__(self, files, size):
        self.files, self.size = files, size

    def __len__(self):
        return len(self.files)

    def __getitem__(self, part):
        files = (
            self.files[part] if isinstance(part, slice) else [self.files[place] for place in part]
        )
        pictures, _, broken = read_images(files, self.size)
        if broken:
            read = dict(files)[next(name for name, _ in files if broken[0].startswith(f"{name} ("))]
            raise ValueError(f"no readable image: {broken[0]}, {read}; remove it")
        return pictures


class FileSet(ImageSet):
    """An ImageSet whose images are ``Files``; a subset of it is decoded, a shuffled one stays in
    its files.
    """

    def __add__(self, other):
        return FileSet(
            Files(self.images.files + other.images.files, self.images.size),
            torch.cat([self.labels, other.labels]),
            self.names + other.names,
        )

    def shuffled(self, seed, count=None):
        """The same files in a random order, or the first ``count`` of it."""
        order = np.random.default_rng(seed).permutation(len(self))[:count].tolist()
        files = Files([self.images.files[place] for place in order], self.images.size)
        return FileSet(files, self.labels[order], tuple(self.names[place] for place in order))

    @functools.cached_property
    def digest(self):
        """First 16 hex digits of SHA-256 over the files' bytes, their order, names and size as
        squares.
        """
        content = hashlib.sha256(f"{self.images.size}\n".encode() + "\n".join(self.names).encode())
        for name, read in self.images.files:
            try:
                content.update(hashlib.sha256(read()).digest())
            except OSError as error:
                raise ValueError(
                    f"no readable image: {name} ({error}), {read}; remove it"
                ) from error
        return content.hexdigest()[:16]


# ---- from folders, zips, lists and tables


def folder(path, size, skip_broken=False, without=frozenset()):
    """All images of a folder, zip, list or table as squares of ``size`` pixels: short side resized,
    centre cut.

    The path may go on inside a zip. A label is the class that a list or table gives, else the first
    folder below the path (sorted), −1 for all when neither is there; folders ``without`` are passed
    over. What is left out is printed. A file that is no readable image is an error naming it;
    ``skip_broken`` leaves such files out and prints their names instead.
    """
    place = files_of(Path(path), without)
    for note in place.notes:
        print(f"{path}: {note}")
    pictures, names, broken = read_images(place.files, size)
    if broken and not skip_broken:
        raise ValueError(
            f"{path}: {len(broken)} of {len(place.files)} files are no readable images: "
            f"{', '.join(broken[:5])}"
            f"{', …' if len(broken) > 5 else ''}; mend or remove them, or skip them with "
            "skip_broken"
        )
    if broken:
        print(f"skipped {len(broken)} files of {path}: {', '.join(broken)}")
    labels, names = labels_of(path, names, place)
    return ImageSet(pictures, labels, names)


def read_images(files, size):
    """Squares (n, 3, size, size) and names of those ``files`` (name, what reads its bytes) that are
    images; what is wrong with each other.

    Decoded by all cores, whatever torch's number of threads, and each straight into its place: the
    set is in memory once.
    """
    pictures, names, broken = torch.empty(len(files), 3, size, size, dtype=torch.uint8), [], []

    def decode(file):
        try:
            return decoded(file[1](), size).transpose(2, 0, 1)
        except OSError as error:
            return reason(error)

    with ThreadPoolExecutor(decoders()) as pool:
        for start in range(
            0, len(files), AHEAD
        ):  # not all at once: what has been decoded and not yet placed is a second copy
            for (name, _), found in zip(
                files[start : start + AHEAD],
                pool.map(decode, files[start : start + AHEAD]),
                strict=True,
            ):
                if isinstance(found, str):
                    broken.append(f"{name} ({found})")
                else:
                    pictures.numpy()[len(names)] = found
                    names.append(name)
    return pictures[: len(names)], names, broken


def decoders():
    """How many images are decoded at once: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files(path, size, without=frozenset()):
    """The same images left in their files, a ``FileSet``: for sets larger than memory. A broken
    file is an error once it is read.
    """
    place = files_of(Path(path), without)
    names = [name for name, _ in place.files]
    return FileSet(Files(place.files, size), *labels_of(path, names, place))


def labels_of(path, names, place):
    """Labels (n,) of the names, and the names as a tuple; an error when there are none, or a class
    folder without any.
    """
    if not names:
        raise ValueError(f"{path} has no readable images")
    classes = classes_of(names, place)
    if classes and not place.labels and (empty := place.folders - set(classes)):
        raise ValueError(f"{path}: class {min(empty)} has no images; fill its folder or remove it")
    known = {name: label for label, name in enumerate(classes)}
    own = (place.labels[name] if place.labels else name.split("/")[0] for name in names)
    return torch.tensor([known.get(label, UNKNOWN) for label in own]), tuple(names)


def classes_of(names, place):
    """The classes of images by the labels of their list or table, else by first folders; sorted,
    numbers as numbers, empty for none.
    """
    named = (
        {place.labels[name] for name in names} - {None} if place.labels else set(class_names(names))
    )
    return (
        sorted(named, key=int)
        if place.labels and all(name.isdecimal() for name in named)
        else sorted(named)
    )


def class_names(names):
    """Sorted first folders of the names, empty when any image lies outside a folder."""
    return (
        sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else []
    )


def import_torchvision():
    """torchvision, also where its compiled part does not fit the installed torch (a CPU build
    beside a CUDA wheel).

    Its Python parts work once the two operators it looks for are declared; where the compiled part
    loads, nothing is touched.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = importlib.import_module("torchvision")
    module.declared = library  # the declaration lives as long as this object
    return module
