"""Where images come from: sets of them, read from folders, zips and lists; clear errors for what is missing or broken."""

import functools
import hashlib
import importlib
import io
import os
import re
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from longtail import paths

AHEAD = 256         # images that are decoded before the first of them is put in its place
UNKNOWN = -1        # the label of an image without one
LINE = re.compile(r"(\S.*?)(?:\s+(-?\d+)(?:\s+(\w+))?)?\s*")       # of a list: path, perhaps a label, perhaps the source it belongs to
BROKEN = (OSError, RuntimeError, zipfile.BadZipFile, zlib.error)      # RuntimeError: of a zip with a password


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

    def shuffled(self, seed, count=None):
        """All images in a random order, or the first ``count`` of it."""
        return self.subset(np.random.default_rng(seed).permutation(len(self))[:count])

    @functools.cached_property
    def digest(self):
        """First 16 hex digits of SHA-256 over content and order, labels left out."""
        content = hashlib.sha256(np.ascontiguousarray(self.images.numpy(force=True)))      # by its memory, without a copy
        content.update("\n".join(self.names).encode())
        return content.hexdigest()[:16]


# ---- sets larger than memory

class Files:
    """Images that stay in their files until some of them are asked for: uint8 (k, 3, size, size).

    ``files``: (name, what reads its bytes), as ``files_of`` lists them. A file that is no image is an error naming it.
    """

    def __init__(self, files, size):
        self.files, self.size = files, size

    def __len__(self):
        return len(self.files)

    def __getitem__(self, part):
        files = self.files[part] if isinstance(part, slice) else [self.files[place] for place in part]
        pictures, _, broken = read_images(files, self.size)
        if broken:
            raise ValueError(f"no readable image: {broken[0]}; remove it")
        return pictures


class FileSet(ImageSet):
    """An ImageSet whose images are ``Files``; a subset of it is decoded, a shuffled one stays in its files."""

    def __add__(self, other):
        return FileSet(Files(self.images.files + other.images.files, self.images.size),
                       torch.cat([self.labels, other.labels]), self.names + other.names)

    def shuffled(self, seed, count=None):
        """The same files in a random order, or the first ``count`` of it."""
        order = np.random.default_rng(seed).permutation(len(self))[:count].tolist()
        files = Files([self.images.files[place] for place in order], self.images.size)
        return FileSet(files, self.labels[order], tuple(self.names[place] for place in order))

    @functools.cached_property
    def digest(self):
        """First 16 hex digits of SHA-256 over the files' bytes, their order, names and size as squares."""
        content = hashlib.sha256(f"{self.images.size}\n".encode() + "\n".join(self.names).encode())
        for _, read in self.images.files:
            content.update(hashlib.sha256(read()).digest())
        return content.hexdigest()[:16]


# ---- folders, zips and lists

def folder(path, size, skip_broken=False, without=frozenset()):
    """All images of a folder, zip or list as squares of ``size`` pixels: short side resized, centre cut.

    The path may go on inside a zip. A label is the first folder below it (sorted), −1 for all when images lie flat; folders ``without``
    are passed over. A file that is no readable image is an error naming it; ``skip_broken`` leaves such files out and prints their
    names instead.
    """
    files, folders = files_of(Path(path), without)
    pictures, names, broken = read_images(files, size)
    if broken and not skip_broken:
        raise ValueError(f"{path}: {len(broken)} of {len(files)} files are no readable images: {', '.join(broken[:5])}"
                         f"{', …' if len(broken) > 5 else ''}; remove them, or skip them with skip_broken")
    if broken:
        print(f"skipped {len(broken)} files of {path}: {', '.join(broken)}")
    labels, names = labels_of(path, names, folders)
    return ImageSet(pictures, labels, names)


def read_images(files, size):
    """Squares (n, 3, size, size) and names of those ``files`` (name, what reads its bytes) that are images; what is wrong with each other.

    Decoded by all cores, whatever torch's number of threads, and each straight into its place: the set is in memory once.
    """
    pictures, names, broken = torch.empty(len(files), 3, size, size, dtype=torch.uint8), [], []

    def decode(file):
        try:
            return decoded(file[1](), size).transpose(2, 0, 1)
        except BROKEN as error:
            return reason(error)
    with ThreadPoolExecutor(decoders()) as pool:
        for start in range(0, len(files), AHEAD):       # not all at once: what has been decoded and not yet placed is a second copy
            for (name, _), found in zip(files[start:start + AHEAD], pool.map(decode, files[start:start + AHEAD]), strict=True):
                if isinstance(found, str):
                    broken.append(f"{name} ({found})")
                else:
                    pictures.numpy()[len(names)] = found
                    names.append(name)
    return pictures[:len(names)], names, broken


