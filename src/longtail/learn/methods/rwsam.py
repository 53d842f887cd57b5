"""rwSAM: sharpness-aware steps that weigh images by the density around them (Liu et al., ICLR
2022).
"""

import math
from dataclasses import replace

import torch
from torch.nn import functional

from longtail.learn import encode
from longtail.learn.methods.simclr import SimCLR, read_options, write_options
from longtail.store import processes


class RwSAM(SimCLR, name="rwsam"):
    """Sharpness-aware steps whose uphill half listens most to images in thin regions (Liu et al.
    2022); as published, simsiam+rwsam.

    The weights come from the features of the same run without rwsam, which is trained first.
    """

    mechanism = "importance", 0.2
    changes = "steps"
    options = {
        "rho": 7.0,
        "adaptive": True,
        "freeze": False,
        "alpha": 1.0,
        "clip": 10.0,
    }  # freeze: statistics stay in the second pass
    published = {
        ("rwSAM", "cifar10", method): {"epochs": 1600, "seed_images": 12_406}
        for method in ("simsiam", "simsiam+rwsam")
    }
    remembers = {"importance": 0}

    @classmethod
    def reference(cls, run):
        method = "+".join(part for part in run.method.split("+") if part != "rwsam") or "simclr"
        options = read_options(cls, dict(pair.split("=") for pair in run.options.split()))
        return replace(
            run,
            method=method,
            options=write_options({name: options[name] for name in options.keys() - RwSAM.options}),
        )

    def before_epoch(self, encoder, epoch):
        """The weights are found once, from the reference's features."""
        super().before_epoch(encoder, epoch)
        if not epoch:
            self.state["importance"][: self.count] = self.importance().to(self.state["importance"])
            self.note("importance", 0, self.state["importance"][: self.count])

    def importance(self):
        """Weight of each seed image (n,)."""
        features = encode.embed(self.teacher.trunk, self.images.images[: self.count])
        return density_weights(features, self.own["alpha"], clip=self.own["clip"])

    def backward(self, encoder, first, second, index):
        """Uphill by the weighted loss, gradients of the plain loss there, and back."""
        loss = self.forward(encoder, first, second, index)
        (self.state["importance"][index].nan_to_num(1) * loss).mean().backward()
        processes.add_gradients(encoder)
        weights = [parameter for parameter in encoder.parameters() if parameter.grad is not None]
        with torch.no_grad():
            changing = [*weights, *(encoder.buffers() if self.own["freeze"] else [])]
            kept = [tensor.clone() for tensor in changing]
            uphill = sam_perturbation(
                weights,
                [parameter.grad for parameter in weights],
                self.own["rho"],
                self.own["adaptive"],
            )
            torch._foreach_add_(weights, uphill)
        encoder.zero_grad(set_to_none=True)
        self.attends = False
        super().backward(encoder, first, second, index)
        self.attends = True
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)
        return loss.detach()


class Oracle(RwSAM, name="rwsam_oracle"):
    """rwSAM with weights φ^rank of the class, the most frequent first: it reads labels, so no
    result of it is self-supervised.
    """

    options = {"phi": 1.2}

    @classmethod
    def reference(cls, run):
        return None

    def importance(self):
        sizes = torch.bincount(self.images.labels[: self.count])
        ranks = sizes.argsort(descending=True, stable=True).argsort()
        return exponential_weights(ranks[self.images.labels[: self.count]], self.own["phi"])


def sam_perturbation(parameters, gradients, rho, adaptive):
    """The step uphill to the worst loss in a ball of radius ``rho``: list of tensors like
    ``parameters``.

    The norm is over all of them together. ``adaptive`` measures the ball relative to each weight:
    p²g·ρ/‖p·g‖ instead of g·ρ/‖g‖.
    """
    scaled = (
        [weight * gradient for weight, gradient in zip(parameters, gradients, strict=True)]
        if adaptive
        else gradients
    )
    length = rho / (torch.stack([part.norm() for part in scaled]).norm() + 1e-12)
    return [
        (weight * part if adaptive else part) * length
        for weight, part in zip(parameters, scaled, strict=True)
    ]


def log_density(features, bandwidth):
    """Log of the mean Gaussian kernel of every row with all rows, itself included, up to a
    constant: (n, d) -> (n,) float64.
    """
    features = features.double()
    exponents = (
        torch.cdist(part, features).square() / (-2 * bandwidth**2) for part in features.split(1024)
    )
    return torch.cat([part.logsumexp(1) for part in exponents]) - math.log(len(features))


def density_weights(features, alpha=1.0, bandwidth=None, clip=None, normalise=True):
    """Weights of images that fall with the density around them, mean 1 before they are clipped:
    features (n, d) -> (n,) float64.

    w = p^(−alpha). ``normalise`` first scales rows to length 1; ``bandwidth`` is half the median
    distance between rows (of 4,096 of them, evenly spaced) unless given; ``clip`` bounds the
    weights. The paper leaves kernel and features open: a convention of ours.
    """
    features = functional.normalize(features.double(), dim=1) if normalise else features.double()
    bandwidth = (
        bandwidth or float(functional.pdist(features[:: -(-len(features) // 4096)]).median()) / 2
    )
    falling = -alpha * log_density(features, bandwidth)
    weights = (falling - falling.max()).exp()
    return (weights / weights.mean()).clamp(0, clip)


def exponential_weights(ranks, phi):
    """φ^rank, rank 0 for the most frequent class: reads labels, so it is an oracle and no method.
    (n,) -> (n,) float64.
    """
    return phi ** torch.as_tensor(ranks).double()
