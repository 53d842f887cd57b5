"""Recorded updates without a GPU: a tape of every operator, replayed, equals the update made one by
one, bit for bit.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from shelf import apart
from tape import Launches, Refused, Tape, Watch, several, stand_in
from toy import FAMILY, IMAGES, planned

from longtail.images import randaugment, views
from longtail.label import adjusted, supervised
from longtail.learn import methods, models, train
from longtail.learn.methods import gh, ts
from longtail.store import gpu, paths, processes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)


def trained(run, name, records=True, seconds=1e9):
    """(weights, log) of a run trained with the stand-in, recorded or made one by one; and what was
    recorded.
    """
    results = apart(name)
    with stand_in(records) as graphs:
        train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=seconds)
        made = list(graphs)
    folder = results.folder(run)
    return (
        load_file(folder / "encoder.safetensors"),
        pd.read_csv(folder / "log.csv").drop(columns="seconds"),
        made,
    )


def same(first, second):
    return all(torch.equal(first[0][name], second[0][name]) for name in first[0]) and first[
        1
    ].equals(second[1])


def stop_at(monkeypatch, method, number):
    """Make the update of this number fail, as a lost machine would."""
    calls, whole = [], train.Step.__call__

    def call(step, index, rate):
        calls.append(step.run.method == method)
        if sum(calls) == number:
            raise KeyboardInterrupt
        return whole(step, index, rate)

    monkeypatch.setattr(train.Step, "__call__", call)


def test_every_method_that_trains_is_recorded_somewhere():
    """The smoke test goes through FAMILY; a new method belongs there."""
    assert {part for name in FAMILY for part in name.split("+")} == methods.METHODS.keys() - {
        "untrained",
        "given",
    }


@pytest.mark.parametrize("method", ["sdclr+bcl+gh+colt", "rwsam", "sdclr+ts"])
def test_replays_are_the_updates_made_one_by_one(monkeypatch, method):
    """The smoke test shows it for every method; here also what was recorded, and that nothing is
    where updates are made one by one.
    """
    run = planned(method=method)
    one_by_one, recorded = trained(run, "one by one", records=False), trained(run, "recorded")
    assert same(recorded, one_by_one) and not one_by_one[2]
    assert all(len(kernels) > 50 for _, kernels in recorded[2])
    # sizes of a batch: 8 and 4 of 12 seed images, 8 and 2 with 6 of the pool, 8 and 2 when GH
    # harmonizes; rwSAM's reference is a second run
    assert len(recorded[2]) == {"sdclr+bcl+gh+colt": 6, "rwsam": 4, "sdclr+ts": 2}[method]
    assert len({id(memory) for memory, _ in recorded[2]}) == (2 if method == "rwsam" else 1)
    with monkeypatch.context() as patch:
        stop_at(patch, method, 8)
        with pytest.raises(KeyboardInterrupt):
            trained(run, "stopped", seconds=0)
    assert same(trained(run, "stopped"), one_by_one)


# ---- training on labels


def trained_on_labels(method, folder, records, **how):
    """Losses and weights of a perceptron, over two stages, a drop of the rate and a short last
    batch; how often it was recorded.
    """
    schedule = supervised.Schedule(4, 8, 0.1, drops=(2,), drop=0.1, warmup_epochs=1)
    run = supervised.run_of(
        IMAGES,
        method,
        "step ratio=2",
        0,
        1,
        schedule,
        dataset="toy",
        largest=8,
        architecture="perceptron",
        size=16,
        policy="digits",
        precision="float32",
    )
    with stand_in(records) as made:
        network, _ = supervised.train_network(run, IMAGES, 3, folder, **how)
        return pd.read_csv(folder / "log.csv").loss.tolist(), network.state_dict(), len(made)


def test_a_resume_with_labels_replays_what_an_undisturbed_run_does(tmp_path, monkeypatch):
    one_by_one, whole, calls = (
        trained_on_labels("ldam_drw", tmp_path / "one by one", False),
        supervised.Update.__call__,
        [],
    )

    def stop(update, *given):
        calls.append(given)
        if len(calls) == 11:  # in the middle of the last epoch, in the second stage
            raise KeyboardInterrupt
        return whole(update, *given)

    with monkeypatch.context() as patch:
        patch.setattr(supervised.Update, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            trained_on_labels("ldam_drw", tmp_path / "stopped", True, checkpoint_seconds=0)
    losses, weights, made = trained_on_labels("ldam_drw", tmp_path / "stopped", True)
    assert one_by_one[0] == losses and all(
        torch.equal(values, weights[name]) for name, values in one_by_one[1].items()
    )
    assert made == 2  # both sizes of a batch, in the second stage alone


@pytest.mark.parametrize("method", adjusted.LOSSES)
def test_replays_with_labels_are_the_updates_made_one_by_one(tmp_path, method):
    one_by_one, recorded = (
        trained_on_labels(method, tmp_path / str(records), records) for records in (False, True)
    )
    assert one_by_one[0] == recorded[0] and all(
        torch.equal(values, recorded[1][name]) for name, values in one_by_one[1].items()
    )
    stages = 2 if method in ("ce_drw", "ldam_drw", "uniform_drw", "tla", "adrw", "ddc") else 1
    assert one_by_one[2] == 0 and recorded[2] == 2 * stages


def test_a_loss_that_reads_labels_on_the_host_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        adjusted, "gpu", SimpleNamespace(computes=lambda x: False)
    )  # then labels are checked by their values
    with pytest.raises(Refused, match="waits for the device"):
        trained_on_labels("ce", tmp_path, True)


# ---- Sinkhorn


def test_replays_of_sinkhorn_are_its_rounds_made_one_by_one():
    """Other logits and another prior than those it was recorded with."""
    normal = torch.Generator().manual_seed(0)
    logits, priors = torch.randn(3, 2, 8, 6, generator=normal), torch.rand(3, 6, generator=normal)
    with stand_in() as made:
        recorded = gpu.Recorded(gh.sinkhorn)
        found = [recorded(((), 8), each, prior) for each, prior in zip(logits, priors, strict=True)]
        assert len(made) == 1 and len(made[0][1]) > 1200
    assert all(
        torch.equal(one, gh.sinkhorn(each, prior))
        for one, each, prior in zip(found, logits, priors, strict=True)
    )
    assert torch.equal(gh.sinkhorn(logits[0]), gh.sinkhorn(logits[0], torch.ones(6)))


def test_sinkhorn_until_nothing_moves_is_refused():
    def until_steady(logits, prior):
        rounds = 1
        while not torch.allclose(gh.sinkhorn(logits, prior, iterations=rounds).sum(-2), prior):
            rounds += 1

    with stand_in(), pytest.raises(Refused):
        gpu.Recorded(until_steady)(((), 4), torch.zeros(4, 2), torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("processes_of_a_run, graphs", [(1, 1), (2, 1)])
def test_sinkhorn_is_recorded_with_the_update_or_by_itself(processes_of_a_run, graphs):
    """Several processes make their updates one by one, since they exchange messages meanwhile; the
    rounds are a graph there too.
    """
    ends = []
    for records in (False, True):
        with stand_in(records) as made, several(processes_of_a_run):
            run = planned(method="gh")
            encoder, method, optimizer = train.initialise(run)
            method.start(IMAGES, None)
            step = train.Step(run, encoder, method, optimizer, IMAGES.images)
            for epoch in (0, 2, 3):
                method.before_epoch(encoder, epoch)
                step.epoch.fill_(epoch)
                with Launches() as launches:
                    step(torch.arange(8), 0.1)
            ends.append([tensor.clone() for tensor in encoder.state_dict().values()])
            assert (
                len(made) == (graphs + (processes_of_a_run == 1)) * records
            )  # an update has two phases
            assert (
                launches.count > 1200
                if not records
                else launches.count < (10 if processes_of_a_run == 1 else 1200)
            )
    assert all(map(torch.equal, *ends))


# ---- what the tape would find


def replaced_mask(patch):
    """New masks in new tensors."""

    def refresh(encoder, fraction):
        convs = [module for module in encoder.trunk.modules() if isinstance(module, models.Conv)]
        for conv, mask in zip(
            convs, models.magnitude_masks([conv.weight for conv in convs], fraction), strict=True
        ):
            conv.mask = mask

    patch.setattr(models.Encoder, "refresh_masks", refresh)


def number_as_rate(patch):
    """The rate as Python has it."""
    whole = train.Step.__init__

    def begin(step, *given):
        whole(step, *given)
        step.rate = None

    patch.setattr(train.Step, "__init__", begin)


class Number(int):
    """A number where a tensor should be filled."""

    def fill_(self, value):
        return self


def number_as_epoch(patch):
    """The epoch as Python has it."""
    whole = train.train_epoch

    def epoch_of(step, epoch, rates):
        step.epoch = Number(epoch)
        return whole(step, epoch, rates)

    patch.setattr(train, "train_epoch", epoch_of)


def replaced_temperature(patch):
    """A new temperature in a new tensor."""
    patch.setattr(
        ts.TS,
        "before_epoch",
        lambda method, encoder, epoch: method.state.update(
            temperature=torch.tensor(method.course[epoch])
        ),
    )


@pytest.mark.parametrize(
    "mutant", [replaced_mask, number_as_rate, number_as_epoch, replaced_temperature]
)
def test_what_a_graph_would_not_see_is_found(monkeypatch, mutant):
    run = planned(method="ts" if mutant is replaced_temperature else "sdclr")
    with monkeypatch.context() as patch:
        mutant(patch)
        one_by_one, recorded = trained(run, "one by one", records=False), trained(run, "recorded")
    assert not same(recorded, one_by_one)


def test_numbers_copied_from_the_host_at_every_call_are_refused(monkeypatch):
    """As BCL's table of operations once was."""
    monkeypatch.setattr(gpu, "constant", gpu.constant.__wrapped__)
    with pytest.raises(Refused, match="made of Python numbers"):
        trained(planned(method="bcl"), "bcl")


