"""How hard an image is for the model over many views (MAK, section 3.1)."""

import itertools
import math
from collections import deque

import torch

from longtail.images.views import POLICIES, augment
from longtail.learn import encode, train
from longtail.learn.losses import nt_xent
from longtail.pick.shards import Alone
from longtail.store import gpu, runs

CELLS = {
    True: 2**24,
    False: 2**20,
}  # similarities held at once, by a GPU or not: 4 MiB in a processor's cache; never the result


def ecle(projections, temperature, batch, repeats, permutations=None, generator=None):
    """Empirical contrastive loss expectation: an image's mean NT-Xent over all pairs of its views
    and over re-drawn negatives.

    projections (views, n, d), temperature > 0 -> (n,) float64. Pairs go (0, 1), (0, 2) …; each is
    cut `repeats` times into batches of min(batch, n) images, so an image has 2·batch − 2 negatives.
    `permutations` (pairs·repeats, n), in that order, fix the cuts; else `generator` draws them,
    else one seeded with 0. Source: MAK's reference, described in equation 1 of the paper.
    """
    [(cuts, total)] = deque(
        running(projections, temperature, batch, repeats, permutations, generator), maxlen=1
    )
    return total / cuts


def running(
    projections,
    temperature,
    batch,
    repeats,
    permutations=None,
    generator=None,
    start=(0, 0),
    group=None,
):
    """The sum behind ``ecle`` after each cut, (cuts, (n,) float64), so that a long one can be kept
    and gone on with.

    projections: also a sequence of tensors (n, d). ``start``: an earlier (cuts, sum) to go on from.
    ``group``: processes that share the batches of each cut, every one with all projections; all get
    the same sums, bit for bit those of one process.
    """
    projections = [torch.as_tensor(view) for view in projections]
    pairs = list(
        itertools.combinations(range(_check_views(projections, temperature, batch, repeats)), 2)
    )
    images = len(projections[0])
    if permutations is None:
        generator = generator or torch.Generator().manual_seed(0)
        permutations = (
            torch.randperm(images, generator=generator, device=generator.device)
            for _ in range(len(pairs) * repeats)
        )
    elif len(permutations) != len(pairs) * repeats:
        raise ValueError(
            f"{len(permutations)} permutations for {len(pairs)} pairs × {repeats} repeats; give "
            f"{len(pairs) * repeats}"
        )
    cuts = zip(
        itertools.chain.from_iterable([pair] * repeats for pair in pairs), permutations, strict=True
    )
    done, total = start[0], torch.as_tensor(start[1], device=projections[0].device)
    for number, ((first, second), order) in enumerate(cuts, 1):
        if number > done:  # those before are drawn all the same: the generator must go through them
            order = torch.as_tensor(order, device=projections[0].device)
            total = total + _one_cut(
                projections[first],
                projections[second],
                order,
                temperature,
                min(batch, images),
                group or Alone(),
            )
            yield number, total


def _one_cut(first, second, order, temperature, batch, group):
    """Loss of every image (n,) when `order` is cut into batches; the last one is filled with images
    that already have theirs.
    """
    starts = torch.arange(0, len(order), batch, device=order.device)
    places = starts.clamp(max=len(order) - batch)[:, None] + torch.arange(
        batch, device=order.device
    )
    stacks = [
        part.split(max(1, CELLS[gpu.computes(first)] // (2 * batch) ** 2))
        for part in (order[places], places >= starts[:, None])
    ]
    loss = torch.zeros(len(order), dtype=torch.float64, device=first.device)
    for some, fresh in itertools.islice(zip(*stacks, strict=True), group.rank, None, group.size):
        loss[some[fresh]] = nt_xent(first[some], second[some], temperature).double()[fresh]
    return group.total(loss)


def _check_views(projections, temperature, batch, repeats):
    """Refuse what has no pair or no negative; gives the number of views."""
    if len(projections) < 2 or projections[0].ndim != 2:
        raise ValueError(
            f"projections have shape {(len(projections), *projections[0].shape)}; "
            "ECLE needs (views, images, d) with at least two views"
        )
    if min(batch, len(projections[0])) < 2 or repeats < 1 or not temperature > 0:
        raise ValueError(
            f"{len(projections[0])} images, batch {batch}, repeats {repeats}, temperature "
            f"{temperature}: "
            "ECLE needs two images in a batch, one repeat and a positive temperature"
        )
    if not all(torch.isfinite(view).all() for view in projections):
        raise ValueError(
            "projections hold NaN or infinity; train the extractor again or leave out its broken "
            "images"
        )
    return len(projections)


def hardest(ecle, top=0.1):
    """Positions of the ⌊top·n⌋ highest losses (n,), the highest first; equal losses by index."""
    values = torch.as_tensor(ecle)
    count = math.floor(round(top * len(values), 9))
    if not 0 < count <= len(values):
        raise ValueError(
            f"top {top} of {len(values)} images is {count} images; choose a share that keeps 1 to "
            f"{len(values)}"
        )
    return torch.argsort(values, descending=True, stable=True)[:count]


# ---- of a trained run


@torch.no_grad()
def project_view(encoder, run, images, start, view):
    """Projections (n, d) of one random view of each of ``images``, uint8 on the device, which stand
    at ``start`` in their set.
    """
    index = torch.arange(start, start + len(images), device=images.device)
    pixels = augment(
        encode.Window(images, start),
        index,
        POLICIES[run.policy],
        run.seed,
        0,
        view,
        fused=gpu.fuses(images),
    )
    with gpu.autocast(images.device, run.precision):
        return encoder(pixels.to(memory_format=torch.channels_last)).float()


def project(run, results, images, views):
    """Projections (views, n, d) of independent random views of an image set by a finished run, in
    evaluation mode.

    The views follow the run's pre-training policy and depend on the run's seed, the image's
    position and the view alone.
    """
    encoder, size = train.encoder_of(run, results), encode.chunk_of(run.size)
    chunks = images.images.to(runs.device()).split(size)
    return torch.stack(
        [
            torch.cat(
                [
                    project_view(encoder, run, chunk, number * size, view)
                    for number, chunk in enumerate(chunks)
                ]
            )
            for view in range(views)
        ]
    )


def pair_losses(projections, temperature, batch, repeats, generator):
    """NT-Xent of each image for every pair of views: (first, second) -> (n,), so that those of the
    first M views come first.

    A pair's negatives are drawn ``repeats`` times, once where one batch holds all images.
    """
    cuts = repeats if batch < len(projections[0]) else 1
    return {
        (first, second): ecle(
            projections[[first, second]], temperature, batch, cuts, generator=generator
        )
        for second in range(1, len(projections))
        for first in range(second)
    }
