"""Which pool images to take: MAK, its ablations, K-center and random (MAK, sections 3.1 and 3.3). Labels never appear here."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans

from longtail import ecle, evaluate, runs, train

GRID = 2**23  # unit rows are rounded to integers of this scale: their products and sums are exact in float64, in any order
TILE = 4096   # rows multiplied at once; bounds memory and never the picks


def proximity(pool, seed, prototypes, random_state=0):
    """Cosine distance of every pool image to the nearest seed prototype; small is close (MAK, section 3.1).

    pool (n, d), seed (s, d) -> (n,) in the pool's precision.
    """
    pool, seed = torch.as_tensor(pool), torch.as_tensor(seed)
    _check_rows(pool, seed)
    means = _unit(centroids(seed, prototypes, random_state).to(pool))
    return 1 - torch.cat([(_unit(tile) @ means.T).amax(1) for tile in pool.split(TILE)])


def centroids(seed, prototypes, random_state=0):
    """The seed's prototypes: means of the k-means clusters of its unit features (s, d) -> (prototypes, d)."""
    return torch.as_tensor(_k_means(_unit(seed).cpu().numpy(), prototypes, random_state).cluster_centers_)


def _k_means(rows, prototypes, random_state):
    """Scikit-learn's k-means; ten restarts were its default when the reference was written, so they are asked for."""
    if not 1 <= prototypes <= len(rows):
        raise ValueError(f"{prototypes} prototypes from {len(rows)} seed images; choose 1 to {len(rows)} prototypes")
    return KMeans(prototypes, init="k-means++", n_init=10, max_iter=300, tol=1e-4, random_state=random_state).fit(rows)


def score(ecle, distance, alpha):
    """MAK's q = α·N(ecle) − (1 − α)·N(distance), high for hard images close to the seed; N standardises over the whole pool.

    ecle (n,), distance (n,), alpha in [0, 1] -> (n,) float64. Population deviation, as in the reference.
    """
    ecle, distance = torch.as_tensor(ecle), torch.as_tensor(distance)
    if len(ecle) != len(distance):
        raise ValueError(f"{len(ecle)} losses but {len(distance)} distances; both must cover the same pool")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is outside [0, 1]; 1 is tailness only, 0 is proximity only")
    return alpha * _standard(ecle, "ecle") - (1 - alpha) * _standard(distance, "distance").to(ecle.device)


def _standard(values, name):
    """Mean 0, deviation 1; a measurement equal for all images ranks nothing and becomes zeros."""
    values = values.double()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity; score the pool again with a trained extractor")
    centred, deviation = values - values.mean(), values.std(correction=0)
    return torch.zeros_like(values) if values.min() == values.max() else centred / deviation


def k_center(candidates, centers, budget, *, block=4096):
    """Exact greedy K-center: again and again the candidate farthest, by cosine, from all centres and earlier picks.

    candidates (c, d), centers (s, d) -> (budget,) indices in pick order; ties: lowest index. Similarity to the nearest centre only
    grows, so old values are bounds: greedy runs inside the `block` worst-covered rows, on one table of their similarities, until a
    row left out may be farther; then one matrix product renews all bounds. The same picks for every block, in few rounds.
    """
    candidates, centers = torch.as_tensor(candidates), torch.as_tensor(centers)
    _check_rows(candidates, centers)
    _check_budget(budget, len(candidates))
    rows, centers = _on_grid(candidates), _on_grid(centers)
    nearest = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    picks = rows.new_empty(0, dtype=torch.long)
    while len(picks) < budget:
        _cover(nearest, rows, centers)
        nearest[picks] = torch.inf
        new = _greedy_inside(rows, nearest, budget - len(picks), block)
        picks, centers = torch.cat([picks, new]), rows[new]
    return picks


def _greedy_inside(rows, nearest, wanted, block):
    """Plain greedy among the `block` worst-covered rows, stopped where the first row left out could come before -> new picks."""
    order = torch.sort(nearest, stable=True).indices[: block + 1]             # by similarity, then index
    limit = (float(nearest[order[block]]), int(order[block])) if len(order) > block else (np.inf, len(rows))
    inside = order[:block].sort().values                                      # by index: argmin then takes the lowest
    members = rows[inside].double()
    table, bound, index = (part.cpu().numpy() for part in (members @ members.T, nearest[inside], inside))
    new = []
    while len(new) < wanted:
        place = int(bound.argmin())
        if (bound[place], index[place]) > limit:
            break
        new.append(place)
        np.maximum(bound, table[place], out=bound)
        bound[place] = np.inf
    return inside[torch.as_tensor(new, device=inside.device)]


def _cover(nearest, rows, centers):
    """Raise `nearest` (c,), in place, to every row's similarity with its nearest new centre; tile by tile."""
    for bound, tile in zip(nearest.split(TILE), rows.split(TILE), strict=True):
        tile = tile.double()
        for some in centers.split(TILE):
            torch.maximum(bound, (tile @ some.double().T).amax(1), out=bound)


