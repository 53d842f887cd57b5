"""Pre-training: the loss, masks, one step and one epoch of SDCLR, ours against the authors' own
code from a checkout.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from longtail.bench import authors, timing
from longtail.bench.views import authors_images, photographs, reference_transform
from longtail.images import views as random_views
from longtail.learn import losses, models, train
from longtail.store import runs

MISSING = "give sdclr"  # the checkout of VITA-Group/SDCLR, a folder


# ---- the loss and the masks


def loss(rounds, images=512, width=128, sdclr=""):
    """NT-Xent of two views of so many images, with its gradient."""
    case = f"NT-Xent, {images} images"
    if not sdclr:
        return timing.without_number(case, timing.AUTHORS, MISSING)
    pair, nt_xent = (
        torch.randn(2, images, width, generator=torch.Generator().manual_seed(0)),
        authors.sdclr(sdclr).nt_xent,
    )

    def contender(function):
        def run():
            leaves = pair.to(runs.device()).detach().requires_grad_()
            value = function(*leaves)
            (slope,) = torch.autograd.grad(value, leaves)
            return value.item(), slope

        return run

    ours = contender(lambda first, second: losses.nt_xent(first, second, 0.2).mean())
    theirs = contender(lambda first, second: nt_xent(first, 0.2, second))
    (value, slope), (expected, reference) = ours(), theirs()
    check = timing.all_of(
        {
            "relative difference of the loss": (abs(value / expected - 1), 1e-6),
            "of its gradient": (relative([slope], [reference]), 1e-5),
        }
    )
    return timing.ratios(case, ours, {timing.AUTHORS: (theirs, *check, 1.2)}, rounds)


def relative(ours, theirs):
    """Worst relative difference of paired tensors by norm; of what is zero but for rounding, by a
    millionth of the largest norm.
    """
    least = 1e-6 * max(expected.norm() for expected in theirs)
    return float(
        torch.stack(
            [
                (found - expected).norm() / expected.norm().clamp(min=least)
                for found, expected in zip(ours, theirs, strict=True)
            ]
        ).max()
    )  # NaN stays NaN


def masks(rounds, architecture="resnet18_cifar", sdclr=""):
    """New masks of all convolutions from their weights, as before every epoch; also right where
    many weights tie.
    """
    case = f"masks, {architecture}"
    if not sdclr:
        return timing.without_number(case, timing.AUTHORS, MISSING)
    run = sdclr_run(architecture, 1, 32)
    net, encoder, method = twins(sdclr, run)
    contenders = {
        "ours": lambda: method.before_epoch(encoder, 0),
        "theirs": lambda: authors.sdclr(sdclr).Mask(net).magnitudePruning(run.prune_fraction),
    }
    weights, apart = copy.deepcopy(net.state_dict()), different_masks(net, encoder, contenders)
    for conv in (*convolutions(net), *convolutions(encoder)):
        conv.weight.data.mul_(512).round_().div_(512)  # leaves a few hundred magnitudes
    apart += different_masks(net, encoder, contenders)
    net.load_state_dict(weights)
    encoder.load_state_dict(authors.renamed(weights, architecture))
    return timing.ratios(
        case,
        contenders["ours"],
        {
            timing.AUTHORS: (
                contenders["theirs"],
                "masks that differ, and again with ties",
                apart,
                0,
                3.0,
            )
        },
        rounds,
    )


def different_masks(net, encoder, contenders):
    """How many weights are masked on one side only after all have made new masks."""
    for refresh in contenders.values():
        refresh()
    return sum(
        int((theirs.prune_mask.bool() != ours.mask).sum())
        for theirs, ours in zip(convolutions(net), convolutions(encoder), strict=True)
    )


def convolutions(net):
    """Those that the masks cover, in the order of the network."""
    return [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]


# ---- networks


def sdclr_run(architecture, batch, side):
    """SDCLR's settings on CIFAR-10 for a net and a batch of this size."""
    return runs.Run(
        dataset="random",
        subset="none",
        split=0,
        seed=0,
        method="sdclr",
        head_layers=3,
        architecture=architecture,
        size=side,
        policy="cifar",
        epochs=1,
        batch_size=batch,
        learning_rate=0.5,
        weight_decay=1e-4,
        warmup_epochs=0,
        temperature=0.2,
        prune_fraction=0.9,
        precision="float32",
        images="random",
    )


def twins(sdclr, run):
    """The authors' network, our encoder with its weights, and our method."""
    net, (encoder, method, _) = (
        authors.sdclr(sdclr).network(run.architecture),
        train.initialise(run),
    )
    encoder.load_state_dict(authors.renamed(net.state_dict(), run.architecture))
    return net, encoder, method


