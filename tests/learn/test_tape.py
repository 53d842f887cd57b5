"""Recorded updates without a GPU: a tape of every operator, replayed, equals the update made one by one, bit for bit."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tape import Refused, Tape, Watch, stand_in
from toy import IMAGES, planned

from longtail.images import randaugment, views
from longtail.label import adjusted, supervised
from longtail.learn import models, train
from longtail.learn.methods import ts
from longtail.store import gpu, paths, processes, runs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)


def trained(run, name, records=True, seconds=1e9):
    """(weights, log) of a run trained with the stand-in, recorded or made one by one; and what was recorded."""
    results = runs.Results(name)
    with stand_in(records) as graphs:
        train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=seconds)
        made = list(graphs)
    folder = results.folder(run)
    return load_file(folder / "encoder.safetensors"), pd.read_csv(folder / "log.csv").drop(columns="seconds"), made


def same(first, second):
    return all(torch.equal(first[0][name], second[0][name]) for name in first[0]) and first[1].equals(second[1])


def stop_at(monkeypatch, method, number):
    """Make the update of this number fail, as a lost machine would."""
    calls, whole = [], train.Step.__call__

    def call(step, index, rate):
        calls.append(step.run.method == method)
        if sum(calls) == number:
            raise KeyboardInterrupt
        return whole(step, index, rate)
    monkeypatch.setattr(train.Step, "__call__", call)


@pytest.mark.parametrize("method", ["sdclr+bcl+gh+colt", "rwsam", "sdclr+ts"])
def test_replays_are_the_updates_made_one_by_one(monkeypatch, method):
    """The smoke test shows it for every method; here also what was recorded, and that nothing is where updates are made one by one."""
    run = planned(method=method)
    one_by_one, recorded = trained(run, "one by one", records=False), trained(run, "recorded")
    assert same(recorded, one_by_one) and not one_by_one[2]
    assert all(len(kernels) > 50 for _, kernels in recorded[2])
    # sizes of a batch: 8 and 4 of 12 seed images, 8 and 2 with 6 of the pool, 8 and 2 when GH harmonizes; rwSAM's reference is a second run
    assert len(recorded[2]) == {"sdclr+bcl+gh+colt": 6, "rwsam": 4, "sdclr+ts": 2}[method]
    assert len({id(memory) for memory, _ in recorded[2]}) == (2 if method == "rwsam" else 1)
    with monkeypatch.context() as patch:
        stop_at(patch, method, 8)
        with pytest.raises(KeyboardInterrupt):
            trained(run, "stopped", seconds=0)
    assert same(trained(run, "stopped"), one_by_one)


# ---- training on labels

def trained_on_labels(method, folder, records):
    """Losses and weights of a perceptron, over two stages, a drop of the rate and a short last batch; how often it was recorded."""
    schedule = supervised.Schedule(4, 8, 0.1, drops=(2,), drop=0.1, warmup_epochs=1)
    arm, parameters = adjusted.parse(method)
    run = supervised.Run("toy", "step", 2, 8, 0, 1, arm, parameters, "perceptron", 16, "digits", schedule, "float32", False, IMAGES.digest)
    with stand_in(records) as made:
        network = supervised.train_network(run, IMAGES, 3, folder)
        return pd.read_csv(folder / "log.csv").loss.tolist(), network.state_dict(), len(made)


@pytest.mark.parametrize("method", adjusted.METHODS)
def test_replays_with_labels_are_the_updates_made_one_by_one(tmp_path, method):
    one_by_one, recorded = (trained_on_labels(method, tmp_path / str(records), records) for records in (False, True))
    assert one_by_one[0] == recorded[0] and all(torch.equal(values, recorded[1][name]) for name, values in one_by_one[1].items())
    stages = 2 if method in ("ce_drw", "ldam_drw", "uniform_drw", "tla", "adrw", "ddc") else 1
    assert one_by_one[2] == 0 and recorded[2] == 2 * stages


# ---- what the tape would find

def replaced_mask(patch):
    """New masks in new tensors."""
    def refresh(encoder, fraction):
        convs = [module for module in encoder.trunk.modules() if isinstance(module, models.Conv)]
        for conv, mask in zip(convs, models.magnitude_masks([conv.weight for conv in convs], fraction), strict=True):
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
    patch.setattr(ts.TS, "before_epoch", lambda method, encoder, epoch: method.state.update(temperature=torch.tensor(method.course[epoch])))


@pytest.mark.parametrize("mutant", [replaced_mask, number_as_rate, number_as_epoch, replaced_temperature])
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


@pytest.mark.parametrize("work", [
    lambda x, places: x.sum().item(), lambda x, places: float(x.sum()), lambda x, places: bool(x.sum() > 0), lambda x, places: x.tolist(),
    lambda x, places: x.nonzero(), lambda x, places: x[x > 0], lambda x, places: x.masked_select(x > 0),
    lambda x, places: x.index_put_((x > 0,), x.new_zeros(())), lambda x, places: x.clone().__setitem__(x > 0, 1.0),
    lambda x, places: places.bincount(), lambda x, places: places.unique(), lambda x, places: torch.where(x > 0),
    lambda x, places: x + x.new_tensor([1.0]), lambda x, places: x + torch.tensor(2.0), lambda x, places: x + torch.from_numpy(np.ones(4)),
    lambda x, places: x.cpu(), lambda x, places: x.numpy(),
])
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
        found = [recorded((phase, size), torch.ones(size)).item() for phase in ("a", "b") for size in (2, 5, 2)]
    assert found == [6 + 2, 9 + 5, 12 + 2, 15 + 2, 18 + 5, 21 + 2] and weight[0] == 7
    assert set(recorded.graphs) == {("b", 2), ("b", 5)}
    assert len(made) == 4 and len({id(memory) for memory, _ in made}) == 1


# ---- branches of a GPU

def test_a_process_without_an_image_of_a_batch_makes_no_views():
    for records in (True, False):
        with stand_in(records):
            assert views.augment(IMAGES.images, torch.arange(0), views.POLICIES["cifar"], 1, 0, 0).shape == (0, 3, 16, 16)
            assert randaugment.boost(torch.zeros(0, 3, 16, 16), torch.arange(0), torch.zeros(0), 1, 10, 1, 0, 0).shape == (0, 3, 16, 16)


def test_what_all_processes_agree_on_is_never_a_tensor_of_a_gpu(monkeypatch):
    for value in (torch.empty(2, device="meta"), (1, [torch.empty((), device="meta")])):
        with pytest.raises(TypeError, match="a tensor on a GPU cannot be agreed on; give a list"):
            processes.agreed(value)
    told, whole = [], processes.agreed
    monkeypatch.setattr(processes, "agreed", lambda value: told.append(value) or whole(value))
    trained(planned(method="colt"), "colt", records=False)
    picks = [value for value in told if isinstance(value, list)]
    assert len(picks) == 2 and not any(isinstance(value, torch.Tensor) for value in told)
