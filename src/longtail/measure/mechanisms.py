"""Whether what a method adds is at work: measured on finished runs, against classes that training
never sees.
"""

import functools

import numpy as np
import pandas as pd
import torch

from longtail.learn import encode, methods, train
from longtail.learn.models import Conv
from longtail.measure import sampled
from longtail.measure.groups import SIZE_GROUPS, size_groups
from longtail.measure.phi import phi
from longtail.pick import samplers
from longtail.store import gpu, runs

DRAWS = 1000  # of what chance would do, with a fixed seed
_OF_METHODS = [kind.mechanism for kind in methods.METHODS.values() if kind.mechanism]
LEAST_CONTRASTS = {
    "picks": samplers.LEAST_EXCHANGED,
    **{name.split()[0]: least for name, least in _OF_METHODS},
}  # see ``active``


def active(mechanism, rows):
    """Whether a mechanism is at work in a run: its ``contrast`` exceeds ``chance`` and the least
    that the method could use.

    ``rows``: columns mechanism, group, value of one run. ``chance`` is the 99th percentile of the
    contrast when classes are shuffled. The least follows from each mechanism, not from results:

    pruning (SDCLR)     φ of few less φ of many among the 10 % of the images on which the dense and
                        the pruned branch disagree most, 0 if no weight is pruned: 0.2, a fifth of a
                        fair share.
    strength (BCL)      mean strength of few less that of many: 0.05, one of the 20 steps of
                        RandAugment's magnitude from 10 to 30.
    importance (rwSAM)  mean weight of few less that of many, where the mean of all is about 1: 0.2,
                        the step of the oracle's weights (φ = 1.2) from one class to the next.
    prior (GH)          share of the images that would have to move for a uniform prior, times the
                        weight of GH's loss, at most 1: 0.1.
    picks (COLT, MAK)   share of the picks that would have to be exchanged for the pool's own mix of
                        many, medium, few and outsiders: 0.1. The mechanism is named with its
                        sampler: "picks mak".
    """
    mine = rows[rows.mechanism == mechanism].set_index("group").value
    if (
        mechanism.split()[0] not in LEAST_CONTRASTS
        or not mine.index.is_unique
        or not {"contrast", "chance"} <= set(mine.index)
    ):
        raise ValueError(
            f"no check of {mechanism!r} in these rows; give those of one run, with contrast and "
            "chance, of "
            f"{', '.join(LEAST_CONTRASTS)}"
        )
    return bool(mine["contrast"] > max(mine["chance"], LEAST_CONTRASTS[mechanism.split()[0]]))


def verdicts(rows):
    """One line for each run and mechanism in ``results.read("mechanism*")``: run, method,
    mechanism, contrast, chance, least, active.
    """
    keys, found = ["run", "method", "mechanism"], []
    for key, own in rows.groupby(keys):
        value = own.set_index("group").value
        found.append(
            (
                *key,
                value["contrast"],
                value["chance"],
                LEAST_CONTRASTS[key[-1].split()[0]],
                active(key[-1], own),
            )
        )
    return pd.DataFrame(found, columns=[*keys, "contrast", "chance", "least", "active"])


# ---- what methods noted as they trained


def measure_mechanism(run, results, study, group_rule="thirds"):
    """Rows of what the method of a finished run adds, by size group; read from disk when measured
    before, empty without a mechanism.

    Rows: mechanism, group, value. Groups many, medium, few and all hold the measured quantity,
    contrast and chance what ``active`` asks. ``prior`` has the share of the images in the fullest,
    middle and emptiest third of the surrogate classes, and that of the true classes beside it;
    ``picks colt`` how over-represented each part of the pool is among the last picks.
    """
    images, groups = trained_on(run, study), size_groups(study.counts, group_rule)
    names = np.array(groups)[images.labels.numpy()]
    noted = results.rows_of(run, "notes.csv.gz")
    noted = dict(list(noted.groupby("name"))) if noted is not None else {}
    last = {
        name: rows[rows.epoch == rows.epoch.max()].value.to_numpy() for name, rows in noted.items()
    }

    def rows():
        found = {
            name: of_images(last[name][: len(names)], names)
            for name in ("strength", "importance")
            if name in last
        }
        if "prior" in last:
            weight = min(1, methods.find(run.method)(run).own["harmony"])
            found["prior"] = of_prior(last["prior"], weight, study.counts, len(names))
        if "picks" in last:
            parts = sampled.pool_parts(study, group_rule)
            found["picks colt"] = of_picks(last["picks"].astype(int), parts)
        if prunes(run):
            disagreed = disagreement(run, results, study, group_rule)
            found["pruning"] = of_pruning(disagreed.set_index("group"))
        return as_rows_of(found)

    settings = {
        "group_rule": group_rule,
        "counts": study.counts,
        "images": images.digest,
        "pool": study.pool.digest if "picks" in last else "",
    }
    return results.remember(run, "mechanism", settings, rows)


