"""Selection and scoring: exact K-center at several sizes, and the ECLE of a pool of JPEG files,
against how others do it.
"""

import importlib
import io
import itertools
import sys
import time
import zipfile
from concurrent import futures
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr

from longtail.bench import timing, training
from longtail.bench.greedy import certificate
from longtail.bench.views import photographs, reference_transform
from longtail.images import sources
from longtail.images import views as random_views
from longtail.learn import encode, train
from longtail.pick import ecle, samplers, selection
from longtail.store import gpu, runs

# of a cosine: how much worse than greedy's a pick by float32 or by Euclidean distances may be
CLOSE = 2e-6
GOOGLE = "google/active-learning"


# ---- K-center


def paper_k_center(
    rounds,
    candidates=15_000,
    seeds=12_000,
    budget=10_000,
    width=2048,
    some=10,
    threads=2,
    google_active_learning="",
):
    """MAK's greedy at the paper's size: against its own matrix products and, ``some`` picks
    extrapolated, against a pass per pick.

    What the others need before their first pick is left out of their time, to their favour.
    """
    pool, seed = relu_features(candidates, width, 1), relu_features(seeds, width, 0)
    nearest, case = nearest_of(pool, seed), f"K-center, {budget} of {candidates}, {width} wide"
    loops = {
        "one product a pick": (products_loop, 10 * some, 4.0),
        "anomalib's loop": (anomalib_loop, some, 40.0),
    }
    if google_active_learning:
        loops[GOOGLE] = google_loop(google_active_learning, pool, seed), some, 100.0
    others, calls = least_products(pool, seed, budget)
    for name, (loop, count, goal) in loops.items():
        error = certificate(pool, seed, loop(pool, nearest, count), tolerance=CLOSE)
        others[name], calls[name] = (
            (partial(loop, pool, nearest, count), "picks not greedy to 2e-6", error, 0, goal),
            budget / count,
        )
    rows = timing.ratios(
        case, lambda: selection.k_center(pool, seed, budget), others, rounds, threads, calls
    )
    return (
        rows
        if google_active_learning
        else timing.together(
            rows, timing.without_number(case, GOOGLE, "give google_active_learning")
        )
    )


def pool_k_center(rounds, images=100_000, seeds=3000, budget=1500, width=256, threads=2):
    """Plain K-center over a whole pool: against one product a pick, run whole, and against its own
    matrix products.
    """
    pool, seed = relu_features(images, width, 1), relu_features(seeds, width, 0)
    picks = set(selection.k_center(pool, seed, budget).tolist())
    differ = len(picks.symmetric_difference(product_a_pick(pool, seed, budget)))
    others, calls = least_products(pool, seed, budget)
    others["one product a pick"] = (
        partial(product_a_pick, pool, seed, budget),
        "picks that differ",
        differ,
        0,
        8.0,
    )
    return timing.ratios(
        f"K-center, {budget} of {images}, {width} wide",
        lambda: selection.k_center(pool, seed, budget),
        others,
        rounds,
        threads,
        calls,
    )


def least_products(pool, seed, budget):
    """The contender "its matrix products", the float32 products that greedy cannot do without, and
    how many calls of it they are.

    Every candidate meets every seed row, every pick every row not yet picked. Ours over it is the
    inverse of the ratio.
    """
    whole = len(pool) * (len(seed) + budget) - budget**2 / 2
    centers = torch.cat([seed, pool[:budget]]).split(selection.TILE_ROWS)
    tiles = list(itertools.product(pool.split(selection.TILE_ROWS), centers))

    def products():
        for left, right in tiles:
            left @ right.T

    error = certificate(pool, seed, selection.k_center(pool, seed, budget))
    measured, name = sum(len(left) * len(right) for left, right in tiles), "its matrix products"
    return {name: (products, "times not greedy", error, 0, 1 / 1.5)}, {name: whole / measured}


def relu_features(count, width, seed):
    """Unit rows like a ResNet's pooled features: non-negative, clustered, long-tailed, of low
    dimension; float32 (count, width).
    """
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    means, latent = (
        np.maximum(shared.standard_normal((200, width)), 0) ** 2,
        shared.standard_normal((48, width)) / 48**0.5,
    )
    share = 1 / np.arange(1, 201)
    clusters = own.choice(200, count, p=share / share.sum())
    noise = own.standard_normal((count, 48)) @ latent + 0.35 * own.standard_normal((count, width))
    return torch.nn.functional.normalize(
        torch.from_numpy(np.maximum(means[clusters] + noise, 0)).float(), dim=1
    )


def nearest_of(pool, seed):
    """Similarity (n,) of each row with its nearest seed row, in float32."""
    return torch.cat([(tile @ seed.T).amax(1) for tile in pool.split(selection.TILE_ROWS)])


