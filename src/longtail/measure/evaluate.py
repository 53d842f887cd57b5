"""What an encoder is worth: the accuracy of probes on its features, by class size."""

import copy
import functools
import operator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from longtail.images import studies, views
from longtail.learn import encode, train
from longtail.measure import probes
from longtail.measure.groups import SIZE_GROUPS, size_groups, summary
from longtail.store import gpu, runs


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained step by step; the published settings, those of SDCLR's
    script and of MAK's paper, are in ``PROTOCOLS``.
    """

    # which image set of the study has them; few: the mean is over label sets, else over first
    # weights and orders
    labels: str
    epochs: int
    rate: float
    drops: tuple  # epochs (from 1) that begin at a tenth of the rate before; none: cosine by update
    batch: int
    validate_every: int
    whole: bool = False  # trains the trunk and the head's first layer too


PROTOCOLS = {
    "linear_converged": probes.Converged("train"),
    "knn": probes.Nearest("train"),
    "linear": Protocol("train", 30, 30.0, (10, 20), 128, 1),
    "linear_longtail": Protocol(
        "seed", 30, 30.0, (10, 20), 128, 1
    ),  # imbalanced downstream task (MAK 3.4)
    "linear_transfer": Protocol(
        "train", 30, 30.0, (10, 20), 128, 1
    ),  # the same on another data set, of data.elsewhere
    "fewshot_linear": Protocol("few", 100, 30.0, (40, 60), 128, 5),  # as SDCLR's code does it
    "fewshot_finetune": Protocol(
        "few", 100, 0.02, (), 64, 5, whole=True
    ),  # as MAK's paper states it
}


def stepped_rate(protocol, epoch):
    """Rate of a classifier's epoch 1, 2, …: a tenth from each of the protocol's drops on, as in
    SDCLR's script.
    """
    return protocol.rate * 0.1 ** sum(epoch >= drop for drop in protocol.drops)


def classifiers(width, classes, seeds):
    """Fresh linear classifiers side by side, one for each seed: weights N(0, 0.01²), bias 0, as in
    SDCLR's script.

    One layer (n, width) -> (n, seeds · classes), so that all of them are one product.
    """
    layer = nn.Linear(width, len(seeds) * classes)
    for seed, weight in zip(seeds, layer.weight.data.split(classes), strict=True):
        nn.init.normal_(weight, 0, 0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer.to(runs.device())


def batches(count, size, seed, epoch):
    """A random order of ``count`` positions in batches, the last one smaller."""
    return (
        torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))
        .to(runs.device())
        .split(size)
    )


def on_device(images):
    """An image set for many passes: its pixels are copied to the device once, if they take no more
    than a set may there.
    """
    return replace(images, images=gpu.kept(images.images))


def train_frozen(encoder, run, label_sets, protocol, policy, classes, seed, seeds):
    """Train classifiers on a frozen trunk's features of fresh views each epoch; yields (epoch,
    features -> logits side by side).

    ``seed`` draws the views; each of ``seeds`` a classifier's first weights and the order of its
    batches. A single label set is shared by all, several of equal size are for one classifier each.
    """
    layer = classifiers(encoder.trunk.features, classes, seeds)
    optimizer = torch.optim.SGD(layer.parameters(), protocol.rate, train.MOMENTUM)
    labelled, size = on_device(functools.reduce(operator.add, label_sets)), len(label_sets[0])
    labels, starts = (
        labelled.labels.to(runs.device()),
        range(0, len(labelled), size) if len(label_sets) > 1 else [0] * len(seeds),
    )
    for epoch in range(1, protocol.epochs + 1):
        optimizer.param_groups[0]["lr"] = stepped_rate(protocol, epoch)
        inputs = encode.features(
            encoder, labelled, run.precision, policy=policy, seed=seed, epoch=epoch
        )
        orders = [batches(size, protocol.batch, own, epoch) for own in seeds]
        for each in zip(*orders, strict=True):
            index = torch.stack([start + part for start, part in zip(starts, each, strict=True)])
            optimizer.zero_grad()
            logits = torch.baddbmm(
                layer.bias.view(len(seeds), 1, -1),
                inputs[index],
                layer.weight.view(len(seeds), classes, -1).mT,
            )
            losses = functional.cross_entropy(
                logits.flatten(0, 1), labels[index].flatten(), reduction="none"
            )
            losses.view(len(seeds), -1).mean(
                1
            ).sum().backward()  # each classifier's gradient is that of its own mean
            optimizer.step()
        yield epoch, layer


def train_whole(encoder, run, label_sets, protocol, policy, classes, seed, seeds):
    """Fine-tune trunk, first head layer and one classifier on one label set, MAK's few-shot; yields
    (epoch, classifier).
    """
    (labelled,) = label_sets
    layer = classifiers(encoder.head.linears[0].out_features, classes, seeds)
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *layer.parameters()], protocol.rate, train.MOMENTUM
    )
    pixels, labels = labelled.images.to(runs.device()), labelled.labels.to(runs.device())
    total, step = protocol.epochs * -(-len(labels) // protocol.batch), 0
    for epoch in range(1, protocol.epochs + 1):
        encoder.train()
        for index in batches(len(labels), protocol.batch, seed, epoch):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = train.warmup_cosine(step, total, 0, protocol.rate, train.FINAL_RATE)
            if len(index) < 2:  # batch norm has no statistics of one image
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
        return (
            layer(inputs).unflatten(1, (heads, -1)).topk(top, 2).indices == labels[:, None, None]
        ).any(2)


def by_class(right, labels, classes):
    """Percent that is right in each class: bool (n, repeats), labels (n,) -> float64 (classes,
    repeats).
    """
    return (
        100
        * torch.stack([right[labels == label].double().mean(0) for label in range(classes)]).cpu()
    )


def train_and_choose(encoder, run, study, label_sets, protocol, policy, seeds, validation_top):
    """Class accuracies on the test set, percent, (classes, seeds): at the last epoch and where best
    on validation (first of equals).
    """
    sets = {
        part: on_device(images)
        for part, images in (("validation", study.validation), ("test", study.test))
    }
    labels = {part: images.labels.to(runs.device()) for part, images in sets.items()}
    frozen = (
        None
        if protocol.whole
        else {
            part: encode.features(encoder, images, run.precision) for part, images in sets.items()
        }
    )

    def inputs(part):
        return frozen[part] if frozen else encode.in_chunks(first_layer(encoder), sets[part].images)

    best, found = (
        torch.full((len(seeds),), -1.0),
        torch.zeros(len(study.classes), len(seeds), dtype=torch.float64),
    )
    learn, classes = train_whole if protocol.whole else train_frozen, len(study.classes)
    for epoch, layer in learn(encoder, run, label_sets, protocol, policy, classes, seeds[0], seeds):
        if epoch % protocol.validate_every and epoch < protocol.epochs:
            continue
        validated = (
            hits(layer, inputs("validation"), labels["validation"], validation_top, len(seeds))
            .float()
            .mean(0)
            .cpu()
        )
        better = validated > best
        if better.any() or epoch == protocol.epochs:
            right = hits(layer, inputs("test"), labels["test"], heads=len(seeds))
            accuracy = by_class(right, labels["test"], classes)
        found, best = torch.where(better, accuracy, found), torch.maximum(best, validated)
    return {"best_validation": found, "last_epoch": accuracy}


def decide(encoder, run, study, probe, labelled, asked, seeds):
    """Class accuracies on the images ``asked`` of a probe without a step size, percent, (classes,
    seeds).
    """
    known, unknown = (
        encode.features(encoder, images, run.precision) for images in (labelled, asked)
    )
    labels, truth = labelled.labels.to(runs.device()), asked.labels.to(runs.device())
    right = torch.stack([probe.decide(known, labels, unknown, seed) == truth for seed in seeds], 1)
    return by_class(right, truth, len(study.classes))


def class_accuracies(run, results, study, protocol, policy, seeds, label_sets, validation_top):
    """Class accuracies on the test set, percent: selection -> (classes, seeds).

    Of several ``label_sets`` each takes one of the seeds; a single one serves them all.
    """
    encoder = train.encoder_of(run, results)
    if not isinstance(protocol, Protocol):
        return {
            protocol.selection: decide(
                encoder, run, study, protocol, *label_sets, study.test, seeds
            )
        }
    if not protocol.whole:  # all classifiers together
        return train_and_choose(
            encoder, run, study, label_sets, protocol, policy, seeds, validation_top
        )
    parts = [
        train_and_choose(
            copy.deepcopy(encoder), run, study, [labelled], protocol, policy, [seed], validation_top
        )
        for seed, labelled in zip(seeds, label_sets, strict=True)
    ]
    return {selection: torch.cat([part[selection] for part in parts], 1) for selection in parts[0]}


def identity(images):
    """What tells image sets apart, labels included: digests of content and of labels."""
    return [images.digest, runs.sha256(images.labels.numpy().tobytes())[:16]]


def score_rows(protocol, measured, study, group_rule):
    """Rows of selection -> class accuracies (classes, repeats): the means over repeats and their
    standard deviation between them.

    Columns: protocol, selection, group (many, medium, few, all, and each class), accuracy
    (percent), images, sd, repeats. The deviation has n − 1 below; it is empty where a probe that
    depends on its seed was trained once, and 0 for a probe that does not.
    """
    groups, rows = np.array(size_groups(study.counts, group_rule)), []
    sizes = np.bincount(study.test.labels.numpy(), minlength=len(groups))
    images = {
        group: sizes[(groups == group) | (group == "all")].sum() for group in (*SIZE_GROUPS, "all")
    }
    single = np.nan if isinstance(PROTOCOLS[protocol], Protocol) else 0.0
    for selection, accuracies in measured.items():
        means = [summary(repeat, groups) for repeat in accuracies.T]
        values = {
            group: ([of[group] for of in means], images[group])
            for group in means[0]
            if group != "balance"
        }
        values |= {
            f"class {name}": (accuracies[label].tolist(), sizes[label])
            for label, name in enumerate(study.classes)
            if sizes[label]
        }
        rows += [
            (
                protocol,
                selection,
                group,
                np.mean(found),
                count,
                np.std(found, ddof=1) if len(found) > 1 else single,
                len(found),
            )
            for group, (found, count) in values.items()
        ]
    return pd.DataFrame(
        rows, columns=["protocol", "selection", "group", "accuracy", "images", "sd", "repeats"]
    )


def adapted(protocol, batch, drop_shift, stride, l2):
    """One of ``PROTOCOLS`` with the settings that a profile changes."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    how = PROTOCOLS[protocol]
    if isinstance(how, probes.Converged):
        return replace(how, l2=l2)
    if isinstance(how, probes.Nearest) or how.whole:
        return how
    return replace(
        how,
        batch=batch,
        drops=tuple(drop + drop_shift for drop in how.drops),
        validate_every=stride * how.validate_every,
    )


