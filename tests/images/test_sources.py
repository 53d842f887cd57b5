"""Image files become squares as a viewer shows them, whatever their kind, and those that cannot are
named.
"""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from longtail.images import pixels, places, sources


def file(picture, kind="PNG", **options):
    """The bytes of an image file."""
    with io.BytesIO() as content:
        picture.save(content, kind, **options)
        return content.getvalue()


def halves(wide, high, left=(250, 0, 0), right=(0, 0, 250)):
    """A picture with a red left and a blue right half."""
    picture = Image.new("RGB", (wide, high), right)
    picture.paste(left, (0, 0, wide // 2, high))
    return picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_every_usual_kind_is_read(kind):
    square = pixels.decoded(file(halves(20, 20), kind), 10).astype(int)
    assert (
        square.shape == (10, 10, 3)
        and abs(square[5, 1] - [250, 0, 0]).max() < 12
        and abs(square[5, 8] - [0, 0, 250]).max() < 12
    )


def test_camera_orientation_is_applied():
    notes = Image.Exif()
    notes[0x0112] = 6  # the camera was held so that a viewer turns the picture right, by a quarter
    square = pixels.decoded(file(halves(32, 32), "JPEG", exif=notes), 16)
    assert square[2, 8, 0] > 200 and square[13, 8, 2] > 200


def test_transparent_parts_are_white():
    picture = halves(8, 8).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    assert (pixels.decoded(file(picture), 8)[:, 0] == 255).all() and (
        pixels.decoded(file(picture), 8)[:, 7] == [0, 0, 250]
    ).all()
    palette = file(picture.convert("P"), transparency=picture.convert("P").getpixel((0, 0)))
    assert (pixels.decoded(palette, 8)[:, 0] == 255).all()


def test_sixteen_bits_keep_their_greys():
    ramp = np.arange(256, dtype=np.uint16).repeat(256).reshape(256, 256) * 257
    assert (pixels.decoded(file(Image.fromarray(ramp)), 256) == np.arange(256)[:, None, None]).all()


def greys():
    """A picture of all greys, in [0, 1], that is no plain ramp."""
    return (np.arange(256 * 64) % 251).reshape(64, 256) / 250


def tiff_of(array, kind, samples=1, extra=()):
    """The bytes of an uncompressed TIFF of greys or bands, with the tags that say so."""
    entries = [
        (256, 4, [array.shape[1]]),
        (257, 4, [array.shape[0]]),
        (258, 3, [array.dtype.itemsize * 8] * samples),
        (259, 3, [1]),
        (262, 3, [1 if samples == 1 else 2]),
        (273, 4, [1024]),
        (277, 3, [samples]),
        (278, 4, [array.shape[0]]),
        (279, 4, [array.nbytes]),
        (339, 3, [kind] * samples),
    ] + ([(338, 3, list(extra))] if extra else [])
    entries.sort()
    table, later = b"", b""
    for tag, form, values in entries:
        raw = b"".join(struct.pack("<H" if form == 3 else "<I", value) for value in values)
        inside = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", 512 + len(later))
        table, later = (
            table + struct.pack("<HHI", tag, form, len(values)) + inside,
            later + (raw if len(raw) > 4 else b""),
        )
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0)
    return (head.ljust(512, b"\0") + later).ljust(1024, b"\0") + array.astype(
        array.dtype.newbyteorder("<")
    ).tobytes()


@pytest.mark.parametrize(
    "name, content, depth, tolerance",
    [
        (
            "12 bits in 16",
            lambda g: file(Image.fromarray((g * 4095).astype(np.uint16))),
            "12 bits",
            2,
        ),
        (
            "14 bits that span a little",
            lambda g: file(Image.fromarray((7000 + g * 1500).astype(np.uint16)), "TIFF"),
            "14 bits",
            9,
        ),
        (
            "16 bits in a PGM",
            lambda g: b"P5\n256 64\n65535\n" + (g * 65535).astype(">u2").tobytes(),
            "16 bits",
            2,
        ),
        ("32 bits", lambda g: tiff_of((g * 60000).astype(np.int32), 2), "32 bits", 22),
        ("signed", lambda g: tiff_of((g * 4000 - 1000).astype(np.int16), 2), "16 bits", 9),
        ("more than 16 bits", lambda g: tiff_of((g * 10**8).astype(np.int32), 2), "32 bits", 9),
        ("floats to 1", lambda g: tiff_of(g.astype(np.float32), 3), "floats", 2),
        ("floats to 255", lambda g: tiff_of((g * 255).astype(np.float32), 3), "floats", 2),
        ("other floats", lambda g: tiff_of((g * 40 - 20).astype(np.float32), 3), "floats", 9),
    ],
)
def test_deep_greys_look_as_they_do_in_a_viewer(name, content, depth, tolerance):
    expected = pixels.square(
        Image.fromarray((greys() * 255).astype(np.uint8)).convert("RGB"), 64
    ).astype(int)
    _, shown, remarks, *_ = pixels.opened(content(greys()), 64)
    assert abs(shown.astype(int) - expected).max() <= tolerance + 2 and remarks == {
        f"grey of {depth}"
    }


def deep_png(values):
    """The bytes of a PNG of 16 bits a colour, which PIL does not write: uint16 (h, w, 3)."""
    high, wide, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", wide, high, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_colours_are_not_black(kind, bits):
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    values = (colours * (2**bits - 1) // 255).astype(np.uint16)
    content = deep_png(values) if kind == "PNG" else tiff_of(values, 1, 3)
    _, shown, remarks, *_ = pixels.opened(content, 32)
    assert abs(shown.astype(int) - colours).max() <= 1
    assert remarks == (set() if bits == 16 else {f"colours of {bits} bits"})


def test_values_that_stand_for_no_measurement_do_not_flatten_the_rest():
    heights = np.random.default_rng(0).uniform(0, 800, (32, 32)).astype(np.float32)
    whole, _ = pixels.eight_bits(heights)
    for mark in (-9999, -3.4e38, 3.4e38):
        marked = heights.copy()
        marked[:8] = mark
        shown, _ = pixels.eight_bits(marked)
        assert abs(shown[8:].astype(int) - whole[8:]).max() < 8
        assert (shown[:8] == (0 if mark < 0 else 255)).all()
    few = np.r_[np.full(50, 65535), np.arange(4000)].astype(np.uint16)
    shown, depth = pixels.eight_bits(few)
    assert depth == "12 bits" and shown[0] == 255 and shown[-1] == 249


def test_thirty_two_bits_without_a_sign_are_read_as_such():
    ramp = np.linspace(0, 4e9, 32 * 32).reshape(32, 32).astype(np.uint32)
    _, shown, *_ = pixels.opened(tiff_of(ramp, 1, 1), 32)
    assert (np.diff(shown[:, :, 0].reshape(-1).astype(int)) >= 0).all() and shown[-1, -1, 0] == 255


def test_what_a_file_has_beside_the_picture_shown_is_said():
    pages = {"save_all": True, "append_images": [halves(9, 9, (0, 9, 9))]}
    for kind, words in {"TIFF": "several pages, the first", "WEBP": "animation, the first"}.items():
        *_, remarks, _, _ = pixels.opened(file(halves(9, 9), kind, **pages), 8)
        assert words in " ".join(remarks)
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[254] = 1
    *_, remarks, _, _ = pixels.opened(file(halves(9, 9), "TIFF", tiffinfo=small), 8)
    assert remarks == {"a camera's raw file, of which the preview is shown"}
    assert pixels.opened(file(halves(9, 9), "TIFF"), 8)[2] == set()


def test_floats_that_are_no_numbers_are_black():
    values = greys().astype(np.float32)
    values[:, :20], values[:, 20:40] = np.nan, np.inf
    grey, _ = pixels.eight_bits(values)
    assert not grey[:, :40].any() and grey[:, 40:].max() == 255


def test_bands_that_are_no_mask_hide_nothing():
    colours = np.asarray(halves(32, 32))
    infrared = np.random.default_rng(0).integers(30, 220, (32, 32, 1), dtype=np.uint8)
    for extra in ((), (0,), (2,)):
        content = tiff_of(np.concatenate([colours, infrared], 2), 1, 4, extra)
        assert (pixels.decoded(content, 32) == colours).all(), extra
    clear = halves(32, 32)
    clear.putalpha(0)
    _, shown, remarks, *_ = pixels.opened(file(clear), 32)
    assert (shown == colours).all() and remarks == {"alpha that hides nothing or all"}


def test_animations_that_begin_blank_show_their_first_picture():
    frames = [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16)), halves(16, 16)]
    _, shown, remarks, *_ = pixels.opened(
        file(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50), 16
    )
    assert (
        shown[8, 1, 0] > 200
        and shown[8, 14, 2] > 200
        and remarks == {"animation that begins with a blank frame"}
    )


