"""How hard an image is for the model over many views (MAK, section 3.1), and which groups the hard ones belong to."""

import itertools
import math

import pandas as pd
import torch

from longtail import evaluate, runs, train
from longtail.losses import nt_xent
from longtail.views import POLICIES

CELLS = 2**24  # similarities held at once, 64 MiB in float32; bounds memory and never the result


def ecle(projections, temperature, batch, repeats, permutations=None, generator=None):
    """Empirical contrastive loss expectation: an image's mean NT-Xent over all pairs of its views and over re-drawn negatives.

    projections (views, n, d), temperature > 0 -> (n,) float64. Pairs go (0, 1), (0, 2) …; each is cut `repeats` times into batches of
    min(batch, n) images, so an image has 2·batch − 2 negatives. `permutations` (pairs·repeats, n), in that order, fix the cuts; else
    `generator` draws them, else one seeded with 0. Source: MAK's reference, described in equation 1 of the paper.
    """
    projections = torch.as_tensor(projections)
    pairs = list(itertools.combinations(range(_check_views(projections, temperature, batch, repeats)), 2))
    images = projections.shape[1]
    if permutations is None:
        generator = generator or torch.Generator().manual_seed(0)
        permutations = (torch.randperm(images, generator=generator, device=generator.device) for _ in range(len(pairs) * repeats))
    elif len(permutations) != len(pairs) * repeats:
        raise ValueError(f"{len(permutations)} permutations for {len(pairs)} pairs × {repeats} repeats; give {len(pairs) * repeats}")
    total = torch.zeros(images, dtype=torch.float64, device=projections.device)
    for (first, second), order in zip(itertools.chain.from_iterable([pair] * repeats for pair in pairs), permutations, strict=True):
        order = torch.as_tensor(order, device=projections.device)
        total += _one_cut(projections[first], projections[second], order, temperature, min(batch, images))
    return total / (len(pairs) * repeats)


def _one_cut(first, second, order, temperature, batch):
    """Loss of every image (n,) when `order` is cut into batches; the last one is filled with images that already have theirs."""
    starts = torch.arange(0, len(order), batch, device=order.device)
    places = starts.clamp(max=len(order) - batch)[:, None] + torch.arange(batch, device=order.device)
    new, members = places >= starts[:, None], order[places]
    loss = torch.empty(len(order), dtype=torch.float64, device=first.device)
    for some, fresh in zip(*(part.split(max(1, CELLS // (2 * batch) ** 2)) for part in (members, new)), strict=True):
        loss[some[fresh]] = nt_xent(first[some], second[some], temperature).double()[fresh]
    return loss


def _check_views(projections, temperature, batch, repeats):
    """Refuse what has no pair or no negative; gives the number of views."""
    if projections.ndim != 3 or projections.shape[0] < 2:
        raise ValueError(f"projections have shape {tuple(projections.shape)}; ECLE needs (views, images, d) with at least two views")
    if min(batch, projections.shape[1]) < 2 or repeats < 1 or not temperature > 0:
        raise ValueError(f"{projections.shape[1]} images, batch {batch}, repeats {repeats}, temperature {temperature}: "
                         "ECLE needs two images in a batch, one repeat and a positive temperature")
    if not torch.isfinite(projections).all():
        raise ValueError("projections hold NaN or infinity; train the extractor again or leave out its broken images")
    return projections.shape[0]


def phi(ecle, groups, top=0.1):
    """How over-represented each group is among the hardest images: 1 is its fair share (MAK, section 3.4).

    ecle (n,), groups n names -> dict name -> share among the ⌊top·n⌋ highest losses / share among all; equal losses by index.
    """
    values, groups = torch.as_tensor(ecle), list(groups)
    if len(groups) != len(values):
        raise ValueError(f"{len(values)} losses but {len(groups)} group names; give one name for each image")
    hardest = math.floor(round(top * len(groups), 9))
    if not 0 < hardest <= len(groups):
        raise ValueError(f"top {top} of {len(groups)} images is {hardest} images; choose a share that keeps 1 to {len(groups)}")
    order = torch.argsort(values, descending=True, stable=True)[:hardest].tolist()
    chosen = [groups[place] for place in order]
    return {name: (chosen.count(name) / hardest) / (groups.count(name) / len(groups)) for name in dict.fromkeys(groups)}


# ---- of a trained run

def project(run, results, images, views):
    """Projections (views, n, d) of independent random views of an image set by a finished run, in evaluation mode.

    The views follow the run's pre-training policy and depend on the run's seed, the image's position and the view alone.
    """
    encoder, pixels = train.encoder_of(run, results), images.images.to(runs.device())
    with torch.autocast(runs.device().type, torch.bfloat16, enabled=run.precision == "bfloat16"):
        return torch.stack([evaluate.in_chunks(encoder, pixels, POLICIES[run.policy], run.seed, view=view) for view in range(views)])


def phi_by_views(run, results, study, views, batch, repeats, test_per_class, group_rule="thirds"):
    """φ of each size group after 2, 3, … M views, under two protocols: read from disk when measured before.

    ``test``: balanced test images contrasted with each other (MAK 3.4); ``train``: the long-tailed list contrasted with itself.
    Rows: protocol, views, group, phi.
    """
    names = evaluate.size_groups(study.counts, group_rule)
    test = torch.cat([(study.test.labels == label).nonzero()[:test_per_class, 0] for label in range(len(names))])
    sets = {"test": study.test.subset(test.sort().values), "train": study.seed}

    def rows():
        for protocol, images in sets.items():
            projections, groups = project(run, results, images, views), [names[label] for label in images.labels]
            cuts = repeats if batch < len(images) else 1        # one batch holds all: nothing to re-draw
            total, count, generator = 0, 0, torch.Generator().manual_seed(run.seed)
            for second in range(1, views):                      # pairs in this order, so that each M extends the last
                for first in range(second):
                    total = total + ecle(projections[[first, second]], run.temperature, batch, cuts, generator=generator)
                    count += 1
                for group, value in phi(total / count, groups).items():
                    yield protocol, second + 1, group, value

    settings = {"views": views, "batch": batch, "repeats": repeats, "group_rule": group_rule, "counts": study.counts,
                "images": {protocol: images.digest for protocol, images in sets.items()}}
    return runs.remember(results.folder(run), "phi", settings,
                         lambda: pd.DataFrame(list(rows()), columns=["protocol", "views", "group", "phi"]))