def as_rows_of(found):
    """Rows mechanism, group, value of mechanism -> group -> value."""
    rows = [(name, group, value) for name, own in found.items() for group, value in own.items()]
    return pd.DataFrame(rows, columns=["mechanism", "group", "value"])


def trained_on(run, study):
    """The seed images of a run: the study's long-tailed or balanced list."""
    return study.seed if run.subset == "long_tail" else study.balanced


def measure_picks(run, results, study, picks, group_rule="thirds"):
    """``picks <sampler>`` rows of what samplers took; ``picks``: sampler -> rows."""
    parts = sampled.pool_parts(study, group_rule)
    settings = {
        "group_rule": group_rule,
        "counts": study.counts,
        "pool": study.pool.digest,
        "parts": runs.sha256("".join(parts).encode()),
        "picks": samplers.digests(picks),
    }
    return results.remember(
        run,
        "mechanism-picks",
        settings,
        lambda: as_rows_of(
            {
                f"picks {sampler}": of_picks(taken["index"].to_numpy(), parts)
                for sampler, taken in picks.items()
            }
        ),
    )


def _chance(draw):
    """The 99th percentile of ``draw(generator)``."""
    generator = np.random.default_rng(0)
    return float(np.quantile([draw(generator) for _ in range(DRAWS)], 0.99))


def of_picks(index, parts):
    """Group -> value for picks ``index`` of a pool of ``parts``; none where there is one part."""
    kinds, codes = np.unique(parts, return_inverse=True)
    if len(kinds) < 2:
        return {}
    fair = np.bincount(codes) / len(codes)

    def shares(some):
        return np.bincount(codes[some], minlength=len(kinds)) / len(some)

    def exchanged(some):
        return abs(shares(some) - fair).sum() / 2

    chance = _chance(lambda generator: exchanged(generator.permutation(len(codes))[: len(index)]))
    over_represented = dict(zip(kinds, shares(index) / fair, strict=True))
    return over_represented | {"contrast": exchanged(index), "chance": chance}


def of_images(values, groups):
    """Group -> mean of one value an image; none where few or many is empty."""
    if not {"few", "many"} <= set(groups):
        return {}

    def contrast(values):
        return values[groups == "few"].mean() - values[groups == "many"].mean()

    means = {group: values[groups == group].mean() for group in SIZE_GROUPS if group in groups}
    chance = _chance(lambda generator: contrast(generator.permutation(values)))
    return means | {"all": values.mean(), "contrast": contrast(values), "chance": chance}


def of_prior(prior, weight, counts, images):
    """Group -> value for GH's prior over its surrogate classes, beside the true classes' shares."""
    fair = np.full(len(prior), 1 / len(prior))

    def distance(shares):
        return abs(shares - 1 / len(prior)).sum() / 2

    chance = _chance(lambda generator: distance(generator.multinomial(images, fair) / images))
    thirds = {
        f"{kind}{group}": values[np.array(size_groups(values, "thirds")) == group].sum()
        for kind, values in (("", prior), ("true_", np.array(counts) / sum(counts)))
        for group in SIZE_GROUPS
    }
    return thirds | {
        "all": distance(prior),
        "contrast": weight * distance(prior),
        "chance": weight * chance,
    }


def of_pruning(found):
    """Group -> φ of ``disagreement``, rows by group; none where few or many is empty."""
    if not {"few", "many"} <= set(found.index):
        return {}
    own = found.drop("all")
    groups = np.repeat(own.index, own.images).tolist()
    contrast = (found.phi["few"] - found.phi["many"]) * (found.pruned["all"] > 0)

    def at_random(generator):
        shares = phi(generator.random(len(groups)), groups)
        return shares["few"] - shares["many"]

    return {**found.phi, "contrast": contrast, "chance": _chance(at_random)}


# ---- where the dense and the pruned network disagree


