"""Training on the labels of a long-tailed list: the list, the run, the network, the one loop, the
scores.
"""

import contextlib
import functools
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import WeightedRandomSampler

from longtail.images import studies, views
from longtail.label import adjusted
from longtail.label.adjusted import as_labels
from longtail.learn import encode, models, train
from longtail.measure import evaluate
from longtail.measure.groups import SIZE_GROUPS, size_groups, summary
from longtail.store import arms, gpu, runs

# ---- lists


def subset_indices(labels, sizes, seed):
    """Positions of the long-tailed list, class by class: the first of each class's shuffle, as the
    published code draws them.

    labels (n,), sizes: images of each class to keep -> int64 array. Source: LDAM's IMBALANCECIFAR,
    NumPy's legacy generator.
    """
    labels, generator, kept = as_labels(labels).numpy(), np.random.RandomState(seed), []
    for label, size in enumerate(sizes):
        members = np.flatnonzero(labels == label)
        if not size >= 0:  # nan neither
            raise ValueError(f"the long tail needs {size} images of class {label}; give 0 or more")
        if len(members) < size:
            raise ValueError(
                f"class {label} has {len(members)} training images and the long tail needs {size}; "
                "lower the largest class"
            )
        generator.shuffle(members)
        kept.append(members[:size])
    return np.concatenate(kept)


def kind_and_ratio(tail):
    """A tail written as "exponential ratio=100" or "step ratio=10": which kind, and largest over
    smallest class.
    """
    with contextlib.suppress(ValueError):  # of text that is no such line
        [kind], settings = arms.read_line(tail)
        if (ratio := arms.typed(tail, settings, {"ratio": float}).get("ratio", 0)) >= 1:
            return kind, ratio
    raise ValueError(
        f"no tail {tail!r}; write its kind and the ratio of largest to smallest class, 1 or more: "
        "exponential ratio=100"
    )


def long_tail(source, tail, largest, split):
    """Training images of one list of a data set, a ``datasets.Source``, as an ``ImageSet``.

    Split 0 is the published list, where class 0 is the largest; other splits permute the classes.
    """
    kind, ratio = kind_and_ratio(tail)
    counts = studies.long_tail_counts(largest, len(source.classes), 1 / ratio, kind)
    ranks = np.random.default_rng(split).permutation(len(counts)) if split else range(len(counts))
    return source.images.subset(
        subset_indices(source.images.labels, [counts[rank] for rank in ranks], split)
    )


# ---- runs


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: SGD with momentum, a linear warm-up by epoch, the rate times ``drop``
    from each epoch of ``drops`` on.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    drops: tuple
    drop: float
    warmup_epochs: int = 5  # these two are the same in all the papers' CIFAR runs
    weight_decay: float = 2e-4


PUBLISHED_NETWORK = "resnet32"
PROTOCOL = "network"  # of scores: a network trained on labels decides by its own last layer


def schedule_of(run):
    """The ``Schedule`` of a run with labels."""
    return Schedule(
        run.epochs,
        run.batch_size,
        run.learning_rate,
        tuple(map(int, run.drops.split())),
        run.drop,
        run.warmup_epochs,
        run.weight_decay,
    )


def run_of(images, loss, tail, split, seed, schedule, **settings):
    """The run of one method (see ``adjusted.read_loss``) on a list that ``long_tail`` made;
    ``settings``: the other fields of ``Run``.
    """
    kind, ratio = kind_and_ratio(tail)
    method, parameters = adjusted.read_loss(loss)
    how = asdict(schedule) | {"drops": " ".join(map(str, schedule.drops))}
    decoded = images.names[0].endswith((".jpg", ".jpeg", ".JPEG"))
    return runs.Run(
        **settings,
        **how,
        subset=kind,
        imbalance=ratio,
        split=split,
        seed=seed,
        method=method,
        options=arms.written([], parameters),
        jpeg=decoded,
        images=images.digest,
        head_layers=0,
        temperature=0.0,
        prune_fraction=0.0,
    )


# ---- networks


class Perceptron(nn.Module):
    """Two hidden layers on the pixels: enough for digits, and fast."""

    features = 64

    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * size**2, self.features),
            nn.ReLU(),
            nn.Linear(self.features, self.features),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.layers(x)


