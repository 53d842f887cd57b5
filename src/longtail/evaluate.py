"""What an encoder is worth: linear separability and few-shot, by class size."""

import functools
import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from longtail import runs, train, views

SIZE_GROUPS = ("many", "medium", "few")
CHUNK = 1024            # images a forward pass without gradients


@dataclass(frozen=True)
class Protocol:
    """How labels are used; the published settings are in ``PROTOCOLS`` (spec 4.1 to 4.3)."""

    labels: str             # which image set of the study has them
    epochs: int
    rate: float
    drops: tuple            # epochs (from 1) that begin at a tenth of the rate before; none: cosine by update
    batch: int
    validate_every: int
    whole: bool = False     # trains the trunk and the head's first layer too


PROTOCOLS = {
    "linear": Protocol("train", 30, 30.0, (10, 20), 128, 1),
    "linear_longtail": Protocol("seed", 30, 30.0, (10, 20), 128, 1),            # imbalanced downstream task (MAK 3.4)
    "linear_transfer": Protocol("train", 30, 30.0, (10, 20), 128, 1),           # the same on another data set, of data.elsewhere
    "fewshot_linear": Protocol("few", 100, 30.0, (40, 60), 128, 5),             # as SDCLR's code does it
    "fewshot_finetune": Protocol("few", 100, 0.02, (), 64, 5, whole=True),      # as MAK's paper states it
}


def size_groups(counts, rule):
    """The size group of each class, list of "many", "medium", "few", from its images in the long-tailed list (spec 4.4).

    ``thirds``: by rank, ⌊C/3⌋ few, ⌊C/3⌋ medium, the rest many; ``thresholds``: many above 100 images, few below 20. Classes of another
    data set, all without images in the list, have no group: "".
    """
    if not any(counts):
        return [""] * len(counts)
    if rule == "thresholds":
        return ["many" if count > 100 else "few" if count < 20 else "medium" for count in counts]
    if rule != "thirds":
        raise ValueError(f"no rule {rule!r} for size groups; there are thirds and thresholds")
    third, groups = len(counts) // 3, ["many"] * len(counts)
    for rank, label in enumerate(np.argsort(np.asarray(counts), kind="stable")[:2 * third]):
        groups[label] = "few" if rank < third else "medium"
    return groups


def summary(class_accuracy, groups):
    """Means of class accuracies over each size group and over all classes, and the balance of one run (spec 4.5).

    Balance is the population standard deviation of the three group means; the papers' tables call it Std.
    """
    accuracy, groups = np.asarray(class_accuracy, dtype=float), np.asarray(groups)
    means = {name: float(accuracy[groups == name].mean()) for name in SIZE_GROUPS if (groups == name).any()}
    return means | {"balance": float(np.std(list(means.values()) or [np.nan])), "all": float(accuracy.mean())}


@torch.no_grad()
def in_chunks(function, images, policy=None, seed=0, epoch=0, view=0):
    """``function`` of all images (uint8) without gradients, as they are or as random views of ``policy``."""
    parts = []
    for index in torch.arange(len(images), device=images.device).split(CHUNK):
        pixels = views.augment(images, index, policy, seed, epoch, view) if policy else images[index].float() / 255
        parts.append(function(pixels.to(memory_format=torch.channels_last)).float())
    return torch.cat(parts)


def features(encoder, images, precision, **view):
    """Pooled features h (n, d) of an image set, before the projection head."""
    with torch.autocast(runs.device().type, torch.bfloat16, enabled=precision == "bfloat16"):
        return in_chunks(encoder.trunk, images.images.to(runs.device()), **view)


def stepped_rate(protocol, epoch):
    """Rate of a classifier's epoch 1, 2, …: a tenth from each of the protocol's drops on (spec 4.1)."""
    return protocol.rate * 0.1 ** sum(epoch >= drop for drop in protocol.drops)