def disagreement(run, results, study, group_rule="thirds", top=0.1):
    """Which size groups the images come from on which a run's dense and pruned network disagree
    most (SDCLR's slides, PIE samples).

    Rows: group, phi (share among the ``top`` that disagree most / share among all), disagreement
    (mean), images, pruned (share of the convolution weights). For SDCLR these are its two branches.
    Any other encoder is pruned after training, as a control, remembered as
    ``disagreement-control``: an ordinary encoder tells what pruning does without SDCLR, one of the
    balanced list which classes are hard and not rare.
    """
    images = trained_on(run, study)
    names = np.array(size_groups(study.counts, group_rule))[images.labels.numpy()]

    def rows():
        values, pruned = disagreements(run, results, study)
        shares = {group: value for group, value in phi(values, names, top).items() if group}
        masks = [
            (group, shares[group], names == group) for group in SIZE_GROUPS if group in shares
        ] + [("all", 1.0, names == names)]
        return pd.DataFrame(
            [
                (group, share, float(values[torch.from_numpy(mask)].mean()), mask.sum(), pruned)
                for group, share, mask in masks
            ],
            columns=["group", "phi", "disagreement", "images", "pruned"],
        )

    settings = {
        "group_rule": group_rule,
        "counts": study.counts,
        "images": images.digest,
        "top": top,
    }
    return results.remember(
        run, "disagreement" if prunes(run) else "disagreement-control", settings, rows
    )


def prunes(run):
    """Whether the method of a run trains a pruned branch."""
    return methods.find(run.method).branches > 1


def exemplars(run, results, study, count, group_rule="thirds"):
    """The ``count`` images on which a run's dense and pruned network disagree most, and least.
    Rows: end, rank, index, name, group, …
    """
    images = trained_on(run, study)
    names = np.array(size_groups(study.counts, group_rule))[images.labels.numpy()]

    def rows():
        values = disagreements(run, results, study)[0]
        order = torch.argsort(values, descending=True, stable=True)
        ends = {"most": order[:count], "least": order.flip(0)[:count]}
        return pd.DataFrame(
            [
                (end, rank, int(index), images.names[index], names[index], float(values[index]))
                for end, places in ends.items()
                for rank, index in enumerate(places.tolist(), 1)
            ],
            columns=["end", "rank", "index", "name", "group", "disagreement"],
        )

    settings = {
        "group_rule": group_rule,
        "counts": study.counts,
        "images": images.digest,
        "count": count,
    }
    return results.remember(run, "exemplars", settings, rows)


@functools.lru_cache(maxsize=1)
def disagreements(run, results, study):
    """1 − cosine similarity of the dense and the pruned network's projections of each training
    image, as it is: (n,), and the pruned share.

    Projections, because they are what SDCLR's loss compares; no loss makes the features of two
    branches comparable. The masks follow from the final weights.
    """
    pixels = trained_on(run, study).images.to(runs.device())
    encoder = twin_of(run, results, pixels)
    masks = [module.mask for module in encoder.trunk.modules() if isinstance(module, Conv)]
    with gpu.autocast(pixels.device, run.precision):
        dense, pruned = (
            encode.in_chunks(functools.partial(encoder, branch=branch), pixels) for branch in (0, 1)
        )
    kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return 1 - torch.cosine_similarity(dense, pruned).cpu().double(), 1 - kept


def twin_of(run, results, pixels):
    """A finished run's encoder with its pruned branch, masks from the final weights, in evaluation
    mode.

    SDCLR has trained that branch. For others it has the dense weights, and both branches get batch
    norm statistics from the training images: with those of the dense network the pruned one would
    show what it makes of wrong statistics.
    """
    encoder = train.encoder_of(run, results)
    if prunes(run):
        encoder.refresh_masks(run.prune_fraction)
        return encoder
    state = encoder.state_dict()
    twin = type(encoder)(run.architecture, run.head_layers, 2).to(
        runs.device(), memory_format=torch.channels_last
    )
    twin.load_state_dict(
        state
        | {
            name.replace(".sets.0.", ".sets.1."): value
            for name, value in state.items()
            if ".sets.0." in name
        }
    )
    twin.refresh_masks(run.prune_fraction)
    return renormalised(twin.eval(), pixels)


@torch.no_grad()
def renormalised(encoder, pixels):
    """The encoder with each branch's batch norm statistics from these images as they are: the mean
    over random batches, evenly cut.
    """
    norms = [
        module
        for module in encoder.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).to(
        pixels.device
    )
    for index in order.tensor_split(-(-len(order) // encode.chunk_of(pixels.shape[-1]))):
        batch = (pixels[index].float() / 255).to(memory_format=torch.channels_last)
        for branch in (0, 1):
            encoder(batch, branch=branch)
    for norm in norms:
        norm.eval()
    return encoder
