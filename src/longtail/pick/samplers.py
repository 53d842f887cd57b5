"""Which pool images to take: MAK, its ablations, K-center and random (MAK, sections 3.1 and 3.3).
Labels never appear here.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from sklearn.cluster import KMeans
from torch.nn.functional import normalize

from longtail.pick import scoring, selection, shards
from longtail.pick.hierarchical_k_means import default_clusters, hierarchical_k_means
from longtail.pick.selection import k_center
from longtail.store import arms, processes, runs

COMPARED = 4096  # pool rows compared with the prototypes at once


def proximity(pool, seed, prototypes, random_state=0):
    """Cosine distance of every pool image to the nearest seed prototype; small is close (MAK,
    section 3.1).

    pool (n, d), seed (s, d) -> (n,) in the pool's precision. Sums are rounded, in another order on
    another device: distances of two machines differ, by d + 4 units in the last place of 1 at most,
    and images whose scores are closer than that may change places.
    """
    pool, seed = selection.as_rows(pool), selection.as_rows(seed)
    selection.check_width(pool, seed)
    means = normalize(centroids(seed, prototypes, random_state).to(seed.device, pool.dtype))
    nearest = torch.empty(len(pool), dtype=pool.dtype, device=means.device)
    for tile, similarity in zip(pool.split(COMPARED), nearest.split(COMPARED), strict=True):
        similarity.copy_((normalize(tile.to(means.device)) @ means.T).amax(1))
    selection.refuse_nonfinite("pool", nearest)
    return 1 - nearest


def centroids(seed, prototypes, random_state=0):
    """The seed's prototypes: means of the k-means clusters of its unit features (s, d) ->
    (prototypes, d).
    """
    rows = normalize(seed).cpu().numpy()
    return torch.as_tensor(_k_means(rows, prototypes, random_state).cluster_centers_)


def _k_means(rows, prototypes, random_state):
    """Scikit-learn's k-means; ten restarts were its default when the reference was written, so they
    are asked for.
    """
    selection.refuse_nonfinite("seed", torch.from_numpy(rows))
    if not 1 <= prototypes <= len(rows):
        raise ValueError(
            f"{prototypes} prototypes from {len(rows)} seed images; choose 1 to {len(rows)} "
            "prototypes"
        )
    return KMeans(
        prototypes, init="k-means++", n_init=10, max_iter=300, tol=1e-4, random_state=random_state
    ).fit(rows)


def score(ecle, distance, alpha, group=None):
    """MAK's q = α·N(ecle) − (1 − α)·N(distance), high for hard images close to the seed; N
    standardises over the whole pool.

    ecle (n,), distance (n,), alpha in [0, 1] -> (n,) float64. Population deviation, as in the
    reference. ``group``: the processes that hold the pool between them; nothing but sums crosses.
    """
    ecle, distance = torch.as_tensor(ecle), torch.as_tensor(distance)
    if len(ecle) != len(distance):
        raise ValueError(
            f"{len(ecle)} losses but {len(distance)} distances; both must cover the same pool"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"alpha {alpha} is outside [0, 1]; 1 is tailness only, 0 is proximity only"
        )
    group = group or shards.Alone()
    return alpha * _standard(ecle, "ecle", group) - (1 - alpha) * _standard(
        distance, "distance", group
    ).to(ecle.device)


def _standard(values, name, group):
    """Mean 0, deviation 1; a measurement equal for all images ranks nothing and becomes zeros."""
    values = values.double()
    if int(group.total((~torch.isfinite(values)).sum())):
        raise ValueError(
            f"{name} holds NaN or infinity; score the pool again with a trained extractor"
        )
    count, ends = (
        group.span(len(values))[1],
        group.gather(torch.stack([values.min(), values.max()]) if len(values) else values),
    )
    centred = values - exact_sum(values, group) / count
    if ends.min() == ends.max():
        return torch.zeros_like(values)
    return centred / math.sqrt(exact_sum(centred**2, group) / count)


def exact_sum(values, group):
    """The sum of ``values`` (n,) of all processes, rounded once: the same bits for any order and
    any share of the processes.
    """
    here, parts = values.tolist(), []  # parts: a few numbers that add up to it exactly
    while rest := math.fsum(itertools.chain(here, (-part for part in parts))):
        parts.append(rest)
    return math.fsum(group.gather(torch.tensor(parts, dtype=torch.float64)).tolist())


def core_set(score, pool, seed, budget, ratio, group=None):
    """The second half of MAK: the ratio·budget best scores are candidates, K-center from the seed
    spreads the picks among them.

    score (n,), pool (n, d), seed (s, d) -> (budget,) pool indices in pick order, or by ascending
    score where nothing is left to spread. Equal scores: the lowest index. ``group``: the processes
    that hold the pool between them; only the candidates cross, and everyone gets the picks, which
    index the whole pool.
    """
    score, pool, group = torch.as_tensor(score), selection.as_rows(pool), group or shards.Alone()
    base, total = group.span(len(pool))
    selection.check_budget(budget, total)
    if len(score) != len(pool) or ratio < 1:
        raise ValueError(
            f"{len(score)} scores for {len(pool)} pool images, ratio {ratio}; give one score an "
            "image and a ratio >= 1"
        )
    best = selection.highest(score, int(ratio * budget), base, group).to(
        pool.device
    )  # ascending: K-center's ties go to the lowest score
    if len(best) <= budget:
        return best
    return best[k_center(shards.collect(pool, best, base, group), seed, budget)]


def mak(ecle, pool, seed, budget, alpha=0.3, ratio=1.5, prototypes=10):
    """Hard for the extractor, close to the seed, spread out: MAK's picks (algorithm 1).

    ecle (n,), pool (n, d), seed (s, d) -> (budget,) pool indices in pick order.
    """
    selection.check_budget(budget, len(pool))
    return core_set(
        score(ecle, proximity(pool, seed, prototypes), alpha), pool, seed, budget, ratio
    )


# ---- the samplers: each is one record, and everything that lists samplers reads these

# share of picks that a sampler must exchange against the pool's own mix to be at work
LEAST_EXCHANGED = 0.1


@dataclass(frozen=True)
class Sampler:
    """One way to pick images, and all that tables, figures, claims and pages need to know of it."""

    take: Callable  # (named arguments of ``sample``) -> (budget,) pool indices, the best first
    wording: str  # in claims
    takes: str  # in one sentence, on the page of one's own picks
    colour: str  # in figures, like the marker
    marker: str
    score: str = ""  # the column of the picks that holds its own score; empty: it has none
    highest_first: bool | None = (
        # whether rank 1 has the highest score or the lowest; None: the score is not all that ranks
        None
    )
    fixed: dict = field(default_factory=dict)  # what it sets whatever the caller asks
    suits: str = ""  # the job it is good for, on that page, too
    balances: bool = (
        True  # whether it claims to shift the mix of classes: claims then check that it did
    )
    version: int = 1  # raised when it picks otherwise, so that its old picks are made anew


def _ranked(ecle, distance, pool, seed, budget, alpha, ratio, group, **_):
    picks = core_set(score(ecle, distance, alpha, group), pool, seed, budget, ratio, group)
    spreads = min(int(ratio * budget), group.span(len(pool))[1]) > budget
    return (
        picks if spreads else picks.flip(0)
    )  # the reference has the worst first where it spreads nothing


def _diverse(pool, seed, budget, group, **_):
    return k_center(pool, seed, budget, group=group)


def _random(pool, budget, generator_seed, group, **_):
    return torch.randperm(
        group.span(len(pool))[1], generator=torch.Generator().manual_seed(generator_seed)
    )[:budget]


def _balanced(pool, budget, generator_seed, group, levels, **_):
    clusters = default_clusters(group.span(len(pool))[1])[levels]
    picks = hierarchical_k_means(pool, budget, clusters, seed=generator_seed, group=group)
    return picks[
        torch.randperm(budget, generator=torch.Generator().manual_seed(generator_seed))
    ]  # none is better than another


SAMPLERS = {  # what the first six fix is after MAK's table 2 and its shipped commands
    "random": Sampler(
        _random,
        "random picks",
        "Drawn by lot: what a method has to be better than.",
        "#0173b2",
        "s",
        balances=False,
        suits="Comparison.",
    ),
    "k_center": Sampler(
        _diverse,
        "K-center",
        "As far as can be from the seed and from each other.",
        "#de8f05",
        "^",
        balances=False,
        suits="Seeing all that the pool holds, new subjects first.",
    ),
    "tailness": Sampler(
        _ranked,
        "tailness alone",
        "The hardest for the encoder, whatever they show.",
        "#999933",
        "D",
        "ecle",
        True,
        {"alpha": 1.0, "ratio": 1.0},
        "Finding what the encoder does not know: odd, crowded and foreign pictures, too.",
    ),
    "proximity": Sampler(
        _ranked,
        "proximity alone",
        "The closest to a prototype of the seed.",
        "#cc78bc",
        "v",
        "distance",
        False,
        {"alpha": 0.0, "ratio": 1.0},
        "More of what the seed has most of.",
    ),
    "tailness_proximity": Sampler(
        _ranked,
        "tailness with proximity",
        "The best scores, however alike.",
        "#029e73",
        "P",
        "score",
        True,
        {"ratio": 1.0},
        "What MAK is for, where pictures that are alike do no harm.",
    ),
    "mak": Sampler(
        _ranked,
        "MAK",
        "Hard for the encoder yet close to the seed, and spread out.",
        "#d55e00",
        "X",
        "score",
        suits="More of the seed's own subjects, the hard ones among them, without many alike.",
    ),
    "hierarchical_k_means": Sampler(
        _balanced,
        "hierarchical k-means",
        "Equal shares for all kinds of images, however rare in the pool.",
        "#ca9161",
        "<",
        fixed={"levels": slice(None)},
        suits="A training set from the pool alone, without regard to the seed.",
    ),
    "k_means_balanced": Sampler(
        _balanced,
        "one level of k-means",
        "Equal shares for the pool's clusters, found at once.",
        "#882255",
        ">",
        fixed={"levels": slice(-1, None)},
        suits="The same, where the pool's clusters are few.",
    ),
}
SETTINGS_OF_A_ROW = (
    "budget",
    "alpha",
    "ratio",
    "prototypes",
)  # what rows of the tables may differ in (MAK's tables 1 and 3)


def sample(sampler, ecle, distance, pool, seed, budget, alpha, ratio, generator_seed, group=None):
    """The picks of one of SAMPLERS -> (budget,) pool indices, the best first; what a sampler does
    not use may be None.

    ``group``: the processes that hold ecle, distance and pool between them; seed is everywhere.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    group = group or shards.Alone()
    selection.check_budget(budget, group.span(len(pool))[1])
    asked = dict(
        ecle=ecle,
        distance=distance,
        pool=pool,
        seed=seed,
        budget=budget,
        alpha=alpha,
        ratio=ratio,
        generator_seed=generator_seed,
        group=group,
    )
    picks = torch.as_tensor(SAMPLERS[sampler].take(**(asked | SAMPLERS[sampler].fixed)))
    refuse_wrong_picks(sampler, picks, budget, group.span(len(pool))[1])
    return picks


