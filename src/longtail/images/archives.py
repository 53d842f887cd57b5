"""Images that lie many to a file: zip, tar (with labels as webdataset has them), NumPy arrays,
Parquet tables.
"""

import functools
import io
import json
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from longtail.images.memory import BUDGET, in_words
from longtail.images.pixels import eight_bits, kind_of, reason

ABSENT = "absent, a link to nothing; `git annex get`, `dvc pull` or the like fetch it"
CLASSES = [
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "category",
    "category_id",
    "target",
    "species",
    "y",
    "fine_label",
]
OUTSIDE = "its name leads out of the archive"
LOCK = threading.Lock()  # one thread unpacks an array or a group of rows, the others find it


# ---- one image


@dataclass(frozen=True, slots=True)
class Content:
    """What reads the bytes of one image: a function, the file they lie in, and where in it; called,
    the bytes or an ``OSError``.
    """

    read: Callable  # (file, *where) -> bytes
    file: Path
    where: tuple = ()

    def __call__(self):
        try:
            return self.read(self.file, *self.where)
        except Exception as error:  # whatever unpackers make of foreign bytes
            raise OSError(reason(error)) from error

    def __str__(self):
        return f"in {self.file}"

    @property
    def own(self):
        """Whether the image has a file of its own."""
        return self.read is whole_file

    @property
    def member(self):
        """Its name in a zip or tar, as ``unzip -l`` prints it; empty elsewhere."""
        return self.where[0] if self.read in (of_zip, of_tar) else ""

    def stamp(self):
        """What changes when the content does."""
        return f"{(known := self.file.stat()).st_size} {known.st_mtime_ns} {self.where}"


def bounded(size, share=16, what="one file"):
    """A number of bytes that are read at once, unless it is more than this share of the budget."""
    if size > BUDGET.total // share:
        raise OSError(
            f"{in_words(size)}, memory: {in_words(BUDGET.total)} allows "
            f"{in_words(BUDGET.total // share)} for {what}"
        )
    return size


def whole_file(path, line=""):
    """The bytes of a file of its own; ``line`` says where a list names it."""
    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            raise OSError("a folder, pipe or device")  # a device may never end
        bounded(known.st_size)
        return path.read_bytes()
    except FileNotFoundError:
        raise OSError(ABSENT if path.is_symlink() else f"no such file{line}") from None


# ---- archives: name -> Content, and the classes of those that have one


class NoPictures(ValueError):
    """What a file holds that can be read and has none."""


def contents(archive):
    """Members of a zip, tar, NumPy file or Parquet table: name -> ``Content``, and name -> class
    where the archive says it.
    """
    try:
        return SHARDS.get(archive.suffix.lower(), zip_members)(archive)
    except ImportError:
        raise
    except NoPictures as error:
        raise ValueError(f"{archive}: {error}") from None
    except Exception as error:  # whatever the readers of each kind make of foreign bytes
        if archive.suffix.lower() in (".zip", *SHARDS):
            raise ValueError(
                f"{archive} cannot be read as {archive.suffix} ({reason(error)}); fetch it again, "
                "or unpack it and give the "
                f"folder"
            ) from error
        with open(archive, "rb") as file:
            kind = kind_of(file.read(64))
        raise ValueError(
            f"{archive} is {f'{kind} and ' * bool(kind)}no place of images; give a folder, a .zip, "
            "an uncompressed .tar, .npy, .npz or .parquet, a list of paths (.txt) or a table of "
            "them (.csv, .tsv, .json)"
        ) from error


@functools.lru_cache(maxsize=4)
def unzipped(archive):
    """A zip, opened once in each process, and how often it has each name.

    Refused unless it has as many members as its end says: a changed bit may make a comment so long
    that other members lie in it, which ``zipfile`` does not notice.
    """
    file = zipfile.ZipFile(archive)
    with open(archive, "rb") as end:
        end.seek(-22 - len(file.comment), os.SEEK_END)
        told = int.from_bytes(end.read(12)[10:], "little")
    if told not in (0xFFFF, len(file.filelist) % 2**16):
        raise ValueError(f"{len(file.filelist)} members, where it says {told}")
    return file, Counter(file.namelist())


def zip_members(archive):
    """All members of a zip; where folders are parted by \\, as some programs of Windows do, it is
    read as /.
    """
    names = [*unzipped(archive)[1]]
    part = "/" if any("/" in name for name in names) else "\\"
    return {name.replace(part, "/"): Content(of_zip, archive, (name,)) for name in names}, {}


