"""Whether picks are greedy K-center's: every row is asked alone, by one product and no search."""

import torch

from longtail.pick.selection import SCALE, TILE_ROWS, check_picks, grids, raised
from longtail.pick.shards import Alone, below, collect


def certificate(candidates, centers, picks, *, tolerance=0.0, group=None):
    """How often a row should have come before a pick: 0 exactly when ``picks`` are K-center's.

    Greedy's similarities never fall, so every row can be asked alone: before pick t, was it
    covered worse than pick t? Each process asks its own rows. ``tolerance``, in cosine, forgives
    the rounding of others' picks.
    """
    group, centers = group or Alone(), torch.as_tensor(centers)
    base, total = group.span(len(candidates))
    picks = torch.as_tensor(picks, device=centers.device)
    check_picks(picks, total)
    grid, seed = grids(candidates, centers, group)
    taken = collect(grid, picks, base, group)
    when = torch.arange(len(picks), device=centers.device)
    value = torch.cat(
        [
            _before(taken[part], seed, taken).gather(1, part[:, None])[:, 0]
            for part in when.split(TILE_ROWS // 4)
        ]
    )
    rank = torch.full((len(grid),), len(picks), device=centers.device)
    here = below(picks - base, len(grid))
    rank[picks[here] - base] = when[here]
    violations = 0
    for rows in torch.arange(len(grid), device=centers.device).split(TILE_ROWS // 4):
        before = _before(grid[rows], seed, taken)
        worse = before < value - tolerance * SCALE**2
        if not tolerance:
            worse |= (before == value) & (rows[:, None] + base < picks)
        violations += int((worse & (when < rank[rows, None])).sum())
    return int(group.total(torch.tensor([violations])))


def _before(rows, seed, taken):
    """Similarity of each row with its nearest center before each pick, (n, picks)."""
    bound = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    products = rows.double() @ taken[:-1].double().T
    return torch.cat([raised(bound, rows, seed)[:, None], products], 1).cummax(1).values