def refuse_wrong_picks(sampler, picks, budget, total):
    """Refuse what a sampler gave unless it is ``budget`` different indices of the pool's ``total``
    images.
    """
    whole = not (picks.is_floating_point() or picks.dtype == torch.bool)
    here = whole and bool(((picks >= 0) & (picks < total)).all())
    if picks.shape != (budget,) or not here or len(picks.unique()) < budget:
        raise ValueError(
            f"the sampler {sampler} gave {picks.numel()} picks, {len(picks.unique())} of them "
            f"different; it must give {budget} different indices, from 0 to {total - 1}"
        )


def versioned(sampler):
    """What the settings of a sampler's picks say of its version; nothing of the first."""
    version = SAMPLERS[sampler].version
    return {"version": version} if version > 1 else {}


# ---- of a trained run


def score_pool(run, results, study, views, batch, repeats, prototypes):
    """ECLE and distance of every pool image for a finished run: tensors (n,), (n,), read from disk
    when measured before.
    """
    pool = study.pool
    if not len(pool):
        raise ValueError(
            "the pool is empty, so that nothing can be picked; name places of outsiders, or cut a "
            "tail that leaves images"
        )
    settings = {"pool": pool.digest, "seed": study.seed.digest, "precision": run.precision}
    hard = results.remember(
        run,
        "pool-ecle",
        settings | {"views": views, "batch": batch, "repeats": repeats},
        lambda: pd.DataFrame(
            {
                "name": pool.names,
                "ecle": scoring.losses(run, results, pool, "pool", views, batch, repeats),
            }
        ),
    )
    far = results.remember(
        run,
        f"pool-distance-k{prototypes}",
        settings,
        lambda: pd.DataFrame(
            {
                "name": pool.names,
                "distance": scoring.once(
                    run,
                    results,
                    f"pool-distance-k{prototypes}",
                    settings,
                    len(pool),
                    lambda: proximity(*pool_and_seed(run, results, study), prototypes),
                ),
            }
        ),
    )
    return torch.tensor(hard.ecle.to_numpy()), torch.tensor(far.distance.to_numpy())


