"""Every loss as a per-image tensor; reductions belong to the caller."""

import torch
from torch.nn import functional


def nt_xent(first, second, temperature):
    """NT-Xent of each image: the mean over its two anchors, negatives from both views of all other images.

    ``first``, ``second``: (..., n, d) projections of the two views, normalised here; leading dimensions are separate batches.
    Returns (..., n). The mean over n is the SimCLR loss (Chen et al. 2020, eq. 1); with one view from a pruned branch it is SDCLR's.
    """
    n, both = first.shape[-2], torch.cat([first, second], dim=-2)
    if both.dtype in (torch.float16, torch.bfloat16):
        both = both.float()         # exp(1/τ) and sums over thousands of negatives need float32
    unit = functional.normalize(both, dim=-1)
    logits = unit @ unit.mT / temperature
    logits.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    positive = (unit[..., :n, :] * unit[..., n:, :]).sum(-1) / temperature
    denominator = logits.logsumexp(-1)
    return (denominator[..., :n] + denominator[..., n:]) / 2 - positive
