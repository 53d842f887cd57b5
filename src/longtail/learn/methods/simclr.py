"""SimCLR, on which every method builds: what the training loop asks of a method, and the settings
and memory that a method may have.
"""

import math

import torch

from longtail.learn import losses, models
from longtail.store import arms, gpu, processes

METHODS = {}  # name -> class; a class enters itself
CHANGES = (
    "network",
    "loss",
    "views",
    "rates",
    "terms",
    "images",
    "steps",
    "temperature",
)  # the order of the parts of a joined name
FINAL_RATE = 1e-6  # of every cosine but SimSiam's, all data sets

# what most papers train with, from SDCLR's repository; a method's file says what differs. Precision
# is free
CIFAR = {
    "architecture": "resnet18_cifar",
    "size": 32,
    "epochs": 2000,
    "batch_size": 512,
    "learning_rate": 0.5,
    "weight_decay": 1e-4,
    "temperature": 0.2,
    "policy": "cifar",
    "warmup_epochs": 10,
}
IMAGENET = CIFAR | {
    "architecture": "resnet50",
    "size": 224,
    "epochs": 500,
    "batch_size": 256,
    "policy": "imagenet",
}
RECIPES = {
    "cifar10": CIFAR | {"seed_images": 11_165},
    "cifar100": CIFAR | {"seed_images": 9_754},
    "imagenet100": IMAGENET | {"seed_images": 12_205},
}  # images of the published long-tailed lists


class SimCLR:
    """Contrast two views of an image against all other images of the batch (Chen et al. 2020)."""

    changes = "loss"  # what it changes above all, one of CHANGES
    branches = 1  # sets of batch norm in the encoder
    head_layers = 2  # of the projection head, as published
    network = models.Encoder
    options = {}  # the class's own settings and their published values; an arm changes them by name
    settings = {}  # fields of ``Run`` that its paper sets otherwise than RECIPES
    published = {}  # (paper, data set, method) -> what the paper sets for that row
    # what must be at work for it to matter, as its rows are named, and the least contrast
    # (``measure.mechanisms``)
    mechanism = ()
    remembers = {}  # what is kept of every image: name -> numbers of a row, 0 for a single one
    fixed = {}  # fields of ``Run`` that it decides itself
    alone = False  # whether it can be joined with no other method
    clashes = ()  # methods that it cannot be joined with
    picks = False  # whether it fetches images from the study's pool as it trains
    # what it does to views beyond their policy: (levels, index, epoch, view) -> levels
    boost = None

    def __init_subclass__(cls, name=None):
        """``class BCL(SimCLR, name="bcl")`` is found by this name."""
        if name in METHODS:
            raise ValueError(
                f"two methods are called {name}, in {METHODS[name].__module__} and "
                f"{cls.__module__}; rename one"
            )
        if name:
            METHODS[name] = cls

    def __init__(self, run):
        self.run, self.own = (
            run,
            read_options(type(self), dict(pair.split("=") for pair in run.options.split())),
        )
        # tensors on the device that a checkpoint keeps; changed in place inside an epoch, since a
        # graph reads them
        self.state = {}
        self.notes = {}  # name -> epoch -> tensor, for the pictures
        # whether what it sees is remembered; not in a second pass over the same batch
        self.attends = True

    @classmethod
    def reference(cls, run):
        """The run whose encoder must be there before this one starts, or None."""
        return None

    @property
    def temperature(self):
        """Of the contrastive loss: a number, or a tensor on the device where a method changes
        it.
        """
        return self.run.temperature

    def start(self, images, teacher):
        """Meet the training images, an ``ImageSet`` on the device, and the reference's encoder;
        every image begins without a past.
        """
        self.images, self.teacher, self.count = images, teacher, len(images) - self.run.reserve
        self.state |= {
            name: torch.full(
                (len(images), *[width] * bool(width)), torch.nan, device=images.images.device
            )
            for name, width in gathered(type(self), "remembers").items()
        }

    def remember(self, name, index, values, beta):
        """Average a quantity of the batch's images into what is kept of them; images of a pool
        leave no trace.
        """
        if not self.attends:
            return
        past = self.state[name][index]
        known = (index < self.count).view(-1, *[1] * (past.ndim - 1))
        self.state[name].index_copy_(
            0,
            index,
            torch.where(known, moving_average(past, values.detach().to(past.dtype), beta), past),
        )

    def note(self, name, epoch, values):
        """Keep a copy of what changed between epochs."""
        self.notes.setdefault(name, {})[epoch] = values.cpu().clone()

    def extra(self, epoch):
        """How many images of the pool an epoch uses."""
        return 0

    def used(self):
        """Positions of the images of this epoch."""
        return torch.arange(self.count, device=self.images.images.device)

    def rates(self, epoch, course):
        """The learning rate of each update of an epoch, counted from 0."""
        return [
            warmup_cosine(step, course.total, course.warmup, self.run.learning_rate, FINAL_RATE)
            for step in course.steps(epoch)
        ]

    def phase(self):
        """What an update depends on beyond tensors; a recorded one serves one phase."""
        return ()

    def before_epoch(self, encoder, epoch):
        """What changes between epochs: masks, view strengths, extra images."""

    def project(self, encoder, first, second):
        """Projections (n, d) of both views: one pass over all 2n, so that batch statistics are
        joint, as in the authors' code.
        """
        return encoder(torch.cat([first, second])).chunk(2)

    def objective(self, first, second, index):
        """Loss of each image (n,); ``index`` is its position in the training set."""
        return losses.nt_xent(first, second, self.temperature)

    def forward(self, encoder, first, second, index):
        """Loss of each image of the batch of all processes (n,), which contrast as one; the views
        are this process's.
        """
        with gpu.autocast(first.device, self.run.precision):
            projections = self.project(encoder, first, second)
        return self.objective(*(processes.gather(rows, len(index)) for rows in projections), index)

    def backward(self, encoder, first, second, index):
        """Gradients of one step into the encoder; returns the per-image losses (n,).

        ``first`` and ``second`` are this process's views, ``index`` (n,) is the batch of all
        processes.
        """
        loss = self.forward(encoder, first, second, index)
        loss.mean().backward()
        processes.add_gradients(encoder)
        return loss.detach()


METHODS["simclr"] = SimCLR


# ---- formulas


def warmup_cosine(step, total_steps, warmup_steps, base_lr, final_lr):
    """Learning rate of optimiser step 1, 2, …: linear warm-up, then cosine to ``final_lr`` at the
    last step (SDCLR's code).
    """
    if step < warmup_steps:
        return base_lr * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (base_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def moving_average(old, new, beta):
    """Exponential average, ``beta`` of the past; where there is no past (NaN) the new value
    itself.
    """
    return torch.where(old.isnan(), new, beta * old + (1 - beta) * new)


# ---- options


def gathered(kind, attribute):
    """A class attribute that is a dict, with what the classes it builds on have in theirs."""
    return {
        name: value
        for part in reversed(kind.__mro__)
        for name, value in vars(part).get(attribute, {}).items()
    }


def read_options(kind, given):
    """All options of a method, those given as text in place of the published ones."""
    published = gathered(kind, "options")
    if unknown := given.keys() - published.keys():
        raise ValueError(
            f"{min(unknown)} is no setting of a run or of this method; the method has "
            f"{', '.join(published) or 'none'}"
        )
    line = arms.written([], given)
    return published | arms.typed(
        line, given, {name: type(value) for name, value in published.items()}
    )


def write_options(values):
    """Options as a run keeps them."""
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))
