"""Training on the labels of a long-tailed list: the list, the run, the network, the one loop, the scores."""

import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import WeightedRandomSampler
from tqdm import tqdm

from longtail.images import studies, views
from longtail.label import adjusted
from longtail.label.adjusted import as_labels
from longtail.learn import encode, models, train
from longtail.measure import evaluate
from longtail.measure.groups import SIZE_GROUPS, size_groups, summary
from longtail.store import gpu, runs

# ---- lists

def subset_indices(labels, sizes, seed):
    """Positions of the long-tailed list, class by class: the first of each class's shuffle, as the published code draws them.

    labels (n,), sizes: images of each class to keep -> int64 array. Source: LDAM's IMBALANCECIFAR, NumPy's legacy generator.
    """
    labels, generator, kept = as_labels(labels).numpy(), np.random.RandomState(seed), []
    for label, size in enumerate(sizes):
        members = np.flatnonzero(labels == label)
        if not size >= 0:       # nan neither
            raise ValueError(f"the long tail needs {size} images of class {label}; give 0 or more")
        if len(members) < size:
            raise ValueError(f"class {label} has {len(members)} training images and the long tail needs {size}; lower the largest class")
        generator.shuffle(members)
        kept.append(members[:size])
    return np.concatenate(kept)


def kind_and_ratio(tail):
    """A tail written as "exponential 100" or "step 10": which kind, and largest over smallest class."""
    kind, _, ratio = tail.partition(" ")
    with suppress(ValueError):          # of text that is no number
        if 1 <= float(ratio) < math.inf:
            return kind, float(ratio)
    raise ValueError(f"no tail {tail!r}; write its kind and the ratio of largest to smallest class, 1 or more, such as exponential 100")


def long_tail(source, tail, largest, split):
    """Training images of one list of a data set, a ``datasets.Source``, as an ``ImageSet``.

    Split 0 is the published list, where class 0 is the largest; other splits permute the classes.
    """
    kind, ratio = kind_and_ratio(tail)
    counts = studies.long_tail_counts(largest, len(source.classes), 1 / ratio, kind)
    ranks = np.random.default_rng(split).permutation(len(counts)) if split else range(len(counts))
    return source.images.subset(subset_indices(source.images.labels, [counts[rank] for rank in ranks], split))


# ---- runs

@dataclass(frozen=True)
class Schedule:
    """How long and how fast: SGD with momentum, a linear warm-up by epoch, the rate times ``drop`` from each epoch of ``drops`` on."""

    epochs: int
    batch_size: int
    learning_rate: float
    drops: tuple
    drop: float
    warmup_epochs: int = 5          # these two are the same in all the papers' CIFAR runs
    weight_decay: float = 2e-4


PUBLISHED = Schedule(200, 128, 0.1, drops=(160, 180), drop=0.01)        # LDAM, VS and DDC, CIFAR
PUBLISHED_NETWORK = "resnet32"


@dataclass(frozen=True)
class Run:
    """Every choice that decides a network trained on labels; equal runs share one folder."""

    dataset: str
    kind: str               # exponential or step
    ratio: float            # largest over smallest class
    largest: int            # images of the largest class
    split: int              # 0: class 0 is the largest, as published; else which permutation of the classes
    seed: int               # weights, order of the images, views
    method: str
    parameters: dict = field(hash=False)
    architecture: str       # perceptron, or one of models.ARCHITECTURES
    size: int               # side of the square images, pixels
    policy: str             # law of the random views, see views.POLICIES; empty: the images as they are
    schedule: Schedule
    precision: str          # float32 or bfloat16 (autocast)
    jpeg: bool              # the images were decoded from JPEG files
    images: str             # digest of the training images and their order

    digest = runs.Run.digest

    @property
    def name(self):
        """Readable and unique, e.g. ``ldam_drw-cifar10_exponential100-split0-seed1-b8be02fb``."""
        return f"{self.method}-{self.dataset}_{self.kind}{self.ratio:g}-split{self.split}-seed{self.seed}-{self.digest}"


def plan(images, arm, tail, split, seed, settings):
    """The run of one method (see ``imbalance.parse``) on a list that ``long_tail`` made; ``settings``: the other fields of ``Run``."""
    kind, ratio = kind_and_ratio(tail)
    method, parameters = adjusted.parse(arm)
    return Run(**settings, kind=kind, ratio=ratio, split=split, seed=seed, method=method, parameters=parameters,
               jpeg=images.names[0].endswith((".jpg", ".jpeg", ".JPEG")), images=images.digest)


# ---- networks

class Perceptron(nn.Module):
    """Two hidden layers on the pixels: enough for digits, and fast."""

    features = 64

    def __init__(self, size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, self.features), nn.ReLU(),
                                    nn.Linear(self.features, self.features), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


