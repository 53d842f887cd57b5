"""Which groups the hardest images belong to, and what of a loss is the image's, what the views'
(MAK, sections 2.2 and 3.4).
"""

import functools
import itertools
import math

import pandas as pd
import torch

from longtail.measure.groups import size_groups
from longtail.pick.ecle import hardest, pair_losses, project


def phi(ecle, groups, top=0.1):
    """How over-represented each group is among the hardest images: 1 is its fair share (MAK,
    section 3.4).

    ecle (n,), groups n names -> dict name -> share among the ⌊top·n⌋ highest losses / share among
    all; equal losses by index.
    """
    groups = list(groups)
    if len(groups) != len(ecle):
        raise ValueError(
            f"{len(ecle)} losses but {len(groups)} group names; give one name for each image"
        )
    chosen = [groups[place] for place in hardest(ecle, top).tolist()]
    return {
        name: (chosen.count(name) / len(chosen)) / (groups.count(name) / len(groups))
        for name in dict.fromkeys(groups)
    }


def variance_parts(losses):
    """Variance of a loss between images and within them, over pairs of views: losses (pairs, n) ->
    dict between, within, F.

    One-way analysis of variance; the pairs must share no view. ``within`` is the mean variance of
    an image's losses. ``between`` is what the variance of the images' means exceeds it by, without
    bias and so perhaps below 0. F is the ratio of the mean squares, 1 on average where images do
    not differ.
    """
    if losses.ndim != 2 or min(losses.shape) < 2:
        raise ValueError(
            f"losses of shape {tuple(losses.shape)} have no variance within and between; give two "
            "pairs of views and images"
        )
    within, means = float(losses.var(0).mean()), float(len(losses) * losses.mean(0).var())
    return {
        "between": (means - within) / len(losses),
        "within": within,
        "F": means / within if within else math.inf,
    }


def overlap(first, second, top=0.1):
    """Share of the hardest images by one loss (n,) that are so by another, too; ``top`` on average
    for unrelated losses.
    """
    return float(torch.isin(hardest(first, top), hardest(second, top)).double().mean())


def measure_phi(run, results, study, views, batch, repeats, test_per_class=0, group_rule="thirds"):
    """φ and the noise of views for a finished run, under two protocols: measurements ``phi`` and
    ``view_noise``, unless made before.

    ``test``: balanced test images contrasted with each other (MAK 3.4), so many of each class, 0
    for all; ``train``: the long-tailed list contrasted with itself. Rows of ``phi``: protocol,
    views, group, phi after 2, 3, … M views. Rows of ``view_noise``: protocol, quantity, views,
    value: ``variance_parts`` of pairs of views, and the ``overlap`` of the hardest tenths by M
    views and by M others.
    """
    names = size_groups(study.counts, group_rule)
    test = torch.cat(
        [
            (study.test.labels == label).nonzero()[: test_per_class or None, 0]
            for label in range(len(names))
        ]
    )
    sets = {"test": study.test.subset(test.sort().values), "train": study.seed}

    @functools.cache
    def losses(protocol):
        projections = project(run, results, sets[protocol], views)
        return pair_losses(
            projections, run.temperature, batch, repeats, torch.Generator().manual_seed(run.seed)
        )

    def shares():
        for protocol, images in sets.items():
            groups, total = [names[label] for label in images.labels], 0
            for count, ((first, second), loss) in enumerate(losses(protocol).items(), 1):
                total = total + loss
                if first == second - 1:  # the last pair of the first M views
                    yield from (
                        (protocol, second + 1, group, value)
                        for group, value in phi(total / count, groups).items()
                    )

    def noise():
        for protocol in sets:
            found, half = losses(protocol), views // 2
            apart = torch.stack([found[first, first + 1] for first in range(0, views - 1, 2)])
            yield from (
                (protocol, quantity, 2, value)
                for quantity, value in (variance_parts(apart) if half > 1 else {}).items()
            )
            for count in range(2, half + 1):
                parts = [range(start, start + count) for start in (0, half)]
                both = [[found[pair] for pair in itertools.combinations(part, 2)] for part in parts]
                means = [torch.stack(losses).mean(0) for losses in both]
                yield protocol, "overlap", count, overlap(*means)

    settings = {
        "views": views,
        "batch": batch,
        "repeats": repeats,
        "counts": study.counts,
        "images": {protocol: images.digest for protocol, images in sets.items()},
    }
    results.remember(
        run,
        "phi",
        settings | {"group_rule": group_rule},
        lambda: pd.DataFrame(list(shares()), columns=["protocol", "views", "group", "phi"]),
    )
    results.remember(
        run,
        "view_noise",
        settings,
        lambda: pd.DataFrame(list(noise()), columns=["protocol", "quantity", "views", "value"]),
    )
