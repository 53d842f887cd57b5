"""TS: the temperature of the contrastive loss swings as training goes on (Kukleva et al., ICLR
2023).
"""

import math

import numpy as np
import torch

from longtail.learn.methods.simclr import SimCLR


class TS(SimCLR, name="ts"):
    """One temperature for all images, by epoch: a cosine from ``high`` to ``low`` and back every
    ``period`` epochs (Kukleva et al. 2023).

    A low temperature tells single images apart, a high one groups. Two controls say whether it is
    the schedule that helps: its mean, ``high=0.55 low=0.55``, which is SimCLR at that temperature,
    and ``shape=shuffled``, the same values in an order drawn with the run's seed. Scores of images
    (ECLE, COLT's crowding) keep the run's temperature.
    """

    changes = "temperature"
    clashes = ("simsiam", "supervised")  # they have none
    options = {"low": 0.1, "high": 1.0, "period": 400, "shape": "cosine"}
    published = {
        ("TS", data, method): more
        for method in ("simclr", "ts")
        for data, more in {"cifar10": {}, "cifar100": {}, "imagenet100": {"epochs": 800}}.items()
    }

    def __init__(self, run):
        super().__init__(run)
        low, high, period, shape = (self.own[name] for name in ("low", "high", "period", "shape"))
        if not 0 < low <= high:
            raise ValueError(
                f"{run.name}: temperatures from low={low} to high={high}; give 0 < low ≤ high"
            )
        if period < 1 or run.epochs % period:
            raise ValueError(
                f"{run.name}: {run.epochs} epochs are no whole number of periods; give period=… in "
                "the arm, such as "
                f"period={max(1, run.epochs // 5)}"
            )
        if shape not in ("cosine", "shuffled"):
            raise ValueError(f"{run.name}: shape={shape} is neither cosine nor shuffled")
        self.course = [
            scheduled_temperature(epoch + 1, low, high, period) for epoch in range(run.epochs)
        ]
        if shape == "shuffled":
            self.course = (
                np.random.default_rng([run.seed, *b"ts"]).permutation(self.course).tolist()
            )

    @property
    def temperature(self):
        return self.state["temperature"]

    def start(self, images, teacher):
        super().start(images, teacher)
        self.state["temperature"] = torch.tensor(0.0, device=images.images.device)

    def before_epoch(self, encoder, epoch):
        """A new value in the same tensor, since a recorded update reads it there."""
        super().before_epoch(encoder, epoch)
        self.state["temperature"].fill_(self.course[epoch])


def scheduled_temperature(epoch, low, high, period):
    """τ of epoch 1, 2, …: low + (high − low)(1 + cos(2π epoch / period)) / 2 (the authors' code,
    whose ``t_max`` is half a period).
    """
    return low + (high - low) * (1 + math.cos(2 * math.pi * epoch / period)) / 2
