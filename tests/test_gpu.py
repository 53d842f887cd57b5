"""What only a GPU can show: the same randomness as on a CPU, and recorded updates equal to those made one by one."""

import pytest
import torch
from toy import FAMILY, image_set, planned

from longtail import paths, runs, selection, train, views

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_parameters_of_views_are_the_same_bits():
    index, policy = torch.arange(1000), views.POLICIES["imagenet"]
    here, there = (views.parameters(index.to(device), policy, 1, 2, 0, 64) for device in ("cpu", "cuda"))
    for name, values in here.items():
        assert torch.equal(values, there[name].cpu()) or (values - there[name].cpu()).abs().max() <= 1e-12, name


@pytest.mark.parametrize("fused", [False, True])
def test_pixels_of_views_are_those_of_the_cpu(fused):
    images, index = image_set(64, side=32).images, torch.arange(64)
    here = views.augment(images, index, views.POLICIES["imagenet"], 1, 2, 0)
    there = views.augment(images.cuda(), index.cuda(), views.POLICIES["imagenet"], 1, 2, 0, fused=fused)
    assert (here - there.cpu()).abs().max() <= 1e-5


def test_picks_of_k_center_are_those_of_the_cpu():
    rows = torch.randn(6000, 64, generator=torch.Generator().manual_seed(0)).relu() + 0.01
    pool, seed = rows[1000:], rows[:1000]
    here, there = (selection.k_center(pool.to(device), seed.to(device), 2000) for device in ("cpu", "cuda"))
    assert torch.equal(here, there.cpu()) and selection.certificate(pool.cuda(), seed.cuda(), there) == 0


@pytest.mark.parametrize("method", FAMILY)
def test_recorded_updates_are_those_made_one_by_one(tmp_path, monkeypatch, method):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images, ends = image_set(100, side=16), {}
    run = planned(images, method=method, epochs=8)      # 104 updates, the last of each epoch of 4 images
    for eager in ("", "1"):
        monkeypatch.setenv("LONGTAIL_EAGER", eager)
        results = runs.Results(f"eager{eager}")
        train.pretrain(run, images, results, progress=False)
        ends[eager] = train.encoder_of(run, results).state_dict(), results.logs().loss
    assert ends[""][1].tolist() == pytest.approx(ends["1"][1].tolist(), rel=1e-4)
    for name, values in ends[""][0].items():
        assert torch.allclose(values.float(), ends["1"][0][name].float(), rtol=1e-3, atol=1e-4), name
