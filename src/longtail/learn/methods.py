"""What each self-supervised method adds to the one loop: one class a method, found by its name in ``METHODS``.

Methods joined by + do all that each of them does ("sdclr+bcl"): every class calls the one it builds on, so no pair needs code.
"""

import functools
from dataclasses import replace

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch.nn import functional

from longtail.images import randaugment
from longtail.learn import losses, models
from longtail.learn.formulas import (
    FINAL_RATE,
    class_prior,
    colt_sampling,
    crowding,
    density_weights,
    exponential_weights,
    memorization_scores,
    sam_perturbation,
    simplex_targets,
    sinkhorn,
    surrogate_logits,
    two_stage,
    warmup_cosine,
)
from longtail.learn.simclr import SimCLR, embed, gathered, read_options, write_options
from longtail.store import gpu, processes

SNAPSHOTS = 6       # epochs of a run whose per-image values are noted for the pictures


class Untrained(SimCLR):
    """The network as it is before the first update: the floor under every accuracy."""

    fixed = {"epochs": 0, "warmup_epochs": 0}
    clashes = ("sdclr", "simsiam", "supervised", "focal", "bcl", "two_stage", "gh", "colt", "rwsam", "rwsam_oracle")


class SDCLR(SimCLR):
    """The second view goes through a magnitude-pruned twin, which forgets the tail first (Jiang et al. 2021, spec 3)."""

    branches = 2
    head_layers = 3

    def before_epoch(self, encoder, epoch):
        """The twin lacks the smallest weights of this moment, all epoch long."""
        super().before_epoch(encoder, epoch)
        encoder.refresh_masks(self.run.prune_fraction)

    def project(self, encoder, first, second):
        """Dense branch sees view 1, pruned branch view 2, in one graph: the gradient of the authors' two backward passes."""
        return encoder(first, branch=0), encoder(second, branch=1)


class SimSiam(SimCLR):
    """Predict one view's projection from the other, without negatives (Chen and He 2021); rows are [prediction, projection]."""

    network = models.SiameseEncoder
    clashes = ("sdclr", "focal", "gh", "colt")      # they read projections, or contrast them

    def rates(self, epoch, course):
        """A cosine by epoch, without warm-up, to 0 in the last one."""
        return [warmup_cosine(epoch + 1, course.epochs, 0, self.run.learning_rate, 0.0)] * len(course.steps(epoch))

    def project(self, encoder, first, second):
        """Each view by itself, so that batch statistics are its own."""
        projections = encoder(first), encoder(second)
        return [torch.cat([encoder.predictor(rows), rows], 1) for rows in projections]

    def objective(self, first, second, index):
        return losses.simsiam(*first.chunk(2, 1), *second.chunk(2, 1))


class Supervised(SimCLR):
    """Cross-entropy on labels, which are read here and by the oracle alone: what self-supervision is held against.

    The head, one layer, gives the logits of up to 128 classes; evaluation uses the trunk as always.
    """

    head_layers = 1
    clashes = ("sdclr", "simsiam", "focal", "gh", "colt")

    def start(self, images, teacher):
        super().start(images, teacher)
        self.labels = images.labels.to(images.images.device)
        if not 0 <= self.labels.min() <= self.labels.max() < 128:
            raise ValueError(f"{self.run.name}: labels reach from {self.labels.min()} to {self.labels.max()}; supervised needs 0 to 127")

    def objective(self, first, second, index):
        return sum(functional.cross_entropy(logits.float(), self.labels[index], reduction="none") for logits in (first, second)) / 2


class Focal(SimCLR):
    """NT-Xent with more weight on anchors whose positive is unlikely."""

    options = {"focus": 2.0}

    def objective(self, first, second, index):
        return losses.focal_nt_xent(first, second, self.run.temperature, self.own["focus"])


