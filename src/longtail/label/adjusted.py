"""What class sizes decide when there are labels: weights, margins, priors, and every method that is
made of them.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional

from longtail.store import arms, gpu, runs

# ---- from the training images of each class


def class_sizes(counts, smoothing=0.0):
    """The training images of each class as float64 (K,), each with ``smoothing`` added; refuses a
    class that then has none.
    """
    sizes = torch.as_tensor(counts, dtype=torch.float64)
    wrong = (
        ~((sizes >= 0) & (sizes + smoothing > 0) & sizes.isfinite())
    ).nonzero()  # written so that nan is wrong
    if len(wrong):
        label = wrong[0].item()
        raise ValueError(
            f"class {label} has {sizes[label]:g} training images, it needs some; leave it out, or "
            "ask log_prior for smoothed "
            f"counts"
        )
    return sizes + smoothing


def log_prior(counts, smoothing=0.0):
    """log π of each class (K,); ``smoothing`` is added to every count, so that a class without
    images gets a prior.
    """
    sizes = class_sizes(counts, smoothing)
    return (sizes / sizes.sum()).log()


def effective_number(counts, b):
    """(1 − b^n) / (1 − b): how many images a class counts for when they overlap; 1 for b = 0, n as
    b → 1 (Cui et al. 2019).
    """
    if not 0 <= b < 1:
        raise ValueError(f"b is {b}; the effective number of images needs 0 <= b < 1")
    return -torch.expm1(class_sizes(counts) * torch.tensor(b, dtype=torch.float64).log()) / (1 - b)


def rescaled(weights):
    """Weights that sum to the number of classes."""
    return weights / weights.sum() * len(weights)


def class_balanced_weights(counts, b):
    """One over the effective number, summing to K."""
    return rescaled(1 / effective_number(counts, b))


def inverse_weights(counts, nu):
    """π^−ν, summing to K: ADRW's weights, and inverse frequencies at ν = 1."""
    return rescaled((-nu * log_prior(counts)).exp())


def class_margins(counts, max_m):
    """LDAM's margins ∝ n^(−1/4), the rarest class's is ``max_m`` (Cao et al. 2019)."""
    sizes = class_sizes(counts)
    return max_m * (sizes / sizes.min()) ** -0.25


# ---- the settings of the general loss


def ce():
    """Plain cross-entropy."""
    return LossSpec()


def class_balanced(counts, b, reduction="mean"):
    """Cross-entropy weighted by the effective number of images."""
    return LossSpec(alpha=class_balanced_weights(counts, b), reduction=reduction)


def ldam(counts, max_m, s):
    """Label-distribution-aware margins on cosines, scaled by s."""
    return LossSpec(beta=s, mu=s * class_margins(counts, max_m))


def logit_adjusted(counts, tau):
    """Logits shifted by τ log π while training (Menon et al. 2021)."""
    return LossSpec(iota=tau * log_prior(counts))


def vs(counts, gamma, tau):
    """Vector scaling: shifted as above and scaled by (n / largest)^γ (Kini et al. 2021); τ = 0 is
    CDT, γ = 0 logit adjustment.
    """
    sizes = class_sizes(counts)
    return LossSpec(beta=(sizes / sizes.max()) ** gamma, iota=tau * log_prior(counts))


def reweighted(spec, weights):
    """The same loss with class weights, as the deferred methods reduce it."""
    return replace(spec, alpha=weights, reduction="weighted_mean")


# ---- the methods


@dataclass(frozen=True)
class Method:
    """A method ready to train: the loss of an epoch, the class weights of its draw, and its output
    layer.
    """

    loss: Callable  # epoch -> (logits, labels) -> scalar
    draw: Callable = lambda epoch: (
        None
    )  # epoch -> weight of each class when images are drawn with replacement; None: each once
    cosine: bool = False  # logits are cosines of features and class vectors
    bias: float = 0.0  # of the output layer at first, then free of weight decay; 0: as usual


def softmax(first, second=None, start=0):
    """Stages of the general loss: epoch -> loss."""
    return staged(
        *(partial(adjusted_cross_entropy, spec=spec) for spec in (first, second or first)), start
    )


def averaged(loss, *arguments):
    """A per-image loss as the mean over the batch, at every epoch."""

    def mean(logits, labels):
        return loss(logits, labels, *arguments).mean()

    return lambda epoch: mean  # the same function every time: an update is recorded once for each


def sigmoid(sizes, b, gamma):
    """The class-balanced reference's sigmoid losses; every class starts out improbable."""
    return Method(
        averaged(sigmoid_focal, class_balanced_weights(sizes, b), gamma),
        bias=-math.log(len(sizes) - 1),
    )


