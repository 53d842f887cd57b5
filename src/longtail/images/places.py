"""What lies in a place that people name: a folder, an archive, a list or a table of images. Nothing
is decoded here.
"""

import functools
import io
import itertools
import json
import os
import re
import unicodedata
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from longtail.images import archives
from longtail.images.archives import CLASSES, Content, printable, whole_file
from longtail.store import paths
from longtail.store.settings import text_of

LISTED = re.compile(
    r"(\S.*?)(?:\s+(-?\d+)(?:\s+(\w+))?)?\s*"
)  # of a list: path, perhaps a label, perhaps the source it belongs to
READINGS = [  # wider ones: the label behind the path, perhaps with a source, or before it
    re.compile(r"(?P<path>.*[^\s,;])[\s,;]+(?P<label>[^\s,;]+)"),
    re.compile(r"(?P<path>.*[^\s,;])[\s,;]+(?P<label>[^\s,;]+)[\s,;]+(?P<source>\w+)"),
    re.compile(r"(?:\d+\t)?(?P<label>[^\s,;]+)[\s,;]+(?P<path>\S.*)"),
]
PICTURE = re.compile(r"\.(jpe?g|jfif|png|gif|webp|tiff?|bmp|heic|heif|avif|jp2|ppm|pgm)$", re.I)
LISTS, TABLES = {".txt", ".lst", ".list"}, {".csv", ".tsv", ".json", ".jsonl"}
LITTER = re.compile(  # what systems leave beside pictures, in lower case: folders and files
    r"""\..* | __macosx | lost\+found | found\.[0-9].* | _vti_.* | temporary\ items
    | @eadir | .*@syno.* | @recycle | @__thumb | @tmp | \#recycle | \#snapshot | \#sharesnap
    | \$recycle\.bin | recycle[dr] | system\ volume\ information | network\ trash\ folder
    | thumbs\.db(:encryptable)? | ehthumbs.*\.db | desktop\.ini | icon\r | picasa\.ini
    | zbthumbnail\.info | synctoy_.*\.dat | .*:zone\.identifier | .*\.ffs_(db|lock) | ~\$.*""",
    re.VERBOSE | re.DOTALL,
)
BESIDE = re.compile(  # endings of what lies beside pictures: films, sounds, notes, tables, texts
    r"""\.(
    3gp | avi | flv | insv | lrv | m2ts | m4v | mkv | mov | mp4 | mpeg | mpg | mts | ogv | webm
    | wmv | aac | flac | m4a | mp3 | ogg | wav | aae | bdm | ctg | dop | gpx | srt | lrcat | pp3
    | thm | xmp | bak | cls | cfg | conf | css | csv | db | doc | docx | geojson | htm | html |
    ini | ipynb | js | json | jsonl | lnk | log | lst | md | md5 | names | nfo | odt | pbtxt |
    pdf | py | rst | rtf | sh | sha1 | sha256 | tmp | torrent | tsv | txt | url | xls | xlsx |
    xml | yaml | yml
    )""",
    re.VERBOSE,
)
NOTES = {"license", "makefile", "readme", "sha256sums", "md5sums"}  # texts without an ending
PATHS = [
    "path",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "file",
    "filename",
    "file_name",
    "image",
    "img",
    "image_id",
    "id",
    "name",
]
SPLITS = {"split", "subset", "set", "partition", "phase", "usage"}


@dataclass(frozen=True)
class Place:
    """What lies there: ``files`` in order, each its name below the place and what reads its
    bytes.
    """

    files: list
    folders: set  # first folders below the place
    labels: dict = field(
        default_factory=dict
    )  # name -> class, None for none, where list, table or archive say it
    notes: list = field(default_factory=list)  # what was left out or reached oddly, a sentence each


# ---- places


def container(path):
    """The folder or file that a path names or, inside a zip, goes through; None where there is
    neither.
    """
    return (
        path
        if os.path.isdir(path)
        else next((part for part in (path, *path.parents) if os.path.isfile(part)), None)
    )


