"""Every loss as a per-image tensor; reductions belong to the caller, or to the method where they are part of it (``LossSpec``)."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from longtail import gpu


def contrast(first, second, temperature):
    """What NT-Xent and its kin are made of, from (..., n, d) projections of two views, normalised here.

    Returns the logits of every anchor (..., 2n, 2n), its own −∞, those of the positives (..., n), and log denominators (..., 2n).
    """
    n, both = first.shape[-2], torch.cat([first, second], dim=-2)
    if both.dtype in (torch.float16, torch.bfloat16):
        both = both.float()         # exp(1/τ) and sums over thousands of negatives need float32
    unit = functional.normalize(both, dim=-1)
    logits = (unit @ unit.mT).div_(temperature)
    logits.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    positive = (unit[..., :n, :] * unit[..., n:, :]).sum(-1) / temperature
    return logits, positive, logits.logsumexp(-1)


def nt_xent(first, second, temperature):
    """NT-Xent of each image: the mean over its two anchors, negatives from both views of all other images.

    ``first``, ``second``: (..., n, d) projections of the two views, normalised here; leading dimensions are separate batches.
    Returns (..., n). The mean over n is the SimCLR loss (Chen et al. 2020, eq. 1); with one view from a pruned branch it is SDCLR's.
    """
    _, positive, denominator = contrast(first, second, temperature)
    n = first.shape[-2]
    return (denominator[..., :n] + denominator[..., n:]) / 2 - positive


def focal_nt_xent(first, second, temperature, focus):
    """NT-Xent that turns to the hard anchors: each anchor's loss times (1 − its positive's probability)^focus; (n,)."""
    _, positive, denominator = contrast(first, second, temperature)
    anchors = denominator.unflatten(-1, (2, -1)) - positive[..., None, :]
    return ((1 - (-anchors).exp()) ** focus * anchors).mean(-2)


def simsiam(prediction1, projection1, prediction2, projection2):
    """SimSiam's loss of each image, in [−1, 1]: each view's prediction against the other's projection, which is held fixed; (n,)."""
    pairs = (prediction1, projection2), (prediction2, projection1)
    return sum(-functional.cosine_similarity(ours.float() if ours.dtype == torch.bfloat16 else ours, other.detach(), dim=-1)
               for ours, other in pairs) / 2


def harmonization(logits1, logits2, assigned1, assigned2, gamma=0.1):
    """GH's loss of each image: each view's surrogate logits against the other view's assignment, both directions summed; (n,)."""
    pairs = (assigned1, logits2), (assigned2, logits1)
    return sum(-(assigned * functional.log_softmax(logits / gamma, -1)).sum(-1) for assigned, logits in pairs)


def domain(first, second, extra, temperature):
    """COLT's loss of each image: its rows against all others of its domain, seed or ``extra`` (bool, n), with NT-Xent's denominators.

    Mean of an image's two rows, (n,); zero where the batch has no extra image.
    """
    logits, _, denominator = contrast(first, second, temperature)
    rows = torch.cat([extra, extra])
    same = rows[:, None] == rows
    same.fill_diagonal_(False)
    loss = (denominator[:, None] - logits).where(same, 0).sum(1) / same.sum(1)
    return loss.unflatten(0, (2, -1)).mean(0) * extra.any()


# ---- with labels: one softmax loss for every re-weighted, scaled, shifted or margin-enlarging method

REDUCTIONS = ("mean", "weighted_mean")


@dataclass(frozen=True, eq=False)
class LossSpec:
    """A method of long-tail learning as four vectors over the classes (or scalars): α_y · CE(β·z + ι − μ_y·[target], y).

    ``reduction``: mean, Σ α l / n, or weighted_mean, Σ α l / Σ α. They differ whenever a batch holds the classes unevenly, so the
    choice belongs to the method (class-balanced loss: mean; LDAM, VS and DDC: weighted_mean).
    """

    alpha: object = 1.0     # weight of an image of the class
    beta: object = 1.0      # scale of the class's logit
    iota: object = 0.0      # shift of the class's logit
    mu: object = 0.0        # margin that the class's logit must keep where it is the target
    reduction: str = "mean"

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"no reduction {self.reduction!r}; there are {', '.join(REDUCTIONS)}")


