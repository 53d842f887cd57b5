"""What lies in a place that people name: a folder, a zip, a tar, a list or a table of images. Nothing is decoded here."""

import fnmatch
import functools
import io
import itertools
import os
import re
import tarfile
import zipfile
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from longtail.store import paths
from longtail.store.settings import text_of

LINE = re.compile(r"(\S.*?)(?:\s+(-?\d+)(?:\s+(\w+))?)?\s*")       # of a list: path, perhaps a label, perhaps the source it belongs to
COLUMNS = [re.compile(r"(.*[^\s,;])[\s,;]+([^\s,;]+)()"), re.compile(r"(.*[^\s,;])[\s,;]+([^\s,;]+)[\s,;]+(\w+)")]     # read widely
LISTS, TABLES = {".txt", ".lst", ".list"}, {".csv", ".tsv", ".json", ".jsonl"}
ABSENT = "absent, a link to nothing; `git annex get`, `dvc pull` or the like fetch it"
LITTER = [      # what systems leave beside pictures, in lower case: folders, then files
    "__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "found.[0-9]*",
    "thumbs.db", "desktop.ini", "ehthumbs*.db", "icon\r", "picasa.ini", "synctoy_*.dat", ".*"]
BESIDE = {      # endings of what lies beside pictures and is none: films, sounds, notes of cameras and editors, tables and texts
    ".3gp", ".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mts", ".webm", ".wmv", ".m4a", ".mp3", ".wav", ".aae", ".dop",
    ".lrcat", ".pp3", ".thm", ".xmp", ".cfg", ".conf", ".css", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".js",
    ".json", ".jsonl", ".lnk", ".log", ".lst", ".md", ".names", ".odt", ".pbtxt", ".pdf", ".py", ".rst", ".rtf", ".sh", ".tsv", ".txt",
    ".url", ".xls", ".xlsx", ".xml", ".yaml", ".yml"}
PATHS = ["path", "image_path", "img_path", "filepath", "file_path", "file", "filename", "file_name", "image", "img", "image_id", "id",
         "name"]
CLASSES = ["label", "labels", "class", "class_name", "classname", "category", "category_id", "target", "species", "y"]


@dataclass(frozen=True)
class Place:
    """What lies there: ``files`` in order, each its name below the place and what reads its bytes."""

    files: list
    folders: set                                    # first folders below the place
    labels: dict = field(default_factory=dict)      # name -> class, where a list or table gives one to every file
    notes: list = field(default_factory=list)       # what was left out or reached oddly, a sentence each


# ---- what reads the bytes of a file

@dataclass(frozen=True)
class OnDisk:
    """A file of its own; ``line`` says where a list names it."""

    path: Path
    line: str = ""

    def __call__(self):
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise OSError(ABSENT if self.path.is_symlink() else f"no such file{self.line}") from error

    def stamp(self):
        """What changes when the content does."""
        return f"{(known := self.path.stat()).st_size} {known.st_mtime_ns}"


@dataclass(frozen=True)
class Packed:
    """A member of a zip."""

    archive: Path
    name: str

    def __call__(self):
        try:
            return unzipped(self.archive).read(self.name)
        except NotImplementedError as error:
            raise OSError("packed by a method that Python cannot unpack; unpack the zip, give the folder") from error

    def stamp(self):
        """What changes when the content does."""
        return f"{(known := unzipped(self.archive).getinfo(self.name)).file_size} {known.CRC}"