def product_a_pick(pool, seed, budget):
    """The textbook loop: similarities with each new centre by one matrix–vector product."""
    return products_loop(pool, nearest_of(pool, seed), budget)


def products_loop(pool, nearest, budget):
    """Picks by one matrix–vector product each, from the similarity ``nearest`` (n,) with the
    seed.
    """
    nearest, picks = nearest.clone(), []
    for _ in range(budget):
        picks.append(int(nearest.argmin()))
        torch.maximum(nearest, pool @ pool[picks[-1]], out=nearest)
        nearest[picks[-1]] = torch.inf
    return picks


def anomalib_loop(pool, nearest, budget):
    """Picks as anomalib's coreset sampling makes them (its loop restated): the norm of all
    differences from each new center.
    """
    distances, picks = (2 - 2 * nearest).clamp(min=0).sqrt()[:, None], []
    for _ in range(budget):
        picks.append(int(distances.argmax()))
        distances = torch.minimum(
            distances, torch.linalg.vector_norm(pool - pool[picks[-1]], dim=1, keepdim=True)
        )
        distances[picks[-1]] = 0
    return picks


def google_loop(folder, pool, seed):
    """The loop of google/active-learning's kCenterGreedy; its ``update_distances`` does all the
    work.
    """
    module, rows = google_module(folder), np.concatenate([seed.numpy(), pool.numpy()])

    def loop(_, nearest, budget):
        greedy = module.kCenterGreedy(rows, None, 0)
        distances = (2 - 2 * nearest.double()).clamp(min=0).sqrt().numpy()
        greedy.min_distances, picks = np.concatenate([np.zeros(len(seed)), distances])[:, None], []
        for _ in range(budget):
            picks.append(int(np.argmax(greedy.min_distances)))
            greedy.update_distances([picks[-1]], only_new=True, reset_dist=False)
        return [pick - len(seed) for pick in picks]

    return loop


def google_module(folder):
    """``kcenter_greedy`` of a checkout of google/active-learning."""
    if not (Path(folder) / "sampling_methods" / "kcenter_greedy.py").exists():
        raise ValueError(
            f"google_active_learning: {folder} has no sampling_methods/kcenter_greedy.py; give a "
            "checkout of that repository"
        )
    sys.path.insert(0, str(folder))
    module = importlib.import_module("sampling_methods.kcenter_greedy")
    sys.path.remove(str(folder))
    return module


# ---- cost against the size of a pool


def pool_costs(sizes, width=64, budget=300, threads=2):
    """What scoring and picking cost for pools of several sizes: rows images, step, seconds,
    peak_mib (of a process of their own).

    Seconds are those of processors, all threads together, since others use the machine too.
    """
    with futures.ProcessPoolExecutor(
        1, get_context("spawn")
    ) as apart:  # the smallest first: the peak is that of all so far
        return pd.concat(
            apart.map(
                partial(pool_cost, width=width, budget=budget, threads=threads), sorted(sizes)
            ),
            ignore_index=True,
        )


def pool_cost(images, width, budget, threads):
    """The rows of one size, with features and projections of two views made up: 500 seed images,
    losses from one pair of views.
    """
    torch.set_num_threads(threads)
    pool, seed, steps = torch.empty(images, width), relu_features(500, width, 0), []
    for number, part in enumerate(pool.split(2**14), 1):
        part.copy_(relu_features(len(part), width, number))
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.empty(images, width).normal_(generator=generator).mul_(0.05).add_(pool)
        for _ in range(2)
    ]

    def timed(step, function, *arguments):
        began = time.process_time()
        found = function(*arguments)
        steps.append((images, step, time.process_time() - began))
        return found

    loss = timed("losses", ecle.ecle, views, 0.2, 128, 1)
    del views
    distance = timed("distances", samplers.proximity, pool, seed, 10)
    timed(
        "MAK's picks",
        lambda: samplers.core_set(samplers.score(loss, distance, 0.3), pool, seed, budget, 1.5),
    )
    timed("K-center's picks", selection.k_center, pool, seed, budget)
    return pd.DataFrame(steps, columns=["images", "step", "seconds"]).assign(
        peak_mib=gpu.peak_memory() / 2**20
    )


# ---- ECLE


