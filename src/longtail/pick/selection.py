"""Exact greedy K-center over rows in memory, in a file larger than memory, or spread over several
processes: always the same picks.
"""

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from longtail.pick.shards import Alone, below, collect
from longtail.store import gpu

# unit rows are rounded to integers of this scale: their products and sums are exact in float64, in
# any order
SCALE = 2**23
# numbers of a row from which several threads gain more than they wait for each other
THREADED_WIDTH = 512
TILE_ROWS = 1024  # rows multiplied at once; bounds memory and never the picks
PANEL = 4096  # centers that a tile meets at once
FIRST_CENTERS = 512  # centers that every row meets; only rows badly covered by these meet more
CACHED = 128  # rows converted to float64 at once, few enough to stay in a processor's cache
# rows that greedy runs among before it asks others; decides the time and never the picks
GREEDY_ROWS = 1024
# bytes of float32 rows that are put on the grid once; where there are more, rows are whenever they
# are read
AT_ONCE = 2**27


# ---- numbers that nothing can round differently


class Grid:
    """Features as unit rows rounded to integers of at most 2²³: dot products are exact, so no order
    or device can turn a near tie.

    ``rows`` (n, d): tensor, array or memory map of any float precision. Items are float32 rows on
    ``device``.
    """

    def __init__(self, rows, device):
        self.rows, self.device = as_rows(rows), device
        self.lengths = torch.empty(len(self.rows), dtype=torch.float64, device=device)
        for tile, lengths in zip(self.rows.split(CACHED), self.lengths.split(CACHED), strict=True):
            lengths.copy_(
                _lengths(tile.to(device))
            )  # small results kept between large temporaries would split up the heap
        self.ready = None
        if self.rows.numel() * 4 <= AT_ONCE:
            self.ready = self.whole()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self._convert(index) if self.ready is None else self.ready[index]

    def whole(self):
        """All rows."""
        rows = torch.empty(self.rows.shape, device=self.device)
        for start in range(0, len(self), CACHED):
            rows[start : start + CACHED] = self[start : start + CACHED]
        return rows

    def _convert(self, index):
        lengths = self.lengths[index].clamp(min=1e-12)[:, None] / SCALE
        place = index.to(self.rows.device) if isinstance(index, torch.Tensor) else index
        return (self.rows[place].to(self.device).double() / lengths).round_().float()


def as_rows(features):
    """Features as a tensor, without a copy; rows of a memory map stay in their file."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns of files opened for reading only: nothing here writes
        return torch.as_tensor(features)


def _lengths(rows):
    """Euclidean length of each row (n,), float64, summed in an order that is the same on every
    device.
    """
    squares, width = rows.double() ** 2, rows.shape[1]
    while width > 1:
        half = (width + 1) // 2
        squares[:, : width - half] += squares[:, half:width]
        width = half
    return squares[:, 0].sqrt()


@contextlib.contextmanager
def one_thread():
    """Torch with one thread; gives how many it had. Its teams wait for their slowest thread at
    every step, long beside a busy core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _share_out(work, tiles, threads):
    """``work(tile)`` for all of them, by so many threads, each of which takes the next tile when it
    is done with one.
    """
    if threads == 1 or len(tiles) < 2:
        for tile in tiles:
            work(tile)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, tiles))


def cover(bounds, grid, centers, threads=1):
    """Raise ``bounds`` (n,), in place, to each row's similarity with its nearest center, in units
    of SCALE².

    grid: Grid of n rows, centers (m, d) grid rows.
    """

    def raise_bounds(start):
        part = slice(start, start + TILE_ROWS)
        bounds[part] = raised(bounds[part], grid[part], centers)

    _share_out(raise_bounds, range(0, len(bounds), TILE_ROWS), threads)


def raised(bound, rows, centers):
    """The larger of ``bound`` (n,) and each row's largest product with a center, exact, float64."""
    plain = not gpu.computes(rows) and torch.get_float32_matmul_precision() == "highest"
    for some in centers.split(PANEL) if len(centers) else []:
        pairs = _contenders(bound, rows, some) if plain else None
        if pairs is None:
            bound = torch.maximum(bound, (rows.double() @ some.double().T).amax(1))
        else:
            for row, column in zip(*(places.split(CACHED) for places in pairs), strict=True):
                bound = bound.scatter_reduce(
                    0, row, (rows[row].double() * some[column].double()).sum(1), "amax"
                )
    return bound