def evaluate(
    run,
    results,
    study,
    protocol,
    policy,
    seed=1,
    group_rule="thirds",
    validation_top=1,
    batch=128,
    drop_shift=0,
    stride=1,
    l2=1e-3,
    classifier_seeds=8,
    label_sets=10,
    few_per_class=0,
    reseeded=0,
):
    """Accuracies of a finished run under one of ``PROTOCOLS``: read from disk when measured before;
    rows as ``score_rows``.

    ``policy`` names the views of the labelled images; ``batch``, ``drop_shift`` (epochs),
    ``stride`` (validations) and ``validation_top`` adapt the protocols that train a classifier on a
    frozen trunk step by step. Those are means over ``classifier_seeds`` classifiers, few-shot over
    ``label_sets`` sets of ``few_per_class`` labels a class (0: as the study's list). ``l2`` weighs
    the squared weights of the converged classifier. ``reseeded``: how often a probe without a step
    size is measured, in other row orders and from other first weights, as ``reseeding-<protocol>``.
    Groups follow the long-tailed list's counts.
    """
    how = adapted(protocol, batch, drop_shift, stride, l2)
    stepwise, few, name = isinstance(how, Protocol), how.labels == "few", "scores"
    labelled = (
        studies.label_sets(study, label_sets, few_per_class, seed)
        if few
        else [getattr(study, how.labels)]
    )
    repeats, sets, settings = len(labelled) if few else classifier_seeds, {"test": study.test}, {}
    if not stepwise:
        repeats, name = (reseeded, "reseeding") if reseeded else (1, "scores")
    else:
        validation_top = (
            1 if how.whole else validation_top
        )  # top-5 is how ImageNet's frozen protocols choose
        sets, settings = (
            sets | {"validation": study.validation},
            {"policy": policy, "validation_top": validation_top},
        )
    if repeats < 1:
        raise ValueError(
            f"{protocol} is a mean over {repeats} repeats; give at least one classifier seed and "
            "one label set"
        )
    seeds = list(range(seed, seed + repeats))
    settings |= {
        "protocol": asdict(how),
        "seeds": seeds,
        "group_rule": group_rule,
        "counts": study.counts,
        "labelled": [identity(images) for images in labelled],
        **{part: identity(images) for part, images in sets.items()},
    }
    return results.remember(
        run,
        f"{name}-{protocol}",
        settings,
        lambda: score_rows(
            protocol,
            class_accuracies(
                run, results, study, how, views.POLICIES[policy], seeds, labelled, validation_top
            ),
            study,
            group_rule,
        ),
    )


