"""The encoders that are shipped with the study are whole, and measuring them again gives the
recorded numbers.
"""

import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file

from longtail.images import studies
from longtail.measure import evaluate
from longtail.store import paths, runs

SHIPPED = runs.Results("cifar10-small")
STEADY = 0.1  # points between the recorded accuracy and the one measured now, on any class


def test_every_finished_run_of_the_study_ships_its_encoder_in_half_precision():
    files = {run.name: SHIPPED.folder(run) / "encoder.safetensors" for run in SHIPPED.planned()}
    for run in SHIPPED.planned():
        assert (
            runs.sha256(files[run.name].read_bytes())
            == SHIPPED.ended(run)["files"]["encoder.safetensors"]
        )
        tensors = load_file(files[run.name])
        assert {str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()} == {
            "torch.float16"
        }
    assert sum(file.stat().st_size for file in files.values()) < 30e6


@pytest.mark.skipif(
    not (paths.DATA / "cifar10-jpeg.zip").exists(),
    reason="CIFAR-10's JPEG copy is not in the data folder",
)
@pytest.mark.parametrize("method", ["simclr", "sdclr"])
def test_measuring_a_shipped_encoder_again_gives_the_recorded_numbers(
    tmp_path, monkeypatch, method
):
    run = SHIPPED.planned(method=method, subset="long_tail", split=1)[0]
    data, classifier = SHIPPED.kept("data") | {"outsider_count": 0}, SHIPPED.kept("classifier")
    recorded = SHIPPED.scores(split=1)
    recorded = recorded[recorded.run == run.name].set_index(["protocol", "group"]).accuracy

    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    again, study = runs.Results("again"), studies.study(**data, split=1)
    again.folder(run).mkdir(parents=True)
    for file in ("run.json", "done.json", "encoder.safetensors"):
        shutil.copy(SHIPPED.folder(run) / file, again.folder(run))
    now = pd.concat(
        [
            evaluate.evaluate(run, again, study, protocol, **classifier)
            for protocol in ("linear_converged", "knn")
        ]
    )
    now = now.set_index(["protocol", "group"]).accuracy

    assert (
        set(now.index)
        == set(recorded.index)
        >= {(protocol, "few") for protocol in ("linear_converged", "knn")}
    )
    assert abs(now - recorded).max() <= STEADY