def _on_grid(rows):
    """Unit rows as integers of at most 2²³, exact in float32, so that no summation order or device can turn a near tie."""
    return torch.cat([(_unit(tile.double()) * GRID).round().float() for tile in rows.split(TILE)])


def _unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def select(score, pool, seed, budget, ratio):
    """The second half of MAK: the ratio·budget best scores are candidates, K-center from the seed spreads the picks among them.

    score (n,), pool (n, d), seed (s, d) -> (budget,) pool indices in pick order, or by ascending score where nothing is left to spread.
    """
    score, pool = torch.as_tensor(score), torch.as_tensor(pool)
    _check_budget(budget, len(pool))
    if len(score) != len(pool) or ratio < 1:
        raise ValueError(f"{len(score)} scores for {len(pool)} pool images, ratio {ratio}; give one score an image and a ratio >= 1")
    best = torch.argsort(score, stable=True)[-int(ratio * budget):].to(pool.device)   # ascending, so K-center's ties go to the lowest score
    return best if len(best) <= budget else best[k_center(pool[best], seed, budget)]


def mak(ecle, pool, seed, budget, alpha=0.3, ratio=1.5, prototypes=10):
    """Hard for the extractor, close to the seed, spread out: MAK's picks (algorithm 1).

    ecle (n,), pool (n, d), seed (s, d) -> (budget,) pool indices in pick order.
    """
    _check_budget(budget, len(pool))
    return select(score(ecle, proximity(pool, seed, prototypes), alpha), pool, seed, budget, ratio)


def _ranked(ecle, distance, pool, seed, budget, alpha, ratio, **_):
    return select(score(ecle, distance, alpha), pool, seed, budget, ratio)


def _diverse(pool, seed, budget, **_):
    return k_center(pool, seed, budget)


def _random(pool, budget, generator_seed, **_):
    return torch.randperm(len(pool), generator=torch.Generator().manual_seed(generator_seed))[:budget]


SAMPLERS = {  # name: (how, what it fixes whatever the caller asks), after MAK's table 2 and its shipped commands
    "random": (_random, {}),
    "k_center": (_diverse, {}),
    "tailness": (_ranked, {"alpha": 1.0, "ratio": 1.0}),
    "proximity": (_ranked, {"alpha": 0.0, "ratio": 1.0}),
    "tailness_proximity": (_ranked, {"ratio": 1.0}),
    "mak": (_ranked, {}),
}


VARIED = ("budget", "alpha", "ratio", "prototypes")      # what rows of the tables may differ in (MAK's tables 1 and 3)


def sample(sampler, ecle, distance, pool, seed, budget, alpha, ratio, generator_seed):
    """The picks of one of SAMPLERS -> (budget,) pool indices in pick order; what a sampler does not use may be None."""
    if sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    _check_budget(budget, len(pool))
    how, fixed = SAMPLERS[sampler]
    asked = dict(ecle=ecle, distance=distance, pool=pool, seed=seed, budget=budget, alpha=alpha, ratio=ratio, generator_seed=generator_seed)
    return how(**(asked | fixed))


def spread(pool, picks):
    """Two numbers for "the picks spread or collapse", larger is more spread, from pool (n, d) and picks (k,).

    coverage: mean over the pool of the cosine similarity to the nearest pick (the facility-location value, at most 1);
    nearest_pick_distance: mean over the picks of the cosine distance to the nearest other pick (near 0 when they collapse).
    """
    pool, picks = torch.as_tensor(pool), torch.as_tensor(picks)
    if len(picks) < 2:
        raise ValueError(f"{len(picks)} picks have no distance between them; give at least two")
    rows, chosen = _on_grid(pool), _on_grid(pool[picks])
    covered = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    _cover(covered, rows, chosen)
    among = chosen.double() @ chosen.double().T
    among.fill_diagonal_(-torch.inf)
    return {"coverage": float(covered.mean()) / GRID**2, "nearest_pick_distance": 1 - float(among.amax(1).mean()) / GRID**2}


def _check_rows(rows, centers):
    """Refuse features that cannot be compared."""
    if len(centers) == 0:
        raise ValueError("no seed features; give at least one seed image to measure distances from")
    if rows.ndim != 2 or rows.shape[1:] != centers.shape[1:]:
        raise ValueError(f"pool features {tuple(rows.shape)} and seed features {tuple(centers.shape)} differ in width; use one extractor")
    for name, part in (("pool", rows), ("seed", centers)):
        if not torch.isfinite(part).all():
            raise ValueError(f"{name} features hold NaN or infinity; extract them again with a trained model")


