"""What each self-supervised method adds to the one loop: one class a method, found by its name in ``METHODS``."""

import torch

from longtail import losses, processes


class SimCLR:
    """Contrast two views of an image against all other images of the batch (Chen et al. 2020)."""

    branches = 1        # sets of batch norm in the encoder
    head_layers = 2     # of the projection head, as published

    def __init__(self, run):
        self.run = run

    def before_epoch(self, encoder, epoch):
        """What changes between epochs: masks, view strengths, extra images."""

    def project(self, encoder, first, second):
        """Projections (n, d) of both views: one pass over all 2n, so that batch statistics are joint (spec 2.1)."""
        return encoder(torch.cat([first, second])).chunk(2)

    def objective(self, first, second, index):
        """Loss of each image (n,); ``index`` is its position in the training set."""
        return losses.nt_xent(first, second, self.run.temperature)

    def backward(self, encoder, first, second, index):
        """Gradients of one step into the encoder; returns the per-image losses (n,).

        ``first`` and ``second`` are this process's views, ``index`` (n,) is the batch of all processes, which contrast as one.
        """
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self.run.precision == "bfloat16"):
            projections = self.project(encoder, first, second)
        loss = self.objective(*(processes.gather(rows, len(index)) for rows in projections), index)
        loss.mean().backward()
        processes.add_gradients(encoder)
        return loss.detach()


class SDCLR(SimCLR):
    """The second view goes through a magnitude-pruned twin, which forgets the tail first (Jiang et al. 2021, spec 3)."""

    branches = 2
    head_layers = 3

    def before_epoch(self, encoder, epoch):
        """The twin lacks the smallest weights of this moment, all epoch long."""
        encoder.refresh_masks(self.run.prune_fraction)

    def project(self, encoder, first, second):
        """Dense branch sees view 1, pruned branch view 2, in one graph: the gradient of the authors' two backward passes."""
        return encoder(first, branch=0), encoder(second, branch=1)


class Given(SimCLR):
    """Weights that were trained elsewhere, without a projection head: their features contrast as they are."""

    head_layers = 0

    def __init__(self, run):
        raise ValueError(f"{run.name}: a given encoder is not trained; name another method, or give its weights as `encoder`")


METHODS = {"simclr": SimCLR, "sdclr": SDCLR}


def find(name):
    """The class of a method by its name; ``given`` says that there was nothing to train."""
    if name == "given":
        return Given
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
