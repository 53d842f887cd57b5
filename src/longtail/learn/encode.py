"""Features of image sets by an encoder, without gradients."""

import torch

from longtail.images import views
from longtail.store import runs

CHUNK = 1024            # images a forward pass without gradients


@torch.no_grad()
def in_chunks(function, images, policy=None, seed=0, epoch=0, view=0):
    """``function`` of all images (uint8) without gradients, as they are or as random views of ``policy``."""
    parts = []
    for index in torch.arange(len(images), device=images.device).split(CHUNK):
        pixels = views.augment(images, index, policy, seed, epoch, view) if policy else images[index].float() / 255
        parts.append(function(pixels.to(memory_format=torch.channels_last)).float())
    return torch.cat(parts)


def features(encoder, images, precision, **view):
    """Pooled features h (n, d) of an image set, before the projection head."""
    with torch.autocast(runs.device().type, torch.bfloat16, enabled=precision == "bfloat16"):
        return in_chunks(encoder.trunk, images.images.to(runs.device()), **view)


def embed(network, pixels):
    """What a network makes of images (uint8) in evaluation mode, in the middle of its training; (n, d)."""
    network.eval()
    rows = in_chunks(network, pixels)
    network.train()
    return rows
