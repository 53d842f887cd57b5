"""Every place that people name is read as what it is; what is left out or absent is said."""

import io
import os
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from longtail.images import archives, places, sources


def picture(level):
    """The bytes of a small PNG of one grey."""
    with io.BytesIO() as content:
        Image.fromarray(np.full((6, 6, 3), level, np.uint8)).save(content, "PNG")
        return content.getvalue()


def write(root, names):
    """Small pictures of different greys under these names."""
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(level))
    return root


def names_in(path):
    return [name for name, _ in places.files_of(path).files]


# ---- litter

SYSTEM = [
    "Thumbs.db",
    "thumbs.DB",
    "Desktop.ini",
    "ehthumbs_vista.db",
    "Icon\r",
    "Picasa.ini",
    "SyncToy_8a.dat",
    ".DS_Store",
    "._1.png",
    "@eaDir/1.png/SYNOPHOTO_THUMB_S.jpg",
    "$RECYCLE.BIN/$R1.jpg",
    "__MACOSX/._x.jpg",
    ".Trash-1000/1.png",
    "#recycle/2.png",
    "System Volume Information/1.png",
    "lost+found/1.png",
    "below/@EADIR/2.png",
    "@Recycle/1.png",
    "@__thumb/1.png",
    "1.png@SynoResource",
    "1.png@SynoEAStream",
    "RECYCLED/1.png",
    "Network Trash Folder/1.png",
    "Temporary Items/1.png",
    "_vti_cnf/1.png",
    "1.png:Zone.Identifier",
    "~$list.docx",
]
BESIDE = ["IMG_1.AAE", "IMG_1.xmp", "IMG_2.MOV", "labels.csv", "README.txt", "annotations.json"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_what_tools_leave_is_left_out_and_counted_and_the_unknown_is_kept(tmp_path, packed):
    write(tmp_path / "pool", ["1.png", "below/2.png", "odd.dat", *SYSTEM, *BESIDE])
    place = tmp_path / "pool"
    if packed:
        with zipfile.ZipFile(place := tmp_path / "pool.zip", "w") as archive:
            for file in sorted((tmp_path / "pool").rglob("*")):
                archive.write(file, file.relative_to(tmp_path / "pool"))
    found = places.files_of(place)
    assert [name for name, _ in found.files] == [
        "1.png",
        "below/2.png",
        "odd.dat",
    ] and found.folders == {"below"}
    said = " ".join(found.notes)
    assert (
        f"{len(SYSTEM)} " in said
        and "that systems leave" in said
        and "1 .aae, 1 .csv, 1 .json, 1 .mov, 1 .txt, 1 .xmp" in said
    )


def test_order_is_that_of_sorted_paths(tmp_path):
    root = write(
        tmp_path, ["b.png", "b/2.png", "b/10.png", "b-c/1.png", "B/1.png", "a/z/1.png", "a/z.png"]
    )
    expected = [
        path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()
    ]
    assert names_in(root) == expected


# ---- links


def test_links_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "disk", ["2021/1.png", "2022/2.png"])
    pool = write(tmp_path / "pool", ["here/0.png"])
    for name, target in {
        "2021": "../disk/2021",
        "again": "../disk/2021",
        "all": "../disk",
        "loop": "..",
        "here/self": ".",
    }.items():
        (pool / name).symlink_to(target)
    (pool / "one.png").symlink_to("../disk/2022/2.png")
    found = places.files_of(pool)
    assert [name for name, _ in found.files] == [
        "2021/1.png",
        "all/2022/2.png",
        "here/0.png",
        "one.png",
    ]
    assert sorted(found.notes) == [
        "links to folders reached twice, read once: 1",
        "links to folders that lead back to a folder above them, not followed: 2",
    ]


