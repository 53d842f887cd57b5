"""SDCLR: contrast with a pruned copy of the network (Jiang et al., ICML 2021)."""

from longtail.learn.methods.simclr import SimCLR


class SDCLR(SimCLR, name="sdclr"):
    """The second view goes through a magnitude-pruned twin, which forgets rare images first (Jiang
    et al. 2021, section 3).
    """

    mechanism = "pruning", 0.2
    changes = "network"
    branches = 2
    head_layers = 3
    settings = {"prune_fraction": 0.9}
    published = {
        ("SDCLR", data, method): {}
        for data in ("cifar10", "cifar100")
        for method in ("simclr", "sdclr")
    } | {
        ("SDCLR", "imagenet100", "simclr"): {},
        ("SDCLR", "imagenet100", "sdclr"): {"temperature": 0.3, "prune_fraction": 0.3},
    }

    def before_epoch(self, encoder, epoch):
        """The twin lacks the smallest weights of this moment, all epoch long."""
        super().before_epoch(encoder, epoch)
        encoder.refresh_masks(self.run.prune_fraction)

    def project(self, encoder, first, second):
        """Dense branch sees view 1, pruned branch view 2, in one graph: the gradient of the
        authors' two backward passes.
        """
        return encoder(first, branch=0), encoder(second, branch=1)