def adjusted_cross_entropy(logits, labels, spec):
    """The loss of a batch as ``spec`` weights, scales, shifts and reduces it: logits (n, K), labels (n,) -> scalar."""
    loss, weight = adjusted_losses(logits, labels, spec)
    return loss.sum() / (weight.sum() if spec.reduction == "weighted_mean" else len(loss))


def adjusted_losses(logits, labels, spec):
    """The weighted loss of each image and its weight: logits (n, K), labels (n,) -> (n,), (n,)."""
    logits, labels = _checked(logits, labels)
    alpha, beta, iota, mu = (_per_class(name, getattr(spec, name), logits) for name in ("alpha", "beta", "iota", "mu"))
    target = _named(labels, logits)
    weight = alpha.expand(logits.shape[1])[labels]
    return weight * functional.cross_entropy(beta * logits + iota - mu * target, labels, reduction="none"), weight


def as_labels(labels, device=None):
    """Labels as int64 (n,), from a list, an array or a tensor of any whole numbers; refuses fractions and other shapes."""
    labels = torch.as_tensor(labels, device=device)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}; "
                         f"give one whole number an image, (n,)")
    return labels.long()


def _checked(logits, labels):
    """The logits, in single precision at least, and the labels as int64 beside them; refuses labels that name no class."""
    labels = as_labels(labels, logits.device)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"logits have shape {tuple(logits.shape)} for {len(labels)} labels; give one row of logits an image")
    if not gpu.computes(labels) and len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:   # no host read on a GPU
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, the logits have classes 0 to {logits.shape[1] - 1}; "
                         f"leave out images without a label")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, labels


def _named(labels, logits):
    """Which class each label names, bool (n, K); torch's one_hot may read labels on the host."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def _per_class(name, value, logits):
    """A scalar or a vector over the classes, as a tensor like the logits."""
    if isinstance(value, int | float):
        return logits.new_full((), value)       # made on the device: no copy that a GPU would wait for
    value = torch.as_tensor(value, dtype=logits.dtype, device=logits.device)
    if value.ndim > 1 or value.ndim == 1 and len(value) != logits.shape[1]:
        raise ValueError(f"{name} has shape {tuple(value.shape)} for {logits.shape[1]} classes; give one number, or one for each class")
    return value


def staged(first, second, start):
    """``first`` before epoch ``start``, counted from 0, and ``second`` from it on: returns epoch -> one of the two.

    Deferred re-weighting, TLA, ADRW and DDC are this with two specs, deferred re-sampling with two sets of class weights.
    """
    if start < 0:
        raise ValueError(f"the second stage starts at epoch {start}; give 0 or more")
    return lambda epoch: first if epoch < start else second


def sigmoid_focal(logits, labels, alpha=1.0, gamma=0.0):
    """One binary loss a class, (1 − p_t)^γ of it, summed, times the weight α of the true class: (n, K), (n,) -> (n,).

    γ = 0 is the plain sigmoid loss. The class-balanced reference has this form, and takes the mean (Cui et al. 2019).
    """
    logits, labels = _checked(logits, labels)
    signed = logits * (2 * _named(labels, logits) - 1)     # log p_t = logsigmoid of this
    terms = -functional.logsigmoid(signed) * torch.exp(gamma * functional.logsigmoid(-signed))
    return _per_class("alpha", alpha, logits).expand(logits.shape[1])[labels] * terms.sum(1)


def softmax_focal(logits, labels, alpha=1.0, gamma=1.0):
    """α_y · (1 − p_y)^γ · cross-entropy: (n, K), (n,) -> (n,). The form of LDAM's code, with the weight outside the power."""
    logits, labels = _checked(logits, labels)
    others = logits.masked_fill(_named(labels, logits), -torch.inf).logsumexp(1)
    doubt = torch.exp(gamma * (others - logits.logsumexp(1)))       # by the logarithm of 1 − p: its gradient is finite at p = 1
    weight = _per_class("alpha", alpha, logits).expand(logits.shape[1])[labels]
    return weight * doubt * functional.cross_entropy(logits, labels, reduction="none")


def ldam_hinge(logits, labels, margins):
    """max(0, largest other logit − target's + its class's margin): (n, K), (n,) -> (n,). LDAM-HG; equal margins are HG."""
    logits, labels = _checked(logits, labels)
    target = logits.gather(1, labels[:, None])[:, 0]
    others = logits.masked_fill(_named(labels, logits), -torch.inf).amax(1)
    return (others - target + _per_class("margins", margins, logits).expand(logits.shape[1])[labels]).clamp(min=0)