OLD = torch.ones(4)  # that the update recorded did not read before


@pytest.mark.parametrize(
    "work",
    [
        lambda x, places: x.sum().item(),
        lambda x, places: float(x.sum()),
        lambda x, places: bool(x.sum() > 0),
        lambda x, places: x.tolist(),
        lambda x, places: torch.allclose(x, x),
        lambda x, places: x.equal(x),
        lambda x, places: x.repeat_interleave(places),
        lambda x, places: torch.linalg.inv(x.view(2, 2)),
        lambda x, places: torch.randperm(4)[places[0]].item(),
        lambda x, places: x.nonzero(),
        lambda x, places: x[x > 0],
        lambda x, places: x.masked_select(x > 0),
        lambda x, places: x.index_put_((x > 0,), x.new_zeros(())),
        lambda x, places: x.clone().__setitem__(x > 0, 1.0),
        lambda x, places: places.bincount(),
        lambda x, places: x.histc(2),
        lambda x, places: torch.where(x > 0),
        lambda x, places: places.unique(),
        lambda x, places: places.unique(dim=0),
        lambda x, places: places.unique_consecutive(),
        lambda x, places: x.new_tensor([1.0]),
        lambda x, places: x + torch.tensor(2.0),
        lambda x, places: x + torch.from_numpy(np.ones(4)),
        lambda x, places: x + OLD,
        lambda x, places: x.cpu(),
        lambda x, places: x.numpy(),
    ],
)
def test_what_waits_for_the_device_or_copies_from_the_host_is_refused(work):
    x, places = torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.tensor([0, 1, 2, 3])
    with Watch() as known:
        _ = x + 1, places + 1
    with pytest.raises(Refused), Tape(known.found):
        work(x.clone(), places)


