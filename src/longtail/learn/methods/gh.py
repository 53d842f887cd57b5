"""GH: geometric harmonization, surrogate classes at equal angles (Zhou et al., NeurIPS 2023)."""

import functools
import math

import numpy as np
import torch
from torch.nn import functional

from longtail.learn.methods.two_stage import TwoStage
from longtail.store import gpu


class GH(TwoStage, name="gh"):
    """From epoch ``warm`` on, views also agree on surrogate classes at equal angles, filled as the
    images fill them.

    ``past`` and ``late_past``: share of the past in an image's averaged logits before ``warm`` and
    after.
    """

    mechanism = "prior", 0.1
    changes = "terms"
    options = {
        "classes": 100,
        "ramp": 10,
        "refresh": 20,
        "least": 0,
        "harmony": 1.0,
        "past": 0.9,
        "late_past": 0.999,
    }
    published = {
        ("GH", "cifar100", method): {"epochs": 1000, "weight_decay": 5e-4, "seed_images": 10_847}
        for method in ("simclr", "sdclr", "bcl", "two_stage", "gh", "sdclr+gh", "bcl+gh")
    }

    def __init__(self, run):
        super().__init__(run)
        if (classes := self.own["classes"]) > 128:
            raise ValueError(
                f"{run.name}: no {classes} directions have equal angles in 128 dimensions; give "
                "classes=128 or fewer"
            )

    def start(self, images, teacher):
        super().start(images, teacher)
        classes, device = self.own["classes"], images.images.device
        self.assigned = gpu.Recorded(
            sinkhorn
        )  # by itself where the update is not: 1,200 small kernels
        normal = np.random.default_rng(self.run.seed).standard_normal((classes, 128))
        self.state |= {
            "targets": simplex_targets(torch.from_numpy(normal)).float().to(device),
            "past": torch.tensor(self.own["past"], device=device),
            "logits": torch.full((len(images), classes), torch.nan, device=device),
            "prior": torch.full((classes,), 1 / classes, device=device),
            "weight": torch.tensor(0.0, device=device),
        }

    def phase(self):
        return *super().phase(), self.harmonizes

    def before_epoch(self, encoder, epoch):
        """The prior from all images' averaged logits, first when the warm-up ends; the weight of
        the loss rises from then on.
        """
        super().before_epoch(encoder, epoch)
        since = epoch - self.own["warm"]
        self.harmonizes = since >= 0
        if self.harmonizes and (since == 0 or epoch % self.own["refresh"] == 0):
            self.state["prior"].copy_(class_prior(self.state["logits"], self.own["least"]))
            self.note("prior", epoch, self.state["prior"])
        self.state["past"].fill_(self.own["late_past" if self.harmonizes else "past"])
        self.state["weight"].fill_(
            self.own["harmony"] * min(1, max(0, (since + 1) / self.own["ramp"]))
        )

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        logits = torch.stack(
            [surrogate_logits(rows, self.state["targets"]) for rows in (first, second)]
        )
        self.remember("logits", index, logits[0], self.state["past"])
        if not self.harmonizes:
            return loss
        assigned = self.assigned(((), logits.shape), logits.detach(), self.state["prior"])
        return loss + self.state["weight"] * harmonization(*logits, *assigned)


def simplex_targets(normal):
    """K directions with equal angles between any two, from a normal matrix (K, d): unit rows (K,
    d), products −1/(K − 1).

    The centred polar factor; equiangular only for K ≤ d.
    """
    left, _, right = torch.linalg.svd(normal, full_matrices=False)
    polar, classes = left @ right, len(normal)
    return math.sqrt(classes / (classes - 1)) * (polar - polar.mean(0))


def surrogate_logits(projections, targets):
    """Agreement of each row with each target: (n, d), (K, d) -> unit rows (n, K)."""
    return functional.normalize(projections.to(targets.dtype) @ targets.T, dim=1)


def sinkhorn(logits, prior=None, epsilon=0.05, iterations=300):
    """Assignments of a batch to classes whose means approach the prior: logits (…, n, K), prior
    (K,) -> (…, n, K), rows sum to 1.

    Each round scales the classes to the prior, uniform unless given, then the rows. A class of
    prior 0 gets nothing. No gradient.
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
    """A round of ``sinkhorn`` as two kernels, each a sum that divides at once: (kernel, prior,
    rows) -> scales of rows and classes.
    """

    def scaled(kernel, prior, rows):
        columns = prior / (rows[..., None] * kernel).sum(-2)
        return (kernel * columns[..., None, :]).sum(-1).reciprocal(), columns

    return gpu.compiled(scaled)


def class_prior(logits, floor=0):
    """Share of the images whose largest logit is each class, from all averaged logits (n, K) ->
    (K,); ``floor`` images more a class.

    Rows of NaN, images without a history, do not count.
    """
    known = logits[~logits.isnan().any(1)]
    counts = torch.bincount(known.argmax(1), minlength=logits.shape[1]) + floor
    return counts.to(logits.dtype) / counts.sum()


def harmonization(logits1, logits2, assigned1, assigned2, gamma=0.1):
    """GH's loss of each image: each view's surrogate logits against the other view's assignment,
    both directions summed; (n,).
    """
    pairs = (assigned1, logits2), (assigned2, logits1)
    return sum(
        -(assigned * functional.log_softmax(logits / gamma, -1)).sum(-1)
        for assigned, logits in pairs
    )
