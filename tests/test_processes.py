"""Processes that are killed, and processes that work as one: both end with the numbers of one undisturbed process."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

TOY = Path(__file__).with_name("toy.py")


def trained(folder, *arguments, processes=1):
    """Run toy.py in so many processes; gives (weights, log) of every run by its method."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    done = subprocess.run([sys.executable, *launcher, TOY, folder, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    finished = {run.name.split("-")[0]: run for run in Path(folder, "toy", "runs").iterdir()}
    return {method: (torch.load(run / "encoder.pt", weights_only=True), pd.read_csv(run / "log.csv").drop(columns="seconds"))
            for method, run in finished.items()}


JOINED = ("sdclr+bcl+gh+colt", "simsiam+rwsam")       # between them: masks, memory, extra images, two stages, uphill steps


def test_ten_kills_leave_no_trace(tmp_path):
    disturbed = trained(tmp_path / "killed", "20", "60", "10", JOINED[0])
    alone = trained(tmp_path / "alone", "20", "60", "0", JOINED[0])
    for method, (weights, log) in alone.items():
        assert all(torch.equal(weights[name], disturbed[method][0][name]) for name in weights)
        pd.testing.assert_frame_equal(log, disturbed[method][1], check_exact=True)


@pytest.mark.parametrize("count, epochs, methods", [(18, 1, ("simclr", "sdclr")), (22, 4, JOINED)])
def test_three_processes_train_as_one(tmp_path, count, epochs, methods):
    together = trained(tmp_path / "together", str(count), str(epochs), "0", *methods, processes=3)
    alone = trained(tmp_path / "alone", str(count), str(epochs), "0", *methods)
    for method, (weights, log) in alone.items():
        assert epochs > 1 or log.step.iloc[-1] == 3     # batches of 8, 8 and 2: uneven shares, and one process without an image
        assert together[method][1].loss.iloc[-1] == pytest.approx(log.loss.iloc[-1], rel=1e-5, abs=1e-6)
        for name, values in weights.items():
            assert torch.allclose(together[method][0][name], values, rtol=1e-5, atol=1e-5), name