def decoders():
    """How many images are decoded at once: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def files(path, size, without=frozenset()):
    """The same images left in their files, a ``FileSet``: for sets larger than memory. A broken file is an error once it is read."""
    found, folders = files_of(Path(path), without)
    return FileSet(Files(found, size), *labels_of(path, [name for name, _ in found], folders))


def labels_of(path, names, folders):
    """Labels (n,) by the first folders of the names, and the names as a tuple; an error when there are none, or an empty folder."""
    if not names:
        raise ValueError(f"{path} has no readable images")
    known = {name: label for label, name in enumerate(class_names(names))}
    if known and (empty := folders - known.keys()):
        raise ValueError(f"{path}: class {min(empty)} has no images; fill its folder or remove it")
    return torch.tensor([known.get(name.split("/")[0], UNKNOWN) for name in names]), tuple(names)


def class_names(names):
    """Sorted first folders of the names, empty when any image lies outside a folder."""
    return sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else []


def container(path):
    """The folder or file that a path names or, inside a zip, goes through; None where there is neither."""
    return path if path.is_dir() else next((part for part in (path, *path.parents) if part.is_file()), None)


def files_of(path, without=frozenset()):
    """Files (name below the path, what reads its bytes) and first folders of a folder, zip or list; folders ``without`` are left out.

    Sorted, but for a list (.txt), whose order counts. Hidden files are left out.
    """
    place = container(path) or require(path, "give a folder, a zip, or a list (.txt) of images")
    if place.is_dir():
        found = ((file.relative_to(path).as_posix(), file) for file in sorted(path.rglob("*")) if file.is_file())
        found = [(name, file.read_bytes) for name, file in found if not hidden(name)]
        folders = {child.name for child in path.glob("*/") if not hidden(child.name)}
    else:
        found = listed(path) if place.suffix == ".txt" else members(place, path)
        folders = {name.split("/")[0] for name, _ in found if "/" in name}
        found = [(name, read) for name, read in found if not name.endswith("/")]
    return [file for file in found if file[0].split("/")[0] not in without], folders - without


def listed(path):
    """Files (name, what reads its bytes) of a list: a line each, the path below the list's folder, perhaps with a label that is ignored.

    A third column names the folder of the data folder that the path goes below instead, as in MAK's lists of mixed pools.
    """
    places = [(Path(f"{source}/{name}" if source else name), paths.DATA if source else path.parent) for name, _, source in lines_of(path)]
    return [(place.as_posix(), (root / place).read_bytes) for place, root in places]


def members(archive, path):
    """Files (name below the path, what reads its bytes) of a zip, its folders among them with a slash at the end."""
    shown = sorted(name for name in opened(archive).namelist() if not hidden(name))
    tops = {name.split("/")[0] for name in shown}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""        # archives commonly hold one folder that holds everything
    top += "".join(f"{part}/" for part in path.relative_to(archive).parts)
    return [(name.removeprefix(top), functools.partial(member, archive, name)) for name in shown if name.startswith(top) and name != top]


@functools.lru_cache(maxsize=4)
def opened(archive):
    """A zip, opened once in each process."""
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no whole zip file ({error}); fetch it again") from error


def member(archive, name):
    """The bytes of one file in a zip."""
    return opened(archive).read(name)


def hidden(name):
    """Whether a file or one of its folders is what systems leave behind: names with a dot in front, macOS's copies, Windows's notes."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))


def decoded(content, size):
    """The bytes of an image file as a square, uint8 (size, size, 3), as a viewer shows it; ``OSError`` when they are none."""
    try:
        return square(as_shown(Image.open(io.BytesIO(content)), size), size)
    except UnidentifiedImageError as error:
        raise OSError(f"{len(content)} bytes of no known kind" if content else "empty") from error
    except Exception as error:      # whatever decoders make of foreign bytes
        raise OSError(reason(error)) from error


def as_shown(picture, size):
    """An opened PIL image in RGB: turned as the camera says, white where transparent."""
    picture.draft(None, (4 * size, 4 * size))       # a JPEG many times larger is reduced while it is decoded, several times faster
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))      # Pillow would cut 16 bits to white
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def reason(error):
    """What an error says, short enough to stand beside others."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:80]


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


def lines_of(path):
    """(path, label or None, source or None) of each line of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}); a list of images has a path on each line") from error
    return [LINE.fullmatch(line.strip()).groups() for line in lines if line.strip()]


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
