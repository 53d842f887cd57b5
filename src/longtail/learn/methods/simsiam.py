"""SimSiam: similarity without negatives (Chen and He, CVPR 2021)."""

import torch

from longtail.learn import losses, models
from longtail.learn.methods.simclr import SimCLR, warmup_cosine


class SimSiam(SimCLR, name="simsiam"):
    """Predict one view's projection from the other, without negatives (Chen and He 2021); rows are
    [prediction, projection].
    """

    changes = "network"
    network = models.SiameseEncoder
    settings = {
        "policy": "simsiam",
        "learning_rate": 0.06,
        "weight_decay": 5e-4,
        "warmup_epochs": 0,
    }
    clashes = ("sdclr", "focal", "gh", "colt")  # they read projections, or contrast them

    def rates(self, epoch, course):
        """A cosine by epoch, without warm-up, to 0 in the last one."""
        return [warmup_cosine(epoch + 1, course.epochs, 0, self.run.learning_rate, 0.0)] * len(
            course.steps(epoch)
        )

    def project(self, encoder, first, second):
        """Each view by itself, so that batch statistics are its own."""
        projections = encoder(first), encoder(second)
        return [torch.cat([encoder.predictor(rows), rows], 1) for rows in projections]

    def objective(self, first, second, index):
        return losses.simsiam(*first.chunk(2, 1), *second.chunk(2, 1))
