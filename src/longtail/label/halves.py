"""Images of two halves, after the semi-synthetic experiment of Liu et al. (2022): does training
learn what its labels do not ask for?

Five digits are frequent classes: half A (left) shows the digit, half B (right) any picture of the
other five. Those are the rare classes: half A is blank, half B shows the digit. So every feature of
the rare classes is in the frequent images, where it says nothing of the label.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from longtail.images import datasets, studies
from longtail.images.sources import ImageSet
from longtail.learn import encode, train

DIGITS = tuple("0123456789")
TEST, VALIDATION, LABELLED = 50, 20, 100  # pictures of each digit; the rarest, 8, has 174
LABELS = [10, 100]  # of each class, that an encoder is judged with
TASKS = (
    "frequent classes",
    "rare classes",
    "half B",
)  # their labels, in half A and in half B; what half B of frequent images shows


def beside(left, right):
    """Squares (n, 3, 2s, 2s) with a picture of ``left`` and one of ``right`` (each n, 3, s, s) side
    by side at mid-height, on black.

    The label is the left picture's; without ``left`` half A stays blank and the label is the right
    one's.
    """
    side = right.images.shape[-1]
    squares = torch.zeros(len(right), 3, 2 * side, 2 * side, dtype=torch.uint8)
    middle = slice(side // 2, side // 2 + side)
    squares[:, :, middle, side:] = right.images
    if left is not None:
        squares[:, :, middle, :side] = left.images
    names = ["blank"] * len(right) if left is None else left.names
    labels = right.labels if left is None else left.labels
    return ImageSet(
        squares, labels, tuple(f"{a}+{b}" for a, b in zip(names, right.names, strict=True))
    )


def tasks(size, split, largest, factor):
    """What is asked of an encoder, task -> ``data.Study``; all have the same lists to train on,
    seed (long-tailed) and balanced.

    ``size``: side of the squares, pixels, a multiple of 4; ``split`` draws which five digits are
    frequent and all pairs. Frequent classes have ``largest`` images in the long-tailed list, rare
    ones the share ``factor`` of it. No picture is in two of lists, validation and test. The tasks
    "frequent classes" and "half B" have the same images with other labels. Raises ``ValueError``
    when a class is too small.
    """
    generator = np.random.default_rng(split)
    digits = generator.permutation(len(DIGITS))
    frequent, rare = digits[:5], digits[5:]
    source = datasets.hold_out(datasets.digits(size // 2), DIGITS, TEST, VALIDATION)
    fit = source.images.subset(np.setdiff1d(np.arange(len(source.images)), source.validation))
    lists = training_lists(
        fit,
        frequent,
        rare,
        studies.long_tail_counts(largest, len(DIGITS), factor, "step"),
        generator,
    )
    asked = [
        questions(pictures, frequent, rare, count, generator)
        for pictures, count in (
            (fit, LABELLED),
            (source.images.subset(source.validation), VALIDATION),
            (source.test, TEST),
        )
    ]
    nothing = source.test.subset([])
    return {
        task: studies.Study(*lists, *(part[task] for part in asked), nothing, DIGITS)
        for task in TASKS
    }


def training_lists(pictures, frequent, rare, counts, generator):
    """The long-tailed list, the balanced one, and the few-shot one (the smallest class's size of
    each), as ``ImageSet``s.
    """
    mean = sum(counts) // len(counts)
    by_digit = datasets.class_orders(
        pictures.labels.numpy(), np.arange(len(pictures)), len(DIGITS), generator
    )
    if short := [digit for digit in rare if len(by_digit[digit]) < mean]:
        raise ValueError(
            f"digit {short[0]} has {len(by_digit[short[0]])} pictures and the balanced list needs "
            f"{mean}; lower largest"
        )
    left = np.concatenate(
        [np.resize(by_digit[digit], counts[0]) for digit in frequent]
    )  # again from the start, with another half B
    right = generator.choice(np.concatenate([by_digit[digit] for digit in rare]), len(left))
    alone = np.concatenate([by_digit[digit][:mean] for digit in rare])
    everything = beside(pictures.subset(left), pictures.subset(right)) + beside(
        None, pictures.subset(alone)
    )
    orders = [np.flatnonzero(everything.labels.numpy() == digit) for digit in range(len(DIGITS))]
    ranks = np.argsort(np.concatenate([frequent, rare]))
    return [
        everything.subset(chosen)
        for chosen in studies.split_by_rule(orders, counts, ranks, range(len(orders)))
    ]


def questions(pictures, frequent, rare, count, generator):
    """Task -> images labelled for it, ``count`` of each of its five digits."""
    by_digit = datasets.class_orders(
        pictures.labels.numpy(), np.arange(len(pictures)), len(DIGITS), generator
    )
    left, right = (
        pictures.subset(np.concatenate([by_digit[digit][:count] for digit in chosen]))
        for chosen in (frequent, rare)
    )
    partner = right.subset(generator.permutation(len(right)))
    both = beside(left, partner)
    return {
        "frequent classes": both,
        "rare classes": beside(None, right),
        "half B": ImageSet(both.images, partner.labels, both.names),
    }


def separability(encoder, study, precision, count):
    """Accuracy in percent of logistic regressions on frozen features, each trained to convergence
    on ``count`` labels of each class.

    The mean over all disjoint sets of so many labels that ``study.train`` has. Features are
    standardised by the images of ``study.train``, no view is random; L2 weight 1 (scikit-learn's
    C).
    """
    known, judged = study.train, study.test
    scale = StandardScaler().fit(
        fit := encode.features(encoder, known, precision).numpy(force=True)
    )
    fit, asked = (
        scale.transform(fit),
        scale.transform(encode.features(encoder, judged, precision).numpy(force=True)),
    )
    labels, right = known.labels.numpy(), judged.labels.numpy()
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    starts = range(0, min(map(len, by_class)) - count + 1, count)
    sets = [np.concatenate([own[start : start + count] for own in by_class]) for start in starts]
    return 100 * np.mean(
        [
            LogisticRegression(max_iter=5000).fit(fit[one], labels[one]).score(asked, right)
            for one in sets
        ]
    )


def measure_halves(run, results, asked):
    """Accuracy of a finished run's encoder on every task of ``studies``, measured once.

    Rows: task, labels (of each class), accuracy in percent, images judged.
    """
    settings = {
        "labels": LABELS,
        "images": {task: [study.train.digest, study.test.digest] for task, study in asked.items()},
    }

    def rows():
        encoder = train.encoder_of(run, results)
        found = [
            (task, count, separability(encoder, study, run.precision, count), len(study.test))
            for task, study in asked.items()
            for count in LABELS
        ]
        return pd.DataFrame(found, columns=["task", "labels", "accuracy", "images"])

    return results.remember(run, "halves-test", settings, rows)