def require(path, remedy):
    """The path, if it exists; else one line naming it and the remedy."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{Path(path).absolute()} is missing: {remedy}")
    return path


def files_of(path, without=frozenset()):
    """The ``Place`` of a folder, archive (perhaps a folder in it), list or table; first folders
    ``without`` are left out. The path may go on inside, to a folder of a zip, or to ``train`` of a
    table with a column ``split``.

    Sorted, but for a list or table, whose order counts; what is named twice there counts once. What
    systems and tools leave beside pictures is left out of the others and counted in the notes.
    """
    place = container(path) or require(path, "give a folder, a zip, or a list (.txt) of images")
    if place.is_dir():
        found, folders, labels, notes = tree(path)
    elif is_list(place):
        found, labels, notes = listed(place, "/".join(path.relative_to(place).parts))
        folders = {name.split("/")[0] for name, _ in found if "/" in name}
    else:
        found, folders, labels, notes = members(place, path)
    return Place(
        [file for file in found if file[0].split("/")[0] not in without],
        folders - without,
        labels,
        notes,
    )


def is_list(path):
    """Whether a path names a list or a table, whose entries lie beside it."""
    return Path(path).suffix.lower() in LISTS | TABLES and not Path(path).is_dir()


def litter(name):
    """What makes a file one that is never read as an image: ``system``, an ending such as ``.mov``,
    or nothing.
    """
    parts = [part for part in name.casefold().split("/") if part not in (".", "..")]
    if any(map(LITTER.fullmatch, parts)):
        return "system"
    ending = PurePosixPath(parts[-1]).suffix
    return ending if BESIDE.fullmatch(ending) else parts[-1] if parts[-1] in NOTES else ""


def sifted(files):
    """Files (name, …) that may be images, and a note of the others."""
    kinds = [litter(file[0]) for file in files]
    counts = Counter(kind for kind in kinds if kind)
    system = counts.pop("system", 0)
    said = [f"{system} that systems leave"] * bool(system) + [
        f"{count} {ending}" for ending, count in sorted(counts.items())
    ]
    return [file for file, kind in zip(files, kinds, strict=True) if not kind], [
        f"left out as no pictures: {', '.join(said)}"
    ] * bool(said)


# ---- folders


def tree(root):
    """Files below a folder (name, what reads its bytes), its first folders, classes and notes.

    Links to folders are followed, each folder once. Shards (tar, arrays, Parquet) are entered.
    """
    found, lost, seen, links, notes, real_root = (
        [],
        [],
        set(),
        deque([root]),
        Counter(),
        os.path.realpath(root),
    )
    while links:  # whatever is reached without a link comes first
        start = links.popleft()
        if os.path.realpath(start) in seen:
            notes["reached twice, read once"] += 1
            continue
        for folder, folders, files in os.walk(start, onerror=lost.append):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            found += [Path(folder, file) for file in files]
            for name in [name for name in folders if os.path.islink(Path(folder, name))]:
                target = os.path.realpath(Path(folder, name))
                if any(
                    inside == target or inside.startswith(target.rstrip("/") + "/")
                    for inside in (real, real_root)
                ):
                    notes["that lead back to a folder above them, not followed"] += 1
                elif litter(name) != "system":
                    links.append(Path(folder, name))
    files = sorted(
        (path.relative_to(root).parts, path)
        for path in found
        if path.is_file() or path.is_symlink() and not path.exists()  # no devices, no pipes
    )
    files, left = sifted(
        [(printable("/".join(parts)), Content(whole_file, path)) for parts, path in files]
    )
    folders = {
        printable(child.name)
        for child in root.iterdir()
        if child.is_dir() and litter(child.name) != "system"
    }
    left += [f"links to folders {what}: {count}" for what, count in notes.items()]
    if lost:
        left.append(f"{len(lost)} folders cannot be opened, such as {lost[0]}")
    odd = [
        len(name.splitlines()) > 1 or not str(read.file).isprintable() and "\\" in name
        for name, read in files
    ]
    if any(odd):
        left.append(
            f"{sum(odd)} names are no UTF-8 and shown with \\x, or have line breaks; lists of "
            "picks cannot lead to them: rename them for that"
        )
    files, labels = entered(files)
    return files, folders, labels, left


def entered(files):
    """Files with the members of shards among them in their place, and the classes that shards give,
    None where they give none.
    """
    found, labels = [], {}
    for name, read in files:
        if PurePosixPath(name).suffix.lower() not in archives.SHARDS or not read.file.exists():
            found.append((name, read))
            continue
        below, _, classes, _ = members(read.file, read.file)
        found += [(f"{name}/{member}", content) for member, content in below]
        labels |= {f"{name}/{member}": classes.get(member) for member, _ in below}
    return found, labels


# ---- archives


def members(archive, path):
    """Files (name below the path, what reads its bytes) of an archive, first folders, classes, and
    notes.
    """
    packed, classes = archives.contents(archive)
    names = sorted(name for name in packed if litter(name) != "system")
    tops = {name.split("/")[0] for name in names}
    top = (
        f"{tops.pop()}/" if len(tops) == 1 and any("/" in name for name in names) else ""
    )  # the usual one folder
    asked = "".join(f"{part}/" for part in path.relative_to(archive).parts)
    if asked.startswith(top) and any(name.startswith(asked) for name in names):
        top = ""  # a path as `unzip -l` prints it
    top += asked
    below = [name for name in names if name.startswith(top) and name != top]
    files, notes = sifted(
        [(name.removeprefix(top), packed[name]) for name in below if not name.endswith("/")]
    )
    if left := sum(litter(name) == "system" and not name.endswith("/") for name in packed):
        notes.append(f"left out {left} files that systems leave")
    labels = {name: classes.get(top + name) for name, _ in files} if classes else {}
    folders = {
        name.removeprefix(top).split("/")[0]
        for name in below
        if "/" in name.removeprefix(top) and not archives.outside(name)
    }
    return files, folders, labels, notes


# ---- lists and tables


def lines_of(path):
    """(path, label or None, source or None) of each line of a list in the fixed form of the
    published ones.
    """
    return [
        LISTED.fullmatch(line.strip()).groups()
        for line in text_of(path, "a list of images").splitlines()
        if line.strip()
    ]


def listed(path, part=""):
    """Files (name, what reads its bytes) of a list or table, or of one ``part`` of a table with a
    split, the classes it gives them, and notes.
    """
    if is_table := path.suffix.lower() in TABLES:
        rows, notes = table_rows(path, part)
    else:
        rows, notes = list_rows(path), []
    if part and not (is_table and rows):
        raise ValueError(f"{path} has no part {part}; give the path of the list or table itself")
    found, labels, twice, unlike = {}, {}, 0, 0
    for number, name, label, root in rows:
        within = (
            [(str(PurePosixPath(name, below)), read) for below, read in tree(root)[0]]
            if root.is_dir() and not is_table
            else [(name, Content(whole_file, root, (f", line {number} of {path.name}",)))]
        )
        for each, read in within:
            twice += each in found
            found.setdefault(each, read)
            unlike += labels.setdefault(each, label) != label
    lacking = sum(label in (None, "", "-1") for label in labels.values())
    said = {
        f"{twice} paths are listed twice and count once": twice,
        f"{unlike} of them have another label there; the first one counts": unlike,
        f"{lacking} of {len(labels)} have no label, so that no label counts": lacking < len(labels)
        and lacking,
    }
    return (
        list(found.items()),
        {} if lacking else labels,
        notes + [note for note, count in said.items() if count],
    )


def list_rows(path):
    """(number of the line, name, class or None, path) of each entry of a list.

    A line is a path below the list's folder, or a folder, perhaps quoted, with Windows's separators
    or with a label behind or before it: whichever of these is there. A third column names the
    folder of the data folder that the path goes below instead, as in MAK's mixed pools.
    """
    rows = []
    for number, line in enumerate(text_of(path, "a list of images").splitlines(), 1):
        place, label, source = next(
            (some for some in readings(line) if exists(path, some)), (None, None, None)
        )
        if place is None:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            place, label, source = LISTED.fullmatch(line.strip()).groups()
        name = PurePosixPath(source or "", place)
        rows.append((number, str(name), label, (paths.DATA if source else path.parent) / name))
    return rows


def readings(line):
    """What a line may mean, likeliest first: (path, label or None, source or None)."""
    texts = [line, line.strip(), line.strip().strip("\"'")]
    texts = dict.fromkeys(
        spelled(text, form)
        for form, slash in itertools.product(("", "NFC", "NFD"), "\\/")
        for text in (text.replace("\\", slash) for text in texts)
        if text.strip()
    )
    yield from ((text, None, None) for text in texts)
    for text, columns in itertools.product(texts, READINGS):
        found = match.groupdict() if (match := columns.fullmatch(text.strip())) else {}
        if found and not PICTURE.search(found["label"]):  # a blank in a name parts no label
            yield found["path"].strip("\"'"), found["label"], found.get("source")


def spelled(name, form):
    """A name with its accents as macOS (NFD) or others (NFC) write them; as it is for no form."""
    return unicodedata.normalize(form, name) if form else name


def exists(path, reading):
    """Whether a reading of a line of the list names something."""
    name, _, source = reading
    with_source = paths.DATA / source if source else path.parent
    try:
        return os.path.lexists(with_source / name)
    except ValueError:  # a NUL in a name
        return False


def table_rows(path, part=""):
    """(number of the line, name, class or None, path) of each row of a table, or of one ``part`` of
    it, and notes.

    One column names files: paths below the table's folder, or the end of the path of one file below
    it, perhaps without its ending. Rows whose cell is empty name no file.
    """
    rows, first = table_of(path)
    below = functools.cache(lambda: by_name(path.parent))
    for column in sorted(
        rows, key=lambda name: PATHS.index(name.lower()) if name.lower() in PATHS else len(PATHS)
    ):
        names = [text.replace("\\", "/").strip() for text in rows[column]]
        found = [name and (there(path.parent, name) or below().get(name)) for name in names]
        if any(found):
            break
    else:
        raise ValueError(
            f"{path} has the columns {', '.join(rows)}, and none names files below {path.parent}; "
            "name them by path"
        )
    split = split_of(rows)
    others = [name for name in rows if name not in (column, split)]
    label = next(
        (name for name in others if name.lower() in CLASSES),
        others[0] if len(others) == 1 else None,
    )
    classes = rows[label] if label else [None] * len(rows)
    parts = rows[split] if split else [""] * len(rows)
    notes = [f"files by the column {column}" + (f", classes by {label}" if label else "")]
    if split and not part:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(parts).items())
        notes += [f"all parts in its column {split}: {counts}; {path.name}/… takes one"]
    empty = sum(not name for name in names)
    notes += [f"{empty} rows of its column {column} are empty and name no file"] * bool(empty)
    return (
        [
            (number, str(PurePosixPath(known or name)), given, path.parent / (known or name))
            for number, (known, name, given, own) in enumerate(
                zip(found, names, classes, parts, strict=True), first
            )
            if name and (own == part or not part)
        ],
        notes,
    )


def table_of(path):
    """A table as text, column by column, and the number of its first row; ``ValueError`` for none.

    Empty cells are "". A .csv is parted by what its first line has most of; where that line names a
    file it is no heading.
    """
    import pandas

    text, suffix = text_of(path, "a table of images"), path.suffix.lower()
    skipped = len(re.match(r"(sep=.\r?\n)?", text, re.I)[0])  # as Excel begins
    first_line = text[skipped:].partition("\n")[0]
    sign = "\t" if suffix == ".tsv" else max(",;\t|", key=first_line.count)
    given = {"sep": sign, "dtype": str, "keep_default_na": False, "index_col": False}
    try:
        if suffix in (".csv", ".tsv"):
            rows = pandas.read_csv(io.StringIO(text[skipped:]), **given)
            if headless := any(there(path.parent, name.replace("\\", "/")) for name in rows):
                rows = pandas.read_csv(io.StringIO(text[skipped:]), header=None, **given)
        else:
            entries = text.splitlines() if suffix == ".jsonl" else [text]
            found = [json.loads(entry) for entry in entries if entry.strip()]
            found = found if suffix == ".jsonl" else found[0] if found else []
            rows, headless = pandas.DataFrame(found, dtype=object), False
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no table that can be read ({' '.join(str(error).split())[:80]}); give rows "
            "with a column of paths and perhaps one of labels"
        ) from error
    rows = rows.rename(columns=lambda name: str(name).strip())
    return rows.where(rows.notna(), "").astype(str), 1 + (not headless) + bool(skipped)


def there(root, name):
    """The name as a file below a folder has it, whatever its accents; None for none."""
    forms = (spelled(name, form) for form in ("", "NFC", "NFD"))
    return next((form for form in forms if form and os.path.isfile(root / form)), None)


def split_of(rows):
    """The column of a table that says which part of the data set a row belongs to; None without."""
    return next((name for name in rows if name.lower() in SPLITS), None)


def splits_in(path):
    """The parts that a table names in such a column, sorted; none for a list."""
    rows = table_of(path)[0] if path.suffix.lower() in TABLES else {}
    split = split_of(rows)
    return sorted(set(rows[split]) - {""}) if split else []


def by_name(root):
    """Files below a folder by every end of their path, with and without its ending, that only one
    has: -> name below the folder.
    """
    names = [PurePosixPath(name) for name, _ in tree(root)[0]]
    known = [
        ("/".join((*name.parts[start:-1], last)), str(name))
        for name in names
        for start in range(len(name.parts))
        for last in {name.name, name.stem}
    ]
    times = Counter(key for key, _ in known)
    return {key: name for key, name in known if times[key] == 1}


def name_of(dataset):
    """What runs and tables call a data set: its own name, that of its folder, or of the zip that
    holds it.
    """
    return (container(paths.DATA / dataset) or Path(dataset)).name.removesuffix(".zip")