@functools.lru_cache(maxsize=1)
def pool_and_seed(run, results, study):
    """Features h of pool and seed by a finished run, (n, d), in a file, and (s, d), on the device;
    the last asked for are kept.
    """
    pool, seed = (
        scoring.measured_features(run, results, getattr(study, part), part)
        for part in ("pool", "seed")
    )
    return pool, seed.to(runs.device())


def pick(run, results, study, sampler, budget, alpha, ratio, prototypes, views, batch, repeats):
    """The picks of one sampler with a finished run as extractor: read from disk when picked before.

    Rows, the best first whatever the score: sampler, rank, index (into the pool), name, ecle,
    distance, score.
    """
    selection.check_budget(budget, len(study.pool))
    settings = {
        "sampler": sampler,
        "budget": budget,
        "alpha": alpha,
        "ratio": ratio,
        "prototypes": prototypes,
        "views": views,
        "batch": batch,
        "repeats": repeats,
        "pool": study.pool.digest,
        "seed": study.seed.digest,
        **versioned(sampler),
    }
    if SAMPLERS[sampler].score:
        # rows without this were written worst first where nothing was spread
        settings["order"] = "best first"

    def rows():
        scored = score_pool(run, results, study, views, batch, repeats, prototypes)
        pool, seed = pool_and_seed(run, results, study)
        mine = [processes.share(values) for values in (*scored, pool)]
        index = sample(sampler, *mine, seed, budget, alpha, ratio, run.seed, shards.everyone())
        return rows_of_picks(sampler, index.tolist(), study.pool.names, *scored, alpha)

    return results.remember(
        run, record_of(sampler, budget, alpha, ratio, prototypes), settings, rows
    )


