"""Networks, heads and masks against the authors' own outputs, and against the counts they
publish.
"""

import json

import pytest
import torch

from longtail.learn import models
from longtail.store import paths

GOLDEN = paths.ROOT / "tests" / "golden"
BLOCK = {
    "conv1.": "convs.0.",
    "conv2.": "convs.1.",
    "bn1.bn_list.": "norms.0.sets.",
    "bn2.bn_list.": "norms.1.sets.",
    "downsample.conv.": "shortcut.",
    "downsample.bn.bn_list.": "shortcut_norm.sets.",
}  # their names, ours


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def renamed(names, state):
    """The authors' tensors under our names; an unknown name stays and makes a strict load fail."""
    ours = {}
    for key, values in state.items():
        theirs = next((start for start in names if key.startswith(start)), "")
        ours[names.get(theirs, "") + key.removeprefix(theirs)] = (
            torch.tensor(values) if isinstance(values, int) else double(values)
        )
    return ours


def load_parameters(module, state):
    """Load all parameters; only buffers may be absent from ``state``."""
    missing, unknown = module.load_state_dict(state, strict=False)
    assert not unknown and not set(missing) & {name for name, _ in module.named_parameters()}


def parameter_count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(encoder):
    return [module for module in encoder.modules() if isinstance(module, models.Conv)]


@pytest.fixture
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.Encoder("convnet", 3, 2)


# ---- masks


@pytest.mark.parametrize("case", golden("prune_mask")["cases"])
def test_masks_are_the_reference(case):
    weights = [torch.tensor(case["weights"][layer]) for layer in case["layers"]]
    for expected in case["results"]:
        masks = models.magnitude_masks(weights, expected["p"])
        for layer, weight, mask in zip(case["layers"], weights, masks, strict=True):
            assert mask.shape == weight.shape and mask.dtype == torch.bool
            assert mask.flatten().int().tolist() == expected["mask"][layer]
        kept = min(
            weight[mask].abs().min()
            for weight, mask in zip(weights, masks, strict=True)
            if mask.any()
        )
        assert kept == torch.tensor(expected["threshold"])


def test_masks_of_nothing_and_of_everything():
    weights = [torch.tensor([3.0, -1.0, 2.0]), torch.tensor([-3.0, 0.0])]
    assert all(mask.all() for mask in models.magnitude_masks(weights, 0))
    assert [mask.tolist() for mask in models.magnitude_masks(weights, 1)] == [
        [True, False, False],
        [True, False],
    ]  # ties stay


@pytest.mark.parametrize("fraction", [-0.01, 1.01, float("nan")])
def test_a_share_outside_0_and_1_is_refused(encoder, fraction):
    with pytest.raises(
        ValueError, match=rf"the pruned fraction is {fraction}; it must lie in \[0, 1\]"
    ):
        encoder.refresh_masks(fraction)