# name: (class sizes, first epoch of a second stage, the method's parameters as published) -> Method
LOSSES = {
    "ce": lambda sizes, start: Method(softmax(ce())),
    "focal": lambda sizes, start, gamma=1.0: Method(averaged(softmax_focal, 1.0, gamma)),
    "sigmoid": lambda sizes, start: sigmoid(sizes, 0.0, 0.0),
    "sigmoid_focal": lambda sizes, start, gamma=1.0: sigmoid(sizes, 0.0, gamma),
    "cb": lambda sizes, start, b=0.9999: Method(softmax(class_balanced(sizes, b))),
    "cb_weighted": lambda sizes, start, b=0.9999: Method(
        softmax(class_balanced(sizes, b, "weighted_mean"))
    ),
    "cb_sigmoid": lambda sizes, start, b=0.9999: sigmoid(sizes, b, 0.0),
    "cb_focal": lambda sizes, start, b=0.9999, gamma=1.0: sigmoid(sizes, b, gamma),
    "resampling": lambda sizes, start, b=0.9999: Method(
        softmax(ce()), lambda epoch: class_balanced_weights(sizes, b)
    ),
    "ce_drw": lambda sizes, start, b=0.9999: Method(
        softmax(ce(), reweighted(ce(), class_balanced_weights(sizes, b)), start)
    ),
    "ldam": lambda sizes, start, max_m=0.5, s=30.0: Method(
        softmax(ldam(sizes, max_m, s)), cosine=True
    ),
    "ldam_drw": lambda sizes, start, max_m=0.5, s=30.0, b=0.9999: Method(
        softmax(
            first := ldam(sizes, max_m, s),
            reweighted(first, class_balanced_weights(sizes, b)),
            start,
        ),
        cosine=True,
    ),
    "uniform_drw": lambda sizes, start, margin=0.5, s=30.0, b=0.9999: Method(
        softmax(
            first := LossSpec(beta=s, mu=s * margin),
            reweighted(first, class_balanced_weights(sizes, b)),
            start,
        ),
        cosine=True,
    ),
    "ldam_hinge_drs": lambda sizes, start, max_m=0.5, b=0.9999: Method(
        averaged(ldam_hinge, class_margins(sizes, max_m)),
        staged(None, class_balanced_weights(sizes, b), start),
        cosine=True,
    ),
    "la": lambda sizes, start, tau=1.0: Method(softmax(logit_adjusted(sizes, tau))),
    "cdt": lambda sizes, start, gamma=0.3: Method(softmax(vs(sizes, gamma, 0.0))),
    "vs": lambda sizes, start, gamma=0.3, tau=1.0: Method(softmax(vs(sizes, gamma, tau))),
    "tla": lambda sizes, start, gamma=0.05, tau=1.0: Method(
        softmax(vs(sizes, gamma, tau), logit_adjusted(sizes, tau), start)
    ),
    "adrw": lambda sizes, start, nu=0.15: Method(
        softmax(ce(), reweighted(ce(), inverse_weights(sizes, nu)), start)
    ),
    "ddc": lambda sizes, start, gamma=0.05, tau=1.0, late_tau=1.0, nu=0.15: Method(
        softmax(
            vs(sizes, gamma, tau),
            reweighted(logit_adjusted(sizes, late_tau), inverse_weights(sizes, nu)),
            start,
        )
    ),
}


def read_loss(loss):
    """Name and all parameters of a method written as "vs" or "vs gamma=0.15 tau=1", the published
    values where none is given.
    """
    words, given = arms.read_line(loss)
    if len(words) != 1 or words[0] not in LOSSES:
        raise ValueError(
            f"no method {loss!r}; there are {', '.join(LOSSES)}, and what each sets, as name=value"
        )
    known = inspect.signature(LOSSES[words[0]]).parameters
    usual = {
        key: parameter.default
        for key, parameter in known.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return words[0], usual | arms.typed(loss, given, dict.fromkeys(usual, float) | {"start": int})


def method_of(method, parameters, counts, schedule):
    """The ``Method`` of a parsed loss; the second stage starts at the first drop of the rate unless
    its parameters say otherwise.
    """
    usual = {"start": schedule.drops[0] if schedule.drops else schedule.epochs}
    return LOSSES[method](class_sizes(counts).to(runs.device()), **usual | parameters)


def posthoc_logit_adjust(logits, counts, tau=1.0):
    """Logits to decide by, z − τ log π, for a network trained without any correction: one that has
    it would be corrected twice.
    """
    prior = log_prior(counts)
    if prior.shape != logits.shape[-1:]:
        raise ValueError(
            f"counts have shape {tuple(prior.shape)} for {logits.shape[-1]} classes; give the "
            "training images of each class"
        )
    return logits - tau * prior.to(logits)


REDUCTIONS = ("mean", "weighted_mean")


@dataclass(frozen=True, eq=False)
class LossSpec:
    """A method of long-tail learning as four vectors over the classes (or scalars): α_y · CE(β·z +
    ι − μ_y·[target], y).

    ``reduction``: mean, Σ α l / n, or weighted_mean, Σ α l / Σ α. They differ whenever a batch
    holds the classes unevenly, so the choice belongs to the method (class-balanced loss: mean;
    LDAM, VS and DDC: weighted_mean).
    """

    alpha: object = 1.0  # weight of an image of the class
    beta: object = 1.0  # scale of the class's logit
    iota: object = 0.0  # shift of the class's logit
    mu: object = 0.0  # margin that the class's logit must keep where it is the target
    reduction: str = "mean"

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"no reduction {self.reduction!r}; there are {', '.join(REDUCTIONS)}")