def test_a_long_strip_takes_little_memory_and_shows_its_middle():
    strip = np.zeros((12000, 1, 3), np.uint8)
    strip[5990:6010] = 200
    tracemalloc.start()
    assert (pixels.square(Image.fromarray(strip), 224)[112] == 200).all()
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert Image.fromarray(strip).size == (1, 12000)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"PK\3\4 and more", "a zip"),
        (b"\x93NUMPY and more", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypqt  film", "a film"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"\0\0\0\x18ftypcrx \0", "a camera's raw file"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"", "empty"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(content, words):
    with pytest.raises(OSError, match=words):
        pixels.decoded(content, 8)


def test_pictures_of_phones_are_read():
    pillow_heif = pytest.importorskip("pillow_heif")
    with io.BytesIO() as content:
        pillow_heif.from_pillow(halves(64, 64)).save(content, format="HEIF", quality=90)
        square = pixels.decoded(content.getvalue(), 16)
    assert square[8, 2, 0] > 200 and square[8, 13, 2] > 200
    assert pixels.decoded(file(halves(64, 64), "AVIF"), 16)[8, 2, 0] > 200


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "LA"])
def test_other_colour_modes_become_three_channels(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert (
        pixels.decoded(file(Image.new("RGB", (9, 9), "white").convert(mode), kind), 8).min() > 250
    )


@pytest.mark.parametrize("wide, high", [(1, 1), (3, 2), (2, 90)])
def test_very_small_pictures_are_enlarged(wide, high):
    assert (pixels.decoded(file(Image.new("RGB", (wide, high), (9, 8, 7))), 16) == [9, 8, 7]).all()


def test_large_photographs_reduced_while_decoded_look_as_if_reduced_after():
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8))
    content = file(coarse.resize((1500, 1200), Image.BICUBIC), "JPEG", quality=95)
    after = pixels.square(Image.open(io.BytesIO(content)).convert("RGB"), 32).astype(int)
    assert abs(pixels.decoded(content, 32) - after).mean() < 2  # one pixel aside makes it 19