class Cosine(nn.Module):
    """Logits are cosines between the features and one vector a class: LDAM's output layer, without
    bias.
    """

    def __init__(self, features, classes):
        super().__init__()
        self.weight = nn.Parameter(
            functional.normalize(torch.rand(classes, features) * 2 - 1, dim=1)
        )

    def forward(self, x):
        return functional.linear(
            functional.normalize(x, dim=1), functional.normalize(self.weight, dim=1)
        )


def output_layer(features, classes, plan):
    """A fresh last layer as the method wants it."""
    if plan.cosine:
        return Cosine(features, classes)
    layer = nn.Linear(features, classes)
    nn.init.kaiming_normal_(layer.weight)
    if plan.bias:
        nn.init.constant_(layer.bias, plan.bias)
    return layer


class Network(nn.Module):
    """Images in [0, 1] to logits in single precision; weights by Kaiming's rule, as published."""

    def __init__(self, run, classes, plan):
        super().__init__()
        self.precision = run.precision
        normal = (
            models.CIFAR_NORMAL
            if run.architecture == PUBLISHED_NETWORK
            else (models.MEAN, models.STD)
        )
        self.trunk = (
            Perceptron(run.size)
            if run.architecture == "perceptron"
            else models.trunk(run.architecture, 1, normal)
        )
        for module in self.trunk.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.layer = output_layer(self.trunk.features, classes, plan)

    def forward(self, x):
        with gpu.autocast(x.device, self.precision):
            return self.layer(self.trunk(x)).float()


# ---- the loop


def warmed_rate(schedule, epoch):
    """Learning rate of epoch 0, 1, …"""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 1) / schedule.warmup_epochs
    return schedule.learning_rate * schedule.drop ** sum(epoch >= drop for drop in schedule.drops)


def order_of(labels, weights, seed, epoch):
    """The images of one epoch: all in random order, or as many drawn with replacement by the
    weights of their classes.
    """
    if weights is None:
        return next(iter(evaluate.batches(len(labels), len(labels), seed, epoch)))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    drawn = WeightedRandomSampler(weights[labels].cpu(), len(labels), generator=generator)
    return torch.tensor(list(drawn), device=labels.device)


def train_labelled_epoch(update, inputs, labels, plan, schedule, seed, epoch):
    """One epoch of updates by an ``Update``; returns the loss of each, on the device.

    ``inputs(order, epoch)`` gives what the model sees of the images in that order. A last batch of
    one image is left out.
    """
    order, loss_of, rate = (
        order_of(labels, plan.draw(epoch), seed, epoch),
        plan.loss(epoch),
        warmed_rate(schedule, epoch),
    )
    batches = zip(
        *(part.split(schedule.batch_size) for part in (inputs(order, epoch), labels[order])),
        strict=True,
    )
    return torch.stack(
        [update(loss_of, rate, seen, truth) for seen, truth in batches if len(truth) > 1]
    )  # one has no batch statistics


class Update:
    """One update of a network; on a GPU recorded once for each loss and size of a batch, since a
    small network's launches cost most.
    """

    def __init__(self, model, optimizer, labels):
        self.model, self.optimizer = model, optimizer
        self.rate = torch.zeros((), device=labels.device) if gpu.computes(labels) else None
        self.recorded = gpu.Recorded(self.update, self.changed)

    def __call__(self, loss_of, rate, seen, truth):
        """Update by what the model sees and its labels; gives the loss, on the device."""
        self.loss_of = loss_of
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.rate is None else self.rate.fill_(rate)
        return self.recorded((loss_of, len(truth)), seen, truth)

    def update(self, seen, truth):
        """The update itself; nothing here depends on a value that the host would have to read."""
        loss = self.loss_of(self.model(seen), truth)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def changed(self):
        """What an update changes: weights, statistics and momentum."""
        return [
            *self.model.parameters(),
            *self.model.buffers(),
            *(kept["momentum_buffer"] for kept in self.optimizer.state.values()),
        ]


def optimizer_of(model, layer, plan, schedule):
    """SGD with momentum; all parameters decay but the bias that a method has set."""
    free = [layer.bias] if plan.bias else []
    decayed = [
        weight for weight in model.parameters() if not any(weight is other for other in free)
    ]
    return torch.optim.SGD(
        [{"params": decayed}, {"params": free, "weight_decay": 0.0}] if free else decayed,
        schedule.learning_rate,
        train.MOMENTUM,
        weight_decay=schedule.weight_decay,
        fused=True,
    )