def test_devices_pipes_and_circles_of_links_are_no_pictures(tmp_path):
    pool = write(tmp_path / "pool", ["1.png"])
    os.mkfifo(pool / "pipe.png")
    for name, target in {
        "device.png": "/dev/zero",
        "to_pipe.png": "pipe.png",
        "self.png": "self.png",
        "a": "b",
        "b": "a",
    }.items():
        (pool / name).symlink_to(target)
    assert names_in(pool) == ["1.png", "a", "b", "self.png"]
    _, _, broken = sources.read_images(places.files_of(pool).files, 4)
    assert all("Too many levels of symbolic links" in line for line in broken) and len(broken) == 3
    (tmp_path / "mine.txt").write_text("pool/device.png\npool/pipe.png\n")
    _, _, broken = sources.read_images(places.files_of(tmp_path / "mine.txt").files, 4)
    assert len(broken) == 2 and all("pipe or device" in line for line in broken)


def test_folders_that_cannot_be_opened_are_said(tmp_path, monkeypatch):
    pool, scan = write(tmp_path / "pool", ["1.png", "closed/2.png"]), os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    [note] = places.files_of(pool).notes
    assert "1 folders cannot be opened, such as" in note and "Permission denied" in note


def test_linked_class_folders_are_classes(tmp_path):
    write(tmp_path / "store", ["ant/1.png", "bee/1.png"])
    (tmp_path / "classes").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "classes" / name).symlink_to(f"../store/{name}")
    assert sources.folder(tmp_path / "classes", 4).labels.tolist() == [0, 1]


def test_links_to_absent_content_are_named_with_the_remedy(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/1.png").symlink_to("../.git/annex/objects/1.png")
    _, _, [line] = sources.read_images(places.files_of(tmp_path / "pool").files, 4)
    assert line == f"1.png ({archives.ABSENT})" and "git annex get" in line


def test_names_that_are_no_text_can_be_read_and_written(tmp_path):
    (tmp_path / "pool").mkdir()
    with open(os.fsencode(tmp_path / "pool") + b"/caf\xe9.png", "wb") as file:
        file.write(picture(3))
    [(name, read)] = places.files_of(tmp_path / "pool").files
    assert name == "caf\\xe9.png" and name.encode() and read() == picture(3)
    write(tmp_path / "pool", ["one\nof two lines.png", "plain.png", "tab\t.png"])
    [note] = places.files_of(tmp_path / "pool").notes
    assert note.startswith("2 names are no UTF-8 and shown with \\x, or have line breaks")


# ---- lists

ODD = [
    "COVID 1",
    "page 12 of 3",
    "my photo.jpg",
    "ends in blank .jpg",
    "a 7 b",
    "Vögel/Möwe 3.jpg",
    "100%.jpg",
    "#hash.jpg",
    "tab\there.jpg",
    "-5 degrees.jpg",
    "comma, and.jpg",
]
LINES = [f"pool/{name}" for name in ODD]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).encode(),
        "\r\n".join(LINES).encode("utf-8-sig"),
        "\r\n".join(LINES).encode("utf-16"),
        "\n".join(LINES).encode("cp1252"),
        "".join(f'"{line}"\n' for line in LINES).encode(),
        "\n".join(line.replace("/", "\\") for line in LINES).encode(),
        "".join(f"./{line}\n" for line in LINES).encode(),
        ("# mine, 2024\n" + "\n".join(LINES) + "\n\n   \n").encode(),
        "\n".join(LINES + LINES).encode(),
        "".join(f"{line} {n % 3}\n" for n, line in enumerate(LINES)).encode(),
        "".join(f"{line},{n % 3}\n" for n, line in enumerate(LINES)).encode(),
        "".join(f"{n % 3} {line}\n" for n, line in enumerate(LINES)).encode(),
        "".join(f"{n}\t{n % 3}\t{line}\n" for n, line in enumerate(LINES)).encode(),
        unicodedata.normalize("NFD", "\n".join(LINES)).encode(),
        b"pool\n",
    ],
    ids=[
        "plain",
        "crlf_bom",
        "utf16",
        "cp1252",
        "quoted",
        "backslashes",
        "dotslash",
        "comments",
        "twice",
        "labelled",
        "commas",
        "label_first",
        "mxnet",
        "macos",
        "folder",
    ],
)
@pytest.mark.parametrize("ending", ["txt", "TXT", "lst"])
def test_lists_are_read_however_they_were_written(tmp_path, content, ending):
    write(tmp_path / "pool", ODD)
    (tmp_path / f"mine.{ending}").write_bytes(content)
    found = places.files_of(tmp_path / f"mine.{ending}")
    assert sorted(name for name, _ in found.files) == sorted(LINES) and all(
        read() for _, read in found.files
    )
    assert found.notes == (
        [f"{len(LINES)} paths are listed twice and count once"]
        if content.count(b"COVID") == 2
        else []
    )


