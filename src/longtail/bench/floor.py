"""How close training comes to what the machine can do: its rate beside the arithmetic's own,
measured in one run.
"""

import itertools
import statistics

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from longtail.bench import timing
from longtail.learn import train
from longtail.store import gpu, runs


def matmul_rate(precision, side=None):
    """Floating-point operations a second of a large square matrix product, the best of six: what
    arithmetic alone could reach.
    """
    side = side or (8192 if gpu.here() else 1024)
    square = torch.randn(side, side, device=runs.device(), dtype=getattr(torch, precision))
    return 2 * side**3 / min(timing.seconds(lambda: square @ square) for _ in range(6))


def operations(step, index):
    """Floating-point operations of products and convolutions in an update, forward and backward.

    Counted uncompiled: a function that torch's compiler meets while a counter looks on stays
    uncompiled for the rest of the process.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        step.update(index)
    return counter.get_total_flops()


def stepper(run, images):
    """Updates of a fresh encoder on ``images`` random pictures, and an epoch's batches of full
    size.
    """
    pixels = torch.randint(
        0,
        256,
        (images, 3, run.size, run.size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    ).to(runs.device())
    encoder, method, optimizer = train.initialise(run)
    method.before_epoch(encoder, 0)
    step = train.Step(run, encoder, method, optimizer, pixels)
    batches = [
        index
        for index in torch.arange(images, device=pixels.device).split(run.batch_size)
        if len(index) == run.batch_size
    ]
    return step, batches or [torch.arange(images, device=pixels.device)]


def training_rate(run, images, updates, rounds):
    """One row for a run's method, network, batch and precision on so many images: views and
    operations a second, and their share.

    ``share`` is that of ``matmul_rate``, measured between the rounds; ``run_minutes`` are those of
    the whole run at this rate.
    """
    step, batches = stepper(run, images)
    counted = operations(step, batches[0])
    turns, took, peaks = itertools.cycle(batches), [], []
    step(batches[0], 0.01)
    for _ in range(rounds):
        took.append(timing.seconds(lambda: step(next(turns), 0.01), updates) / updates)
        peaks.append(matmul_rate(run.precision))
    update = statistics.median(took)
    views = 2 * len(batches[0]) / update
    return {
        "method": run.method,
        "architecture": run.architecture,
        "size": run.size,
        "batch": len(batches[0]),
        "precision": run.precision,
        **{key: value for key, value in runs.machine().items() if key in ("device", "threads")},
        "views_per_second": views,
        "low": 2 * len(batches[0]) / max(took),
        "high": 2 * len(batches[0]) / min(took),
        "gflop_per_update": counted / 1e9,
        "share": counted / update / statistics.median(peaks),
        "run_minutes": run.epochs * images * 2 / views / 60,
        "rounds": rounds,
    }


def recorded_against_eager(planned, images, updates, rounds):
    """A GPU's recorded updates against the same ones made one by one, of ``timed`` runs: ratio of
    seconds, and how far the losses part.

    No rows on a CPU, where nothing is recorded.
    """
    rows = []
    for run in timed(planned):
        (recorded, batches), (eager, _) = stepper(run, images), stepper(run, images)
        if not gpu.computes(batches[0]):
            break
        eager.recorded.wanted = False
        losses = [
            torch.stack([step(batches[turn % len(batches)], 0.01) for turn in range(updates)])
            for step in (recorded, eager)
        ]
        times = timing.race(
            {
                name: lambda step=step, index=batches[0]: [
                    step(index, 0.01) for _ in range(updates)
                ]
                for name, step in (("eager", eager), ("recorded", recorded))
            },
            rounds,
        )
        ratios = [slow / fast for slow, fast in zip(*times.values(), strict=True)]
        rows.append(
            {
                "method": run.method,
                "head_layers": run.head_layers,
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "error": ((losses[0] - losses[1]).abs() / losses[1].abs()).max().item(),
            }
        )
    return pd.DataFrame(rows)


def timed(planned):
    """The runs of a plan that need nothing but images, of SimCLR and SDCLR: the first of each depth
    of head.
    """
    first = {
        (run.method, run.head_layers): run
        for run in reversed(planned)
        if run.method in ("simclr", "sdclr")
    }
    return [run for _, run in sorted(first.items())]


def rates(planned, images, updates, rounds):
    """``training_rate`` of the ``timed`` runs."""
    return pd.DataFrame([training_rate(run, images, updates, rounds) for run in timed(planned)])
