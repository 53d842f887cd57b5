"""Training on labels in the same loop: what self-supervision is compared with."""

from torch.nn import functional

from longtail.learn.methods.simclr import SimCLR


class Supervised(SimCLR, name="supervised"):
    """Cross-entropy on labels, which only this method and rwSAM's oracle read.

    The head, one layer, gives the logits of up to 128 classes; evaluation uses the trunk as always.
    """

    changes = "network"
    head_layers = 1
    clashes = ("sdclr", "simsiam", "focal", "gh", "colt")

    def start(self, images, teacher):
        super().start(images, teacher)
        self.labels = images.labels.to(images.images.device)
        if not 0 <= self.labels.min() <= self.labels.max() < 128:
            raise ValueError(
                f"{self.run.name}: labels reach from {self.labels.min()} to {self.labels.max()}; "
                "supervised needs 0 to 127"
            )

    def objective(self, first, second, index):
        return (
            sum(
                functional.cross_entropy(logits.float(), self.labels[index], reduction="none")
                for logits in (first, second)
            )
            / 2
        )
