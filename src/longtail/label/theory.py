"""Statements about long-tailed learning in closed form, each with what a numeric check needs.
Everything here is float64.

η is the probability of each class given an image, π its share of the training images; both (…, K).
"""

import torch
from scipy.stats import norm
from torch.special import expit

from longtail.label import adjusted


def balanced_bayes(eta, prior):
    """The class that minimises the balanced error: the largest η / π."""
    return (eta / prior).argmax(-1)


def risk(logits, eta, spec):
    """Expected loss of one image whose label follows η: logits (K,), η (K,) -> scalar."""
    classes = torch.arange(len(eta))
    return (eta * adjusted.adjusted_losses(logits.expand(len(eta), -1), classes, spec)[0]).sum()


def minimiser(eta, spec):
    """Logits of least risk for a loss without scales and margins, centred: log η + log α − ι
    (K,).
    """
    logits = eta.log() + torch.as_tensor(spec.alpha).log() - torch.as_tensor(spec.iota)
    return logits - logits.mean(-1, keepdim=True)


def minimise(eta, spec, steps=200):
    """Logits of least risk for any spec, centred after scaling: η and the spec's vectors (…, K) ->
    (…, K).

    Newton's method on the scaled logits of many problems at once; the risk is convex, so where its
    gradient vanishes is the minimum.
    """
    alpha, beta, iota, mu = (
        torch.as_tensor(getattr(spec, name)).to(eta).expand(eta.shape)
        for name in ("alpha", "beta", "iota", "mu")
    )
    weight, scaled = (alpha * eta)[..., None], torch.zeros_like(eta)
    for _ in range(steps):
        chance = ((scaled + iota)[..., None, :] - torch.diag_embed(mu)).softmax(
            -1
        )  # a row for each class as the target
        gradient = (weight * chance).sum(-2) - weight[..., 0]
        hessian = torch.diag_embed((weight * chance).sum(-2)) - (weight * chance).mT @ chance
        step = torch.linalg.solve(
            hessian + 1 / eta.shape[-1], gradient
        )  # flat along (1, …, 1): a ridge there costs nothing
        scaled = scaled - step / step.abs().amax(-1, keepdim=True).clamp(
            min=1
        )  # no leap beyond one unit
        if step.abs().max() < 1e-9:
            return (scaled - scaled.mean(-1, keepdim=True)) / beta
    raise ArithmeticError(
        f"no minimum within {steps} steps, the last was {step.abs().max():.1e}; allow more steps"
    )


def theorem_member(prior, delta):
    """A loss that is consistent for the balanced error whatever δ > 0 is: α = δ / π, ι = log δ
    (Menon et al. 2021, theorem 1).
    """
    return adjusted.LossSpec(alpha=delta / prior, iota=delta.log())


def corrected_twice(prior, nu, tau):
    """Re-weighting by π^−ν and shifting by τ log π at once: consistent for the balanced error if
    and only if ν + τ = 1.
    """
    return adjusted.LossSpec(alpha=prior**-nu, iota=tau * prior.log())


def ldam_threshold(counts, max_m, s):
    """How probable the larger of two classes must be for LDAM's best unbounded logits to name it;
    between ⅓ and ⅔, whatever the counts.
    """
    large, small = expit(s * adjusted.class_margins(counts, max_m))
    return (small / (large + small)).item()


def margin_bound(margins, counts):
    """The bound that LDAM's margins minimise: Σ 1 / (γ_j √n_j)."""
    return (1 / (margins * adjusted.class_sizes(counts).sqrt())).sum(-1)


def best_margins(counts, total):
    """Margins ∝ n^(−1/4) of the given sum, where ``margin_bound`` is least."""
    raw = adjusted.class_sizes(counts) ** -0.25
    return total * raw / raw.sum()


def vs_minimiser(eta, spec, c):
    """Logits of least risk for a loss with scales: (log η − ι + c) / β, the same risk for every
    c.
    """
    return (eta.log() - torch.as_tensor(spec.iota) + c) / torch.as_tensor(spec.beta)


def gaussian_cut(positive, threshold, mean=1.0, deviation=1.0):
    """Where P(+1 | x) equals a threshold, for x ~ N(±mean, deviation²) and that share of
    positives.
    """
    positive, threshold = (
        torch.as_tensor(positive, dtype=torch.float64),
        torch.as_tensor(threshold, dtype=torch.float64),
    )
    return (threshold.logit() - positive.logit()) * deviation**2 / (2 * mean)


def gaussian_am(cut, mean=1.0, deviation=1.0):
    """Mean of the true positive and the true negative rate when x > cut is called positive."""
    return (norm.cdf((mean - cut) / deviation) + norm.cdf((mean + cut) / deviation)) / 2
