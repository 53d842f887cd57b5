"""Losses that several methods use, as one number an image; the mean belongs to the caller."""

import torch
from torch.nn import functional


def contrast(first, second, temperature):
    """What NT-Xent and its kin are made of, from (..., n, d) projections of two views, normalised
    here.

    Returns the logits of every anchor (..., 2n, 2n), its own −∞, those of the positives (..., n),
    and log denominators (..., 2n).
    """
    n, both = first.shape[-2], torch.cat([first, second], dim=-2)
    if both.dtype in (torch.float16, torch.bfloat16):
        both = both.float()  # exp(1/τ) and sums over thousands of negatives need float32
    unit = functional.normalize(both, dim=-1)
    logits = (unit @ unit.mT).div_(temperature)
    logits.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    positive = (unit[..., :n, :] * unit[..., n:, :]).sum(-1) / temperature
    return logits, positive, logits.logsumexp(-1)


def nt_xent(first, second, temperature):
    """NT-Xent of each image: the mean over its two anchors, negatives from both views of all other
    images.

    ``first``, ``second``: (..., n, d) projections of the two views, normalised here; leading
    dimensions are separate batches. Returns (..., n). The mean over n is the SimCLR loss (Chen et
    al. 2020, eq. 1); with one view from a pruned branch it is SDCLR's.
    """
    _, positive, denominator = contrast(first, second, temperature)
    n = first.shape[-2]
    return (denominator[..., :n] + denominator[..., n:]) / 2 - positive


def simsiam(prediction1, projection1, prediction2, projection2):
    """SimSiam's loss of each image, in [−1, 1]: each view's prediction against the other's
    projection, which is held fixed; (n,).
    """
    pairs = (prediction1, projection2), (prediction2, projection1)
    return (
        sum(
            -functional.cosine_similarity(
                ours.float() if ours.dtype == torch.bfloat16 else ours, other.detach(), dim=-1
            )
            for ours, other in pairs
        )
        / 2
    )