def classifiers(width, classes, seeds):
    """Fresh linear classifiers side by side, one for each seed: weights N(0, 0.01²), bias 0 (spec 4.1).

    One layer (n, width) -> (n, seeds · classes), so that all of them are one product.
    """
    layer = nn.Linear(width, len(seeds) * classes)
    for seed, weight in zip(seeds, layer.weight.data.split(classes), strict=True):
        nn.init.normal_(weight, 0, 0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer.to(runs.device())


def batches(count, size, seed, epoch):
    """A random order of ``count`` positions in batches, the last one smaller."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count)).to(runs.device()).split(size)


def train_frozen(encoder, run, labelled, protocol, policy, classes, seed, heads):
    """Train classifiers on a frozen trunk's features of fresh views each epoch; yields (epoch, features -> logits side by side).

    ``heads``: (seed of the weights, rate) of each; ``seed`` draws the views and the order, which they share.
    """
    layer = classifiers(encoder.trunk.features, classes, [own for own, _ in heads])
    optimizer = torch.optim.SGD(layer.parameters(), protocol.rate, train.MOMENTUM)
    labels, shares = labelled.labels.to(runs.device()), torch.tensor([rate / protocol.rate for _, rate in heads], device=runs.device())
    for epoch in range(1, protocol.epochs + 1):
        optimizer.param_groups[0]["lr"] = stepped_rate(protocol, epoch)
        inputs = features(encoder, labelled, run.precision, policy=policy, seed=seed, epoch=epoch)
        for index in batches(len(labels), protocol.batch, seed, epoch):
            optimizer.zero_grad()
            logits, own = layer(inputs[index]).view(-1, classes), labels[index].repeat_interleave(len(heads))
            losses = functional.cross_entropy(logits, own, reduction="none").view(-1, len(heads)).mean(0)
            (losses * shares).sum().backward()      # without weight decay, k times the loss is k times the rate
            optimizer.step()
        yield epoch, layer


def train_whole(encoder, run, labelled, protocol, policy, classes, seed, heads):
    """Fine-tune trunk, first head layer and one classifier (MAK's few-shot, spec 4.3); yields (epoch, classifier)."""
    layer = classifiers(encoder.head.linears[0].out_features, classes, [own for own, _ in heads])
    optimizer = torch.optim.SGD([*encoder.parameters(), *layer.parameters()], protocol.rate, train.MOMENTUM)
    pixels, labels = labelled.images.to(runs.device()), labelled.labels.to(runs.device())
    total, step = protocol.epochs * -(-len(labels) // protocol.batch), 0
    for epoch in range(1, protocol.epochs + 1):
        encoder.train()
        for index in batches(len(labels), protocol.batch, seed, epoch):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = train.warmup_cosine(step, total, 0, protocol.rate, train.FINAL_RATE)
            if len(index) < 2:      # batch norm has no statistics of one image
                continue
            optimizer.zero_grad()
            view = views.augment(pixels, index, policy, seed, epoch, 0)
            functional.cross_entropy(layer(first_layer(encoder)(view)), labels[index]).backward()
            optimizer.step()
        encoder.eval()
        yield epoch, layer


def first_layer(encoder):
    """The encoder up to the first layer of its projection head."""
    return lambda pixels: encoder.head(encoder.trunk(pixels), layers=1)


def hits(layer, inputs, labels, top=1, heads=1):
    """Whether the label is among the ``top`` largest logits of each classifier: bool (n, heads)."""
    with torch.no_grad():
        return (layer(inputs).unflatten(1, (heads, -1)).topk(top, 2).indices == labels[:, None, None]).any(2)


def class_accuracies(run, results, study, protocol, policy, seed, validation_top, heads):
    """Class accuracies on the test set, percent, (classes, heads): at the last epoch and where best on validation (first of equals)."""
    encoder, labelled = train.encoder_of(run, results), getattr(study, protocol.labels)
    sets = {"validation": study.validation, "test": study.test}
    labels = {part: images.labels.to(runs.device()) for part, images in sets.items()}
    frozen = None if protocol.whole else {part: features(encoder, images, run.precision) for part, images in sets.items()}

    def inputs(part):
        return frozen[part] if frozen else in_chunks(first_layer(encoder), sets[part].images.to(runs.device()))
    best, found = torch.full((len(heads),), -1.0), torch.zeros(len(study.classes), len(heads), dtype=torch.float64)
    trained = (train_whole if protocol.whole else train_frozen)(encoder, run, labelled, protocol, policy, len(study.classes), seed, heads)
    for epoch, layer in trained:
        if epoch % protocol.validate_every and epoch < protocol.epochs:
            continue
        validated = hits(layer, inputs("validation"), labels["validation"], validation_top, len(heads)).float().mean(0).cpu()
        better = validated > best
        if better.any() or epoch == protocol.epochs:
            right = hits(layer, inputs("test"), labels["test"], heads=len(heads)).double()
            accuracy = 100 * torch.stack([right[labels["test"] == label].mean(0) for label in range(len(study.classes))]).cpu()
        found, best = torch.where(better, accuracy, found), torch.maximum(best, validated)
    return {"best_validation": found, "last_epoch": accuracy}


def measurement(run, study, protocol, policy, seed, group_rule, validation_top, batch, drop_shift, stride):
    """The protocol as it will be used and the settings that decide its rows."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    how = PROTOCOLS[protocol]
    if not how.whole:
        how = replace(how, batch=batch, drops=tuple(drop + drop_shift for drop in how.drops), validate_every=stride * how.validate_every)
    validation_top = 1 if how.whole else validation_top      # top-5 is how ImageNet's frozen protocols choose
    sets = {"labelled": getattr(study, how.labels), "validation": study.validation, "test": study.test}
    return how, {"protocol": asdict(how), "policy": policy, "seed": seed, "group_rule": group_rule, "validation_top": validation_top,
                 "counts": study.counts, "images": {name: images.digest for name, images in sets.items()},
                 "labels": {name: runs.sha256(images.labels.numpy().tobytes())[:16] for name, images in sets.items()}}


def evaluate(run, results, study, protocol, policy, seed=1, group_rule="thirds", validation_top=1, batch=128, drop_shift=0, stride=1,
             seeds=(), rates=()):
    """Accuracies of a finished run under one of ``PROTOCOLS``: read from disk when measured before.

    Rows: protocol, selection (last_epoch, best_validation), group (many, medium, few, all, and each class), accuracy in percent, images.
    ``policy`` names the views of the labelled images; ``batch``, ``drop_shift`` (epochs), ``stride`` (validations) and
    ``validation_top`` adapt the frozen-trunk protocols; groups follow the long-tailed list's counts. With ``seeds`` and ``rates``
    the same for classifiers of all these seeds and rates, trained together on the same features; rows then name both.
    """
    how, settings = measurement(run, study, protocol, policy, seed, group_rule, validation_top, batch, drop_shift, stride)
    heads = list(itertools.product(seeds, rates)) or [(seed, how.rate)]
    if how.whole and len(heads) > 1:
        raise ValueError(f"{protocol} trains the trunk with its classifier: only frozen trunks can share features among {len(heads)}")
    groups = np.array(size_groups(study.counts, group_rule))
    sizes = np.bincount(study.test.labels.numpy(), minlength=len(groups))

    def rows():
        measured = class_accuracies(run, results, study, how, views.POLICIES[policy], seed, settings["validation_top"], heads)
        for (selection, accuracies), (head, (own, rate)) in itertools.product(measured.items(), enumerate(heads)):
            accuracy = accuracies[:, head].tolist()
            means = summary(accuracy, groups)
            for group in [name for name in means if name != "balance"]:
                yield protocol, selection, group, means[group], sizes[(groups == group) | (group == "all")].sum(), own, rate
            for name, value, images in zip(study.classes, accuracy, sizes, strict=True):
                yield protocol, selection, f"class {name}", value, images, own, rate

    def table():
        frame = pd.DataFrame(rows(), columns=["protocol", "selection", "group", "accuracy", "images", "classifier_seed", "rate"])
        return frame if seeds else frame.drop(columns=["classifier_seed", "rate"])
    if seeds:
        settings = settings | {"seeds": list(seeds), "rates": list(rates)}
    return runs.remember(results.folder(run), f"{'heads' if seeds else 'scores'}-{protocol}", settings, table)


def evaluate_all(jobs, processes, **settings):
    """``evaluate`` every (run, results, study, protocol), ``processes`` at a time."""
    train.side_by_side(functools.partial(evaluate, **settings), jobs, processes)
