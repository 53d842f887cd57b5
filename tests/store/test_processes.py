"""Processes that are killed, and processes that work as one: both end with the numbers of one
undisturbed process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy
from safetensors.torch import load_file

from longtail.store import paths

TOY = paths.ROOT / "tests" / "toy.py"
SMALL = (
    "simclr 18 1",
    "sdclr 18 1",
)  # batches of 8, 8 and 2: uneven shares of three processes, and one without an image
JOINED = (
    "sdclr+bcl+gh+colt",
    "simsiam+rwsam",
)  # between them: masks, memory, extra images, two stages, uphill steps


def launch(folder, *arguments, processes=1, **environment):
    """Run toy.py in so many processes; gives (weights, log) of every run by its method."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    done = subprocess.run(
        [sys.executable, *launcher, TOY, folder, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return trained(folder)


def here(folder, monkeypatch, *arguments):
    """The same in this process, which nothing disturbs."""
    monkeypatch.setattr(paths, "RESULTS", paths.RESULTS)
    toy.main(folder, "0", *arguments)
    return trained(folder)


def trained(folder):
    """(weights, log) of every run that toy.py left, by its method."""
    finished = {run.name.split("-")[0]: run for run in Path(folder, "runs").iterdir()}
    return {
        method: (
            load_file(run / "encoder.safetensors"),
            pd.read_csv(run / "log.csv").drop(columns="seconds"),
        )
        for method, run in finished.items()
    }


def test_ten_kills_leave_no_trace(tmp_path, monkeypatch):
    job = f"{JOINED[0]} 20 40"
    disturbed, alone = (
        launch(tmp_path / "killed", "10", job),
        here(tmp_path / "alone", monkeypatch, job),
    )
    for method, (weights, log) in alone.items():
        assert all(torch.equal(weights[name], disturbed[method][0][name]) for name in weights)
        pd.testing.assert_frame_equal(log, disturbed[method][1], check_exact=True)


@pytest.mark.parametrize("branches", ["", "of a GPU"])
def test_three_processes_train_as_one(tmp_path, monkeypatch, branches):
    jobs = *SMALL, *(f"{method} 22 4" for method in JOINED)
    together = launch(tmp_path / "together", "0", *jobs, processes=3, TOY_STAND_IN=branches)
    alone = here(tmp_path / "alone", monkeypatch, *jobs)
    assert {"simclr", "sdclr", *JOINED} <= alone.keys() and alone["simclr"][1].step.iloc[-1] == 3
    for method, (weights, log) in alone.items():
        assert together[method][1].loss.iloc[-1] == pytest.approx(
            log.loss.iloc[-1], rel=1e-5, abs=1e-6
        )
        for name, values in weights.items():
            assert torch.allclose(
                together[method][0][name].float(), values.float(), rtol=2**-10, atol=1e-5
            ), name  # last place of half


def test_a_run_that_another_holds_keeps_no_process_waiting_in_an_exchange(tmp_path):
    done = subprocess.run(
        [sys.executable, TOY.with_name("several.py"), "claiming", tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        found = json.loads((tmp_path / f"held.{rank}.json").read_text())
        assert not found["at once"] and found["in the end"] and found["seconds"] > 3