class BCL(SimCLR):
    """Images whose averaged loss stays high, rare ones, get stronger views (Zhou et al. 2022, family spec 3).

    The defaults are BCL-I's; BCL-D is ``sdclr+bcl`` with draws=2 floor=5, its form for ImageNet draws=2 floor=0.
    """

    options = {"draws": 1, "floor": 10, "memory": 0.97}     # operations a view, their least magnitude, share of the past in the losses
    remembers = {"loss": 0, "strength": 0}

    def before_epoch(self, encoder, epoch):
        """Strengths follow from the losses of all epochs before; in the first nobody has one."""
        super().before_epoch(encoder, epoch)
        self.state["strength"].copy_(memorization_scores(self.state["loss"]).nan_to_num(0))
        if epoch and epoch % -(-self.run.epochs // SNAPSHOTS) == 0:
            self.note("strength", epoch, self.state["strength"][:self.count])

    def boost(self, levels, index, epoch, view):
        """The policy's views, boosted by each image's strength."""
        strength = self.state["strength"][index]
        return randaugment.boost(levels, index, strength, self.own["draws"], self.own["floor"], self.run.seed, epoch, view)

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        self.remember("loss", index, loss, self.own["memory"])
        return loss


class TwoStage(SimCLR):
    """GH's learning rate, by epoch: one cosine to ``middle`` of the rate at epoch ``warm``, a second to the end; the control of GH."""

    options = {"warm": 500, "middle": 0.6}

    def start(self, images, teacher):
        super().start(images, teacher)
        if not self.run.warmup_epochs < self.own["warm"] < self.run.epochs:
            raise ValueError(f"{self.run.name}: warm={self.own['warm']} must lie between {self.run.warmup_epochs} warm-up epochs and "
                             f"{self.run.epochs} epochs; give warm=… in the arm")

    def rates(self, epoch, course):
        rate = self.run.learning_rate
        one = two_stage(epoch + 1, course.epochs, self.run.warmup_epochs, self.own["warm"], rate, self.own["middle"] * rate, FINAL_RATE)
        return [one] * len(course.steps(epoch))


class GH(TwoStage):
    """From epoch ``warm`` on, views also agree on surrogate classes at equal angles, filled as the images fill them (family spec 4).

    ``past`` and ``late_past``: share of the past in an image's averaged logits before ``warm`` and after.
    """

    options = {"classes": 100, "ramp": 10, "refresh": 20, "least": 0, "harmony": 1.0, "past": 0.9, "late_past": 0.999}

    def start(self, images, teacher):
        super().start(images, teacher)
        classes, device = self.own["classes"], images.images.device
        if classes > 128:
            raise ValueError(f"{self.run.name}: no {classes} directions have equal angles in 128 dimensions; give classes=128 or fewer")
        self.assigned = gpu.Recorded(sinkhorn)      # by itself where the update is not: 1,200 small kernels
        normal = np.random.default_rng(self.run.seed).standard_normal((classes, 128))
        self.state |= {"targets": simplex_targets(torch.from_numpy(normal)).float().to(device),
                       "past": torch.tensor(self.own["past"], device=device),
                       "logits": torch.full((len(images), classes), torch.nan, device=device),
                       "prior": torch.full((classes,), 1 / classes, device=device), "weight": torch.tensor(0.0, device=device)}

    def phase(self):
        return *super().phase(), self.harmonizes

    def before_epoch(self, encoder, epoch):
        """The prior from all images' averaged logits, first when the warm-up ends; the weight of the loss rises from then on."""
        super().before_epoch(encoder, epoch)
        since = epoch - self.own["warm"]
        self.harmonizes = since >= 0
        if self.harmonizes and (since == 0 or epoch % self.own["refresh"] == 0):
            self.state["prior"].copy_(class_prior(self.state["logits"], self.own["least"]))
            self.note("prior", epoch, self.state["prior"])
        self.state["past"].fill_(self.own["late_past" if self.harmonizes else "past"])
        self.state["weight"].fill_(self.own["harmony"] * min(1, max(0, (since + 1) / self.own["ramp"])))

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        logits = torch.stack([surrogate_logits(rows, self.state["targets"]) for rows in (first, second)])
        self.remember("logits", index, logits[0], self.state["past"])
        if not self.harmonizes:
            return loss
        assigned = self.assigned(((), logits.shape), logits.detach(), self.state["prior"])
        return loss + self.state["weight"] * losses.harmonization(*logits, *assigned)


class COLT(SimCLR):
    """Every ``repick`` epochs other images of the pool join, near the clusters with the least crowded images (family spec 5)."""

    options = {"begin": 100, "repick": 25, "clusters": 10, "nearest": 10, "domain": 0.2, "memory": 0.97}
    remembers = {"crowding": 0}
    picks = True

    def start(self, images, teacher):
        super().start(images, teacher)
        if not 0 < self.run.budget <= self.run.reserve:
            raise ValueError(f"{self.run.name}: cannot pick {self.run.budget} of a pool of {self.run.reserve}; "
                             f"give budget=… in the arm, and a pool")
        if self.own["begin"] < 1:
            raise ValueError(f"{self.run.name}: begin={self.own['begin']}, but first picks follow from an epoch's scores; give 1 or more")
        self.state["extras"] = torch.empty(0, dtype=torch.int64, device=images.images.device)

    def extra(self, epoch):
        return super().extra(epoch) + (self.run.budget if epoch >= self.own["begin"] else 0)

    def used(self):
        return torch.cat([super().used(), self.state["extras"]])

    def phase(self):
        return *super().phase(), len(self.state["extras"]) > 0

    def before_epoch(self, encoder, epoch):
        """Cluster the seed's projections and fetch the pool images nearest to each cluster."""
        super().before_epoch(encoder, epoch)
        if epoch < self.own["begin"] or (epoch - self.own["begin"]) % self.own["repick"]:
            return
        seed, pool = functional.normalize(embed(encoder, self.images.images)).split([self.count, self.run.reserve])
        found = KMeans(self.own["clusters"], n_init=10, random_state=0).fit(seed.cpu().numpy())
        labels, centers = torch.from_numpy(found.labels_).to(seed.device), torch.from_numpy(found.cluster_centers_).to(seed)
        picks = colt_sampling(self.state["crowding"][:self.count], labels, centers, pool, self.run.budget)
        picks = torch.tensor(processes.agreed(picks.tolist()), device=seed.device)
        self.state["extras"] = self.count + picks
        self.note("picks", epoch, picks)

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        crowded = crowding(first.detach(), second.detach(), self.run.temperature, self.own["nearest"])
        self.remember("crowding", index, crowded, self.own["memory"])
        if not len(self.state["extras"]):
            return loss
        return loss + self.own["domain"] * losses.domain(first, second, index >= self.count, self.run.temperature)


class RwSAM(SimCLR):
    """Sharpness-aware steps whose uphill half listens most to images in thin regions (Liu et al. 2022); as published, simsiam+rwsam.

    The weights come from the features of the same run without rwsam, which is trained first.
    """

    options = {"rho": 7.0, "adaptive": True, "freeze": False, "alpha": 1.0, "clip": 10.0}   # freeze: statistics stay in the second pass
    remembers = {"importance": 0}

    @classmethod
    def reference(cls, run):
        method = run.method.removesuffix("rwsam").removesuffix("+") or "simclr"
        kept = {name: value for name, value in read_options(cls, dict(pair.split("=") for pair in run.options.split())).items()
                if name in gathered(find(method), "options")}
        return replace(run, method=method, options=write_options(kept))

    def before_epoch(self, encoder, epoch):
        """The weights are found once, from the reference's features."""
        super().before_epoch(encoder, epoch)
        if not epoch:
            self.state["importance"][:self.count] = self.importance().to(self.state["importance"])
            self.note("importance", 0, self.state["importance"][:self.count])

    def importance(self):
        """Weight of each seed image (n,)."""
        features = embed(self.teacher.trunk, self.images.images[:self.count])
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
            uphill = sam_perturbation(weights, [parameter.grad for parameter in weights], self.own["rho"], self.own["adaptive"])
            torch._foreach_add_(weights, uphill)
        encoder.zero_grad(set_to_none=True)
        self.attends = False
        super().backward(encoder, first, second, index)
        self.attends = True
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)
        return loss.detach()


