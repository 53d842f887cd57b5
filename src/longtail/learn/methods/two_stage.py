"""The learning rate of GH's runs without GH: the control that GH is compared with."""

from longtail.learn.methods.simclr import FINAL_RATE, SimCLR, warmup_cosine


class TwoStage(SimCLR, name="two_stage"):
    """GH's learning rate, by epoch: one cosine to ``middle`` of the rate at epoch ``warm``, a
    second to the end; the control of GH.
    """

    changes = "rates"
    options = {"warm": 500, "middle": 0.6}

    def __init__(self, run):
        super().__init__(run)
        if not run.warmup_epochs < self.own["warm"] < run.epochs:
            raise ValueError(
                f"{run.name}: warm={self.own['warm']} must lie between {run.warmup_epochs} warm-up "
                "epochs and "
                f"{run.epochs} epochs; give warm=… in the arm"
            )

    def rates(self, epoch, course):
        rate = self.run.learning_rate
        one = two_stage(
            epoch + 1,
            course.epochs,
            self.run.warmup_epochs,
            self.own["warm"],
            rate,
            self.own["middle"] * rate,
            FINAL_RATE,
        )
        return [one] * len(course.steps(epoch))


def two_stage(epoch, epochs, warmup_epochs, warm, base_lr, middle_lr, final_lr):
    """Rate of epoch 1, 2, …: warm-up and cosine to ``middle_lr`` at epoch ``warm``, then cosine to
    ``final_lr`` (GH's code).
    """
    if epoch <= warm:
        return warmup_cosine(epoch, warm, warmup_epochs, base_lr, middle_lr)
    return warmup_cosine(epoch - warm, epochs - warm, 0, middle_lr, final_lr)