def test_memory_that_nothing_has_written_is_no_number():
    x = torch.ones(3)
    with Tape() as tape:
        y = torch.empty(3)
        z = y + x
    tape.replay()
    assert z.isnan().all()


def test_graphs_share_memory_and_those_of_a_past_phase_are_dropped():
    weight = torch.ones(3)

    def work(rows):
        return weight.add_(1).sum() + rows.sum()

    with stand_in() as made:
        recorded = gpu.Recorded(work, lambda: [weight])
        found = [
            recorded((phase, size), torch.ones(size)).item()
            for phase in ("a", "b")
            for size in (2, 5, 2)
        ]
    assert found == [6 + 2, 9 + 5, 12 + 2, 15 + 2, 18 + 5, 21 + 2] and weight[0] == 7
    assert set(recorded.graphs) == {("b", 2), ("b", 5)}
    assert len(made) == 4 and len({id(memory) for memory, _ in made}) == 1


# ---- branches of a GPU


def test_a_process_without_an_image_of_a_batch_makes_no_views():
    for records in (True, False):
        with stand_in(records):
            assert views.augment(
                IMAGES.images, torch.arange(0), views.POLICIES["cifar"], 1, 0, 0
            ).shape == (0, 3, 16, 16)
            assert randaugment.boost(
                torch.zeros(0, 3, 16, 16), torch.arange(0), torch.zeros(0), 1, 10, 1, 0, 0
            ).shape == (0, 3, 16, 16)


def test_what_all_processes_agree_on_is_never_a_tensor_of_a_gpu(monkeypatch):
    for value in (torch.empty(2, device="meta"), (1, [torch.empty((), device="meta")])):
        with pytest.raises(TypeError, match="a tensor on a GPU cannot be agreed on; give a list"):
            processes.agreed(value)
    told, whole = [], processes.agreed
    monkeypatch.setattr(processes, "agreed", lambda value: told.append(value) or whole(value))
    trained(planned(method="colt"), "colt", records=False)
    picks = [value for value in told if isinstance(value, list)]
    assert len(picks) == 2 and not any(isinstance(value, torch.Tensor) for value in told)
