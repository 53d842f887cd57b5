"""Probes without a step size, on frozen features: logistic regression to convergence, and nearest
neighbours.

Both answer the same whenever they are asked, so that what differs between two encoders is the
encoders' doing.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from longtail.store import gpu

SMALLEST_GRADIENT = 1e-5  # converged: no derivative of the mean loss is larger
ITERATIONS = 5000  # of L-BFGS; more than ten times what features of CIFAR-10 need
BLOCK = 256  # images whose similarities to the whole bank are held at a time


class NotConverged(RuntimeError):
    """A classifier whose iterations ran out before its gradient had vanished."""


@dataclass(frozen=True)
class Converged:
    """Multinomial logistic regression to convergence on standardised features of the images as they
    are.
    """

    labels: str  # which image set of the study has them
    l2: float = (
        1e-3  # weight of half the squared weights beside the mean cross-entropy; the bias is free
    )
    selection: ClassVar[str] = "converged"

    def decide(self, known, labels, asked, seed):
        """The class of each image asked about: known (n, d), labels (n,), asked (m, d) -> (m,).

        ``seed`` draws the order of the images and the first weights, which converged answers do not
        depend on.
        """
        known, asked = standardised(known, asked)
        order = shuffled(len(known), seed, known.device)
        weight, bias = fit(known[order].double(), labels[order], self.l2, seed)
        return (asked.double() @ weight.T + bias).argmax(1)


@dataclass(frozen=True)
class Nearest:
    """Weighted nearest neighbours by cosine similarity s, weights exp(s / temperature) (Wu et al.
    2018, section 3.4).
    """

    labels: str
    neighbours: int = 200  # all labelled images where there are fewer
    temperature: float = 0.07
    selection: ClassVar[str] = "nearest"

    def decide(self, known, labels, asked, seed):
        """The class of each image asked about: known (n, d), labels (n,), asked (m, d) -> (m,);
        ``seed`` draws the order of the bank.
        """
        order = shuffled(len(known), seed, known.device)
        bank, labels = functional.normalize(known[order], dim=1), labels[order]
        return torch.cat(
            [
                self.elect(block @ bank.T, labels)
                for block in functional.normalize(asked, dim=1).split(BLOCK)
            ]
        )

    def elect(self, similarities, labels):
        """The class with most votes among the nearest: similarities (m, n), labels (n,) -> (m,)."""
        nearest, places = similarities.topk(min(self.neighbours, len(labels)), 1)
        votes = torch.zeros(len(similarities), int(labels.max()) + 1, device=similarities.device)
        return votes.scatter_add_(1, labels[places], (nearest / self.temperature).exp()).argmax(1)


def shuffled(count, seed, device):
    """A random order of ``count`` positions."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(count)).to(device)


def standardised(known, *others):
    """Features with mean 0 and standard deviation 1 over the known images (n, d), the others' by
    the same numbers: list of tensors.

    A feature that does not vary among the known images says nothing about them: it is 0 for all.
    """
    mean, deviation = known.mean(0), known.std(0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0)
    return [(features - mean) * scale for features in (known, *others)]


def fit(features, labels, l2, seed=1):
    """Weights (K, d) and bias (K,) of least mean cross-entropy + l2/2 · Σ weights²: features (n, d)
    float64, labels (n,).

    By scikit-learn on a CPU and torch on a GPU. ``seed`` draws the first weights. Raises
    ``NotConverged``, and ``ValueError`` for a class without images.
    """
    counts = torch.bincount(labels)
    if (counts == 0).any() or len(counts) < 2:
        raise ValueError(
            f"labelled images of each class: {counts.tolist()}; a classifier needs some of each of "
            "at least two classes"
        )
    if not l2 > 0:
        raise ValueError(
            f"the L2 weight is {l2}; without one above 0, classes that can be told apart perfectly "
            "have no solution"
        )
    first = torch.from_numpy(
        np.random.default_rng(seed).normal(0, 0.01, (len(counts), features.shape[1]))
    ).to(features.device)
    return (by_torch if gpu.computes(features) else by_scikit_learn)(features, labels, l2, first)


def by_scikit_learn(features, labels, l2, first):
    """``fit`` with scikit-learn's L-BFGS, from first weights (K, d)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    two = (
        len(first) == 2
    )  # scikit-learn then fits one row w, which are two rows −w/2 and w/2 of half its square
    model = LogisticRegression(
        C=(2 if two else 1) / (l2 * len(labels)),
        tol=SMALLEST_GRADIENT,
        max_iter=ITERATIONS,
        warm_start=True,
    )
    model.coef_, model.intercept_ = (
        (first[1:] - first[:1] if two else first).numpy(),
        np.zeros(1 if two else len(first)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(features.numpy(), labels.numpy())
        except ConvergenceWarning as error:
            raise unfinished(l2) from error
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    return (
        (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2) if two else (weight, bias)
    )


def by_torch(features, labels, l2, first):
    """``fit`` with torch's L-BFGS on the features' device, from first weights (K, d)."""
    weight, bias = first.clone().requires_grad_(), first.new_zeros(len(first)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=SMALLEST_GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        value = (
            functional.cross_entropy(features @ weight.T + bias, labels)
            + l2 / 2 * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    loss()
    if (
        not max(weight.grad.abs().max(), bias.grad.abs().max()) <= SMALLEST_GRADIENT
    ):  # written so that nan is not converged
        raise unfinished(l2)
    return weight.detach(), bias.detach()


def unfinished(l2):
    """The error of a fit that ended too early."""
    return NotConverged(
        f"the logistic regression has not converged after {ITERATIONS} iterations with L2 weight "
        f"{l2:g}; raise the weight"
    )