def evaluate_all(jobs, processes, **settings):
    """``evaluate`` every (run, results, study, protocol), ``processes`` at a time."""
    train.side_by_side(functools.partial(evaluate, **settings), jobs, processes)


def reseeding(run, results, study, protocols, policy, repeats=5, **settings):
    """How far each probe of one encoder moves when nothing but its seed changes: first weights and
    row order, or the label set.

    ``settings`` as of ``evaluate``. Rows: probe, measure (many, medium, few, all), sd (of one
    training, points), sd_of_mean (of the number that scores hold), accuracy, repeats, selection.
    """
    if repeats < 2:
        raise ValueError(f"{repeats} repeats have no spread; measure at least twice")
    rows = pd.concat(
        [
            evaluate(run, results, study, protocol, policy, **settings, reseeded=repeats)
            for protocol in protocols
        ]
    )
    rows = rows[rows.group.isin([*SIZE_GROUPS, "all"])].rename(
        columns={"protocol": "probe", "group": "measure"}
    )
    averaged = rows.repeats.where(
        [isinstance(PROTOCOLS[probe], Protocol) for probe in rows.probe], 1
    )  # scores hold one of the others
    rows = rows.assign(sd_of_mean=rows.sd / averaged**0.5)
    return rows[
        ["probe", "measure", "sd", "sd_of_mean", "accuracy", "repeats", "selection"]
    ].reset_index(drop=True)


