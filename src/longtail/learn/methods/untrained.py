"""Encoders that are not trained here: fresh weights, or weights from elsewhere."""

from longtail.learn.methods.simclr import SimCLR


class Untrained(SimCLR, name="untrained"):
    """The network as it is before the first update: the floor under every accuracy."""

    changes, alone = "network", True
    fixed = {"epochs": 0, "warmup_epochs": 0}


class Given(SimCLR, name="given"):
    """Weights that were trained elsewhere, without a projection head: their features contrast as
    they are.
    """

    changes, alone = "network", True
    head_layers = 0

    def __init__(self, run):
        raise ValueError(
            f"{run.name}: a given encoder is not trained; name another method, or give its weights "
            "as `encoder`"
        )