def of_zip(archive, name):
    """The bytes of a member of a zip, never more than it says it has."""
    file, times = unzipped(archive)
    if outside(name.replace("\\", "/")):
        raise OSError(OUTSIDE)
    if times[name] > 1:
        raise OSError(
            f"{times[name]} members have this name; unpack the zip, rename them and give the folder"
        )
    size = bounded(file.getinfo(name).file_size)
    try:
        with file.open(name) as member:
            content = member.read(size)
    except NotImplementedError as error:
        raise OSError(
            "packed by a method that Python cannot unpack; unpack the zip, give the folder"
        ) from error
    if len(content) < size:
        raise OSError(f"cut: {len(content)} of {size} bytes")
    return content


def tar_members(archive):
    """The files in a tar without compression; the class of ``key.jpg`` is the text of ``key.cls``,
    as webdataset writes it.
    """
    with tarfile.open(archive, "r:") as tar:
        every = {member.name: member for member in tar}
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise ValueError(f"it is cut: no end behind {len(every)} members")
    found = {
        printable(name): Content(of_tar, archive, (name, file.offset_data, file.size))
        for name, member in every.items()
        if (file := linked(member, every)).isfile() or file.islnk() or file.issym()
    }
    classes = {
        name.removesuffix(".cls"): found[name]().decode().strip()
        for name in found
        if name.endswith(".cls")
    }
    return found, {name: classes[key] for name in found if (key := key_of(name)) in classes}


def linked(member, every):
    """The file of a tar that a link in it leads to; the last link of a chain that ends nowhere."""
    seen = set()
    while (member.islnk() or member.issym()) and member.name not in seen:
        seen.add(member.name)
        folder = "" if member.islnk() else os.path.dirname(member.name)
        target = os.path.normpath(os.path.join(folder, member.linkname))
        member = every.get(target) or every.get(f"./{target}") or member
    return member


def key_of(name):
    """What the files of one sample have in common: the path up to the first dot of its last
    part.
    """
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.')[0]}"


def of_tar(archive, name, start, size):
    """So many bytes of a tar."""
    if outside(name):
        raise OSError(OUTSIDE)
    if not size:
        raise OSError("empty, or a link to nothing in the tar")
    with open(archive, "rb") as file:
        file.seek(start)
        return file.read(bounded(size))


def outside(name):
    """Whether a name leads out of its archive."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def printable(name):
    """A name as text that can be written: bytes that are no UTF-8 as \\xe4 and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ---- arrays


@functools.lru_cache(maxsize=4)
def arrays(file):
    """The arrays of a .npy (one without a name) or .npz file; those of a .npy stay in it.

    A .npy of (h, w, 3) or (3, h, w) is one picture.
    """
    if file.suffix.lower() == ".npy":
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        single = values.ndim == 3 and (values.shape[2] in (1, 3, 4) or values.shape[0] in (3, 4))
        return {"": values[None] if single else values}
    with zipfile.ZipFile(file) as packed:
        bounded(
            sum(member.file_size for member in packed.infolist()),
            4,
            "the arrays of a .npz; save them as .npy",
        )
    with np.load(file, allow_pickle=False) as packed:
        return dict(packed)


def array_members(file):
    """The pictures of every array (n, h, w), (n, h, w, bands) or (n, bands, h, w) in a file; labels
    are integers (n,) beside it.

    Of several arrays of labels that one belongs to pictures whose name is most alike, as y_train to
    x_train.
    """
    found, classes, held = {}, {}, arrays(file)
    for name, values in held.items():
        if (
            values.dtype.kind not in "biuf"
            or values.ndim not in (3, 4)
            or values.ndim == 4
            and not {values.shape[1], values.shape[3]} & {1, 3, 4}
        ):
            continue
        names = [f"{name}/{row:06d}" if name else f"{row:06d}" for row in range(len(values))]
        found |= {each: Content(of_array, file, (name, row)) for row, each in enumerate(names)}
        labels = [
            other
            for other, some in held.items()
            if some.dtype.kind in "iuUS" and some.size == len(values) and some.ndim < 3
        ]
        if labels:
            own = max(
                labels,
                key=lambda other: max(
                    len(os.path.commonprefix([name[::way], other[::way]])) for way in (1, -1)
                ),
            )
            classes |= dict(zip(names, held[own].reshape(-1).astype(str).tolist(), strict=True))
    if not found:
        shapes = ", ".join(
            f"{name} {values.dtype} {values.shape}".strip() for name, values in held.items()
        )
        raise NoPictures(f"no pictures (n, h, w), (n, h, w, 3) or (n, 3, h, w) among {shapes}")
    return found, classes


