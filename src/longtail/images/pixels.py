"""One image file becomes a square of pixels, as a viewer shows the picture; what that took is
remarked.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longtail.images.memory import BUDGET

FORMATS = [
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "TIFF",
    "BMP",
    "DIB",
    "PPM",
    "AVIF",
    "JPEG2000",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
    "PSD",
    "QOI",
]
COPY = 4  # bytes of a pixel in PIL, of whatever mode
COPIES = 5  # of a picture that stand side by side where alpha is laid on white
FRAMES = 100  # of an animation, tried until one is not blank
LONGEST = 16  # sides of a picture; what reaches further from the centre is cut before it is resized
HEIF = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
SIGNATURES = {
    b"PK\3\4": "a zip; give it as a place of its own",
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript drawing",
    b"\xc5\xd0\xd3\xc6": "a PostScript drawing",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "a Parquet table",
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML or SVG file",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file",
    b"\0\5\26\7": "what macOS notes of a file",
    b"\xff\x0a": "JPEG XL, which is not read; save it as PNG or JPEG",
    b"\0\0\0\x0cJXL ": "JPEG XL, which is not read; save it as PNG or JPEG",
    b"FUJIFILMCCD-RAW": "a camera's raw file",
    b"IIU\0": "a camera's raw file",
    b"IIRO": "a camera's raw file",
    b"SIMPLE  =": "a FITS file; export it as PNG or TIFF",
    b"empty": "empty",
}


def decoded(content, size):
    """The bytes of an image file as a square, uint8 (size, size, 3), as a viewer shows it;
    ``OSError`` when they are none.
    """
    return opened(content, size)[1]


def opened(content, size):
    """An image file as a viewer shows it: picture in RGB (PIL, perhaps reduced), its square, uint8
    (size, size, 3), remarks (a set), kind of file, and sides in pixels; ``OSError`` when it is
    none.
    """
    try:
        if heif := content[4:8] == b"ftyp" and content[8:12] in HEIF:
            from pillow_heif import register_heif_opener

            register_heif_opener()
        stored = Image.open(io.BytesIO(content), formats=["HEIF"] if heif else formats())
        kind, (wide, high) = stored.format, stored.size
        stored.draft(
            None, (4 * size, 4 * size)
        )  # a JPEG many times larger is reduced while it is decoded, several times faster
        cost = COPIES * COPY * stored.width * stored.height + 6 * wide * high * bool(
            stored.info.get("progressive")
        )  # its coefficients
        with BUDGET.decoding(cost, f"{wide} × {high} pixels"):
            picture, remarks = as_shown(*full_depth(stored, content))
            return picture, square(picture, size), remarks, kind, (wide, high)
    except UnidentifiedImageError as error:
        raise OSError(no_image(content)) from error
    except Exception as error:  # whatever decoders make of foreign bytes
        raise OSError(reason(error)) from error


@functools.cache
def formats():
    """The formats that are read: none whose decoder starts a program, as that of EPS does. Pillow's
    own bound gives way to the budget.
    """
    Image.init()
    Image.MAX_IMAGE_PIXELS = None
    return [name for name in FORMATS if name in Image.OPEN]


def no_image(content):
    """What bytes are that no decoder of images knows."""
    return kind_of(content) or f"{len(content)} bytes of no known kind"


def kind_of(content):
    """What files that begin with these bytes are, as far as that is known here; empty else."""
    if content[4:8] == b"ftyp":
        return "a camera's raw file" if content[8:11] == b"crx" else "a film"
    if content[128:132] == b"DICM":
        return "a DICOM file; export it as PNG or TIFF"
    start = content.lstrip() or b"empty"
    return next((kind for mark, kind in SIGNATURES.items() if start.startswith(mark)), "")


def full_depth(picture, content):
    """An opened PIL image, and remarks. Colours of 16 bits that use less than a quarter of them are
    scaled as greys are; PIL keeps only their upper bytes, which are nearly black.
    """
    args = picture.tile[0].args if picture.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args  # some decoders have none
    mode, deep, order = str(raw).rpartition(";16")
    if not deep or mode != "RGB" or (upper := np.asarray(picture)).max() >= 64:
        return picture, set()
    lower = Image.open(io.BytesIO(content), formats=[picture.format])
    other = f"{mode}{deep}{'L' if order == 'B' else 'B'}"  # the other byte of each two
    lower.tile = [
        tile._replace(args=other if isinstance(args, str) else (other, *tile.args[1:]))
        for tile in lower.tile
    ]
    scaled, depth = eight_bits(upper.astype(np.uint16) * 256 + np.asarray(lower))
    picture.paste(Image.fromarray(scaled))  # what the camera noted stays
    return picture, {f"colours of {depth}"}


def as_shown(picture, remarks=frozenset()):
    """An opened PIL image in RGB, with remarks: turned as the camera says, white where transparent,
    of an animation the first frame.

    Where the first frame is blank, the first one that is not.
    """
    shown, more = frame(picture)
    remarks = remarks | more
    if picture.format not in ("TIFF", "GIF", "WEBP", "PNG", "AVIF") or not picture.is_animated:
        return shown, remarks
    if picture.format == "TIFF":
        return shown, remarks | {"several pages, the first is shown"}
    for number in range(1, min(picture.n_frames, FRAMES) if blank(shown) else 1):
        picture.seek(number)
        other, more = frame(picture)
        if not blank(other):
            return other, more | {"animation that begins with a blank frame"}
    return shown, remarks | {"animation, the first frame is shown"}


def frame(picture):
    """The frame at which a PIL image stands in RGB, and remarks."""
    tags = getattr(picture, "tag_v2", None)  # of a TIFF
    masked = tags is None or bool(
        {1, 2} & set(np.atleast_1d(tags.get(338, 0)).tolist())
    )  # whether it says that a band is alpha
    picture, remarks = ImageOps.exif_transpose(picture), set()
    if tags and (int(tags.get(254) or 0) & 1 or 50706 in tags):  # a thumbnail, or Adobe's DNG
        remarks |= {"a camera's raw file, of which the preview is shown"}
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        if tags and values.dtype == np.int32 and tags.get(339, (1,))[0] == 1:
            values = values.view(np.uint32)  # PIL knows no 32 bits without a sign
        grey, depth = eight_bits(values)
        stored = int(np.max(tags.get(258, 0))) if tags else 0  # bits, as a TIFF says
        depth = (
            f"{stored} bits"
            if depth != "floats" and stored and 32 in (stored, int(depth.split()[0]))
            else depth
        )
        picture = Image.fromarray(255 - grey if tags and tags.get(262) == 0 else grey)
        remarks |= {f"grey of {depth}"}
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
        if (
            not masked
            or not is_mask(np.asarray(layers.getchannel("A")))
            or (blank(picture) and not blank(layers.convert("RGB")))
        ):
            picture, remarks = layers, remarks | {"alpha that hides nothing or all"}
    return picture.convert("RGB"), remarks


def is_mask(alpha):
    """Whether a band is a mask: at least a hundredth of it is wholly clear or opaque, which other
    bands seldom are.
    """
    return bool(((alpha == 0) | (alpha == 255)).mean() >= 0.01)


def eight_bits(values):
    """Greys deeper than 8 bits as uint8, and their depth in words.

    Black is 0, white the largest value of the depth (the least of 8, 10, 12, 14, 16 bits that holds
    the picture; floats: 1, or 255). Where the picture covers less than a quarter of that, has
    values below 0 or more than 16 bits, black and white are its 1st and 99th percentile, as
    instruments show what they measure. NaN and infinity are black. A least or largest value that
    lies further from all others than these from each other stands for no measurement.
    """
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not known.size:
        return np.zeros(values.shape, np.uint8), "floats"
    known = measured(known)
    least, most = known.min(), known.max()
    low, high = np.percentile(known, [1, 99])
    bits = next((bits for bits in (8, 10, 12, 14, 16) if most < 2**bits), 0) if least >= 0 else 0
    white = 2**bits - 1
    if values.dtype.kind == "f":
        white = (1 if most <= 1 else 255 if most <= 255 else 0) if least >= 0 else 0
    elif bits and high - low >= white / 4:
        return (np.minimum(values, white) >> (bits - 8)).astype(np.uint8), f"{bits} bits"
    low, high = (
        (0, white)
        if white and high - low >= white / 4
        else (low, high)
        if low < high
        else (least, most)
    )
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=low, neginf=low) - low) * (
        255 / max(high - low, 1e-30)
    )
    return scaled.clip(0, 255).round().astype(
        np.uint8
    ), "floats" if values.dtype.kind == "f" else f"{bits or 32} bits"


def measured(values):
    """Finite values without a least or largest that stands for no measurement, such as -9999."""
    least, most = values.min(), values.max()
    inner = values[(values > least) & (values < most)]
    if not inner.size or inner.min() == inner.max():
        return values
    low, high = float(inner.min()), float(inner.max())
    if low - float(least) > high - low:
        values = values[values > least]
    return values[values < most] if float(most) - high > high - low else values


def blank(picture):
    """Whether a PIL image is of one colour."""
    return all(low == high for low, high in np.reshape(picture.getextrema(), (-1, 2)))


def reason(error):
    """What an error says, short enough to stand beside others."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][
        :120
    ]


def square(picture, size):
    """A PIL image as uint8 (size, size, 3): short side resized (bilinear), centre cut."""
    short = min(picture.size)
    if max(picture.size) > LONGEST * short:
        left, top = (max(0, side - LONGEST * short) // 2 for side in picture.size)
        picture = picture.crop((left, top, picture.width - left, picture.height - top))
    scale = size / short
    wide, high = (max(size, round(side * scale)) for side in picture.size)
    if (wide, high) != picture.size:
        picture = picture.resize((wide, high), Image.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))
