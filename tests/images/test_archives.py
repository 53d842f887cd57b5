"""Images that lie many to a file are those of the folder they came from; what is wrong with a
member is named.
"""

import io
import json
import os
import resource
import tarfile
import threading
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.images import archives, datasets, memory, pixels, places, sources

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
WORDS = ["ant", "bee", "ant", "bee", "bee", "cat"]


def png(values):
    """The bytes of a PNG."""
    with io.BytesIO() as content:
        Image.fromarray(values).save(content, "PNG")
        return content.getvalue()


def zipped(path, members, method=zipfile.ZIP_STORED):
    """A zip of name, bytes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def changed(path, local, central, value):
    """A zip of one member whose two headers have another byte at these places."""
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        content[content.index(mark) + place] = value
    path.write_bytes(content)


# ---- what is read


def tar(path, numbers=(0, 1, 2, 3, 4, 5)):
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for ending, content in (
                ("png", png(PICTURES[number])),
                ("cls", str(WORDS.index(WORDS[number])).encode()),
                ("json", b"{}"),
            ):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def parquet(path, numbers=(0, 1, 2, 3, 4, 5), plain=False):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    images = [png(PICTURES[number]) for number in numbers]
    table = arrow.table(
        {
            "image": images
            if plain
            else [
                {"bytes": content, "path": f"{number:05d}.png"}
                for number, content in zip(numbers, images, strict=True)
            ],
            "label": [sorted(set(WORDS)).index(WORDS[number]) for number in numbers],
        }
    )
    known = {"info": {"features": {"label": {"names": sorted(set(WORDS)), "_type": "ClassLabel"}}}}
    writer.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(known)}), path, row_group_size=4
    )


WAYS = {
    "webdataset": ("a.tar", tar),
    "datasets": ("a.parquet", parquet),
    "bytes in a column": ("a.parquet", lambda path: parquet(path, plain=True)),
    "array": ("a.npy", lambda path: np.save(path, PICTURES)),
    "channels first": ("a.npy", lambda path: np.save(path, PICTURES.transpose(0, 3, 1, 2))),
    "arrays": (
        "a.npz",
        lambda path: np.savez(
            path, x_train=PICTURES, y_train=[WORDS.index(word) for word in WORDS], y_test=range(6)
        ),
    ),
    "MedMNIST": (
        "a.npz",
        lambda path: np.savez_compressed(
            path,
            train_images=PICTURES,
            test_labels=np.zeros((6, 1), int),
            train_labels=np.array([WORDS.index(word) for word in WORDS])[:, None],
        ),
    ),
}


@pytest.mark.parametrize("name, write", WAYS.values(), ids=WAYS)
def test_pictures_and_labels_are_those_that_were_written(tmp_path, name, write):
    write(tmp_path / name)
    found = sources.folder(tmp_path / name, 8)
    assert torch.equal(found.images, torch.from_numpy(PICTURES).permute(0, 3, 1, 2)) and list(
        found.names
    ) == sorted(found.names)
    if name == "a.npy":
        assert found.labels.unique().tolist() == [sources.UNKNOWN]
    else:
        assert found.labels.tolist() == [0, 1, 0, 1, 1, 2]
    stamps = {read.stamp() for _, read in places.files_of(tmp_path / name).files}
    assert len(stamps) == 6


@pytest.mark.parametrize("write, name", [(tar, "train-{}.tar"), (parquet, "train-{}-of-2.parquet")])
def test_a_folder_of_shards_is_one_place_and_says_the_classes(tmp_path, write, name):
    write(tmp_path / name.format(0), range(4))
    write(tmp_path / name.format(1), range(4, 6))
    images, classes = datasets.labelled(tmp_path, 8, False)
    assert len(images) == 6 and images.labels.tolist() == [0, 1, 0, 1, 1, 2] and len(classes) == 3
    assert (
        images.names[4].startswith(f"{name.format(1)}/00004")
        or images.names[4] == f"{name.format(1)}/00004.png"
    )


def test_shards_without_labels_are_no_classes(tmp_path):
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", PICTURES[number : number + 2])
    assert sources.folder(tmp_path, 8).labels.tolist() == [sources.UNKNOWN] * 4


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 64, dtype=np.float32),
        np.linspace(0, 65535, 64).astype(np.uint16),
        np.linspace(0, 255, 64).astype(np.uint8),
    ],
    ids=["floats", "16 bits", "8 bits"],
)
@pytest.mark.parametrize("bands", [(), (3,)], ids=["grey", "colours"])
def test_arrays_of_any_depth_look_alike(tmp_path, values, bands):
    ramp = np.broadcast_to(values.reshape((1, 8, 8) + (1,) * len(bands)), (2, 8, 8, *bands))
    np.save(tmp_path / "a.npy", ramp)
    shown = sources.folder(tmp_path / "a.npy", 8).images[1, 1].flatten().float()
    assert (shown - torch.linspace(0, 255, 64)).abs().max() <= 2


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros((5, 9), np.float32), r"a.npy: no pictures .* among float32 \(5, 9\)"),
        (np.zeros((5, 9, 9), complex), r"among complex128 \(5, 9, 9\)"),
        (np.array([{}]), "a.npy cannot be read as .npy"),
    ],
)
def test_arrays_without_pictures_say_what_they_have(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=words):
        places.files_of(tmp_path / "a.npy")


# ---- what is wrong is named


@pytest.mark.parametrize("shape", [(9, 7, 3), (9, 7, 4), (3, 9, 7)])
def test_one_picture_a_file_is_one_picture(tmp_path, shape):
    (tmp_path / "pool").mkdir()
    for k in range(3):
        np.save(tmp_path / f"pool/{k}.npy", np.full(shape, 50 * k, np.uint8))
    pictures, names, broken = sources.read_images(places.files_of(tmp_path / "pool").files, 8)
    assert len(names) == 3 and not broken
    if shape[2] != 4:  # of which the fourth is alpha
        assert pictures.flatten(1).amax(1).tolist() == [0, 50, 100]


def test_links_in_a_tar_lead_to_what_they_mean(tmp_path):
    tar(tmp_path / "some.tar", range(2))
    with tarfile.open(tmp_path / "some.tar", "a") as archive:
        for name, kind, target in [
            ("hard.png", tarfile.LNKTYPE, "00000.png"),
            ("deep/soft.png", tarfile.SYMTYPE, "../00001.png"),
            ("deep/twice.png", tarfile.SYMTYPE, "soft.png"),
            ("lost.png", tarfile.SYMTYPE, "nowhere.png"),
            ("loop.png", tarfile.SYMTYPE, "loop.png"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    found = dict(places.files_of(tmp_path / "some.tar").files)
    assert found["hard.png"]() == found["00000.png"]() == png(PICTURES[0])
    assert found["deep/soft.png"]() == found["deep/twice.png"]() == png(PICTURES[1])
    for name in ("lost.png", "loop.png"):
        with pytest.raises(OSError, match="a link to nothing in the tar"):
            found[name]()


def test_a_zip_with_the_separators_of_windows_has_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name in ("birds\\crow\\1.png", "birds\\owl\\2.png", "birds\\..\\..\\3.png"):
            member = zipfile.ZipInfo("x")
            member.filename = name
            archive.writestr(member, png(np.zeros((4, 4, 3), np.uint8)))
    place = places.files_of(tmp_path / "some.zip")
    assert place.folders >= {"crow", "owl"}
    read = dict(place.files)
    assert read["crow/1.png"]()[:4] == b"\x89PNG"
    with pytest.raises(OSError, match="leads out of the archive"):
        read["../../3.png"]()


def test_bytes_of_other_columns_are_no_pictures(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    picture = png(np.zeros((4, 4, 3), np.uint8))
    table = {"md5": [b"0" * 16] * 2, "image": [picture, None]}
    files.write_table(arrow.table(table), tmp_path / "a.parquet")
    (_, good), (_, lacking) = places.files_of(tmp_path / "a.parquet").files
    assert good() == picture
    with pytest.raises(OSError, match="the row has no bytes of a picture"):
        lacking()
    several = {"images": [[{"bytes": picture, "path": "1.png"}] * 2]}
    files.write_table(arrow.table(several), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="b.parquet: its columns images hold lists; write one"):
        places.files_of(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"\x1f\x8b\x08", "a gzip archive and no place"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive and no place"),
        (b"any bytes", "is no place"),
    ],
)
def test_a_place_is_named_for_what_it_is(tmp_path, content, kind):
    (tmp_path / "pool.bin").write_bytes(content)
    with pytest.raises(ValueError, match=kind):
        places.files_of(tmp_path / "pool.bin")


def spoilt(path):
    """A zip whose middle bytes are others."""
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


WRONG = {  # how a zip of one member, a.png, is spoilt, and what is said of the member
    "method": (
        lambda path: changed(zipped(path, [("a.png", png(PICTURES[0]))]), 8, 10, 9),
        "packed by a method that Python cannot unpack",
    ),
    "password": (
        lambda path: changed(zipped(path, [("a.png", png(PICTURES[0]))]), 6, 8, 1),
        "File 'a.png' is encrypted",
    ),
    "LZMA": (
        lambda path: spoilt(zipped(path, [("a.png", png(PICTURES[0]))], zipfile.ZIP_LZMA)),
        "a.png (",
    ),
    "deflate": (
        lambda path: spoilt(zipped(path, [("a.png", png(PICTURES[0]) * 4)], zipfile.ZIP_DEFLATED)),
        "a.png (",
    ),
    "outside": (
        lambda path: zipped(path, [("../../a.png", png(PICTURES[0]))]),
        "its name leads out of the archive",
    ),
    "absolute": (
        lambda path: zipped(path, [("/etc/a.png", png(PICTURES[0]))]),
        "its name leads out of the archive",
    ),
    "zeros": (
        lambda path: zipped(path, [("a.png", bytes(2**26 + 1))], zipfile.ZIP_DEFLATED),
        "64 MB, memory: 1 GB allows 64 MB for one",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "spoil, words",
    [
        *WRONG.values(),
        (lambda path: zipped(path, [("a.png", b"1"), ("a.png", b"2")]), "2 members have this name"),
    ],
    ids=[*WRONG, "twice"],
)
def test_what_is_wrong_with_a_member_names_it_and_may_be_skipped(
    tmp_path, monkeypatch, capsys, spoil, words
):
    monkeypatch.setattr(memory.BUDGET, "total", 2**30)
    spoil(tmp_path / "some.zip")
    archives.unzipped.cache_clear()
    with zipfile.ZipFile(tmp_path / "some.zip", "a") as archive:
        archive.writestr("b/ok.png", png(PICTURES[1]))
    with pytest.raises(
        ValueError, match="some.zip: 1 of 2 files are no readable images: .*a.png"
    ) as caught:
        sources.folder(tmp_path / "some.zip", 8)
    assert words in str(caught.value) and len(str(caught.value)) < 400
    assert sources.folder(tmp_path / "some.zip", 8, skip_broken=True).names == ("b/ok.png",)
    lazy = sources.files(tmp_path / "some.zip", 8)
    with pytest.raises(ValueError, match="no readable image: .*a.png .*some.zip"):
        lazy.images[:]
    with pytest.raises(ValueError, match="no readable image: .*a.png .*some.zip"):
        lazy.digest  # noqa: B018


def test_a_zip_that_hides_members_is_refused(tmp_path):
    """One bit makes the comment of the second member so long that the others lie in it."""
    path = zipped(
        tmp_path / "some.zip", [(f"{number}.png", png(PICTURES[number])) for number in range(4)]
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2", content.index(b"PK\1\2") + 4) + 33] ^= 1
    path.write_bytes(content)
    assert len(zipfile.ZipFile(path).namelist()) == 2
    archives.unzipped.cache_clear()
    with pytest.raises(
        ValueError, match=r"some\.zip cannot be read as \.zip \(2 members, where it says 4\)"
    ):
        sources.folder(path, 8, skip_broken=True)


def test_a_zip_with_a_comment_is_read(tmp_path):
    path = zipped(tmp_path / "some.zip", [("0.png", png(PICTURES[0]))])
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"from the camera"
    archives.unzipped.cache_clear()
    assert len(sources.folder(path, 8)) == 1


def test_a_member_that_is_larger_than_it_says_is_cut_there(tmp_path):
    path = zipped(tmp_path / "some.zip", [("a.png", bytes(2**20))], zipfile.ZIP_DEFLATED)
    changed(path, 24, 26, 0)
    changed(path, 22, 24, 200)  # the sizes without packing: 200 bytes and nothing above
    [(_, read)] = places.files_of(path).files
    with pytest.raises(OSError, match="CRC|cut"):
        read()


# ---- limits before decoding


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"\xc5\xd0\xd3\xc6 more"],
)
def test_drawings_are_no_pictures_and_named(monkeypatch, content):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)
    with pytest.raises(OSError, match="a PostScript drawing"):
        pixels.decoded(content, 8)


def test_pictures_that_would_take_too_much_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(memory.BUDGET, "total", 2**30)
    header = png(np.zeros((1, 1, 4), np.uint8))
    large = header[:16] + (13300).to_bytes(4, "big") * 2 + header[24:29] + b"\0\0\0\0" + header[33:]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    large = large[:29] + zlib.crc32(large[12:29]).to_bytes(4, "big") + large[33:]
    with pytest.raises(
        OSError, match="13300 × 13300 pixels take 3.29 GB to decode, memory: 1 GB allows 0.5 GB"
    ):
        pixels.decoded(large, 8)


def test_a_strip_of_a_hundred_thousand_pixels_is_read(monkeypatch):
    assert pixels.decoded(png(np.full((100_000, 1), 7, np.uint8)), 16).shape == (16, 16, 3)


def test_threads_wait_for_each_others_memory():
    budget, order = memory.Budget(200), []

    def other():
        with budget.decoding(60, "a picture"):
            order.append("second")

    with budget.decoding(60, "a picture"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and budget.taken == 0


@pytest.mark.parametrize(
    "text, count",
    [("4 GB", 4 * 2**30), ("2GiB", 2**31), ("2500 MB", 2500 * 2**20), ("2.5 gb", int(2.5 * 2**30))],
)
def test_memory_is_read_as_people_write_it(text, count):
    assert memory.size_of(text) == count


@pytest.mark.parametrize("text", ["4", "four GB", "512 MB", "1.9 GB", "0 GB", "", "-1 GB"])
def test_memory_that_is_none_or_too_little_is_refused(text):
    with pytest.raises(ValueError, match="memory is .*give 2 GB or more"):
        memory.size_of(text)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_tar_that_is_cut_between_members_is_refused(tmp_path, place):
    tar(tmp_path / "some.tar")
    with tarfile.open(tmp_path / "some.tar") as archive:
        start = archive.getmembers()[3 * place].offset
    whole = (tmp_path / "some.tar").read_bytes()
    for end in (start, start + 200):  # 200: within the head of the next
        (tmp_path / "some.tar").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=f"it is cut: no end behind {3 * place} members"):
            archives.contents(tmp_path / "some.tar")


def test_texts_and_images_that_a_table_repeats_are_not_written_out(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    monkeypatch.setattr(archives.BUDGET, "total", 2**28)
    same = arrow.array(np.zeros(1000, np.int32))
    values = [arrow.array([bytes(10**6)]), arrow.array(["x" * 10**6])]
    columns = [arrow.DictionaryArray.from_arrays(same, value) for value in values]
    for names, rows in (
        ("some.parquet", arrow.StructArray.from_arrays(columns, ["bytes", "path"])),
        ("plain.parquet", columns[0]),
    ):
        table = arrow.table({"image": rows})
        writer.write_table(
            table, tmp_path / names, dictionary_pagesize_limit=2**24, store_schema=False
        )
    with pytest.raises(ValueError, match="allows 32 MB for the texts of image.path"):
        archives.contents(tmp_path / "some.parquet")
    packed, _ = archives.contents(tmp_path / "plain.parquet")  # a gigabyte, written out
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert packed["000999"]() == bytes(10**6)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_devices_and_pipes_are_never_read(tmp_path):
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe.png").symlink_to("pipe")
    for name in ("zero.png", "pipe.png"):
        with pytest.raises(OSError, match="a folder, pipe or device"):
            archives.whole_file(tmp_path / name)
