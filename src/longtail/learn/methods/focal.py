"""NT-Xent with the focal weight of Lin et al. (ICCV 2017): a baseline."""

from longtail.learn import losses
from longtail.learn.methods.simclr import SimCLR


class Focal(SimCLR, name="focal"):
    """NT-Xent with more weight on anchors whose positive is unlikely."""

    options = {"focus": 2.0}

    def objective(self, first, second, index):
        return focal_nt_xent(first, second, self.temperature, self.own["focus"])


def focal_nt_xent(first, second, temperature, focus):
    """NT-Xent that turns to the hard anchors: each anchor's loss times (1 − its positive's
    probability)^focus; (n,).
    """
    _, positive, denominator = losses.contrast(first, second, temperature)
    anchors = denominator.unflatten(-1, (2, -1)) - positive[..., None, :]
    return ((1 - (-anchors).exp()) ** focus * anchors).mean(-2)