def of_array(file, name, row):
    """One picture of an array as the bytes of a TIFF; deeper colours are scaled as deeper greys
    are.
    """
    from PIL import Image

    with LOCK:
        values = arrays(file)[name][row]
    if values.ndim == 3:
        values = values if values.shape[2] in (1, 3, 4) else values.transpose(1, 2, 0)
        values = values if values.dtype == np.uint8 else eight_bits(values)[0]
        values = values[:, :, 0] if values.shape[2] == 1 else values
    kind = {"f": np.float32, "i": np.int32, "b": np.uint8}.get(
        values.dtype.kind if values.dtype != np.uint8 else "", values.dtype
    )
    content = io.BytesIO()
    Image.fromarray(
        np.ascontiguousarray(values, dtype=kind) * (255 if values.dtype == bool else 1)
    ).save(content, "TIFF")
    return content.getvalue()


# ---- tables of image bytes


def parquet_members(file):
    """The rows of a Parquet table with a column of image bytes, as ``datasets`` writes it: struct
    of bytes and path, or plain bytes.
    """
    from pyarrow import parquet, types

    table = parquet.ParquetFile(file)
    fields = {field.name: field.type for field in table.schema_arrow}
    images = next(
        (
            name
            for name, kind in fields.items()
            if types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        ),
        None,
    )
    binary = [
        name
        for name, kind in fields.items()
        if types.is_binary(kind) or types.is_large_binary(kind)
    ]
    binary.sort(
        key=lambda name: not re.search("image|img|picture|photo|jpe?g|png|bytes", name, re.I)
    )
    column = f"{images}.bytes" if images else binary[0] if binary else None
    if column is None and any(types.is_list(kind) for kind in fields.values()):
        raise NoPictures(
            f"its columns {', '.join(fields)} hold lists; write one picture's bytes a row, or "
            "features as a list of floats"
        )
    if column is None:
        raise NoPictures(f"its columns {', '.join(fields)} hold no bytes of images")
    label = next((name for name in fields if name.lower() in CLASSES), None)
    rows = [
        (group, row)
        for group in range(table.num_row_groups)
        for row in range(table.metadata.row_group(group).num_rows)
    ]
    names = [f"{number:06d}" for number in range(len(rows))]
    if images and fields[images].get_field_index("path") >= 0:
        told = column_of(file, f"{images}.path")
        names = told if all(told) and len(set(told)) == len(told) else names
    known = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    words = known.get("info", {}).get("features", {}).get(label, {}).get("names")
    labels = (
        [
            words[value]
            if words and value is not None and value >= 0
            else None
            if value is None
            else str(value)
            for value in column_of(file, label)
        ]
        if label
        else []
    )
    return (
        {
            name: Content(of_parquet, file, (column, *place))
            for name, place in zip(names, rows, strict=True)
        },
        dict(zip(names, labels, strict=True)) if label else {},
    )


def column_of(file, column):
    """The values of a column of names or classes, unless they are too long together once they are
    written out: a page of a few bytes may stand for many long texts.
    """
    from pyarrow import compute, parquet

    top, _, below = column.partition(".")
    table, known, size = parquet.ParquetFile(file, read_dictionary=[column]), [], 0
    for group in range(table.num_row_groups):  # each has a dictionary of its own
        values = table.read_row_group(group, [column])[top].combine_chunks()
        values = values.field(below) if below else values
        if (packed := getattr(values, "dictionary", None)) is not None:
            lengths = compute.binary_length(packed).take(values.indices)
            size += compute.sum(lengths).as_py() or 0
            bounded(size, 8, f"the texts of {column}")
        known += values.to_pylist()
    return known


def of_parquet(file, column, group, row):
    """The image bytes of one row."""
    with LOCK:
        content = row_group(file, column, group)[row].as_py()
    if content is None:
        raise OSError("the row has no bytes of a picture")
    return content


@functools.lru_cache(maxsize=2)
def row_group(file, column, group):
    """The image bytes of a group of rows, the unit in which Parquet is read."""
    from pyarrow import parquet

    table = parquet.ParquetFile(file, read_dictionary=[column])  # repeated images are held once
    bounded(
        table.metadata.row_group(group).total_byte_size, 8, "a group of rows; write smaller ones"
    )
    values = table.read_row_group(group, [column])[column.split(".")[0]].combine_chunks()
    return values.field("bytes") if "." in column else values


SHARDS = {
    ".tar": tar_members,
    ".npy": array_members,
    ".npz": array_members,
    ".parquet": parquet_members,
}  # shards, too, in a folder