def test_masks_cover_the_trunk_s_convolutions_only(encoder):
    encoder.refresh_masks(0.9)
    masked = {
        name.removesuffix(".mask") for name, _ in encoder.named_buffers() if name.endswith("mask")
    }
    assert masked == {
        name
        for name, module in encoder.trunk.named_modules(prefix="trunk")
        if isinstance(module, torch.nn.Conv2d)
    }
    weights = torch.cat([conv.weight.abs().flatten() for conv in convolutions(encoder)])
    kept = torch.cat([conv.mask.flatten() for conv in convolutions(encoder)])
    assert kept.sum() == len(kept) - -(-9 * len(kept) // 10)
    assert weights[kept].min() > weights[~kept].max()
    assert not any("mask" in name for name in encoder.state_dict())


def test_masks_follow_the_weights(encoder):
    encoder.refresh_masks(0.5)
    before = encoder.trunk.conv.mask.clone()
    with torch.no_grad():
        encoder.trunk.conv.weight[~before] *= 1000
    encoder.refresh_masks(0.5)
    assert encoder.trunk.conv.mask[~before].all()


def test_the_pruned_branch_gives_no_gradient_to_what_it_lacks(encoder):
    encoder.refresh_masks(0.9)
    images, direction = (
        torch.rand(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.linspace(-1, 1, 128),
    )
    for branch in (1, 0):
        encoder.zero_grad()
        (
            encoder(images[0], branch=branch) * direction * images[1].mean((1, 2, 3))[:, None]
        ).sum().backward()
        for conv in convolutions(encoder):
            lost, kept = conv.weight.grad[~conv.mask], conv.weight.grad[conv.mask]
            assert (kept != 0).float().mean() > 0.9
            assert not lost.any() if branch else (lost != 0).float().mean() > 0.9


# ---- networks


@pytest.mark.parametrize("case", golden("dual_bn_block")["cases"])
def test_block_is_the_reference(case):
    bound = golden("dual_bn_block")["tolerance"]["abs"]
    block = models.basic(case["cin"], case["cout"], case["stride"], 2).double()
    load_parameters(block, renamed(BLOCK, case["params"]))
    convs = {
        name: conv
        for name, conv in (
            *zip(("conv1", "conv2"), block.convs, strict=True),
            ("downsample.conv", block.shortcut),
        )
        if conv
    }
    masks = models.magnitude_masks([conv.weight for conv in convs.values()], case["prune_percent"])
    assert {
        name: mask.flatten().int().tolist() for name, mask in zip(convs, masks, strict=True)
    } == case["masks"]
    for conv, mask in zip(convs.values(), masks, strict=True):
        conv.mask.copy_(mask)
    for step in case["steps"]:
        block.train(step["mode"] == "train")
        out = block(double(case["views"][step["view"]]), case["bn_list_index"][step["branch"]])
        torch.testing.assert_close(out, double(step["out"]), atol=bound, rtol=0)
    ours = dict(block.named_buffers())
    for name, expected in renamed(BLOCK, case["buffers_after"]).items():
        torch.testing.assert_close(ours[name], expected, atol=bound, rtol=0)


@pytest.mark.parametrize("case", golden("projection_heads")["cases"])
def test_head_is_the_reference(case):
    layers, branches = {"simclr_2layer": (2, 1), "sdclr_3layer_dual_bn": (3, 2)}[case["kind"]]
    names = {f"fc{k + 1}.": f"linears.{k}." for k in range(layers)}
    names |= {
        f"bn{k + 1}.{'bn_list.' * (branches == 2)}": f"norms.{k}.sets.{'0.' * (branches == 1)}"
        for k in range(layers)
    }
    head = models.Head(case["ch"], layers, branches, case["out"]).double()
    load_parameters(head, renamed(names, case["params"]))
    for mode in ("train", "eval"):
        head.train(mode == "train")
        expected = case["outputs"][mode]
        for branch, values in enumerate(
            [expected] if branches == 1 else [expected["nonprune"], expected["prune"]]
        ):
            out = head(double(case["x"]), branch)
            torch.testing.assert_close(
                out, double(values), atol=golden("projection_heads")["tolerance"]["abs"], rtol=0
            )


@pytest.mark.parametrize(
    "features, layers, branches, expected",
    [
        (512, 2, 1, 329_472),
        (512, 3, 2, 594_944),
        (2048, 2, 1, 4_462_848),
        (2048, 3, 2, 8_669_696),
    ],
)
def test_heads_have_the_published_sizes(features, layers, branches, expected):
    assert parameter_count(models.Head(features, layers, branches)) == expected


@pytest.mark.parametrize(
    "architecture, features, tensors, weights",
    [
        ("resnet18_cifar", 512, 20, 11_159_232),
        ("resnet50", 2048, 53, 23_454_912),
    ],
)
def test_trunks_have_the_published_sizes(architecture, features, tensors, weights):
    with torch.device("meta"):
        trunk = models.Encoder(architecture, 2, 1).trunk
    convs = convolutions(trunk)
    assert (trunk.features, len(convs), sum(conv.weight.numel() for conv in convs)) == (
        features,
        tensors,
        weights,
    )
    affine = parameter_count(trunk) - weights  # nothing else has parameters: two for each channel
    assert affine == 2 * sum(conv.out_channels for conv in convs)


@pytest.mark.parametrize(
    "architecture, size",
    [
        ("convnet", 16),
        ("resnet10_small", 32),
        ("resnet18_cifar", 8),
        ("resnet18", 64),
        ("resnet50", 64),
    ],
)
def test_every_architecture_projects(architecture, size):
    encoder = models.Encoder(architecture, 2, 1).eval()
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, size, size)).shape == (2, 128)
        assert encoder.trunk(torch.rand(2, 3, size, size)).shape == (2, encoder.trunk.features)


@pytest.mark.parametrize(
    "constants, mean, std",
    [
        ([], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ([models.CIFAR_NORMAL], (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ],
)
def test_input_is_normalised_inside(constants, mean, std):
    trunk, seen = models.trunk("convnet", 1, *constants), []
    grey = torch.tensor(mean).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    trunk.conv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trunk(torch.cat([grey, grey + torch.tensor(std).view(1, 3, 1, 1)]))
    torch.testing.assert_close(seen[0][:2], torch.zeros(2, 3, 16, 16))
    torch.testing.assert_close(seen[0][2:], torch.ones(2, 3, 16, 16))


def test_branches_share_weights_but_not_statistics(encoder):
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder(images, branch=1)
    for norm in (encoder.trunk.norm, encoder.head.norms[-1]):
        assert [part.num_batches_tracked.item() for part in norm.sets] == [0, 1]
    encoder(images, branch=0)  # no masks yet: the same function as long as both sets are alike
    torch.testing.assert_close(
        encoder.trunk.norm.sets[0].running_var, encoder.trunk.norm.sets[1].running_var
    )


def test_head_stops_after_its_first_layer(encoder):
    head, x = encoder.head.eval(), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x, layers=1), head.norms[0].sets[0](head.linears[0](x)).relu())


def test_an_unknown_architecture_is_refused():
    with pytest.raises(
        ValueError, match="no architecture 'resnet19'; there are convnet, resnet10_small"
    ):
        models.Encoder("resnet19", 2, 1)