def adjusted_cross_entropy(logits, labels, spec):
    """The loss of a batch as ``spec`` weights, scales, shifts and reduces it: logits (n, K), labels
    (n,) -> scalar.
    """
    loss, weight = adjusted_losses(logits, labels, spec)
    return loss.sum() / (weight.sum() if spec.reduction == "weighted_mean" else len(loss))


def adjusted_losses(logits, labels, spec):
    """The weighted loss of each image and its weight: logits (n, K), labels (n,) -> (n,), (n,)."""
    logits, labels = _checked(logits, labels)
    alpha, beta, iota, mu = (
        _per_class(name, getattr(spec, name), logits) for name in ("alpha", "beta", "iota", "mu")
    )
    target = _named(labels, logits)
    weight = alpha.expand(logits.shape[1])[labels]
    return weight * functional.cross_entropy(
        beta * logits + iota - mu * target, labels, reduction="none"
    ), weight


def as_labels(labels, device=None):
    """Labels as int64 (n,), from a list, an array or a tensor of any whole numbers; refuses
    fractions and other shapes.
    """
    labels = torch.as_tensor(labels, device=device)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} of shape "
            f"{tuple(labels.shape)}; "
            f"give one whole number an image, (n,)"
        )
    return labels.long()


def _checked(logits, labels):
    """The logits, in single precision at least, and the labels as int64 beside them; refuses labels
    that name no class.
    """
    labels = as_labels(labels, logits.device)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} for {len(labels)} labels; give one row of "
            "logits an image"
        )
    if (
        not gpu.computes(labels)
        and len(labels)
        and not 0 <= labels.min() <= labels.max() < logits.shape[1]
    ):  # no host read on a GPU
        raise ValueError(
            f"labels reach from {labels.min()} to {labels.max()}, the logits have classes 0 to "
            f"{logits.shape[1] - 1}; "
            f"leave out images without a label"
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, labels


def _named(labels, logits):
    """Which class each label names, bool (n, K); torch's one_hot may read labels on the host."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def _per_class(name, value, logits):
    """A scalar or a vector over the classes, as a tensor like the logits."""
    if isinstance(value, int | float):
        return logits.new_full((), value)  # made on the device: no copy that a GPU would wait for
    value = torch.as_tensor(value, dtype=logits.dtype, device=logits.device)
    if value.ndim > 1 or value.ndim == 1 and len(value) != logits.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} for {logits.shape[1]} classes; give one "
            "number, or one for each class"
        )
    return value


def staged(first, second, start):
    """``first`` before epoch ``start``, counted from 0, and ``second`` from it on: returns epoch ->
    one of the two.

    Deferred re-weighting, TLA, ADRW and DDC are this with two specs, deferred re-sampling with two
    sets of class weights.
    """
    if start < 0:
        raise ValueError(f"the second stage starts at epoch {start}; give 0 or more")
    return lambda epoch: first if epoch < start else second


def sigmoid_focal(logits, labels, alpha=1.0, gamma=0.0):
    """One binary loss a class, (1 − p_t)^γ of it, summed, times the weight α of the true class: (n,
    K), (n,) -> (n,).

    γ = 0 is the plain sigmoid loss. The class-balanced reference has this form, and takes the mean
    (Cui et al. 2019).
    """
    logits, labels = _checked(logits, labels)
    signed = logits * (2 * _named(labels, logits) - 1)  # log p_t = logsigmoid of this
    terms = -functional.logsigmoid(signed) * torch.exp(gamma * functional.logsigmoid(-signed))
    return _per_class("alpha", alpha, logits).expand(logits.shape[1])[labels] * terms.sum(1)


def softmax_focal(logits, labels, alpha=1.0, gamma=1.0):
    """α_y · (1 − p_y)^γ · cross-entropy: (n, K), (n,) -> (n,). The form of LDAM's code, with the
    weight outside the power.
    """
    logits, labels = _checked(logits, labels)
    others = logits.masked_fill(_named(labels, logits), -torch.inf).logsumexp(1)
    doubt = torch.exp(
        gamma * (others - logits.logsumexp(1))
    )  # by the logarithm of 1 − p: its gradient is finite at p = 1
    weight = _per_class("alpha", alpha, logits).expand(logits.shape[1])[labels]
    return weight * doubt * functional.cross_entropy(logits, labels, reduction="none")


def ldam_hinge(logits, labels, margins):
    """max(0, largest other logit − target's + its class's margin): (n, K), (n,) -> (n,). LDAM-HG;
    equal margins are HG.
    """
    logits, labels = _checked(logits, labels)
    target = logits.gather(1, labels[:, None])[:, 0]
    others = logits.masked_fill(_named(labels, logits), -torch.inf).amax(1)
    return (
        others - target + _per_class("margins", margins, logits).expand(logits.shape[1])[labels]
    ).clamp(min=0)