class Oracle(RwSAM):
    """rwSAM with weights φ^rank of the class, the most frequent first: it reads labels, so no result of it is self-supervised."""

    options = {"phi": 1.2}

    @classmethod
    def reference(cls, run):
        """None: labels say it all."""
        return None

    def importance(self):
        sizes = torch.bincount(self.images.labels[:self.count])
        ranks = sizes.argsort(descending=True, stable=True).argsort()
        return exponential_weights(ranks[self.images.labels[:self.count]], self.own["phi"])


class Given(SimCLR):
    """Weights that were trained elsewhere, without a projection head: their features contrast as they are."""

    head_layers = 0

    def __init__(self, run):
        raise ValueError(f"{run.name}: a given encoder is not trained; name another method, or give its weights as `encoder`")


METHODS = {     # in the order in which a joined name has them: what to train, then what is added to it
    "simclr": SimCLR, "untrained": Untrained, "sdclr": SDCLR, "simsiam": SimSiam, "supervised": Supervised, "focal": Focal, "bcl": BCL,
    "two_stage": TwoStage, "gh": GH, "colt": COLT, "rwsam": RwSAM, "rwsam_oracle": Oracle}


def find(name):
    """The class of a method by its name, or of several joined by +, the later on the earlier; ``given`` says that none was trained."""
    if name == "given":
        return Given
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}, and several joined by +")
    kinds = tuple(METHODS[part] for part in parts)
    if parts != [part for part in METHODS if part in parts] or any(a is not b and issubclass(a, b) for a in kinds for b in kinds):
        raise ValueError(f"{name!r} names a method twice or out of order; join them in the order {', '.join(METHODS)}, without simclr")
    if clash := [part for kind in kinds for part in kind.clashes if part in parts]:
        raise ValueError(f"{name!r} makes no sense: {clash[0]} does not go with the rest")
    return joined(name, kinds) if len(kinds) > 1 else kinds[0]


@functools.cache
def joined(name, kinds):
    """One class of several; the last one acts first and calls those before it."""
    return type(name, kinds[::-1], {"__doc__": " + ".join(kind.__doc__.splitlines()[0] for kind in kinds)})


def published_options(name, changed):
    """All options of a method as a run keeps them, at the published values but for those ``changed``, given as text."""
    return write_options(read_options(find(name), changed))
