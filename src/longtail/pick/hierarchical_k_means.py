"""Every concept of a pool gets the same share of the picks: a tree of k-means clusters, filled from
the top.

Vo et al., Automatic data curation for self-supervised learning, TMLR 2024, written anew from what
their code does.
"""

import bisect

import numpy as np
import torch

from longtail.pick.selection import SCALE, Grid, as_rows, one_thread, refuse_nonfinite
from longtail.pick.shards import Alone, collect
from longtail.store import gpu

UPDATES = 50  # of Lloyd's algorithm
CELLS_OF_A_TILE = 2**22  # distances held at once; never the result


def default_clusters(images):
    """Numbers of clusters for a pool of so many images, lowest level first: 20 and 100 images a
    cluster on average, or 20, 200, 1000.
    """
    sizes = (20, 100) if images <= 100_000 else (20, 200, 1000)
    return tuple(images // size for size in sizes if images // size > 1) or (2,)


def hierarchical_k_means(
    features, budget, clusters, *, steps=10, within="random", seed=0, normalise=True, group=None
):
    """Picks that are balanced over a tree of clusters: the budget goes down level by level, equal
    shares until a cluster is used up.

    features (n, d), clusters n ≥ k₁ > k₂ > … ≥ 2 -> (budget,) different indices, ascending. k₁
    clusters hold the images, k₂ the centroids of those, and so on; a centroid counts once, whatever
    its size. ``steps``: at each level k-means starts afresh so often on the few members nearest to
    each centroid, which flattens the density further. ``within`` a lowest cluster: random, or
    closest to its centroid. ``normalise``: to unit length first. With a budget below the number of
    top clusters, some of these are drawn by lot. ``group``: the processes that hold the features
    between them; everyone gets all picks.

    Other than in the authors' code every draw follows from ``seed``; rows and centroids are
    integers, so that no device and no number of processes turns a tie; an empty cluster is dropped
    instead of kept; and k-means ends early where nothing moves any more.
    """
    group, rows = group or Alone(), as_rows(features)
    images, sizes = group.span(len(rows))[1], [group.span(len(rows))[1] + 1, *clusters]
    if (
        not clusters
        or sizes[-1] < 2
        or any(lower <= upper for lower, upper in zip(sizes, sizes[1:], strict=False))
    ):
        raise ValueError(
            f"clusters {tuple(clusters)} for {images} images; give falling numbers from {images} "
            "at most to 2 at least"
        )
    if not 0 <= budget <= images:
        raise ValueError(f"budget {budget} of {images} images; ask for 0 to {images}")
    if within not in ("random", "closest"):
        raise ValueError(f"within {within!r}; images of a cluster are taken random or closest")
    with one_thread():
        levels = cluster_tree(_integers(rows, normalise, group), clusters, steps, seed, group)
    labels, order, _ = levels[0]
    shares = allocate(np.bincount(labels), [labels for labels, *_ in levels[1:]], budget, seed)
    if within == "random":
        order = np.empty(images)
        for number, members in enumerate(_members(labels)):
            order[members] = np.random.default_rng([seed, 1, number]).permutation(len(members))
    return torch.from_numpy(_first_of_each(labels, order, shares))


def _integers(rows, normalise, group):
    """Rows (n, d) as integers, at most SCALE long, in float64: sums and squared distances are then
    exact in any order.
    """
    grid = Grid(rows, gpu.device())
    refuse_nonfinite("pool", grid.lengths, group)
    if normalise:
        return grid.whole().double()
    return (rows.to(grid.device).double() / group.gather(grid.lengths).max() * SCALE).round()


# ---- the tree, bottom up


def cluster_tree(rows, clusters, steps, seed=0, group=None):
    """Levels, lowest first: cluster of each row below (k,), squared distance to its centroid (k,),
    centroids (clusters, d).
    """
    levels, group = [], group or Alone()
    for level, count in enumerate(clusters, 1):
        levels.append(_level(rows, count, steps, [seed, level], group))
        rows, group = levels[-1][-1], Alone()  # there are few centroids: every process has them all
    return levels


def _level(rows, clusters, steps, key, group):
    """K-means, then k-means on the members nearest to each centroid, half of the mean cluster, and
    all rows to the new centroids.
    """
    base, total = group.span(len(rows))
    nearest = int(total / (2 * clusters) + 0.5)
    found = _k_means(rows, clusters, np.random.default_rng([*key, 0]), group)
    for step in range(1, steps + 1) if nearest > 1 else ():
        some = _first_of_each(*found[:2], np.full(len(found[2]), nearest)) - base
        here = torch.from_numpy(some[(some >= 0) & (some < len(rows))]).to(rows.device)
        found = _assigned(
            rows,
            _k_means(rows[here], clusters, np.random.default_rng([*key, step]), group)[2],
            group,
        )
    return found


def _k_means(rows, clusters, generator, group):
    """Cluster of each row of all processes, squared distance to its centroid, centroids, of which
    copies may leave fewer.
    """
    found = _assigned(rows, _starts(rows, clusters, generator, group), group)
    base = group.span(len(rows))[0]
    for _ in range(UPDATES):
        labels, _, centers = found
        mine = torch.from_numpy(labels[base : base + len(rows)]).to(rows.device)
        sums = group.total(torch.zeros_like(centers).index_add_(0, mine, rows))
        found = _assigned(
            rows, (sums / torch.from_numpy(np.bincount(labels)).to(sums)[:, None]).round(), group
        )
        if np.array_equal(labels, found[0]):
            break
    return found


def _assigned(rows, centers, group):
    """Nearest of the centers, of equals the first; those without rows are dropped, the others
    numbered by their first row.
    """
    squares, near, far = (centers**2).sum(1), [], []
    for tile in rows.split(max(1, CELLS_OF_A_TILE // len(centers))):
        distance = torch.addmm(squares, tile, centers.T, alpha=-2)
        near.append(distance.argmin(1))
        far.append(distance.gather(1, near[-1][:, None])[:, 0] + (tile**2).sum(1))
    labels, distance = (group.gather(torch.cat(values)).cpu().numpy() for values in (near, far))
    used, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    order = first.argsort()
    return (
        order.argsort()[labels],
        distance,
        centers[torch.from_numpy(used[order]).to(centers.device)],
    )


def _starts(rows, clusters, generator, group):
    """Greedy k-means++: of 2 + ⌊ln k⌋ rows drawn in proportion to d², the one that leaves the
    smallest sum is the next center.
    """
    base, total = group.span(len(rows))
    squares, trials = (rows**2).sum(1), 2 + int(np.log(clusters))

    def distances(
        centers,
    ):  # whole numbers that can be added up to the end; the ten bits cut off are far below any tie
        return (
            torch.addmm(squares, centers, rows.T, alpha=-2)
            .add_((centers**2).sum(1)[:, None])
            .long()
            >> 10
        )

    def sums(distances):  # (processes, k): what each process's rows add up to
        own = torch.zeros(group.size, len(distances), dtype=torch.int64, device=rows.device)
        own[group.rank] = distances.sum(1)
        return group.total(own)

    # One tensor for all centers and one for what is closest: small results kept between large
    # temporaries would split up the heap.
    centers, count = rows.new_empty(clusters, rows.shape[1]), 1
    centers[:1] = collect(
        rows, torch.tensor([generator.integers(total)], device=rows.device), base, group
    )
    closest = distances(centers[:1])[0]
    weights = sums(closest[None])[:, 0]
    while count < clusters and (
        whole := int(weights.sum())
    ):  # nothing is left where every row is like a center
        drawn = (
            torch.from_numpy(generator.integers(whole, size=trials)).to(rows.device)
            - weights[: group.rank].sum()
        )
        mine = (drawn >= 0) & (drawn < weights[group.rank])
        tried = rows.new_zeros(trials, rows.shape[1])
        tried[mine] = rows[torch.searchsorted(closest.cumsum(0), drawn[mine], right=True)]
        tried = group.total(tried)
        left = torch.minimum(closest, distances(tried))
        each = sums(left)
        best = int(each.sum(0).argmin())
        closest.copy_(left[best])
        weights = each[:, best].clone()
        centers[count] = tried[best]
        count += 1
    return centers[:count]


# ---- the shares, top down


def fill(sizes, budget, generator=None):
    """Equal shares of a budget, none above its size: (k,) -> (k,) that add up to the budget, or the
    sizes where it is enough for all.

    What is left when one more for everyone would be too much goes to the first of those that have
    more, or to some drawn by lot.
    """
    sizes = np.asarray(sizes)
    if sizes.sum() <= budget:
        return sizes.copy()
    cap = (
        bisect.bisect_right(
            range(sizes.max()), budget, key=lambda most: np.minimum(sizes, most).sum()
        )
        - 1
    )
    shares = np.minimum(sizes, cap)
    more, left = np.flatnonzero(sizes > cap), budget - shares.sum()
    shares[generator.choice(more, left, replace=False) if generator else more[:left]] += 1
    return shares


def allocate(sizes, parents, budget, seed=0):
    """Share of each lowest cluster, (k₁,): ``sizes`` in images, ``parents`` the cluster that each
    one of a level belongs to, upwards.
    """
    levels = [np.asarray(sizes)]
    for parent in parents:
        levels.append(np.bincount(parent, levels[-1]).astype(int))
    shares = np.array([budget])
    for level, (sizes, parent) in reversed(
        list(enumerate(zip(levels, [*parents, np.zeros(len(levels[-1]), int)], strict=True), 2))
    ):
        lower = np.empty_like(sizes)
        for number, (children, share) in enumerate(zip(_members(parent), shares, strict=True)):
            lower[children] = fill(
                sizes[children], share, np.random.default_rng([seed, level, number])
            )
        shares = lower
    return shares


def _members(labels):
    """Positions of each label, ascending."""
    return np.split(labels.argsort(kind="stable"), np.bincount(labels).cumsum()[:-1])


def _first_of_each(labels, order, counts):
    """Positions (ascending) of the members of each cluster that come first by ``order``, so many as
    ``counts`` says; ties: lowest.
    """
    sorting, sizes = np.lexsort((order, labels)), np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return np.sort(sorting[place < counts[labels[sorting]]])