class Cosine(nn.Module):
    """Logits are cosines between the features and one vector a class: LDAM's output layer, without bias."""

    def __init__(self, features, classes):
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.rand(classes, features) * 2 - 1, dim=1))

    def forward(self, x):
        return functional.linear(functional.normalize(x, dim=1), functional.normalize(self.weight, dim=1))


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
        self.bfloat16 = run.precision == "bfloat16"
        normal = models.CIFAR_NORMAL if run.architecture == PUBLISHED_NETWORK else (models.MEAN, models.STD)
        self.trunk = Perceptron(run.size) if run.architecture == "perceptron" else models.trunk(run.architecture, 1, normal)
        for module in self.trunk.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.layer = output_layer(self.trunk.features, classes, plan)

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.layer(self.trunk(x)).float()


# ---- the loop

def stepped_rate(schedule, epoch):
    """Learning rate of epoch 0, 1, …"""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 1) / schedule.warmup_epochs
    return schedule.learning_rate * schedule.drop ** sum(epoch >= drop for drop in schedule.drops)


def order_of(labels, weights, seed, epoch):
    """The images of one epoch: all in random order, or as many drawn with replacement by the weights of their classes."""
    if weights is None:
        return next(iter(evaluate.batches(len(labels), len(labels), seed, epoch)))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    drawn = WeightedRandomSampler(weights[labels].cpu(), len(labels), generator=generator)
    return torch.tensor(list(drawn), device=labels.device)


def fit(model, optimizer, inputs, labels, plan, schedule, seed, first=0):
    """Train from epoch ``first`` on; yields the mean loss of each epoch, a tensor on the device.

    ``inputs(order, epoch)`` gives what the model sees of the images in that order. A last batch of one image is left out.
    """
    update = Update(model, optimizer, labels)
    for epoch in range(first, schedule.epochs):
        order, loss_of, losses = order_of(labels, plan.draw(epoch), seed, epoch), plan.loss(epoch), []
        for seen, truth in zip(*(part.split(schedule.batch_size) for part in (inputs(order, epoch), labels[order])), strict=True):
            if len(truth) > 1:      # batch norm has no statistics of one image
                losses.append(update(loss_of, stepped_rate(schedule, epoch), seen, truth))
        yield torch.stack(losses).mean()


class Update:
    """One update of a network; on a GPU recorded once for each loss and size of a batch, since a small network's launches cost most."""

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
        return [*self.model.parameters(), *self.model.buffers(), *(kept["momentum_buffer"] for kept in self.optimizer.state.values())]


def optimizer_of(model, layer, plan, schedule):
    """SGD with momentum; all parameters decay but the bias that a method has set."""
    free = [layer.bias] if plan.bias else []
    decayed = [weight for weight in model.parameters() if not any(weight is other for other in free)]
    return torch.optim.SGD([{"params": decayed}, {"params": free, "weight_decay": 0.0}] if free else decayed, schedule.learning_rate,
                           train.MOMENTUM, weight_decay=schedule.weight_decay, fused=True)


def restored(run, classes, method, checkpoint):
    """Network, optimiser and log of a run: fresh ones, decided by the run alone, or as the checkpoint left them."""
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        network = Network(run, classes, method)
    network = network.to(runs.device(), memory_format=torch.channels_last).train()
    optimizer = optimizer_of(network, network.layer, method, run.schedule)
    if not checkpoint.exists():
        return network, optimizer, []
    state = train.load(checkpoint)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return network, optimizer, state["log"]


def train_network(run, images, classes, folder, progress=False, checkpoint_seconds=20):
    """The trained network of a run in evaluation mode; goes on from ``last.pt`` where an earlier process stopped.

    Raises ``FloatingPointError`` when a loss is not finite.
    """
    pixels, labels = images.images.to(runs.device()), images.labels.to(runs.device())
    method = adjusted.plan_of(run.method, run.parameters, np.bincount(images.labels, minlength=classes), run.schedule)
    network, optimizer, log = restored(run, classes, method, folder / "last.pt")
    policy, saved, began = views.POLICIES[run.policy] if run.policy else None, time.perf_counter(), time.perf_counter()

    def inputs(order, epoch):       # parameters by the place in the epoch, so that an image drawn twice is seen in two views
        return encode.in_chunks(nn.Identity(), pixels[order], policy, run.seed, epoch)
    epochs = fit(network, optimizer, inputs, labels, method, run.schedule, run.seed, len(log))
    for loss in tqdm(epochs, run.name, run.schedule.epochs, initial=len(log), mininterval=2, disable=not progress, leave=False):
        if not loss.isfinite():
            raise FloatingPointError(f"{run.name}: loss is {loss.item()} in epoch {len(log) + 1}; lower supervised_rate")
        log.append({"epoch": len(log) + 1, "loss": loss.item(), "learning_rate": optimizer.param_groups[0]["lr"],
                    "seconds": round(time.perf_counter() - began, 3)})
        began = time.perf_counter()
        if began - saved > checkpoint_seconds and len(log) < run.schedule.epochs:
            train.save(folder / "last.pt", {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "log": log})
            saved = began
    runs.write(folder / "log.csv", train.log_csv(log))
    return network.eval()


