"""The authors' code from a checkout: it runs here, disturbs nothing, and its networks are ours
under other names.
"""

import sys
import types

import pytest
import torch

from longtail.bench import authors
from longtail.learn import models


def test_a_folder_without_their_code_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="sdclr: .* has no prune/prune_simCLR.py; give a checkout of VITA-Group/SDCLR",
    ):
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
    net, encoder = authors.sdclr(sdclr).network(architecture), models.Encoder(architecture, 3, 2)
    encoder.load_state_dict(authors.renamed(net.state_dict(), architecture))
    authors.sdclr(sdclr).Mask(net).magnitudePruning(0.9)
    encoder.refresh_masks(0.9)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for branch in (0, 1):
        theirs = authors.called_as_ours(net.double())(images, branch=branch)
        torch.testing.assert_close(
            encoder.double()(images, branch=branch), theirs, rtol=0, atol=1e-9
        )


def test_a_tensor_without_counterpart_is_refused(sdclr):
    state = authors.sdclr(sdclr).network("resnet32").state_dict()
    state["layer1.0.another"] = state.pop("layer1.0.conv1.weight")
    with pytest.raises(RuntimeError, match="trunk.blocks.0.another"):
        models.Encoder("resnet32", 3, 2).load_state_dict(authors.renamed(state, "resnet32"))