def train_network(run, images, classes, folder, progress=False, checkpoint_seconds=20):
    """The trained network of a run in evaluation mode, and its log; goes on from ``last.pt`` where
    an earlier process stopped.

    Raises ``FloatingPointError`` when a loss is not finite.
    """
    pixels, labels, schedule = (
        images.images.to(runs.device()),
        images.labels.to(runs.device()),
        schedule_of(run),
    )
    counts = np.bincount(images.labels, minlength=classes)
    method = adjusted.method_of(
        *adjusted.read_loss(f"{run.method} {run.options}"), counts, schedule
    )
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        network = Network(run, classes, method)
    network = network.to(runs.device(), memory_format=torch.channels_last).train()
    optimizer = optimizer_of(network, network.layer, method, schedule)
    update, policy = (
        Update(network, optimizer, labels),
        views.POLICIES[run.policy] if run.policy else None,
    )

    def inputs(
        order, epoch
    ):  # parameters by the place in the epoch, so that an image drawn twice is seen in two views
        return encode.in_chunks(nn.Identity(), pixels[order], policy, run.seed, epoch)

    def one(epoch):
        return train_labelled_epoch(
            update, inputs, labels, method, schedule, run.seed, epoch
        ), warmed_rate(schedule, epoch)

    log = train.loop(
        run,
        folder,
        run.epochs,
        one,
        {"network": network, "optimizer": optimizer},
        progress,
        checkpoint_seconds,
    )
    return network.eval(), log


# ---- scores


def network_rows(logits, labels, groups):
    """Accuracy in percent of the largest logit: logits (n, K), labels (n,), a size group for each
    class -> rows group, accuracy, images.

    Groups: many, medium, few, balanced (mean over classes, 100 − balanced error), all (over images,
    100 − error), and each class.
    """
    labels, groups = as_labels(labels).cpu(), np.asarray(groups)
    right, sizes = (
        (logits.argmax(1).cpu() == labels).double(),
        np.bincount(labels, minlength=len(groups)),
    )
    of_class = [100 * right[labels == label].mean().item() for label in range(len(groups))]
    means = summary(of_class, groups)
    rows = [
        (group, means[group], sizes[groups == group].sum())
        for group in SIZE_GROUPS
        if group in means
    ]
    rows += [
        ("balanced", means["all"], len(labels)),
        ("all", 100 * right.mean().item(), len(labels)),
    ]
    return [
        *rows,
        *((f"class {label}", of_class[label], sizes[label]) for label in range(len(groups))),
    ]


def train_and_score(
    test, classes, run, images, results, progress=False, wait=True, group_rule="thirds"
):
    """Train a run and score its last epoch on the images ``test``: read from disk when made before;
    no network is kept.

    Cross-entropy is also scored with its prior corrected afterwards. Rows: protocol, selection,
    method (how it decides), group, accuracy, images. A run that another process holds is waited
    for, or left to it.
    """
    folder, logs = results.folder(run), []

    def rows():
        counts = np.bincount(images.labels, minlength=classes)
        network, log = train_network(run, images, classes, folder, progress)
        logs.append(log)
        logits = encode.in_chunks(network, test.images.to(runs.device()))
        decisions = {run.method: logits} | (
            {"posthoc_la": adjusted.posthoc_logit_adjust(logits, counts)}
            if run.method == "ce"
            else {}
        )
        groups = size_groups(counts, group_rule)
        return pd.DataFrame(
            [
                (PROTOCOL, "last_epoch", method, *row)
                for method, decided in decisions.items()
                for row in network_rows(decided, test.labels, groups)
            ],
            columns=["protocol", "selection", "method", "group", "accuracy", "images"],
        )

    with runs.claim(folder, wait) as held:
        if held:
            scored = results.remember(run, f"scores-{PROTOCOL}", scored_as(test, group_rule), rows)
            for log in logs:
                train.finish(run, folder, None, log, len(images))
            return scored


def scored_as(test, group_rule="thirds"):
    """What decides the scores of a run beside the run."""
    return {"test": test.digest, "group_rule": group_rule}


def train_all(jobs, source, results, count):
    """Train and score all ``(run, images)`` that are not done, ``count`` at a time; several
    processes started on the same list share it.
    """
    one, how = (
        functools.partial(train_and_score, source.test, len(source.classes)),
        scored_as(source.test),
    )
    train.make_all(
        one,
        jobs,
        results,
        count,
        lambda run: results.is_done(run) and results.has(run, f"scores-{PROTOCOL}", how),
    )
    for run, images in jobs:  # what was there before is asked for as well
        one(run, images, results)