def _check_budget(budget, images):
    """Refuse a budget of nothing or of more than there is."""
    if budget < 1:
        raise ValueError(f"budget is {budget}; ask for at least one image")
    if budget > images:
        raise ValueError(f"pool has {images} images, fewer than the budget of {budget}; enlarge the pool or lower the budget")


# ---- of a trained run

def score_pool(run, results, study, views, batch, repeats, prototypes):
    """ECLE and distance of every pool image for a finished run: tensors (n,), (n,), read from disk when measured before."""
    folder, pool = results.folder(run), study.pool
    settings = {"pool": pool.digest, "seed": study.seed.digest, "precision": run.precision}
    hard = runs.remember(folder, "pool-ecle", settings | {"views": views, "batch": batch, "repeats": repeats}, lambda: pd.DataFrame(
        {"name": pool.names, "ecle": ecle.ecle(ecle.project(run, results, pool, views), run.temperature, batch, repeats).cpu()}))
    far = runs.remember(folder, f"pool-distance-k{prototypes}", settings, lambda: pd.DataFrame(
        {"name": pool.names, "distance": proximity(*pool_and_seed(run, results, study), prototypes).cpu()}))
    return torch.tensor(hard.ecle.to_numpy()), torch.tensor(far.distance.to_numpy())


@functools.lru_cache(maxsize=1)
def pool_and_seed(run, results, study):
    """Features h of pool and seed by a finished run, (n, d) and (s, d); the last asked for are kept."""
    encoder = train.encoder_of(run, results)
    return tuple(evaluate.features(encoder, images, run.precision) for images in (study.pool, study.seed))


def pick(run, results, study, sampler, budget, alpha, ratio, prototypes, views, batch, repeats):
    """The picks of one sampler with a finished run as extractor: read from disk when picked before.

    Rows in pick order: sampler, rank, index (into the pool), name, ecle, distance, score.
    """
    _check_budget(budget, len(study.pool))
    scored = score_pool(run, results, study, views, batch, repeats, prototypes)
    settings = {"sampler": sampler, "budget": budget, "alpha": alpha, "ratio": ratio, "prototypes": prototypes, "views": views,
                "batch": batch, "repeats": repeats, "pool": study.pool.digest, "seed": study.seed.digest}

    def rows():
        index = sample(sampler, *scored, *pool_and_seed(run, results, study), budget, alpha, ratio, run.seed).cpu()
        values = [value[index] for value in (*scored, score(*scored, SAMPLERS[sampler][1].get("alpha", alpha)))]
        return pd.DataFrame({"sampler": sampler, "rank": range(1, budget + 1), "index": index, "name": [study.pool.names[i] for i in index],
                             **dict(zip(("ecle", "distance", "score"), values, strict=True))})

    return runs.remember(results.folder(run), f"picks-{sampler}-{budget}-a{alpha}-c{ratio}-k{prototypes}", settings, rows)


def row(text, settings):
    """Arguments of ``pick`` for a row of a table: "mak", or "mak alpha 0.5 budget 2000" where one departs from the ``settings``."""
    sampler, *changes = text.split()
    try:
        changed = {name: type(settings[name])(value) for name, value in zip(changes[::2], changes[1::2], strict=True)}
    except (KeyError, ValueError):
        changed = {"": None}
    if sampler not in SAMPLERS or not changed.keys() <= set(VARIED):
        raise ValueError(f"no row {text!r}; name one of {', '.join(SAMPLERS)}, then perhaps one of {', '.join(VARIED)} and its value, …")
    return {"sampler": sampler, **settings, **changed}


def pick_all(run, results, study, rows):
    """``pick`` for several rows, whose scores and features are then computed once."""
    for settings in rows:
        pick(run, results, study, **settings)


def diversity(run, results, study, picks):
    """``spread`` of each sampler's picks among the pool's features; ``picks`` has columns sampler, index. Rows: sampler, budget, …"""
    features = pool_and_seed(run, results, study)[0]
    return pd.DataFrame({"sampler": sampler, "budget": len(taken), **spread(features, torch.tensor(taken["index"].to_numpy()))}
                        for sampler, taken in picks.groupby("sampler"))


def enlarge(run, study, picks, sampler, schedule, epochs=None):
    """The extractor's run again, from scratch, on seed and picks: ``(Run, ImageSet)``.

    ``schedule``: epochs (as many passes as the seed alone gets, the paper's rule), updates (as many optimiser steps), or overhead
    (``epochs`` passes: the control that spends the extractor's time on training instead).
    """
    if schedule not in ("epochs", "updates", "overhead") or (schedule == "overhead") != bool(epochs):
        raise ValueError(f"schedule {schedule!r} with epochs {epochs}: there are epochs, updates, and overhead with its number of epochs")
    images = study.seed + study.pool.subset(picks["index"].to_numpy())
    return replace(run, added=sampler, budget=len(picks), schedule=schedule, epochs=epochs or run.epochs, images=images.digest), images