def weights_on_validation(run, results, study, grid):
    """What the converged classifier of one encoder is worth on validation images for each L2
    weight: rows l2, accuracy (percent).

    The weight that is best there, the first of equals, is fixed for all encoders that are compared;
    test images have no say in it.
    """
    probe, labelled = (
        PROTOCOLS["linear_converged"],
        getattr(study, PROTOCOLS["linear_converged"].labels),
    )

    def accuracy(l2):
        encoder = train.encoder_of(run, results)
        return (
            decide(encoder, run, study, replace(probe, l2=l2), labelled, study.validation, [1])
            .mean()
            .item()
        )

    settings = {
        "grid": grid,
        "labelled": identity(labelled),
        "validation": identity(study.validation),
    }
    return results.remember(
        run,
        "l2",
        settings,
        lambda: pd.DataFrame([(l2, accuracy(l2)) for l2 in grid], columns=["l2", "accuracy"]),
    )


def curve(run, results, study, group_rule="thirds"):
    """Nearest-neighbour accuracy on validation images of the encoders that were kept while a run
    was trained, and of its last.

    Rows: epoch (how many were over), group (many, medium, few, all), accuracy (percent). Read from
    disk when measured before, so that the kept encoders may go; without them and without rows
    ``FileNotFoundError``.
    """
    probe, labelled = PROTOCOLS["knn"], getattr(study, PROTOCOLS["knn"].labels)

    def rows():
        kept, groups = train.snapshots(run, results), size_groups(study.counts, group_rule)
        if not kept:
            raise FileNotFoundError(
                f"{results.folder(run) / 'snapshots'} has no encoders, which a curve needs; train "
                "the run again"
            )
        for epoch in (*kept, None):  # the last is the run's own
            encoder = train.encoder_of(run, results, epoch=epoch)
            means = summary(
                decide(encoder, run, study, probe, labelled, study.validation, [1])[:, 0], groups
            )
            yield from (
                (run.epochs if epoch is None else epoch, group, value)
                for group, value in means.items()
                if group != "balance"
            )

    columns = ["epoch", "group", "accuracy"]
    return results.remember(
        run,
        "curve",
        curve_settings(study, group_rule),
        lambda: pd.DataFrame(rows(), columns=columns),
    )


def curve_settings(study, group_rule="thirds"):
    """What decides a ``curve`` beside the run."""
    probe = PROTOCOLS["knn"]
    return {
        "protocol": asdict(probe),
        "group_rule": group_rule,
        "counts": study.counts,
        "labelled": identity(getattr(study, probe.labels)),
        "validation": identity(study.validation),
    }


def has_curve(run, results, study, group_rule="thirds"):
    """Whether ``curve`` has rows of a run, or encoders to make them of."""
    return bool(train.snapshots(run, results)) or results.has(
        run, "curve", curve_settings(study, group_rule)
    )
