"""SDCLR's own code from a checkout of VITA-Group/SDCLR, to compare with: imported where it lies,
never copied, made to run here.
"""

import contextlib
import functools
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

from longtail.images import sources
from longtail.learn import models
from longtail.store import runs

PACKAGES = ("utils", "models", "prune", "data")  # their names, which others use too
NETWORKS = {  # ours -> their module, their constructor, its arguments
    "resnet18_cifar": ("models.resnet_prune_multibn", "prune_resnet18_dual", {"imagenet": False}),
    "resnet32": ("models.resnet_s_cifar_prune_multibn", "resnet32_prune_dual_s", {}),
}
RENAMED = [  # their tensors -> ours, one rule after the other
    (r"^conv1\.", "trunk.conv."),
    (r"^bn1\.bn_list", "trunk.norm.sets"),
    (r"^fc\.", "head."),
    (r"downsample\.conv", "shortcut"),
    (r"downsample\.bn\.bn_list", "shortcut_norm.sets"),
    (r"\bconv(\d)", "convs.{}"),
    (r"\bfc(\d)", "linears.{}"),
    (r"\bbn(\d)\.bn_list", "norms.{}.sets"),
]


@functools.cache
def sdclr(folder):
    """Their ``nt_xent``, ``Mask``, ``train_prune``, data set ``Images`` and
    ``network(architecture)``, for one process.

    Written for torch 1.7 and several GPUs. What is replaced here, and nothing else: an old name in
    torchvision, the argument that a convolution has got since, the exchange of features between
    processes, and ``.cuda()`` where there is no GPU.
    """
    if not (Path(folder) / "prune" / "prune_simCLR.py").exists():
        raise ValueError(
            f"sdclr: {folder} has no prune/prune_simCLR.py; give a checkout of VITA-Group/SDCLR"
        )
    sources.import_torchvision()
    with _imports_from(folder):
        utils, mask, loop, images = map(
            importlib.import_module, ("utils", "prune.mask", "prune.prune_simCLR", "data.cifar10")
        )
        blocks = importlib.import_module("models.resnet_prune_multibn")
        constructors = {
            ours: getattr(importlib.import_module(module), name)
            for ours, (module, name, _) in NETWORKS.items()
        }
    blocks.prune_conv2d._conv_forward = lambda conv, x, weight: nn.Conv2d._conv_forward(
        conv, x, weight, None
    )
    loop.gatherFeatures = lambda features, rank, world_size: features

    def network(architecture):
        """Their network with both sets of batch norm and the published head, in training."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = constructors[architecture](num_classes=10, **NETWORKS[architecture][2])
            net.fc = blocks.proj_head(net.fc.in_features, 128)
        object.__setattr__(
            net, "module", net
        )  # what DistributedDataParallel would add; not a child of itself
        return net.to(runs.device()).train()

    return SimpleNamespace(
        nt_xent=_tensors_stay()(utils.nt_xent),
        Mask=mask.Mask,
        train_prune=_tensors_stay()(loop.train_prune),
        Images=images.CustomCIFAR10,
        network=network,
    )


@contextlib.contextmanager
def _imports_from(folder):
    """Inside, their packages come from the folder; after it their common names mean again what they
    meant before.
    """
    old = ModuleType("torchvision.models.utils")
    old.load_state_dict_from_url = torch.hub.load_state_dict_from_url

    def present():
        return [
            name for name in sys.modules if name.split(".")[0] in PACKAGES or name == old.__name__
        ]

    before = {name: sys.modules.pop(name) for name in present()}
    sys.modules[old.__name__] = old
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in present():
            del sys.modules[name]
        sys.modules.update(before)


@contextlib.contextmanager
def _tensors_stay():
    """Inside, ``.cuda()`` gives the tensor itself where there is no GPU."""
    if torch.cuda.is_available():
        yield
        return
    torch.Tensor.cuda = lambda tensor, **_: tensor
    try:
        yield
    finally:
        del torch.Tensor.cuda


# ---- their networks and ours


def called_as_ours(net):
    """Their network as a function of images and a branch, of which 1 is the pruned one."""

    def forward(x, branch):
        net.set_prune_flag(branch == 1)
        return net(x)

    return forward


def renamed(state, architecture):
    """Their tensors under our names; an unknown name stays, so that a strict load refuses it."""
    blocks = models.ARCHITECTURES[architecture][2]
    ours = {}
    for name, values in state.items():
        name = re.sub(
            r"^layer(\d)\.(\d+)",
            lambda found: f"trunk.blocks.{sum(blocks[: int(found[1]) - 1]) + int(found[2])}",
            name,
        )
        for theirs, own in RENAMED:
            name = re.sub(
                theirs,
                lambda found, own=own: own.format(*(int(number) - 1 for number in found.groups())),
                name,
            )
        if not name.startswith("normalize."):  # constants, which ours does not save
            ours[name] = values
    return ours
