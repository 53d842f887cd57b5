"""What samplers took, measured afterwards: whose classes it is, how far it reaches and what it
cost. No sampler reads labels: these do.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from longtail.measure.groups import SIZE_GROUPS, size_groups
from longtail.pick import samplers, selection, shards
from longtail.store import gpu

POOL_PARTS = ("outsider", *SIZE_GROUPS)  # of a pool


# ---- whose classes


@functools.lru_cache(maxsize=1)
def counterparts():
    """Which of CIFAR-10's classes a class of Tiny-ImageNet is: WordNet id -> name, from
    ``wordnet_cifar10.csv``.

    The rule, fixed before any picks were looked at: each class of CIFAR-10 stands for the first
    noun sense of its name in WordNet 3.0, but ``ship`` for the sense "vessel, craft designed for
    water transportation", since CIFAR-10's ships include boats. A class is its counterpart where
    that sense is the class itself or one of its hypernyms. So a cougar is a cat (wildcat, cat), a
    tailed toad is a frog (the sense is "frog, toad"), a moving van is a truck; a lion (big cat), a
    school bus, a tractor and a go-kart are outsiders.
    """
    table = pd.read_csv(Path(__file__).with_name("wordnet_cifar10.csv"))
    return dict(zip(table.wnid, table.cifar10, strict=True))


def pool_labels(study):
    """The class of each pool image in the study, −1 for outsiders: int64 (n,).

    An image without a label gets one where a folder in its name is a WordNet id of ``counterparts``
    and the study has that class.
    """
    known = {
        wnid: study.classes.index(name)
        for wnid, name in counterparts().items()
        if name in study.classes
    }
    named = [
        next((known[part] for part in name.split("/") if part in known), -1)
        for name in study.pool.names
    ]
    return torch.where(
        study.pool.labels < 0, torch.tensor(named, dtype=torch.int64), study.pool.labels
    )


def pool_parts(study, group_rule="thirds"):
    """What each pool image is: the size group of its class in the long-tailed list, or
    ``outsider``; array of n names.
    """
    return np.array([*size_groups(study.counts, group_rule), "outsider"])[
        pool_labels(study).numpy()
    ]  # −1 finds the last


def mix(study, picks, group_rule="thirds"):
    """What samplers took: percent of the picks that are outsiders or of each size group.

    ``picks``: sampler -> rows with column index. Rows: sampler, budget, part, share, picks; none
    when every image of the pool is an outsider.
    """
    parts, rows = pool_parts(study, group_rule), []
    for sampler, taken in picks.items() if (parts != "outsider").any() else ():
        found = parts[taken["index"].to_numpy()]
        rows += [
            (sampler, len(found), part, 100 * (found == part).mean(), (found == part).sum())
            for part in POOL_PARTS
        ]
    return pd.DataFrame(rows, columns=["sampler", "budget", "part", "share", "picks"])


def composition(run, results, study, picks, group_rule, **how):
    """``mix`` of what samplers took with a finished run as extractor, unless measured before;
    ``how`` they picked is noted with it.
    """
    settings = {
        **how,
        "group_rule": group_rule,
        "counts": study.counts,
        "pool": study.pool.digest,
        "picks": samplers.digests(picks),
    }
    return results.remember(run, "composition", settings, lambda: mix(study, picks, group_rule))


# ---- how far the picks reach


def dispersion(pool, picks):
    """Two numbers for "the picks spread or collapse", larger is more spread, from pool (n, d) and
    picks (k,).

    coverage: mean over the pool of the cosine similarity to the nearest pick (the facility-location
    value, at most 1); nearest_pick_distance: mean over the picks of the cosine distance to the
    nearest other pick (near 0 when they collapse).
    """
    pool, picks = selection.as_rows(pool), torch.as_tensor(picks, device=gpu.device())
    if len(picks) < 2:
        raise ValueError(f"{len(picks)} picks have no distance between them; give at least two")
    grid = selection.Grid(
        pool, picks.device
    )  # products of integers: the same on a GPU, which has the cores for them
    chosen, covered = (
        grid[picks],
        torch.full((len(pool),), -torch.inf, dtype=torch.float64, device=picks.device),
    )
    selection.cover(covered, grid, chosen)
    among = chosen.double() @ chosen.double().T
    among.fill_diagonal_(-torch.inf)
    unit = selection.SCALE**2
    return {
        "coverage": float(covered.cpu().mean()) / unit,
        "nearest_pick_distance": 1 - float(among.amax(1).cpu().mean()) / unit,
    }


def diversity(run, results, study, picks):
    """``dispersion`` of each sampler's picks among the pool's features, unless measured before;
    ``picks``: sampler -> rows.

    Rows: sampler, budget, coverage, nearest_pick_distance.
    """

    def rows():
        features = samplers.pool_and_seed(run, results, study)[0]
        return pd.DataFrame(
            {
                "sampler": sampler,
                "budget": len(taken),
                **dispersion(features, torch.tensor(taken["index"].to_numpy())),
            }
            for sampler, taken in sorted(picks.items())
        )

    return results.remember(
        run, "diversity", {"pool": study.pool.digest, "picks": samplers.digests(picks)}, rows
    )


def to_nearest(pool, centers, known=None):
    """Cosine distance of each pool image to the nearest of ``centers``, exact: (n, d), (m, d) ->
    (n,) float64.

    ``known``: the distances to other centers, which count as well.
    """
    grid, centers = selection.grids(pool, centers, shards.Alone())
    start = (
        torch.full((len(grid),), -torch.inf, dtype=torch.float64, device=centers.device)
        if known is None
        else 1 - known
    )
    bounds = start * selection.SCALE**2
    selection.cover(bounds, grid, centers)
    return 1 - bounds / selection.SCALE**2


def objective(losses, distances, radius):
    """The sum that MAK maximises (equation 5) and its three terms, from the picks' ECLE (k,),
    distances to the seed (k,) and the radius.

    As printed: the losses are summed, the distance is a mean and the radius a maximum, so that with
    many picks the losses decide.
    """
    terms = {
        "loss": float(losses.sum()),
        "seed_distance": float(distances.mean()),
        "covering_radius": float(radius),
    }
    return terms | {"objective": terms["loss"] - terms["seed_distance"] - terms["covering_radius"]}


def objectives(run, results, study, picks, **how):
    """``objective`` of each sampler's picks with a finished run as extractor, unless measured
    before; ``picks``: sampler -> rows.

    seed_distance: mean cosine distance of a pick to its nearest seed image (equation 3);
    covering_radius: the largest distance of a pool image to seed and picks (equation 4). Rows:
    sampler, budget, loss, seed_distance, covering_radius, objective; the sampler "none" tells the
    radius of the seed alone.
    """

    def rows():
        pool, seed = samplers.pool_and_seed(run, results, study)
        alone, none = to_nearest(pool, seed), torch.empty(0, dtype=torch.float64)
        yield {"sampler": "none", "budget": 0, **objective(none, none, alone.max())}
        for sampler, taken in sorted(picks.items()):
            index = torch.tensor(taken["index"].to_numpy())
            radius = to_nearest(pool, pool[index].to(seed.device), alone).max()
            yield {
                "sampler": sampler,
                "budget": len(taken),
                **objective(torch.tensor(taken.ecle.to_numpy()), alone[index], radius),
            }

    settings = {
        "pool": study.pool.digest,
        "seed": study.seed.digest,
        **how,
        "picks": samplers.digests(picks),
    }
    return results.remember(run, "objective", settings, lambda: pd.DataFrame(rows()))


def proximities(run, results, study, budget, alpha, ratio, prototypes, views, batch, repeats):
    """Whether the nearest prototype can stand for the nearest seed image, as MAK has it: two
    distances of the pool, and picks by each.

    Rows: quantity, sampler, value: rank_correlation (Spearman's) over the pool, then the overlap,
    the share of the picks that are the same by both, for each sampler that asks for proximity, and
    what two random draws would share on average.
    """

    def rows():
        pool, seed = samplers.pool_and_seed(run, results, study)
        ecle, distance = samplers.score_pool(run, results, study, views, batch, repeats, prototypes)
        exact = to_nearest(pool, seed).cpu()
        yield "rank_correlation", "pool", float(stats.spearmanr(distance, exact).statistic)
        yield "overlap", "random", budget / len(pool)
        for sampler in [
            name
            for name, record in samplers.SAMPLERS.items()
            if record.score in ("distance", "score")
        ]:
            taken = [
                samplers.sample(
                    sampler, ecle, far, pool, seed, budget, alpha, ratio, run.seed
                ).cpu()
                for far in (distance, exact)
            ]
            yield "overlap", sampler, float(torch.isin(*taken).double().mean())

    settings = {
        "budget": budget,
        "alpha": alpha,
        "ratio": ratio,
        "prototypes": prototypes,
        "views": views,
        "batch": batch,
        "repeats": repeats,
        "pool": study.pool.digest,
        "seed": study.seed.digest,
    }
    return results.remember(
        run,
        "proximities",
        settings,
        lambda: pd.DataFrame(list(rows()), columns=["quantity", "sampler", "value"]),
    )


# ---- what it cost


def overhead(run, enlarged, results, row):
    """What MAK costs beside training on seed and picks, in seconds as recorded and in epochs of
    that training (MAK, section 3.4).

    ``run`` is the extractor, ``enlarged`` the finished run on seed and picks, at equal epochs,
    ``row`` how they were picked (``sampling.row``). One row in the folder of ``enlarged``:
    extractor, scoring, picking, retraining, equivalent_epochs. Seconds of a run count all its
    epochs; those of a scoring that was stopped count its last process.
    """
    ended = results.ended(enlarged)
    records = {
        "scoring": ["pool-ecle", f"pool-distance-k{row['prototypes']}"],
        "picking": [samplers.record_of(**row)],
    }
    spent = {
        "extractor": results.ended(run)["seconds"],
        **{
            part: sum(results.record(run, name)["seconds"] for name in names)
            for part, names in records.items()
        },
    }
    found = {
        **spent,
        "retraining": ended["seconds"],
        "equivalent_epochs": round(sum(spent.values()) / ended["seconds"] * enlarged.epochs, 2),
    }
    return results.remember(
        enlarged, "overhead", {"extractor": run.name, **found}, lambda: pd.DataFrame([found])
    )
