"""Ours against how others do the same work: interleaved ratios, each behind a check that the
answers agree.
"""

import contextlib
import os
import statistics
import time

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from longtail.store import gpu

ROW = [
    "case",
    "against",
    "check",
    "error",
    "bound",
    "status",
    "ratio",
    "low",
    "high",
    "rounds",
    "goal",
]
AUTHORS = "SDCLR's authors"  # who the rows with their code are against


# ---- measuring


@contextlib.contextmanager
def on_threads(count):
    """So many cores for torch, for every BLAS and for decoding, so that no contender wins by taking
    more of the machine.
    """
    before, cores = (
        torch.get_num_threads(),
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(),
    )
    torch.set_num_threads(count)
    if cores:
        os.sched_setaffinity(0, sorted(cores)[:count])
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        if cores:
            os.sched_setaffinity(0, cores)


def race(contenders, rounds):
    """Seconds of every contender in every round, after one warm-up each; the order rotates so that
    no one is always first.

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


def seconds(function, calls=1):
    """How long so many calls take, until a GPU has done its part too."""
    gpu.synchronize()
    began = time.perf_counter()
    for _ in range(calls):
        function()
    gpu.synchronize()
    return time.perf_counter() - began


def ratios(case, ours, others, rounds, threads=1, calls=None):
    """One row for each of ``others``: the median of per-round ratios (theirs over ours, above 1 is
    faster), with min and max.

    others: name -> (callable, check in words, error, bound, goal). An error above its bound, or
    NaN, leaves the row without a number. ``calls``: name -> how many of its calls make the whole,
    of those too slow to be run whole.
    """
    sound = {name: other[0] for name, other in others.items() if other[2] <= other[3]}
    with on_threads(threads):
        times = race({"ours": ours, **sound}, rounds) if sound else {}
    rows = []
    for name, (_, check, error, bound, goal) in others.items():
        row = {
            "case": case,
            "against": name,
            "check": check,
            "error": error,
            "bound": bound,
            "rounds": rounds,
            "goal": goal,
        }
        if name in sound:
            whole = (calls or {}).get(name, 1)
            faster = [
                whole * theirs / mine
                for theirs, mine in zip(times[name], times["ours"], strict=True)
            ]
            row |= {
                "status": "measured",
                "ratio": statistics.median(faster),
                "low": min(faster),
                "high": max(faster),
            }
        rows.append({"status": "check failed", **row})
    return pd.DataFrame(rows, columns=ROW)


def without_number(case, against, why):
    """The row of a contender that is not here."""
    return pd.DataFrame(
        [{"case": case, "against": against, "status": f"not run: {why}"}], columns=ROW
    )


def all_of(checks):
    """Several checks, name -> (error, bound), as one: all in words, the largest share that one
    takes of its bound, and its bound, 1.
    """
    words = ", ".join(f"{name} {error:.2g} of {bound:g}" for name, (error, bound) in checks.items())
    return words, float(np.max([error / bound for error, bound in checks.values()])), 1.0


def together(*frames):
    """Rows of several cases as one frame; by way of objects, since a case that was not run has
    columns without a value.
    """
    return pd.concat([frame.astype(object) for frame in frames], ignore_index=True).infer_objects()
