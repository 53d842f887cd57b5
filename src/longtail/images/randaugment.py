"""Views boosted by RandAugment, each image with its own probability and magnitude (BCL); Pillow's
operations, on bytes, for a batch.

Stronger is not monotone, as published: contrast, colour, brightness and sharpness are neutral at
magnitude 15, Posterize weakens with it.
"""

import torch
from torch.nn import functional

from longtail.images import views
from longtail.store import gpu

RANGES = {  # BCL's fifteen: value at magnitude 0 and at 30
    "ShearX": (0.0, 0.6),
    "ShearY": (0.0, 0.6),
    "TranslateX": (0.0, 0.66),
    "TranslateY": (0.0, 0.66),  # shares of the side
    "Rotate": (0.0, 60.0),
    "AutoContrast": (0.0, 1.0),
    "Invert": (0.0, 1.0),
    "Equalize": (0.0, 1.0),  # degrees; three without value
    "Solarize": (0.0, 110.0),
    "Posterize": (4.0, 8.0),
    "Contrast": (0.1, 1.9),
    "Color": (0.1, 1.9),  # level, bits, factors
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
    "Cutout": (0.0, 0.4),
}  # share of the side
COVER = (125, 123, 114)  # of what Cutout covers
VIEWS = 2**20  # numbers of the views whose random numbers are used here; plain views count from 0


def values(magnitude, operation):
    """What each operation does at a magnitude on the scale of 0 … 30: both (b,), the operation a
    position in RANGES.
    """
    low, high = gpu.constant(tuple(RANGES.values()), magnitude.device, magnitude.dtype)[
        operation
    ].unbind(-1)
    return low + magnitude / 30 * (high - low)


def magnitudes(strength, draws, floor, u):
    """Magnitude for each image's strength in [0, 1]: rises from ``floor`` to 30, times ``u`` where
    several operations are drawn.
    """
    return floor + (30 - floor) * strength * (u if draws > 1 else 1)


def boost(levels, index, strength, draws, floor, seed, epoch, view):
    """``draws`` operations, each done to an image with probability ``strength`` (b,), on levels 0 …
    255 (b, 3, s, s).

    Drawn with replacement. The random share of a magnitude is the same for both views and all
    operations of an image (the authors' code).
    """
    shared = views.uniforms(index, seed, epoch, VIEWS - 1, 4)[:, 0]
    magnitude = magnitudes(strength.double(), draws, floor, shared)
    for u in views.uniforms(index, seed, epoch, VIEWS + view, 8 * draws).split(8, 1):
        operation = (u[:, 0] * len(RANGES)).long()
        value = values(magnitude, operation)
        signed = torch.where(
            (u[:, 2] < 0.5) & (operation < 5), -value, value
        )  # geometry goes either way
        levels = views.where(
            u[:, 1] < strength, levels, change, operation, signed, u[:, 3:5] * levels.shape[-1]
        )
    return levels


def change(x, operation, value, centre):
    """One operation to each image: operation, value (b,), centre (b, 2) of Cutout in pixels, x then
    y.
    """
    x = (x + 0.5).floor().clamp_(0, 255)
    family = (operation >= 5).long() + (operation >= 10) + (operation >= 14)
    x = views.where(family == 0, x, warp, operation, value)
    x = views.where(family == 1, x, look_up, operation, value)
    x = views.where(family == 2, x, enhance, operation, value)
    return views.where(family == 3, x, cut_out, value, centre)


