"""Image files become squares as a viewer shows them, whatever their kind, and those that cannot are named."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from longtail import sources


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
    square = sources.decoded(file(halves(20, 20), kind), 10).astype(int)
    assert square.shape == (10, 10, 3) and abs(square[5, 1] - [250, 0, 0]).max() < 12 and abs(square[5, 8] - [0, 0, 250]).max() < 12


def test_camera_orientation_is_applied():
    notes = Image.Exif()
    notes[0x0112] = 6       # the camera was held so that a viewer turns the picture right, by a quarter
    square = sources.decoded(file(halves(32, 32), "JPEG", exif=notes), 16)
    assert square[2, 8, 0] > 200 and square[13, 8, 2] > 200


def test_transparent_parts_are_white():
    picture = halves(8, 8).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    assert (sources.decoded(file(picture), 8)[:, 0] == 255).all() and (sources.decoded(file(picture), 8)[:, 7] == [0, 0, 250]).all()
    palette = file(picture.convert("P"), transparency=picture.convert("P").getpixel((0, 0)))
    assert (sources.decoded(palette, 8)[:, 0] == 255).all()


def test_sixteen_bits_keep_their_greys():
    ramp = np.arange(256, dtype=np.uint16).repeat(256).reshape(256, 256) * 257
    assert (sources.decoded(file(Image.fromarray(ramp)), 256) == np.arange(256)[:, None, None]).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "LA"])
def test_other_colour_modes_become_three_channels(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert sources.decoded(file(Image.new("RGB", (9, 9), "white").convert(mode), kind), 8).min() > 250


@pytest.mark.parametrize("wide, high", [(1, 1), (3, 2), (2, 90)])
def test_very_small_pictures_are_enlarged(wide, high):
    assert (sources.decoded(file(Image.new("RGB", (wide, high), (9, 8, 7))), 16) == [9, 8, 7]).all()


def test_large_photographs_reduced_while_decoded_look_as_if_reduced_after():
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8))
    content = file(coarse.resize((1500, 1200), Image.BICUBIC), "JPEG", quality=95)
    after = sources.square(Image.open(io.BytesIO(content)).convert("RGB"), 32).astype(int)
    assert abs(sources.decoded(content, 32) - after).mean() < 2      # one pixel aside makes it 19


def test_every_unreadable_file_is_named_with_its_reason(tmp_path):
    whole, short = file(halves(64, 64), "JPEG"), file(halves(64, 64), "PNG")
    contents = {"a": whole, "b": whole[:300], "c": b"", "d": b"text", "e": short[:80], "f": short}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [(name, (tmp_path / name).read_bytes) for name in (*contents, "gone")]
    squares, names, broken = sources.read_images(files, 8)
    assert names == ["a", "f"] and len(squares) == 2
    assert [line.split()[0] for line in broken] == ["b", "c", "d", "e", "gone"]
    assert [broken[1], broken[2], broken[4]] == ["c (empty)", "d (4 bytes of no known kind)", "gone (No such file or directory)"]


def test_whatever_a_decoder_raises_names_the_file(monkeypatch):
    def foreign(*_):
        raise struct.error("unpack requires 4 bytes")
    content = file(halves(8, 8))
    monkeypatch.setattr(sources.ImageOps, "exif_transpose", foreign)
    squares, *found = sources.read_images([("odd", lambda: content)], 8)
    assert squares.shape == (0, 3, 8, 8) and found == [[], ["odd (unpack requires 4 bytes)"]]


def test_images_behind_a_password_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", file(halves(8, 8)))
        archive.writestr("b.png", file(halves(8, 8)))
    content = bytearray((tmp_path / "some.zip").read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1       # the flag that says encrypted
    (tmp_path / "some.zip").write_bytes(content)
    _, names, [line] = sources.read_images(sources.files_of(tmp_path / "some.zip")[0], 8)
    assert names == ["b.png"] and line.startswith("a.png (File 'a.png' is encrypted, password required")
