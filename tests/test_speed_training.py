"""The cases against the authors' code: they find equality on a stand-in and on a checkout, and notice every kind of difference."""

import sys
import types

import pytest
import torch

from longtail import authors, losses, methods, models, paths, speed, speed_training, speed_views, train

FOLDERS = {"stand-in": paths.ROOT / "tests" / "sdclr", "checkout": paths.DATA / "SDCLR"}
SMALL = {"rounds": 1, "batch": 8, "side": 8}


@pytest.fixture(params=FOLDERS)
def sdclr(request):
    """A stand-in with the authors' names and habits, and their own code where the data folder has a checkout."""
    if not FOLDERS[request.param].exists():
        pytest.skip("no checkout of VITA-Group/SDCLR in the data folder")
    return str(FOLDERS[request.param])


@pytest.fixture
def stand_in():
    return str(FOLDERS["stand-in"])


# ---- their code

def test_a_folder_without_their_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sdclr: .* has no prune/prune_simCLR.py; give a checkout of VITA-Group/SDCLR"):
        authors.sdclr(str(tmp_path))


def test_their_common_names_disturb_nobody(sdclr, monkeypatch):
    mine = types.ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", mine)
    path = list(sys.path)
    authors.sdclr.__wrapped__(sdclr)
    assert sys.modules["utils"] is mine and sys.path == path
    assert not {"models", "prune", "data", "torchvision.models.utils"} & set(sys.modules)


def test_tensors_are_sent_to_a_gpu_again_after_their_code(sdclr):
    before = torch.Tensor.cuda
    assert authors.sdclr(sdclr).nt_xent(torch.randn(4, 8), 0.2, torch.randn(4, 8)).isfinite()
    assert torch.Tensor.cuda is before


@pytest.mark.parametrize("architecture", authors.NETWORKS)
def test_their_networks_are_ours(sdclr, architecture):
    net, encoder, method = speed_training.twins(sdclr, speed_training.sdclr_run(architecture, 4, 8))
    method.before_epoch(encoder, 0)
    authors.sdclr(sdclr).Mask(net).magnitudePruning(0.9)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for branch in (0, 1):
        theirs = authors.called_as_ours(net.double())(images, branch=branch)
        torch.testing.assert_close(encoder.double()(images, branch=branch), theirs, rtol=0, atol=1e-9)


def test_a_tensor_without_counterpart_is_refused(stand_in):
    state = authors.sdclr(stand_in).network("resnet32").state_dict()
    state["layer1.0.another"] = state.pop("layer1.0.conv1.weight")
    with pytest.raises(RuntimeError, match="trunk.blocks.0.another"):
        models.Encoder("resnet32", 3, 2).load_state_dict(authors.renamed(state, "resnet32"))


# ---- cases

def test_without_a_checkout_no_case_runs():
    for rows in (speed_training.loss(1), speed_training.masks(1), speed_training.sdclr_epoch(1)):
        assert list(rows.status) == ["not run: give sdclr"] and list(rows.against) == [speed.AUTHORS]


def test_loss(sdclr, monkeypatch):
    row = speed_training.loss(1, images=32, sdclr=sdclr).iloc[0]
    assert row.status == "measured" and row.error <= 1
    whole = losses.nt_xent
    monkeypatch.setattr(losses, "nt_xent", lambda first, second, temperature: whole(first, second.detach(), temperature))
    assert speed_training.loss(1, images=32, sdclr=sdclr).status[0] == "check failed"
    monkeypatch.setattr(losses, "nt_xent", lambda *arguments: whole(*arguments) * 1.00001)
    assert speed_training.loss(1, images=32, sdclr=sdclr).status[0] == "check failed"


def test_gradient_of_the_loss_is_that_of_finite_differences():
    pair = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda views: losses.nt_xent(*views, 0.2), pair, eps=1e-6, atol=1e-7, rtol=1e-6)


def test_masks(sdclr, monkeypatch):
    row = speed_training.masks(1, "resnet32", sdclr=sdclr).iloc[0]
    assert row.status == "measured" and row.error == 0
    whole = models.magnitude_masks

    def without_ties(weights, fraction):
        threshold = min(weight[mask].abs().min() for weight, mask in zip(weights, whole(weights, fraction), strict=True) if mask.any())
        return [weight.abs() > threshold for weight in weights]
    monkeypatch.setattr(models, "magnitude_masks", without_ties)
    assert speed_training.masks(1, "resnet32", sdclr=sdclr).error[0] > 100      # hundreds of weights tie


def test_sdclr_step(sdclr):
    rows = speed_training.sdclr_step(**SMALL, sdclr=sdclr)
    assert len(rows) == 3 and (rows.status == "measured").all() and (rows.error <= 1).all()


def test_our_order_beats_theirs_in_our_network():
    rows = speed_training.sdclr_step(5, "resnet10_small", 64, 32).set_index("against")
    ways = rows.loc[["three forwards, default layout and SGD", "three forwards, our layout and SGD"]]
    assert (ways.error <= 1).all() and ways.ratio.iloc[0] > 1
    assert rows.status[speed.AUTHORS] == "not run: give sdclr"


@pytest.fixture
def pair():
    return speed_training.two_views(speed_views.photographs(8, 8), torch.arange(8), speed_training.sdclr_run("convnet", 8, 8))


@pytest.fixture
def ways():
    """Our update of a small net, and the authors' order in it."""
    encoder, method, _ = train.initialise(speed_training.sdclr_run("convnet", 8, 8))
    method.before_epoch(encoder, 0)

    def one_graph(net, views):
        return method.backward(net, *views, torch.arange(8)).mean()

    def three(net, views):
        return speed_training.three_forwards(lambda *rows: method.objective(*rows, torch.arange(8)).mean(), net, views)
    return speed_training.Way(encoder, one_graph, torch.channels_last, fused=True, passes=1), speed_training.Way(encoder, three)


def failed(pair, ours, other):
    """Which of the checks fail: loss, gradients, statistics."""
    checks = speed_training.step_checks(speed_training.traces(ours, pair), speed_training.traces(other, pair))
    return [error > bound for error, bound in checks.values()]


def test_step_checks_notice_each_difference(pair, ways):
    ours, other = ways
    assert failed(pair, ours, other) == [False, False, False]
    swapped = speed_training.Way(other.net, lambda net, views: other.gradients(net, views[::-1]))
    assert all(failed(pair, ours, swapped))
    louder = speed_training.Way(other.net, lambda net, views: other.gradients(net, views) * 1.001)
    assert failed(pair, ours, louder) == [True, False, False]

    def steeper(net, views):
        loss = other.gradients(net, views)
        net.head.linears[0].weight.grad.mul_(1.001)
        return loss
    assert failed(pair, ours, speed_training.Way(other.net, steeper))[:2] == [False, True]
    ours.passes = 2             # statistics of the pruned branch move once, theirs twice
    assert failed(pair, ours, other) == [False, False, True]


def test_sdclr_epoch(sdclr, monkeypatch):
    rows = speed_training.sdclr_epoch(1, images=16, batch=8, side=8, updates=4, sdclr=sdclr)
    assert list(rows.status) == ["measured"] and rows.error[0] < 1e-6
    monkeypatch.setattr(methods.SDCLR, "before_epoch", lambda method, encoder, epoch: None)     # masks of all ones
    assert speed_training.sdclr_epoch(1, images=16, batch=8, side=8, updates=1, sdclr=sdclr).status[0] == "check failed"
