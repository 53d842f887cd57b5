"""Features of image sets by an encoder, without gradients."""

import torch

from longtail.images import views
from longtail.images.memory import BUDGET
from longtail.store import gpu, runs

CHUNK = 1024  # images a forward pass without gradients


class Window:
    """Images of a larger set from position ``start`` on: random views ask for an image by its place
    in the whole.
    """

    def __init__(self, images, start):
        self.images, self.start = images, start
        self.shape, self.device = images.shape, images.device

    def __getitem__(self, index):
        return self.images[index - self.start]


def chunk_of(size):
    """Images of so many pixels a side that are augmented and encoded at once: fewer of large ones,
    as the memory budget says.
    """
    return max(1, min(CHUNK, BUDGET.pixels // size**2))


@torch.no_grad()
def in_chunks(function, images, policy=None, seed=0, epoch=0, view=0):
    """``function`` of all images (uint8) without gradients, as they are or as random views of
    ``policy``.

    Images that are not on the device are sent there chunk by chunk.
    """
    parts = []
    chunk = chunk_of(images.shape[-1])
    for start in range(0, len(images), chunk):
        pixels = gpu.sent(images[start : start + chunk])
        index = torch.arange(start, start + len(pixels), device=pixels.device)
        pixels = (
            views.augment(Window(pixels, start), index, policy, seed, epoch, view)
            if policy
            else pixels.float() / 255
        )
        parts.append(function(pixels.to(memory_format=torch.channels_last)).float())
    return torch.cat(parts)


def features(encoder, images, precision, **view):
    """Pooled features h (n, d) of an image set, before the projection head."""
    with gpu.autocast(runs.device(), precision):
        return in_chunks(encoder.trunk, images.images, **view)


def embed(network, pixels):
    """What a network makes of images (uint8) in evaluation mode, in the middle of its training; (n,
    d).
    """
    network.eval()
    rows = in_chunks(network, pixels)
    network.train()
    return rows