def sgd(net, fused=None):
    """The published optimiser at a rate that suits a few updates."""
    return torch.optim.SGD(net.parameters(), 0.01, train.MOMENTUM, weight_decay=1e-4, fused=fused)


# ---- one step


@dataclass
class Way:
    """A network, and a way to update it."""

    net: torch.nn.Module
    gradients: Callable  # (net, two views) -> loss, gradients in the net
    layout: torch.memory_format = torch.contiguous_format
    fused: bool | None = None
    passes: int = 2  # through the pruned branch in one update
    names: Callable = dict  # gives a dict of its tensors our names

    def updates(self, pair, kind=torch.float32):
        """A function that does one more update by these views, and the copy of the network that it
        updates.
        """
        net, *views = (
            part.to(dtype=kind, memory_format=self.layout)
            for part in (copy.deepcopy(self.net), *pair)
        )
        return functools.partial(update, net, sgd(net, self.fused), self.gradients, views), net


def update(net, optimizer, gradients, views):
    """Gradients, then the optimiser; gives the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = gradients(net, views)
    optimizer.step()
    return loss.item()


def sdclr_step(rounds, architecture="resnet32", batch=64, side=32, sdclr=""):
    """SDCLR's update: as we train it, against three forwards and two backwards, the order
    of the authors' script, in our network and in theirs.

    The order alone saves one pass of seven, at most 1.17, and is what the row with our layout and
    SGD shows; the rest is channels_last, the fused optimiser and the loss. Sixteen images are
    enough for the checks.
    """
    run, case = (
        sdclr_run(architecture, batch, side),
        f"SDCLR step, {architecture}, {batch} × {side} px",
    )
    net, encoder, method = twins(sdclr, run) if sdclr else (None, *train.initialise(run)[:2])
    method.before_epoch(encoder, 0)
    pair = two_views(photographs(batch, side).to(runs.device()), run)
    ours = Way(
        encoder, functools.partial(one_graph, method), torch.channels_last, fused=True, passes=1
    )
    three = functools.partial(
        three_forwards, lambda dense, pruned: method.objective(dense, pruned, numbers(dense)).mean()
    )
    others = {
        "three forwards, default layout and SGD": (Way(encoder, three), 1.4),
        "three forwards, our layout and SGD": (
            Way(encoder, three, torch.channels_last, fused=True),
            None,
        ),
    }
    if sdclr:
        others[timing.AUTHORS] = authors_way(sdclr, net, run), 1.4
    few = [view[:16] for view in pair]
    found = traces(ours, few)
    checks = {name: step_checks(found, traces(way, few)) for name, (way, _) in others.items()}
    rows = timing.ratios(
        case,
        ours.updates(pair)[0],
        {
            name: (way.updates(pair)[0], *timing.all_of(checks[name]), goal)
            for name, (way, goal) in others.items()
        },
        rounds,
    )
    return (
        rows
        if sdclr
        else timing.together(rows, timing.without_number(case, timing.AUTHORS, MISSING))
    )


def two_views(pixels, run, index=None, epoch=0):
    """The views that a run sees of images (n, 3, s, s), or of some: a list of two (b, 3, s, s)."""
    policy, index = random_views.POLICIES[run.policy], numbers(pixels) if index is None else index
    return [
        random_views.augment(pixels, index, policy, run.seed, epoch, view).to(
            memory_format=torch.channels_last
        )
        for view in (0, 1)
    ]


def numbers(rows):
    """0, 1, … for the rows of a tensor, where it is."""
    return torch.arange(len(rows), device=rows.device)


def one_graph(method, net, views):
    """Our step's gradients."""
    return method.backward(net, *views, numbers(views[0])).mean()


def three_forwards(objective, net, views):
    """Gradients in the authors' order: pruned without a graph, dense against it, pruned again
    against dense.
    """
    with torch.no_grad():
        pruned = net(views[1], branch=1)
    dense = net(views[0], branch=0)
    loss = objective(dense, pruned)
    loss.backward()
    objective(dense.detach(), net(views[1], branch=1)).backward()
    return loss.detach()


def authors_way(sdclr, net, run):
    """Their order in their network, with fresh masks and their loss."""
    reference = authors.sdclr(sdclr)
    reference.Mask(net).magnitudePruning(run.prune_fraction)

    def gradients(net, views):
        return three_forwards(
            lambda dense, pruned: reference.nt_xent(dense, run.temperature, pruned),
            authors.called_as_ours(net),
            views,
        )

    return Way(
        net, gradients, names=functools.partial(authors.renamed, architecture=run.architecture)
    )