def test_every_unreadable_file_is_named_with_its_reason(tmp_path):
    whole, short = file(halves(64, 64), "JPEG"), file(halves(64, 64), "PNG")
    contents = {"a": whole, "b": whole[:300], "c": b"", "d": b"text", "e": short[:80], "f": short}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [(name, (tmp_path / name).read_bytes) for name in (*contents, "gone")]
    squares, names, broken = sources.read_images(files, 8)
    assert names == ["a", "f"] and len(squares) == 2
    assert [line.split()[0] for line in broken] == ["b", "c", "d", "e", "gone"]
    assert [broken[1], broken[2], broken[4]] == [
        "c (empty)",
        "d (4 bytes of no known kind)",
        "gone (No such file or directory)",
    ]


def test_whatever_a_decoder_raises_names_the_file(monkeypatch):
    def foreign(*_):
        raise struct.error("unpack requires 4 bytes")

    content = file(halves(8, 8))
    monkeypatch.setattr(pixels.ImageOps, "exif_transpose", foreign)
    squares, *found = sources.read_images([("odd", lambda: content)], 8)
    assert squares.shape == (0, 3, 8, 8) and found == [[], ["odd (unpack requires 4 bytes)"]]


def test_images_behind_a_password_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", file(halves(8, 8)))
        archive.writestr("b.png", file(halves(8, 8)))
    content = bytearray((tmp_path / "some.zip").read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1  # the flag that says encrypted
    (tmp_path / "some.zip").write_bytes(content)
    _, names, [line] = sources.read_images(places.files_of(tmp_path / "some.zip").files, 8)
    assert names == ["b.png"] and line.startswith(
        "a.png (File 'a.png' is encrypted, password required"
    )