def test_labels_of_a_list_are_read_where_every_line_has_one(tmp_path):
    write(tmp_path, ["a 1.png", "b.png"])
    (tmp_path / "mine.txt").write_text("a 1.png 3\nb.png 0\n")
    assert places.files_of(tmp_path / "mine.txt").labels == {"a 1.png": "3", "b.png": "0"}
    (tmp_path / "mine.txt").write_text("a 1.png 3\nb.png\n")
    assert places.files_of(tmp_path / "mine.txt").labels == {}
    assert places.files_of(tmp_path / "mine.txt").notes == [
        "1 of 2 have no label, so that no label counts"
    ]
    (tmp_path / "mine.txt").write_text("a 1.png 3\nb.png 0\na 1.png 2\n")
    again = places.files_of(tmp_path / "mine.txt")
    assert again.labels == {"a 1.png": "3", "b.png": "0"}
    assert "1 of them have another label there; the first one counts" in again.notes


# ---- tables


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na/1.png,NA\na/2.png,None\nb/1.png,x\n",
        "a/1.png,NA\na/2.png,None\nb/1.png,x\n",  # no heading
        "sep=;\r\nfile;label\r\na/1.png;NA\r\na/2.png;None\r\nb/1.png;x\r\n",
        ",file,label,\n0,a/1.png,NA,\n1,a/2.png,None,\n2,b/1.png,x,\n",
        'file;label\n"a\\1.png";NA\n"a\\2.png";None\n"b\\1.png";x\n',
    ],
    ids=["plain", "headless", "excel", "index", "windows"],
)
def test_tables_are_read_however_they_were_written(tmp_path, content):
    write(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    (tmp_path / "mine.csv").write_text(content)
    place = places.files_of(tmp_path / "mine.csv")
    assert place.labels == {"a/1.png": "NA", "a/2.png": "None", "b/1.png": "x"}
    assert all(read() for _, read in place.files)


def test_a_table_of_one_column_is_a_list(tmp_path):
    write(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "mine.csv").write_text("path\nb/1.png\na/1.png\n")
    assert names_in(tmp_path / "mine.csv") == ["b/1.png", "a/1.png"]


def test_a_path_in_a_table_is_never_taken_for_another_file_of_that_name(tmp_path):
    write(tmp_path, ["a/1.png", "b/1.png", "b/2.png"])
    (tmp_path / "mine.csv").write_text("file,label\nlost/1.png,x\na/1.png,y\n2,z\n")
    _, _, [broken] = sources.read_images(places.files_of(tmp_path / "mine.csv").files, 4)
    assert broken == "lost/1.png (no such file, line 2 of mine.csv)"
    assert places.files_of(tmp_path / "mine.csv").labels == {
        "lost/1.png": "x",
        "a/1.png": "y",
        "b/2.png": "z",
    }


def test_a_lost_path_of_one_part_is_not_the_file_of_another(tmp_path):
    write(tmp_path, ["a.png", "test/5.png"])
    rows = "path,label,split\na.png,cat,train\ntrain/5.png,dog,train\n5,cat,test\n"
    (tmp_path / "mine.csv").write_text(rows)
    assert names_in(tmp_path / "mine.csv/train") == ["a.png", "train/5.png"]
    assert names_in(tmp_path / "mine.csv/test") == ["test/5.png"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("mine.csv", "path,label\na.png,cat\n,dog\n"),
        ("mine.csv", "path,label\na.png,cat\n . ,dog\n"),
        ("mine.json", '[{"path": "a.png", "label": "cat"}, {"path": null, "label": "dog"}]'),
    ],
)
def test_a_cell_that_names_no_file_is_no_folder(tmp_path, name, content):
    write(tmp_path, ["a.png", "b.png", "c/d.png"])
    (tmp_path / name).write_text(content)
    place = places.files_of(tmp_path / name)
    assert {name: label for name, label in place.labels.items() if name != "."} == {"a.png": "cat"}
    if "." in place.labels:
        _, _, [broken] = sources.read_images(place.files, 4)
        assert broken == ". (a folder, pipe or device)"
    else:
        assert "1 rows of its column path are empty and name no file" in place.notes