def rows_of_picks(sampler, index, names, ecle, distance, alpha):
    """Rows of ``pick`` for pool positions ``index``, best first; names … distance: the whole
    pool's.
    """
    whole = {
        "ecle": ecle,
        "distance": distance,
        "score": score(ecle, distance, SAMPLERS[sampler].fixed.get("alpha", alpha)),
    }
    return pd.DataFrame(
        {
            "sampler": sampler,
            "rank": range(1, len(index) + 1),
            "index": index,
            "name": [names[place] for place in index],
            **{column: values[index].numpy() for column, values in whole.items()},
        }
    )


def record_of(sampler, budget, alpha, ratio, prototypes, **_):
    """Name of the measurement that holds the picks of one sampler."""
    return f"picks-{sampler}-{budget}-a{alpha}-c{ratio}-k{prototypes}"


def row(text, settings):
    """Arguments of ``pick`` for a row of a table: "mak", or "mak alpha=0.5 budget=2000" where one
    departs from the ``settings``.
    """
    words, changes = arms.read_line(text)
    if len(words) != 1 or words[0] not in SAMPLERS:
        raise ValueError(
            f"no row {text!r}; name one of {', '.join(SAMPLERS)}, then perhaps one of "
            f"{', '.join(SETTINGS_OF_A_ROW)} as name=value"
        )
    return {
        "sampler": words[0],
        **settings,
        **arms.typed(text, changes, {name: type(settings[name]) for name in SETTINGS_OF_A_ROW}),
    }


def digests(picks):
    """What stands for picks in the settings of a measurement of them: row -> digest of the indices
    of its picks.
    """
    return {
        row: runs.digest_of([int(index) for index in taken["index"]])
        for row, taken in picks.items()
    }


def keep_settings(run, results, pool, row):
    """Note with a run on seed and picks how these were picked: ``row`` as of ``pick``, from the
    pool of this name.
    """
    picked = {
        "pool": pool,
        **{
            name: row[name]
            for name in ("alpha", "ratio", "prototypes", "views", "batch", "repeats")
        },
    }
    return results.remember(run, "picked", picked, lambda: pd.DataFrame([picked]))


def pick_all(run, results, study, rows):
    """``pick`` for several rows, whose scores and features are then computed once."""
    for settings in rows:
        pick(run, results, study, **settings)


def with_picks(run, study, picks, sampler, schedule, epochs=None):
    """A run on the seed alone again, from scratch, on seed and picks: ``(Run, ImageSet)``.

    ``schedule``: epochs (as many passes as the seed alone gets, the paper's rule), updates (as many
    optimiser steps), or overhead (``epochs`` passes: the control that spends the extractor's time
    on training instead).
    """
    if schedule not in ("epochs", "updates", "overhead") or (schedule == "overhead") != bool(
        epochs
    ):
        raise ValueError(
            f"schedule {schedule!r} with epochs {epochs}: there are epochs, updates, and overhead "
            "with its number of epochs"
        )
    images = study.seed + study.pool.subset(picks["index"].to_numpy())
    return replace(
        run,
        added=sampler,
        budget=len(picks),
        schedule=schedule,
        epochs=epochs or run.epochs,
        images=images.digest,
    ), images
