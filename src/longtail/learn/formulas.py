"""The methods' formulas as functions of tensors: rates, sharpness, density, memorization, harmony and crowding."""

import functools
import math

import torch
from torch.nn import functional

from longtail.learn import losses
from longtail.store import gpu

FINAL_RATE = 1e-6       # of every cosine but SimSiam's, all data sets


# ---- rates

def warmup_cosine(step, total_steps, warmup_steps, base_lr, final_lr):
    """Learning rate of optimiser step 1, 2, …: linear warm-up, then cosine to ``final_lr`` at the last step (spec 2.4)."""
    if step < warmup_steps:
        return base_lr * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (base_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def two_stage(epoch, epochs, warmup_epochs, warm, base_lr, middle_lr, final_lr):
    """Rate of epoch 1, 2, …: warm-up and cosine to ``middle_lr`` at epoch ``warm``, then cosine to ``final_lr`` (GH's runs)."""
    if epoch <= warm:
        return warmup_cosine(epoch, warm, warmup_epochs, base_lr, middle_lr)
    return warmup_cosine(epoch - warm, epochs - warm, 0, middle_lr, final_lr)


# ---- per-image memory

def averaged(old, new, beta):
    """Exponential average, ``beta`` of the past; where there is no past (NaN) the new value itself."""
    return torch.where(old.isnan(), new, beta * old + (1 - beta) * new)


# ---- rwSAM

def sam_perturbation(parameters, gradients, rho, adaptive):
    """The step uphill to the worst loss in a ball of radius ``rho``: list of tensors like ``parameters``.

    The norm is over all of them together. ``adaptive`` measures the ball relative to each weight: p²g·ρ/‖p·g‖ instead of g·ρ/‖g‖.
    """
    scaled = [weight * gradient for weight, gradient in zip(parameters, gradients, strict=True)] if adaptive else gradients
    length = rho / (torch.stack([part.norm() for part in scaled]).norm() + 1e-12)
    return [(weight * part if adaptive else part) * length for weight, part in zip(parameters, scaled, strict=True)]


def log_density(features, bandwidth):
    """Log of the mean Gaussian kernel of every row with all rows, itself included, up to a constant: (n, d) -> (n,) float64."""
    features = features.double()
    exponents = (torch.cdist(part, features).square() / (-2 * bandwidth**2) for part in features.split(1024))
    return torch.cat([part.logsumexp(1) for part in exponents]) - math.log(len(features))


def density_weights(features, alpha=1.0, bandwidth=None, clip=None, normalise=True):
    """Weights of images that fall with the density around them, mean 1 before they are clipped: features (n, d) -> (n,) float64.

    w = p^(−alpha). ``normalise`` first scales rows to length 1; ``bandwidth`` is half the median distance between rows (of 4,096 of
    them, evenly spaced) unless given; ``clip`` bounds the weights. The paper leaves kernel and features open: a convention of ours.
    """
    features = functional.normalize(features.double(), dim=1) if normalise else features.double()
    bandwidth = bandwidth or float(functional.pdist(features[::-(-len(features) // 4096)]).median()) / 2
    falling = -alpha * log_density(features, bandwidth)
    weights = (falling - falling.max()).exp()
    return (weights / weights.mean()).clamp(0, clip)


def exponential_weights(ranks, phi):
    """φ^rank, rank 0 for the most frequent class: reads labels, so it is an oracle and no method. (n,) -> (n,) float64."""
    return phi ** torch.as_tensor(ranks).double()


# ---- BCL

def memorization_scores(history):
    """How poorly each image is remembered, in [0, 1], from its averaged loss (n,); NaN where it has none, 0.5 if all are equal."""
    centred = history - history.nanmean()
    largest = centred.abs().nan_to_num().amax()
    differ = history.nan_to_num(-torch.inf).amax() > history.nan_to_num(torch.inf).amin()      # the mean of equal losses is rounded
    return (torch.where(differ, centred / largest, 0 * centred) + 1) / 2


# ---- GH

def simplex_targets(normal):
    """K directions with equal angles between any two, from a normal matrix (K, d): unit rows (K, d), products −1/(K − 1).

    The centred polar factor; equiangular only for K ≤ d.
    """
    left, _, right = torch.linalg.svd(normal, full_matrices=False)
    polar, classes = left @ right, len(normal)
    return math.sqrt(classes / (classes - 1)) * (polar - polar.mean(0))


def surrogate_logits(projections, targets):
    """Agreement of each row with each target: (n, d), (K, d) -> unit rows (n, K)."""
    return functional.normalize(projections.to(targets.dtype) @ targets.T, dim=1)


def sinkhorn(logits, prior=None, epsilon=0.05, iterations=300):
    """Assignments of a batch to classes whose means approach the prior: logits (…, n, K), prior (K,) -> (…, n, K), rows sum to 1.

    Each round scales the classes to the prior, uniform unless given, then the rows. A class of prior 0 gets nothing. No gradient.
    """
    kernel = (logits.detach() / epsilon).exp()
    prior = kernel.new_full(kernel.shape[-1:], 1) if prior is None else prior.to(kernel)
    prior = prior / prior.sum() * kernel.shape[-2]
    rows = kernel.new_ones(kernel.shape[:-1])
    if gpu.fuses(kernel):
        for _ in range(iterations):
            rows, columns = _fused_round()(kernel, prior, rows)
    else:
        for _ in range(iterations):
            columns = prior / (rows[..., None, :] @ kernel)[..., 0, :]
            rows = (kernel @ columns[..., None])[..., 0].reciprocal()
    return rows[..., None] * kernel * columns[..., None, :]


@functools.cache
def _fused_round():
    """A round of ``sinkhorn`` as two kernels, each a sum that divides at once: (kernel, prior, rows) -> scales of rows and classes."""
    def scaled(kernel, prior, rows):
        columns = prior / (rows[..., None] * kernel).sum(-2)
        return (kernel * columns[..., None, :]).sum(-1).reciprocal(), columns
    return gpu.compiled(scaled)


def class_prior(logits, floor=0):
    """Share of the images whose largest logit is each class, from all averaged logits (n, K) -> (K,); ``floor`` images more a class.

    Rows of NaN, images without a history, do not count.
    """
    known = logits[~logits.isnan().any(1)]
    counts = torch.bincount(known.argmax(1), minlength=logits.shape[1]) + floor
    return counts.to(logits.dtype) / counts.sum()


# ---- COLT

def crowding(first, second, temperature, nearest=10):
    """How crowded each image's neighbourhood is: the probability of its ``nearest`` likeliest negatives, (n, d), (n, d) -> (n,).

    Mean of both anchors' probabilities for each negative; large for frequent classes. The paper's tailness is minus this.
    """
    logits, _, denominator = losses.contrast(first, second, temperature)
    probability = (logits - denominator[:, None]).exp().unflatten(0, (2, len(first))).mean(0)
    own = torch.eye(len(first), dtype=torch.bool, device=first.device).repeat(1, 2)
    negatives = probability.masked_fill(own, 0)
    return negatives.topk(min(nearest, negatives.shape[1]), dim=1).values.sum(1)


def cluster_budgets(crowded, budget, temperature=1.0):
    """How many images each cluster may take, the more the less crowded it is: mean crowding (c,) -> c integers that sum to ``budget``.

    Softmax of the standardised negative, rounded down; the last cluster takes what is left, as in the reference.
    """
    spread = crowded.std() if len(crowded) > 1 else crowded.new_zeros(())
    standard = (crowded - crowded.mean()) / spread if spread > 0 else torch.zeros_like(crowded)
    sizes = (torch.softmax(-standard / temperature, 0) * budget).floor().long().tolist()
    return [*sizes[:-1], budget - sum(sizes[:-1])]


def colt_sampling(crowded, labels, centers, pool, budget, temperature=1.0):
    """Which pool images join the training: each cluster in turn takes the free ones nearest to its centre -> (budget,) indices.

    crowded (n,) of the seed images, labels (n,) their clusters, centers (c, d), pool (p, d). NaN in ``crowded`` is left out of means.
    """
    if budget > len(pool):
        raise ValueError(f"the pool has {len(pool)} images, fewer than the budget of {budget}; enlarge the pool or lower the budget")
    means = torch.stack([crowded[labels == cluster].nanmean() for cluster in range(len(centers))])
    close = functional.normalize(centers, dim=1) @ functional.normalize(pool, dim=1).T
    taken, free = [], torch.ones(len(pool), dtype=torch.bool, device=pool.device)
    for similarity, size in zip(close, cluster_budgets(means, budget, temperature), strict=True):
        order = torch.sort(similarity.masked_fill(~free, -torch.inf), descending=True, stable=True).indices[:size]
        free[order] = False
        taken.append(order)
    return torch.cat(taken)