def test_a_table_without_labels_in_some_rows_says_so(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    (tmp_path / "mine.csv").write_text("file,label\n1.png,\n2.png,x\n")
    place = places.files_of(tmp_path / "mine.csv")
    assert not place.labels and "1 of 2 have no label, so that no label counts" in place.notes


@pytest.mark.parametrize("content", ["", "\n\n", "path,label\n"])
def test_an_empty_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(ValueError, match=r"mine\.csv (is no table|has the columns)"):
        places.files_of(tmp_path / "mine.csv")


def test_a_part_of_a_table_is_a_place(tmp_path):
    write(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "mine.csv").write_text(
        "file,label,split\n1.png,a,train\n2.png,b,test\n3.png,c,train\n"
    )
    assert places.files_of(tmp_path / "mine.csv/train").labels == {"1.png": "a", "3.png": "c"}
    assert len(names_in(tmp_path / "mine.csv")) == 3
    assert "all parts in its column split: 2 train, 1 test; mine.csv/… takes one" in (
        places.files_of(tmp_path / "mine.csv").notes
    )
    with pytest.raises(ValueError, match="has no part dev"):
        places.files_of(tmp_path / "mine.csv/dev")


def test_a_lost_name_with_a_blank_is_not_the_folder_it_begins_with(tmp_path):
    write(tmp_path, ["a.png", "birds/1.png"])
    (tmp_path / "mine.txt").write_text("a.png\nbirds 7.jpg\n")
    _, _, [line] = sources.read_images(places.files_of(tmp_path / "mine.txt").files, 4)
    assert line == "birds 7.jpg (no such file, line 2 of mine.txt)"


def test_lines_that_name_nothing_are_named_as_written(tmp_path):
    write(tmp_path, ["a.png"])
    (tmp_path / "mine.txt").write_text("a.png\nno such thing.png\n")
    _, _, [line] = sources.read_images(places.files_of(tmp_path / "mine.txt").files, 4)
    assert line == "no such thing.png (no such file, line 2 of mine.txt)"


# ---- archives and what is no place


def test_paths_into_a_zip_are_those_that_unzip_prints(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("top/a/1.png", picture(1))
        archive.writestr("top/b/2.png", picture(2))
    assert names_in(tmp_path / "all.zip/top/a") == names_in(tmp_path / "all.zip/a") == ["1.png"]


def test_a_tar_is_as_good_as_a_folder(tmp_path):
    root = write(tmp_path / "pool", ["a/1.png", "a/2.png"])
    with tarfile.open(tmp_path / "pool.tar", "w") as archive:
        archive.add(root, "pool")
    assert sources.folder(tmp_path / "pool.tar", 4).digest == sources.folder(root, 4).digest


@pytest.mark.parametrize("name", ["photo.jpg", "shards.tar.gz"])
def test_files_that_are_no_place_are_refused_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(b"some bytes")
    with pytest.raises(ValueError, match="is no place of images; give a folder, a .zip"):
        places.files_of(tmp_path / name)


def test_a_table_without_a_column_of_files_says_what_it_has(tmp_path):
    (tmp_path / "labels.csv").write_text("number,label\n1,a\n2,b\n")
    with pytest.raises(
        ValueError, match="has the columns number, label, and none names files below"
    ):
        places.files_of(tmp_path / "labels.csv")