@dataclass(frozen=True)
class Slice:
    """A member of a tar that is not compressed: so many bytes of it."""

    archive: Path
    name: str
    start: int
    size: int

    def __call__(self):
        with open(self.archive, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def stamp(self):
        """What changes when the content does."""
        return f"{self.start} {self.size} {OnDisk(self.archive).stamp()}"


# ---- places

def container(path):
    """The folder or file that a path names or, inside a zip, goes through; None where there is neither."""
    return path if path.is_dir() else next((part for part in (path, *path.parents) if part.is_file()), None)


def require(path, remedy):
    """The path, if it exists; else one line naming it and the remedy."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{Path(path).absolute()} is missing: {remedy}")
    return path


def files_of(path, without=frozenset()):
    """The ``Place`` of a folder, zip (perhaps a folder in it), tar, list or table; first folders ``without`` are left out.

    Sorted, but for a list or table, whose order counts; what is named twice there counts once. What systems and tools leave beside
    pictures is left out of the others and counted in the notes.
    """
    place = container(path) or require(path, "give a folder, a zip, or a list (.txt) of images")
    labels, notes = {}, []
    if place.is_dir():
        found, folders, notes = tree(path)
    elif is_list(place):
        found, labels, notes = (listed if place.suffix.lower() in LISTS else tabled)(place)
        folders = {name.split("/")[0] for name, _ in found if "/" in name}
    else:
        found, folders, notes = members(place, path)
    return Place([file for file in found if file[0].split("/")[0] not in without], folders - without, labels, notes)


def is_list(path):
    """Whether a path names a list or a table, whose entries lie beside it."""
    return Path(path).suffix.lower() in LISTS | TABLES and not Path(path).is_dir()


def litter(name):
    """What makes a file one that is never read as an image: ``system``, an ending such as ``.mov``, or nothing."""
    parts = name.casefold().split("/")
    if any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in LITTER):
        return "system"
    ending = PurePosixPath(parts[-1]).suffix
    return ending if ending in BESIDE else ""


def sifted(files):
    """Files (name, …) that may be images, and a note of the others."""
    kinds = [litter(file[0]) for file in files]
    counts = Counter(kind for kind in kinds if kind)
    system = counts.pop("system", 0)
    said = [f"{system} that systems leave"] * bool(system) + [f"{count} {ending}" for ending, count in sorted(counts.items())]
    return [file for file, kind in zip(files, kinds, strict=True) if not kind], [f"left out as no pictures: {', '.join(said)}"] * bool(said)


# ---- folders

def tree(root):
    """Files below a folder (name, what reads its bytes), its first folders, and notes; links to folders are followed, each folder once."""
    found, seen, links, notes, real_root = [], set(), deque([root]), Counter(), os.path.realpath(root)
    while links:        # whatever is reached without a link comes first
        start = links.popleft()
        if os.path.realpath(start) in seen:
            notes["reached twice, read once"] += 1
            continue
        for folder, folders, files in os.walk(start):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            found += [Path(folder, file) for file in files]
            for name in [name for name in folders if os.path.islink(Path(folder, name))]:
                target = os.path.realpath(Path(folder, name))
                if any(inside == target or inside.startswith(target.rstrip("/") + "/") for inside in (real, real_root)):
                    notes["that lead back to a folder above them, not followed"] += 1
                elif litter(name) != "system":
                    links.append(Path(folder, name))
    files = sorted((path.relative_to(root).parts, path) for path in found if path.is_symlink() or path.is_file())
    files, left = sifted([(shown("/".join(parts)), OnDisk(path)) for parts, path in files])
    folders = {shown(child.name) for child in root.iterdir() if child.is_dir() and litter(child.name) != "system"}
    return files, folders, left + [f"links to folders {what}: {count}" for what, count in notes.items()]


def shown(name):
    """A name as text that can be written: bytes that are no UTF-8 as \\xe4 and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ---- archives

def members(archive, path):
    """Files (name below the path, what reads its bytes) of a zip or tar, first folders, and notes."""
    packed = untarred(archive) if archive.suffix.lower() == ".tar" else {
        name: Packed(archive, name) for name in unzipped(archive).namelist()}
    names = sorted(name for name in packed if litter(name) != "system")
    tops = {name.split("/")[0] for name in names}
    top = f"{tops.pop()}/" if len(tops) == 1 and any("/" in name for name in names) else ""     # the usual one folder
    asked = "".join(f"{part}/" for part in path.relative_to(archive).parts)
    if asked.startswith(top) and any(name.startswith(asked) for name in names):
        top = ""                                            # a path as `unzip -l` prints it
    top += asked
    below = [name for name in names if name.startswith(top) and name != top]
    files, notes = sifted([(name.removeprefix(top), packed[name]) for name in below if not name.endswith("/")])
    if left := sum(litter(name) == "system" and not name.endswith("/") for name in packed):
        notes.append(f"left out {left} files that systems leave")
    return files, {name.removeprefix(top).split("/")[0] for name in below if "/" in name.removeprefix(top)}, notes


@functools.lru_cache(maxsize=4)
def unzipped(archive):
    """A zip, opened once in each process."""
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        if archive.suffix.lower() == ".zip":
            raise ValueError(f"{archive} is no whole zip file ({error}); fetch it again") from error
        raise ValueError(f"{archive} is no place of images; give a folder, a .zip, an uncompressed .tar, a list of paths (.txt) or a table "
                         f"of them (.csv, .tsv, .json)") from error


def untarred(archive):
    """Members of a tar without compression: name -> what reads its bytes."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return {member.name: Slice(archive, member.name, member.offset_data, member.size) for member in tar if member.isfile()}
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no whole tar without compression ({error}); unpack it and give the folder") from error


# ---- lists and tables

def lines_of(path):
    """(path, label or None, source or None) of each line of a list in the fixed form of the published ones."""
    return [LINE.fullmatch(line.strip()).groups() for line in text_of(path, "a list of images").splitlines() if line.strip()]


def listed(path):
    """Files (name, what reads its bytes) of a list, the classes it gives them, and notes.

    A line is a path below the list's folder, or a folder, perhaps quoted, with Windows's separators or with a label behind it: whichever
    of these is there. A third column names the folder of the data folder that the path goes below instead, as in MAK's mixed pools.
    """
    found, labels, twice = {}, {}, 0
    for number, line in enumerate(text_of(path, "a list of images").splitlines(), 1):
        place, label, source = next((some for some in readings(line) if exists(path, some)), (None, None, None))
        if place is None:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            place, label, source = LINE.fullmatch(line.strip()).groups()
        name, root = PurePosixPath(source or "", place), paths.DATA if source else path.parent
        within = [(name / below, read) for below, read in tree(root / name)[0]] if (root / name).is_dir() else [
            (name, OnDisk(root / name, f", line {number} of {path.name}"))]
        for each, read in within:
            twice += str(each) in found
            found.setdefault(str(each), read)
            labels[str(each)] = label
    whole = all(label not in (None, "-1") for label in labels.values())
    return list(found.items()), labels if whole else {}, [f"{twice} paths are listed twice and count once"] * bool(twice)


def readings(line):
    """What a line may mean, likeliest first: (path, label or None, source or None)."""
    texts = [line, line.strip(), line.strip().strip("\"'")]
    texts = dict.fromkeys(text for text in [*texts, *(text.replace("\\", "/") for text in texts)] if text.strip())
    yield from ((text, None, None) for text in texts)
    for text, columns in itertools.product(texts, COLUMNS):
        if match := columns.fullmatch(text.strip()):
            yield match[1].strip("\"'"), match[2], match[3]


def exists(path, reading):
    """Whether a reading of a line of the list names something."""
    name, _, source = reading
    with_source = paths.DATA / source if source else path.parent
    try:
        return os.path.lexists(with_source / name)
    except ValueError:      # a NUL in a name
        return False


def tabled(path):
    """Files (name, what reads its bytes) of a table, the classes it gives them, and notes.

    One column names files: paths below the table's folder, or names that one file below it has, perhaps without their ending.
    """
    import pandas
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            text = text_of(path, "a table of images")
            rows = pandas.read_csv(io.StringIO(text), sep=None if path.suffix.lower() == ".csv" else "\t", engine="python", dtype=str)
        else:
            rows = pandas.read_json(io.StringIO(text_of(path, "a table of images")), lines=path.suffix.lower() == ".jsonl", dtype=str)
    except ValueError as error:
        raise ValueError(f"{path} is no table that can be read ({' '.join(str(error).split())[:80]}); give rows with a column of paths and "
                         f"perhaps one of labels") from error
    rows = rows.rename(columns=lambda name: str(name).strip())
    below = None
    for column in sorted(rows, key=lambda name: PATHS.index(name.lower()) if name.lower() in PATHS else len(PATHS)):
        names = rows[column].dropna().astype(str)
        if len(names) and (path.parent / names.iloc[0].replace("\\", "/")).is_file():
            named = {name: name.replace("\\", "/") for name in names}
            break
        below = below if below is not None else by_name(path.parent)
        named = {name: below.get(PurePosixPath(name.replace("\\", "/")).name) for name in names}
        if any(named.values()):
            break
    else:
        raise ValueError(f"{path} has the columns {', '.join(rows)}, and none names files below {path.parent}; name them by path")
    others = [name for name in rows if name != column]
    label = next((name for name in others if name.lower() in CLASSES), others[0] if len(others) == 1 else None)
    found, labels, twice = {}, {}, 0
    for number, (name, given) in enumerate(zip(rows[column], rows[label] if label else rows[column], strict=True), 2):
        place = str(PurePosixPath(named.get(name) or str(name)))
        twice += place in found
        found.setdefault(place, OnDisk(path.parent / place, f", line {number} of {path.name}"))
        labels[place] = str(given)
    notes = [f"files by the column {column}" + (f", classes by {label}" if label else "")]
    return list(found.items()), labels if label else {}, notes + [f"{twice} files are listed twice and count once"] * bool(twice)



def by_name(root):
    """Files below a folder by their name, and by their name without its ending where only one has it: -> name below the folder."""
    names = [name for name, _ in tree(root)[0]]
    stems = Counter(PurePosixPath(name).stem for name in names)
    return {PurePosixPath(name).stem: name for name in names if stems[PurePosixPath(name).stem] == 1} | {
        PurePosixPath(name).name: name for name in names}