def warp(x, operation, value):
    """Shear, translate or rotate; nearest neighbour, black outside, in Pillow's fixed point of
    1/65536 pixel.
    """
    side, zero, one = x.shape[-1], torch.zeros_like(value), torch.ones_like(value)
    turn, half = torch.deg2rad(-value), side / 2
    cos, sin = turn.cos(), turn.sin()
    choices = [
        (one, value, zero, zero, one, zero),
        (one, zero, zero, value, one, zero),
        (one, zero, value * side, zero, one, zero),
        (one, zero, zero, zero, one, value * side),
        (cos, sin, half - half * cos - half * sin, -sin, cos, half + half * sin - half * cos),
    ]
    table = torch.stack([torch.stack(rows) for rows in choices])
    a, b, c, d, e, f = table.gather(0, operation.clamp(max=4).expand(1, 6, -1))[0]
    columns, rows = torch.meshgrid(
        torch.arange(side, device=x.device), torch.arange(side, device=x.device), indexing="xy"
    )

    def source(along, across, start):
        parts = start + (along + across) / 2, along, across
        origin, right, down = ((part * 65536 + 0.5).floor().long()[:, None, None] for part in parts)
        return (origin + columns * right + rows * down) >> 16

    from_x, from_y = source(a, b, c), source(d, e, f)
    inside = (from_x >= 0) & (from_x < side) & (from_y >= 0) & (from_y < side)
    place = (from_y.clamp(0, side - 1) * side + from_x.clamp(0, side - 1)).flatten(1)
    moved = x.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).view_as(x)
    return moved * inside[:, None]


def look_up(x, operation, value):
    """AutoContrast, Invert, Equalize, Solarize or Posterize: a table of 256 levels for each channel
    of each image.
    """
    pixels, level = x.long().flatten(2), torch.arange(256, device=x.device, dtype=torch.float64)
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.float64, device=x.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=torch.float64))
    present, value = (counts > 0).int(), value[:, None, None]
    low, high = present.argmax(-1, keepdim=True), 255 - present.flip(-1).argmax(-1, keepdim=True)
    scale = level[-1] / (high - low).clamp(min=1)  # torch would compute 255 / x as 255 · (1 / x)
    stretched = (level * scale - low * scale).trunc().clamp(0, 255).where(high > low, level)
    step = ((pixels.shape[-1] - counts.gather(-1, high)) / 255).floor()
    below = counts.cumsum(-1) - counts
    equal = (
        (((step / 2).floor() + below) / step.clamp(min=1))
        .floor()
        .clamp(max=255)
        .where(step > 0, level)
    )
    block = 2 ** (8 - value.trunc())
    tables = [
        stretched,
        (255 - level).expand_as(counts),
        equal,
        torch.where(level < value, level, 255 - level).expand_as(counts),
        ((level / block).floor() * block).expand_as(counts),
    ]
    chosen = torch.stack(tables).gather(
        0, (operation - 5).clamp(0, 4).view(1, -1, 1, 1).expand(1, *counts.shape)
    )[0]
    return chosen.gather(2, pixels).view_as(x).to(x.dtype)


def enhance(x, operation, value):
    """Contrast, Color, Brightness or Sharpness: away from, or towards, the mean grey, the grey
    image, black, the smoothed image.
    """
    grey, operation = (views.luma(x) + 0.5).floor(), operation.view(-1, 1, 1, 1)
    mean = (grey.mean((1, 2, 3), keepdim=True, dtype=torch.float64) + 0.5).floor().to(x.dtype)
    other = torch.where(operation == 10, mean, torch.where(operation == 11, grey, 0)).expand_as(x)
    other = torch.where(operation == 13, smooth(x), other)
    return (other + value.to(x.dtype).view(-1, 1, 1, 1) * (x - other)).clamp(0, 255).floor()


def smooth(x):
    """Pillow's SMOOTH: the eight neighbours and five times the pixel, over 13, rounded; the border
    stays.
    """
    inner = x[..., 1:-1, 1:-1]
    near = functional.avg_pool2d(x, 3, 1, divisor_override=1) + 4 * inner
    return functional.pad((near / 13 + 0.5).floor() - inner, (1, 1, 1, 1)) + x


def cut_out(x, value, centre):
    """Cover a square of the given share of the side, clipped at the border, with grey."""
    side, reach = x.shape[-1], torch.arange(x.shape[-1], device=x.device)
    width = (value * side)[:, None]
    start = (centre - width / 2).clamp(min=0).floor()
    end = (start + width).clamp(max=side).floor()
    across, down = ((reach >= start[:, k, None]) & (reach <= end[:, k, None]) for k in (0, 1))
    covered = (across[:, None, :] & down[:, :, None] & (width > 0)[:, None])[:, None]
    return torch.where(covered, gpu.constant(COVER, x.device, x.dtype).view(3, 1, 1), x)