def traces(way, pair):
    """What one update by these views leaves: the loss and all gradients; and after two more, the
    statistics of batch norm.

    Gradients and statistics are in float64, since in float32 rounding decides for every ReLU whose
    input is nearly zero. The authors' order moves the pruned branch's statistics twice an update,
    by a tenth each time; ours moves them here once by 1 − 0.9², which is the same, so that the
    statistics of both branches can be compared.
    """
    more, net = way.updates(pair, torch.float64)
    for norm in (
        part for part in net.modules() if isinstance(part, models.BatchNorm) and way.passes == 1
    ):
        norm.sets[1].momentum = 1 - (1 - norm.sets[0].momentum) ** 2
    more()
    gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    more(), more()
    statistics = {name: value for name, value in net.named_buffers() if "running" in name}
    return way.updates(pair)[0](), way.names(gradients), way.names(statistics)


def step_checks(ours, others):
    """What must be equal of two ``traces``: name -> (error, bound)."""
    (loss, *mine), (expected, *theirs) = ours, others
    gradients, statistics = (
        relative(here.values(), [there[name] for name in here])
        for here, there in zip(mine, theirs, strict=True)
    )
    return {
        "relative difference of the loss": (abs(loss / expected - 1), 1e-5),
        "of the gradients": (gradients, 1e-4),
        "of the statistics after 3 updates": (statistics, 1e-4),
    }


# ---- one epoch


def sdclr_epoch(
    rounds, architecture="resnet32", images=256, batch=64, side=32, updates=20, sdclr=""
):
    """Masks, views and updates of an epoch over photographs, against the authors' own loop and
    loader in this process.

    The losses of so many ``updates`` are compared, by eight images each, with new masks every time
    and the same views for both.
    """
    case = f"SDCLR epoch, {architecture}, {images} × {side} px"
    if not sdclr:
        return timing.without_number(case, timing.AUTHORS, MISSING)
    run, pixels = sdclr_run(architecture, batch, side), photographs(images, side).to(runs.device())
    net, encoder, method = twins(sdclr, run)
    pairs = [two_views(pixels[:8], run, epoch=epoch) for epoch in range(updates)]
    error = curve_error(
        our_epoch(method, copy.deepcopy(encoder).double()),
        authors_epoch(sdclr, copy.deepcopy(net).double(), run),
        pairs,
    )
    ours, theirs, loader = (
        our_epoch(method, encoder),
        authors_epoch(sdclr, net, run),
        authors_loader(sdclr, pixels, run),
    )
    order = torch.randperm(images, device=pixels.device).split(batch)
    return timing.ratios(
        case,
        lambda: ours(two_views(pixels, run, index) for index in order),
        {
            timing.AUTHORS: (
                lambda: theirs(loader),
                f"relative difference of {updates} losses",
                error,
                1e-3,
                1.5,
            )
        },
        rounds,
    )


def our_epoch(method, encoder):
    """New masks, then an update by each pair of views: pairs -> losses."""
    optimizer = sgd(encoder, fused=True)

    def epoch(pairs):
        method.before_epoch(encoder, 0)
        return [
            update(encoder, optimizer, functools.partial(one_graph, method), views)
            for views in pairs
        ]

    return epoch


def curve_error(ours, theirs, pairs):
    """Worst relative difference of the losses of epochs that have one pair each, the same for both,
    in float64 (see ``traces``).
    """
    errors = []
    for pair in pairs:
        views = [view.double() for view in pair]
        [loss], expected = ours([views]), theirs([torch.stack(views, 1)])
        errors.append(abs(loss / expected - 1))
    return torch.tensor(errors, dtype=torch.float64).max().item()  # NaN stays NaN


def authors_epoch(sdclr, net, run):
    """Their loop over one epoch: loader -> mean loss."""
    optimizer, silent = sgd(net), SimpleNamespace(info=lambda text: None)
    steady = SimpleNamespace(step=lambda: None)  # in place of their schedule
    settings = SimpleNamespace(
        prune_percent=run.prune_fraction,
        random_prune_percent=0,
        temperature=run.temperature,
        print_freq=50,
    )
    loop = authors.sdclr(sdclr).train_prune
    return lambda loader: loop(loader, net, optimizer, steady, 0, silent, 0, 0, 1, settings)


def authors_loader(sdclr, pixels, run):
    """Their loader, without processes of its own, over images (n, 3, s, s)."""
    pictures, law = (
        pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy(),
        random_views.POLICIES[run.policy],
    )
    dataset = authors_images(sdclr, pictures, reference_transform(run.size, law))
    return torch.utils.data.DataLoader(dataset, run.batch_size, shuffle=True)