def ecle_of_files(
    rounds,
    images=1000,
    views=4,
    repeats=10,
    architecture="resnet10_small",
    side=32,
    archive="",
    threads=1,
):
    """ECLE of a pool of JPEG files: decoded once, views in batches, against MAK's way, which
    decodes and augments in every pass.

    ``archive``: a zip of JPEG images, else windows of scikit-learn's photographs. In bfloat16 too
    where the processor has it.
    """
    files, law = jpegs(archive, images, side), random_views.POLICIES["cifar"]
    run, case = (
        replace(training.sdclr_run(architecture, 64, side), method="simclr", head_layers=2),
        f"ECLE of {images} JPEG files",
    )
    encoder, how = trained(run, sources.Files(files, side)[:]), (run.temperature, 512, repeats)
    projections = project_files(encoder, run, files, side, views)
    exact = ecle.ecle(projections, *how)
    differ = float(((loop_losses(projections, *how) - exact).abs() / exact).max())

    def ours(how_run):
        return lambda: ecle.ecle(project_files(encoder, how_run, files, side, views), *how)

    def theirs():
        return loop_losses(project_again(encoder, files, side, law, views), *how)

    rows = timing.ratios(
        f"{case}, {views} views, float32",
        ours(run),
        {"a pass a view": (theirs, "relative difference, same cuts", differ, 1e-5, 1.5)},
        rounds,
        threads,
    )
    case, half = f"{case}, {views} views, bfloat16", replace(run, precision="bfloat16")
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        return timing.together(
            rows, timing.without_number(case, "a pass a view", "no bfloat16 here")
        )
    apart = 1 - spearmanr(exact.cpu(), ours(half)().cpu()).statistic
    return timing.together(
        rows,
        timing.ratios(
            case,
            ours(half),
            {"a pass a view": (theirs, "1 − rank correlation with float32", apart, 0.01, 2.5)},
            rounds,
            threads,
        ),
    )


def jpegs(archive, count, side):
    """``count`` JPEG files as (name, what reads its bytes), from a zip or made of photographs;
    those of a zip are read beforehand.
    """
    if archive:
        with zipfile.ZipFile(archive) as packed:
            names = sorted(
                name for name in packed.namelist() if name.lower().endswith((".jpg", ".jpeg"))
            )
            chosen = [names[place] for place in range(0, len(names), len(names) // count)][:count]
            contents = [packed.read(name) for name in chosen]
    else:
        chosen, contents = [f"{number}.jpg" for number in range(count)], []
        for picture in photographs(count, side).permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=92)
            contents.append(file.getvalue())
    return [
        (name, lambda content=content: content)
        for name, content in zip(chosen, contents, strict=True)
    ]


def trained(run, images, steps=30):
    """An encoder after a few updates on uint8 images (n, 3, s, s): an untrained one projects all
    images to almost one point.
    """
    encoder, method, optimizer = train.initialise(run)
    step = train.Step(run, encoder, method, optimizer, images.to(runs.device()))
    for index in (
        torch.arange(steps * run.batch_size, device=runs.device())
        .remainder(len(images))
        .split(run.batch_size)
    ):
        step(index, run.learning_rate)
    return encoder.eval()


def project_files(encoder, run, files, side, views):
    """Projections (views, n, d): each file decoded once, all its views made from that."""
    images = sources.Files(files, side)
    chunks = [
        (start, images[start : start + encode.CHUNK].to(runs.device()))
        for start in range(0, len(files), encode.CHUNK)
    ]
    return torch.stack(
        [
            torch.cat(
                [ecle.project_view(encoder, run, pixels, start, view) for start, pixels in chunks]
            )
            for view in range(views)
        ]
    )


@torch.no_grad()
def project_again(encoder, files, side, law, views, batch=256):
    """Projections (views, n, d) as the reference makes them: for every view each file is decoded
    and augmented alone.
    """
    transform, passes = reference_transform(side, law), []
    for _ in range(views):
        pixels = [transform(Image.open(io.BytesIO(read())).convert("RGB")) for _, read in files]
        parts = [
            torch.stack(pixels[start : start + batch]).to(runs.device())
            for start in range(0, len(files), batch)
        ]
        passes.append(torch.cat([encoder(part) for part in parts]))
    return torch.stack(passes)


def loop_losses(projections, temperature, batch, repeats):
    """ECLE as the reference sums it: pair after pair, cut after cut, batch after batch, each loss
    in its own small product.
    """
    generator, total, count, images = torch.Generator().manual_seed(0), 0, 0, projections.shape[1]
    batch = min(batch, images)
    for first, second in itertools.combinations(projections, 2):
        for _ in range(repeats):
            order, losses, count = (
                torch.randperm(images, generator=generator),
                first.new_empty(images),
                count + 1,
            )
            for start in range(0, images, batch):
                some = order[min(start, images - batch) :][:batch]
                fresh = some[max(0, start - (images - batch)) :]
                losses[fresh] = exponential_loss(first[some], second[some], temperature)[
                    -len(fresh) :
                ]
            total = total + losses.double()
    return total / count


def exponential_loss(first, second, temperature):
    """NT-Xent of each image (n,) written with exponentials and their sums, as the reference
    does.
    """
    rows = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    table = torch.exp(rows @ rows.T / temperature)
    positive = torch.exp((rows * rows.roll(len(first), 0)).sum(1) / temperature)
    return -torch.log(positive / (table.sum(1) - np.exp(1 / temperature))).view(2, -1).mean(0)
