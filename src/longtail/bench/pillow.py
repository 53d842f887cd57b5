"""Random views in Pillow's bytes, so that a comparison with it can ask for equal ones."""

import contextlib
from unittest import mock

import torch

from longtail.images import views

_luma, _blend = views.luma, views.blend


@contextlib.contextmanager
def in_bytes():
    """While this is open, ``views`` keeps whole levels after every operation, as Pillow does."""
    with mock.patch.multiple(
        views, clip=clipped, luma=whole_luma, blend=truncated_blend, rotate_hue=rotate_hue_of_bytes
    ):
        yield


def clipped(x):
    """Levels as whole ones in [0, 255]."""
    return (x + 0.5).floor_().clamp_(0, 255)


def whole_luma(x):
    """Grey values, rounded."""
    return (_luma(x) + 0.5).floor()


def truncated_blend(x, other, factor):
    """other, rounded, + factor · (x − other), truncated."""
    return _blend(x, (other + 0.5).floor(), factor).floor_()


def rotate_hue_of_bytes(x, factor):
    """Rotate the hue by ``factor`` (b,) of a full circle through Pillow's HSV bytes, truncated."""
    turn = factor.to(x.dtype).view(-1, 1, 1)
    r, g, b = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    unit = 1 / chroma.clamp(min=1)
    rc, gc, bc = ((value - channel) * unit for channel in (r, g, b))
    hue = (
        torch.where(r == value, bc - gc, torch.where(g == value, 2 + rc - bc, 4 + gc - rc)) / 6 + 1
    )
    hue = torch.where(chroma > 0, ((hue - hue.floor()) * 255).floor(), 0)
    saturation = torch.where(chroma > 0, (chroma / value.clamp(min=1) * 255).floor(), 0) / 255
    hue = (hue + (turn * 255).trunc() % 256) % 256 * 6 / 255
    sector, part = hue.floor().long() % 6, hue - hue.floor()
    p, q, t = ((value * (1 - saturation * f) + 0.5).floor() for f in (1, part, 1 - part))
    sectors = (
        (value, t, p),
        (q, value, p),
        (p, value, t),
        (p, q, value),
        (t, p, value),
        (value, p, q),
    )
    choices = torch.stack([torch.stack(colours) for colours in sectors])
    return choices.gather(0, sector[None, None].expand(1, 3, *sector.shape))[0].transpose(0, 1)