def _contenders(bound, rows, centers):
    """Pairs (row, column) among which each row's largest product is if it exceeds ``bound``; None
    when they are too many.

    Found by float32 products, on a CPU twice as fast, whose error is bounded: few pairs are so
    close that it matters.
    """
    with torch.autocast("cpu", enabled=False):
        rough = rows @ centers.T
    slack = (
        1.01 * (rows.shape[1] + 4) * 2.0**-24 * SCALE**2
    )  # no float32 sum of d products of unit rows is further off
    best = rough.amax(1)
    least = torch.where(best > (bound - slack).float(), best - 2 * slack, torch.inf)
    places = torch.from_numpy(
        np.flatnonzero((rough >= least[:, None]).numpy())
    )  # NumPy's is many times faster than torch's
    return (
        (places // len(centers), places % len(centers))
        if len(places) <= rough.numel() / 64
        else None
    )


# ---- greedy


def k_center(candidates, centers, budget, *, block=GREEDY_ROWS, picks=(), group=None):
    """Exact greedy K-center: again and again the candidate farthest, by cosine, from all centers
    and earlier picks.

    candidates (c, d), also a memory map larger than memory; centers (s, d) -> (budget,) indices in
    pick order; ties: lowest index. ``picks``: the first of them, where they are known. ``group``:
    the processes that hold the candidates between them; indices then count through all of them,
    and everyone gets all. Computed where ``centers`` are.

    Similarity to the nearest center only grows, so old values are bounds: greedy runs inside the
    ``block`` worst-covered rows, on one table of their similarities, until a row left out may be
    farther. Only rows that could be in the next block meet all centers.
    """
    group, centers = group or Alone(), torch.as_tensor(centers)
    base, total = group.span(len(candidates))
    check_budget(budget, total)
    with one_thread() as threads:
        if gpu.computes(centers) or centers.shape[1] < THREADED_WIDTH:
            threads = 1
        grid, seed = grids(candidates, centers, group)
        picks = torch.as_tensor(picks, dtype=torch.long, device=centers.device)
        check_picks(picks, total, budget)
        front = _Front(grid, seed, collect(grid, picks, base, group), budget, threads)
        front.set(picks - base, torch.full_like(picks, torch.inf, dtype=torch.float64))
        while len(picks) < budget:
            front.renew(block + 1)
            index, bound, limit = _block(front.bounds, block, base, group)
            members = collect(grid, index, base, group)
            new = _greedy(members, bound, index, limit, budget - len(picks), threads)
            picks = torch.cat([picks, index[new]])
            front.add(members[new])
            front.set(index - base, bound)  # greedy has kept its members up to date
    return picks.to(as_rows(candidates).device)


class _Front:
    """What is known of each row: a lower bound of its similarity with the nearest center, and how
    many of the centers it has met.
    """

    def __init__(self, grid, seed, picks, budget, threads):
        self.grid, self.count, self.threads = grid, len(seed), threads
        self.centers = seed.new_empty(len(seed) + budget, seed.shape[1])
        self.centers[: len(seed)] = seed[
            torch.randperm(len(seed), generator=torch.Generator().manual_seed(0))
        ]  # the first of all kinds
        self.bounds = torch.full((len(grid),), -torch.inf, dtype=torch.float64, device=seed.device)
        cover(self.bounds, grid, self.centers[: min(FIRST_CENTERS, len(seed))], threads)
        self.met = torch.full(
            (len(grid),), min(FIRST_CENTERS, len(seed)), dtype=torch.int32, device=seed.device
        )
        self.add(picks)

    def add(self, rows):
        """New centers."""
        self.centers[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def set(self, places, bounds):
        """The bounds of rows that have met all centers, as far as the ``places`` are here."""
        here = below(places, len(self.bounds))
        self.bounds[places[here]] = bounds[here]
        self.met[places[here]] = self.count

    def renew(self, count):
        """Let rows meet the centers they have not met until the ``count`` lowest bounds are
        exact.
        """
        while len(self._behind(count)):
            behind = self._behind(
                count + TILE_ROWS
            )  # a few more, soon needed too: products of few rows are slow
            for start in self.met[behind].unique().tolist():
                stop = min(
                    (start // PANEL + 1) * PANEL, self.count
                )  # so that rows of several rounds meet again

                def meet(rows, start=start, stop=stop):
                    self.bounds[rows] = raised(
                        self.bounds[rows], self.grid[rows], self.centers[start:stop]
                    )
                    self.met[rows] = stop

                rows = behind[self.met[behind] == start]
                _share_out(
                    meet, rows.split(min(TILE_ROWS, -(-len(rows) // self.threads))), self.threads
                )

    def _behind(self, count):
        """Those of the ``count`` rows with the lowest bounds that have centers to meet."""
        front = lowest(self.bounds, count)
        return front[(self.met[front] < self.count) & self.bounds[front].isfinite()]


def _block(bounds, block, base, group):
    """The ``block`` worst-covered rows of all processes: index, in ascending order, bound, and what
    comes first of the rest.
    """
    worst = lowest(bounds, block + 1)
    pairs = group.gather(torch.stack([bounds[worst], (worst + base).double()], 1))
    pairs = in_order(pairs[pairs[:, 0].isfinite()])  # picked rows are at infinity
    limit = tuple(pairs[block].tolist()) if len(pairs) > block else (np.inf, np.inf)
    members = pairs[:block][
        pairs[:block, 1].argsort()
    ]  # argmin then takes the lowest index of equals
    return members[:, 1].long(), members[:, 0].clone(), limit


def in_order(pairs):
    """Pairs (k, 2) of value and index sorted by value, equal ones by index."""
    value, index = pairs.T.cpu().numpy()
    return pairs[torch.from_numpy(np.lexsort((index, value))).to(pairs.device)]


def lowest(values, count):
    """Positions of the ``count`` lowest values in ascending order of position; of equal ones the
    first.
    """
    if count >= len(values):
        return torch.arange(len(values), device=values.device)
    border = gpu.smallest(values, count - 1)
    below = (values < border).nonzero()[:, 0]
    equal = (values == border).nonzero()[: count - len(below), 0]
    return torch.cat([below, equal]).sort().values


def highest(values, count, base, group):
    """Index of the ``count`` highest values of all processes, in ascending order of value; equal
    ones by index, the lowest kept.
    """
    values = values.double()
    mine = lowest(-values, count)
    pairs = in_order(group.gather(torch.stack([-values[mine], (mine + base).double()], 1)))[:count]
    return in_order(pairs * pairs.new_tensor([-1, 1]))[:, 1].long()


def _greedy(members, bound, index, limit, wanted, threads):
    """Plain greedy among ``members`` until a row left out could come before -> places of the picks;
    renews ``bound`` in place.
    """
    rows = members.double()
    table = rows.new_empty(len(rows), len(rows))
    parts = [slice(start, start + TILE_ROWS // 4) for start in range(0, len(rows), TILE_ROWS // 4)]
    _share_out(
        lambda part: torch.mm(rows[part], rows.T, out=table[part]),
        parts if threads > 1 else [slice(None)],
        threads,
    )
    table, value, index = table.cpu().numpy(), bound.cpu().numpy().copy(), index.cpu().numpy()
    new = []
    while len(new) < wanted:
        place = int(value.argmin())
        if (value[place], index[place]) > limit or value[place] == np.inf:
            break
        new.append(place)
        np.maximum(value, table[place], out=value)
        value[place] = np.inf
    bound.copy_(torch.from_numpy(value))
    return torch.tensor(new, device=bound.device)


# ---- what is refused


def grids(rows, centers, group):
    """The candidates of this process as a Grid and the centers as grid rows; refused on all
    processes where they cannot be compared.
    """
    check_width(rows, centers)
    parts = {"pool": Grid(rows, centers.device), "seed": Grid(centers, centers.device)}
    for name, part in parts.items():
        refuse_nonfinite(name, part.lengths, group)
    return parts["pool"], parts["seed"].whole()


def check_width(rows, centers):
    """Refuse features that cannot be compared."""
    if len(centers) == 0:
        raise ValueError("no seed features; give at least one seed image to measure distances from")
    if rows.ndim != 2 or rows.shape[1:] != centers.shape[1:]:
        raise ValueError(
            f"pool features {tuple(rows.shape)} and seed features {tuple(centers.shape)} differ in "
            "width; use one extractor"
        )


def refuse_nonfinite(name, values, group=None):
    """Refuse features with NaN or infinity, which show in ``values`` made of them; on all processes
    if on one.
    """
    if int((group or Alone()).total((~values.isfinite()).sum())):
        raise ValueError(
            f"{name} features hold NaN or infinity; extract them again with a trained model"
        )


def check_picks(picks, images, most=None):
    """Refuse picks unless they are different indices, not more than ``most``."""
    if len(picks[below(picks, images)].unique()) < len(picks) or len(picks) > (most or images):
        raise ValueError(
            f"{len(picks)} picks to check or to go on from must be different indices of the "
            f"{images} candidates, at most "
            f"{most or images}; give those of the same pool"
        )


def check_budget(budget, images):
    """Refuse a budget of nothing or of more than there is."""
    if budget < 1:
        raise ValueError(f"budget is {budget}; ask for at least one image")
    if budget > images:
        raise ValueError(
            f"pool has {images} images, fewer than the budget of {budget}; enlarge the pool or "
            "lower the budget"
        )
