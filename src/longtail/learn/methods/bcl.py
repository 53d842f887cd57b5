"""BCL: boosted views for images that are poorly remembered (Zhou et al., ICML 2022)."""

import torch

from longtail.images import randaugment
from longtail.learn.methods.simclr import SimCLR

NOTED = 6  # epochs of a run whose strengths are noted for the pictures


class BCL(SimCLR, name="bcl"):
    """Images whose averaged loss stays high, rare ones, get stronger views (Zhou et al. 2022,
    section 3).

    The defaults are BCL-I's; BCL-D is ``sdclr+bcl`` with draws=2 floor=5, its form for ImageNet
    draws=2 floor=0.
    """

    mechanism = "strength", 0.05
    changes = "views"
    options = {
        "draws": 1,
        "floor": 10,
        "memory": 0.97,
    }  # operations a view, their least magnitude, share of the past in the losses
    published = {
        ("BCL", "cifar100", method): {"weight_decay": 5e-4} for method in ("simclr", "bcl")
    } | {
        ("BCL", "cifar100", "sdclr"): {},
        ("BCL", "cifar100", "sdclr+bcl"): {"draws": 2, "floor": 5},
    }
    remembers = {"loss": 0, "strength": 0}

    def before_epoch(self, encoder, epoch):
        """Strengths follow from the losses of all epochs before; in the first nobody has one."""
        super().before_epoch(encoder, epoch)
        self.state["strength"].copy_(memorization_scores(self.state["loss"]).nan_to_num(0))
        if epoch and epoch % -(-self.run.epochs // NOTED) == 0:
            self.note("strength", epoch, self.state["strength"][: self.count])

    def boost(self, levels, index, epoch, view):
        """The policy's views, boosted by each image's strength."""
        strength = self.state["strength"][index]
        return randaugment.boost(
            levels,
            index,
            strength,
            self.own["draws"],
            self.own["floor"],
            self.run.seed,
            epoch,
            view,
        )

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        self.remember("loss", index, loss, self.own["memory"])
        return loss


def memorization_scores(history):
    """How poorly each image is remembered, in [0, 1], from its averaged loss (n,); NaN where it has
    none, 0.5 if all are equal.
    """
    centred = history - history.nanmean()
    largest = centred.abs().nan_to_num().amax()
    differ = (
        history.nan_to_num(-torch.inf).amax() > history.nan_to_num(torch.inf).amin()
    )  # the mean of equal losses is rounded
    return (torch.where(differ, centred / largest, 0 * centred) + 1) / 2
