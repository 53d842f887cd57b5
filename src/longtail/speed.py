"""Ours against how others do the same work: interleaved ratios on one core, each behind a check that the answers agree."""

import contextlib
import importlib
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from longtail import sampling

COLUMNS = ["case", "against", "check", "error", "bound", "status", "ratio", "low", "high", "rounds", "goal"]
AUTHORS = "SDCLR's authors"        # who the rows with their code are against


# ---- measuring

@contextlib.contextmanager
def one_thread():
    """One core for torch and for every BLAS, so that no contender wins by taking more of the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def race(contenders, rounds):
    """Seconds of every contender in every round, after one warm-up each; the order rotates so that no one is always first.

    contenders: name -> callable without arguments; gives name -> list of ``rounds`` seconds.
    """
    names, times = list(contenders), {name: [] for name in contenders}
    for name in names:
        contenders[name]()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(contenders[name]))
    return times


def seconds(function):
    """How long one call takes, until a GPU has done its part too."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - began


def compare(case, ours, others, rounds):
    """One row for each of ``others``: the median of per-round ratios (theirs over ours, above 1 is faster), with min and max.

    others: name -> (callable, check in words, error, bound, goal). An error above its bound, or NaN, leaves the row without a number.
    """
    sound = {name: other[0] for name, other in others.items() if other[2] <= other[3]}
    with one_thread():
        times = race({"ours": ours, **sound}, rounds) if sound else {}
    rows = []
    for name, (_, check, error, bound, goal) in others.items():
        row = {"case": case, "against": name, "check": check, "error": error, "bound": bound, "rounds": rounds, "goal": goal}
        if name in sound:
            ratios = [theirs / mine for theirs, mine in zip(times[name], times["ours"], strict=True)]
            row |= {"status": "measured", "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        rows.append({"status": "check failed", **row})
    return pd.DataFrame(rows, columns=COLUMNS)


def not_run(case, against, why):
    """The row of a contender that is not here."""
    return pd.DataFrame([{"case": case, "against": against, "status": f"not run: {why}"}], columns=COLUMNS)


def all_of(checks):
    """Several checks, name -> (error, bound), as one: all in words, the largest share that one takes of its bound, and its bound, 1."""
    words = ", ".join(f"{name} {error:.2g} of {bound:g}" for name, (error, bound) in checks.items())
    return words, float(np.max([error / bound for error, bound in checks.values()])), 1.0


def together(*frames):
    """Rows of several cases as one frame; by way of objects, since a case that was not run has columns without a value."""
    return pd.concat([frame.astype(object) for frame in frames], ignore_index=True).infer_objects()


# ---- K-center

def k_center(rounds, candidates=2400, seeds=800, budget=1600, width=256, google_active_learning=""):
    """Greedy K-center from a seed: in blocks, against one product a pick and against google/active-learning at the given folder."""
    pool, seed = relu_features(candidates, width, 1), relu_features(seeds, width, 0)
    case, picked = f"K-center, {budget} of {candidates}", set(sampling.k_center(pool, seed, budget).tolist())

    def other(select, goal):
        def run():
            return select(pool, seed, budget)
        return run, "picks that differ", len(picked.symmetric_difference(run())), 0, goal

    others = {"one product a pick": other(product_a_pick, None)}
    if google_active_learning:
        others["google/active-learning"] = other(google_select(google_active_learning), 20.0)
    rows = compare(case, lambda: sampling.k_center(pool, seed, budget), others, rounds)
    if google_active_learning:
        return rows
    return together(rows, not_run(case, "google/active-learning", "give google_active_learning"))


def relu_features(count, width, seed):
    """Unit rows like a ResNet's pooled features: non-negative, clustered, long-tailed, of low dimension; float32 (count, width)."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    means, latent = np.maximum(shared.standard_normal((200, width)), 0) ** 2, shared.standard_normal((48, width)) / 48**0.5
    share = 1 / np.arange(1, 201)
    clusters = own.choice(200, count, p=share / share.sum())
    noise = own.standard_normal((count, 48)) @ latent + 0.35 * own.standard_normal((count, width))
    return torch.nn.functional.normalize(torch.from_numpy(np.maximum(means[clusters] + noise, 0)).float(), dim=1)


def product_a_pick(pool, seed, budget):
    """The textbook loop: similarities with each new centre by one matrix–vector product."""
    nearest, picks = (pool @ seed.T).amax(1), []
    for _ in range(budget):
        picks.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, pool @ pool[picks[-1]])
        nearest[picks[-1]] = torch.inf
    return picks


def google_select(folder):
    """Their kCenterGreedy started from the seed, imported from a checkout of google/active-learning."""
    if not (Path(folder) / "sampling_methods" / "kcenter_greedy.py").exists():
        raise ValueError(f"google_active_learning: {folder} has no sampling_methods/kcenter_greedy.py; give a checkout of that repository")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("sampling_methods.kcenter_greedy")
    sys.path.remove(str(folder))
    module.max = lambda values: float(np.max(values))       # its closing print fails with numpy 2.4

    def select(pool, seed, budget):
        rows = np.concatenate([seed.numpy(), pool.numpy()])
        with contextlib.redirect_stdout(io.StringIO()):
            picks = module.kCenterGreedy(rows, None, 0).select_batch_(_AsTheyAre, list(range(len(seed))), budget)
        return [int(pick) - len(seed) for pick in picks]
    return select


class _AsTheyAre:
    """The "model" whose features their class asks for."""

    @staticmethod
    def transform(rows):
        return rows