# ---- scores

def score_rows(logits, labels, groups):
    """Accuracy in percent of the largest logit: logits (n, K), labels (n,), a size group for each class -> rows group, accuracy, images.

    Groups: many, medium, few, balanced (mean over classes, 100 − balanced error), all (over images, 100 − error), and each class.
    """
    labels, groups = as_labels(labels).cpu(), np.asarray(groups)
    right, sizes = (logits.argmax(1).cpu() == labels).double(), np.bincount(labels, minlength=len(groups))
    of_class = [100 * right[labels == label].mean().item() for label in range(len(groups))]
    means = summary(of_class, groups)
    rows = [(group, means[group], sizes[groups == group].sum()) for group in SIZE_GROUPS if group in means]
    rows += [("balanced", means["all"], len(labels)), ("all", 100 * right.mean().item(), len(labels))]
    return [*rows, *((f"class {label}", of_class[label], sizes[label]) for label in range(len(groups)))]


def measure(run, images, test, classes, folder, group_rule, progress):
    """Train a run and score its last epoch on the test set; cross-entropy is also scored with its prior corrected afterwards."""
    network, counts = train_network(run, images, classes, folder, progress), np.bincount(images.labels, minlength=classes)
    logits = encode.in_chunks(network, test.images.to(runs.device()))
    decisions = {run.method: logits} | ({"posthoc_la": adjusted.posthoc_logit_adjust(logits, counts)} if run.method == "ce" else {})
    groups = size_groups(counts, group_rule)
    return pd.DataFrame([(method, *row) for method, decided in decisions.items() for row in score_rows(decided, test.labels, groups)],
                        columns=["method", "group", "accuracy", "images"])


def folder_of(run, results):
    """Where a run keeps its checkpoint, log and scores."""
    return results.root / "supervised" / run.name


def settings_of(run, test, group_rule):
    """What decides a run's scores."""
    return {**asdict(run), "test": test.digest, "group_rule": group_rule}


def train_and_score(run, images, test, classes, results, group_rule="thirds", progress=False):
    """Scores of a run on the test set: read from disk when made before. A run that another process holds is waited for."""
    folder = folder_of(run, results)
    with runs.claim(folder, wait=True):
        rows = runs.remember(folder, "scores", settings_of(run, test, group_rule),
                             lambda: measure(run, images, test, classes, folder, group_rule, progress))
        (folder / "last.pt").unlink(missing_ok=True)
    return rows


def train_all(jobs, source, results, processes, group_rule="thirds"):
    """Train and score all ``(run, images)`` that are not done; several processes started on the same list share it."""
    missing = [(run, images, source.test, len(source.classes), results, group_rule, processes == 1) for run, images in jobs
               if not runs.is_remembered(folder_of(run, results), "scores", settings_of(run, source.test, group_rule))]
    with tqdm(total=len(missing), desc="networks", mininterval=2, disable=not missing) as bar:
        def count():
            bar.n = sum((folder_of(run, results) / "scores.json").exists() for run, *_ in missing)
            bar.refresh()
        train.side_by_side(train_and_score, missing, processes, count)
        count()


def scores(results):
    """All scores of a profile's supervised runs, one row a run, method (how it decides) and group; the settings of the run in front."""
    frames = []
    for record in sorted(results.root.glob("supervised/*/scores.json")):
        settings = runs.recorded(record)["settings"]
        if settings["recipe"] == runs.RECIPE:
            settings |= settings.pop("schedule")
            known = {"run": record.parent.name, "arm": adjusted.written(settings["method"], settings.pop("parameters")),
                     "imbalance": f"{settings['kind']} {settings['ratio']:g}", **settings, "drops": " ".join(map(str, settings["drops"]))}
            rows = runs.read_rows(record.with_suffix(".csv"))
            own = {key: value for key, value in known.items() if key not in rows}       # a row's own value stands where both have one
            frames.append(pd.concat([rows, pd.DataFrame([own] * len(rows))], axis=1))
    names = ["run", "arm", "imbalance", *(one.name for kind in (Run, Schedule) for one in fields(kind)), "group", "accuracy"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=names)
