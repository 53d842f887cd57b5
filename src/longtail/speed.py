"""Ours against how others do the same work: interleaved ratios on one core, each behind a check that the answers agree."""

import contextlib
import copy
import importlib
import io
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from threadpoolctl import threadpool_limits

from longtail import runs, sampling, sources, train
from longtail import views as random_views

COLUMNS = ["case", "against", "check", "error", "bound", "status", "ratio", "low", "high", "rounds", "goal"]


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
    names, seconds = list(contenders), {name: [] for name in contenders}
    for name in names:
        contenders[name]()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(case, ours, others, rounds):
    """One row for each of ``others``: the median of per-round ratios (theirs over ours, above 1 is faster), with min and max.

    others: name -> (callable, check in words, error, bound, goal). An error above its bound, or NaN, leaves the row without a number.
    """
    sound = {name: other[0] for name, other in others.items() if other[2] <= other[3]}
    with one_thread():
        seconds = race({"ours": ours, **sound}, rounds) if sound else {}
    rows = []
    for name, (_, check, error, bound, goal) in others.items():
        row = {"case": case, "against": name, "check": check, "error": error, "bound": bound, "rounds": rounds, "goal": goal}
        if name in sound:
            ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
            row |= {"status": "measured", "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        rows.append({"status": "check failed", **row})
    return pd.DataFrame(rows, columns=COLUMNS)


def not_run(case, against, why):
    """The row of a contender that is not here."""
    return pd.DataFrame([{"case": case, "against": against, "status": f"not run: {why}"}], columns=COLUMNS)


# ---- random views

def views(rounds, count=256, side=32):
    """Two random views of ``count`` photographs: batched, against torchvision's per-image pipeline as the reference's loader runs it."""
    images, index, policy = photographs(count, side), torch.arange(count), random_views.POLICIES["cifar"]
    pictures, transform = images.permute(0, 2, 3, 1).contiguous().numpy(), reference_transform(side)

    def ours():
        return torch.stack([random_views.augment(images, index, policy, 0, 0, view) for view in (0, 1)], 1)

    def reference():
        return torch.stack([torch.stack([transform(Image.fromarray(picture)) for _ in range(2)]) for picture in pictures])

    error = pillow_error(images[:64], policy)
    return compare(f"random views, {side}×{side}", ours, {
        "torchvision per image": (reference, "levels from Pillow, same parameters", error, 1.5, 5.0)}, rounds)


def photographs(count, side):
    """Windows of the two photographs that ship with scikit-learn, every second pixel: uint8 (count, 3, side, side)."""
    draw, scenes = np.random.default_rng(0), load_sample_images().images
    windows = []
    for number in range(count):
        scene = scenes[number % len(scenes)]
        y, x = (draw.integers(length - 2 * side) for length in scene.shape[:2])
        windows.append(scene[y:y + 2 * side:2, x:x + 2 * side:2])
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()


def reference_transform(side):
    """The transform list of the authors' CIFAR script (SDCLR; spec 2.3), from torchvision."""
    sources.import_torchvision()
    transforms = importlib.import_module("torchvision.transforms")
    return transforms.Compose([
        transforms.RandomResizedCrop(side, scale=(0.1, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToTensor()])


def pillow_error(images, policy):
    """Mean difference, in levels of 255, between our views and torchvision's operations on Pillow images with our parameters."""
    sources.import_torchvision()
    operations = importlib.import_module("torchvision.transforms.functional")
    drawn = random_views.parameters(torch.arange(len(images)), policy, 0, 0, 0, images.shape[-1])
    ours = random_views.apply(images, drawn, policy)
    each = [{name: value[number] for name, value in drawn.items()} for number in range(len(images))]
    expected = torch.stack([_by_pillow(image, one, operations) for image, one in zip(images, each, strict=True)])
    return float((ours - expected).abs().mean())


def _by_pillow(image, drawn, operations):
    """One view (3, s, s) in levels, one torchvision call for each operation."""
    window = [int(drawn[name]) for name in ("y", "x", "height", "width")]
    view = Image.fromarray(image.permute(1, 2, 0).numpy())
    view = operations.resized_crop(view, *window, list(image.shape[1:]), operations.InterpolationMode.BICUBIC)
    view = operations.hflip(view) if drawn["flip"] else view
    adjust = [operations.adjust_brightness, operations.adjust_contrast, operations.adjust_saturation, operations.adjust_hue]
    for number in drawn["order"].tolist() if drawn["jitter"] else []:
        view = adjust[number](view, float(drawn["factor"][number]))
    view = operations.to_grayscale(view, 3) if drawn["grey"] else view
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).float()


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
    return pd.concat([rows.astype(object), not_run(case, "google/active-learning", "give google_active_learning").astype(object)])


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


# ---- SDCLR's step

def sdclr_step(rounds, architecture="resnet10_small", batch=64, side=32, steps=3):
    """One SDCLR update: as we train it, against the reference's three forwards and two backwards (spec 3.2).

    The order alone saves one pass of seven, at most 1.17; the rest is channels_last and the fused optimiser. The second row gives
    both of these to the reference's order, too, and so shows the order alone.
    """
    run = sdclr_run(architecture, batch, side)
    encoder, method, optimizer = train.initialise(run)
    method.before_epoch(encoder, 0)
    index, pair = torch.arange(batch), torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    check = ("relative difference: gradients, 10 × loss", gradient_error(encoder, method, pair.to(runs.device()), index), 1e-4)

    def contender(gradients, layout, fused):
        net, views = copy.deepcopy(encoder).to(memory_format=layout), [view.to(runs.device(), memory_format=layout) for view in pair]
        sgd = torch.optim.SGD(net.parameters(), 0.01, train.MOMENTUM, weight_decay=run.weight_decay, fused=fused)
        return lambda: [update(gradients, net, method, sgd, views, index) for _ in range(steps)]     # one is over too soon to time

    return compare(f"SDCLR step, {architecture}, {batch} images", contender(one_graph, torch.channels_last, True), {
        "three forwards, default layout and SGD": (contender(three_forwards, torch.contiguous_format, None), *check, 1.4),
        "three forwards, our layout and SGD": (contender(three_forwards, torch.channels_last, True), *check, None)}, rounds)


def sdclr_run(architecture, batch, side):
    """SDCLR's settings on CIFAR-10 (spec 2.4 and 3.1) for a net and a batch of this size."""
    return runs.Run(dataset="random", subset="none", split=0, seed=0, method="sdclr", head_layers=3, architecture=architecture, size=side,
                    policy="cifar", epochs=1, batch_size=batch, learning_rate=0.5, weight_decay=1e-4, warmup_epochs=0, temperature=0.2,
                    prune_fraction=0.9, precision="float32", images="random")


def update(gradients, encoder, method, optimizer, views, index):
    """Gradients, then the optimiser; gives the loss as a number, which waits for a GPU."""
    optimizer.zero_grad(set_to_none=True)
    loss = gradients(encoder, method, views, index)
    optimizer.step()
    return loss.item()


def one_graph(encoder, method, views, index):
    """Our step's gradients."""
    return method.backward(encoder, *views, index).mean()


def three_forwards(encoder, method, views, index):
    """The same gradients in the reference's order: pruned without a graph, dense against it, pruned again against dense."""
    with torch.no_grad():
        pruned = encoder(views[1], branch=1)
    dense = encoder(views[0], branch=0)
    loss = method.objective(dense, pruned, index).mean()
    loss.backward()
    method.objective(dense.detach(), encoder(views[1], branch=1), index).mean().backward()
    return loss.detach()


def gradient_error(encoder, method, pair, index):
    """Worst relative difference of the two orders over all parameters' gradients, and ten times that of the loss."""
    nets, found = [copy.deepcopy(encoder) for _ in range(2)], []
    for net, gradients in zip(nets, (one_graph, three_forwards), strict=True):
        loss = gradients(net, method, pair, index)
        found.append([loss, *(parameter.grad for parameter in net.parameters())])
    scale = max(expected.norm() for expected in found[1][1:])
    relative = [(ours - expected).norm() / expected.norm().clamp(min=1e-6 * scale) for ours, expected in zip(*found, strict=True)]
    return float(max(10 * relative[0], *relative[1:]))
