"""Encoders, projection heads, and the pruned twin: a second set of BN and a mask over the same
weights.
"""

import difflib
import math

import torch
from torch import nn
from torch.nn import functional

from longtail.images import sources
from longtail.images.memory import BUDGET
from longtail.learn import norms
from longtail.store import gpu, processes

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's, for every data set, as in the authors' networks
CIFAR_NORMAL = (
    (0.4914, 0.4822, 0.4465),
    (0.2023, 0.1994, 0.2010),
)  # of ResNet-32 trained on CIFAR's labels, as in LDAM's code


class BatchNorm(nn.Module):
    """One complete batch norm (affine and running statistics) for each branch (SDCLR, dual BN)."""

    def __init__(self, channels, branches, flat=False, affine=True):
        super().__init__()
        kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
        self.sets = nn.ModuleList(kind(channels, affine=affine) for _ in range(branches))

    def forward(self, x, branch):
        norm = self.sets[branch]
        return norms.batch_norm(norm, x) if self.training and processes.world()[1] > 1 else norm(x)


class Conv(nn.Conv2d):
    """A convolution whose weights are masked in branch 1; the mask is never saved, it follows from
    the weights.
    """

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer(
            "mask", torch.ones_like(self.weight, dtype=torch.bool), persistent=False
        )

    def forward(self, x, branch):
        weight = self.weight * self.mask if branch == 1 else self.weight
        return self._conv_forward(x, weight, None)


class Plain(nn.Module):
    """One 3×3 convolution with batch norm and ReLU: the block of a net without residuals."""

    def __init__(self, inputs, width, stride, branches):
        super().__init__()
        self.outputs = width
        self.conv, self.norm = Conv(inputs, width, 3, stride), BatchNorm(width, branches)

    def forward(self, x, branch):
        return functional.relu(self.norm(self.conv(x, branch), branch))


class Residual(nn.Module):
    """A chain of convolutions with batch norm, added to its input; a 1×1 convolution fits the input
    where shapes change.
    """

    def __init__(self, shapes, branches, projected=True):
        super().__init__()
        (inputs, *_), self.outputs, stride = (
            shapes[0],
            shapes[-1][1],
            max(shape[3] for shape in shapes),
        )
        self.convs = nn.ModuleList(Conv(*shape) for shape in shapes)
        self.norms = nn.ModuleList(BatchNorm(shape[1], branches) for shape in shapes)
        self.shortcut = None
        if projected and (stride != 1 or inputs != self.outputs):
            self.shortcut, self.shortcut_norm = (
                Conv(inputs, self.outputs, 1, stride),
                BatchNorm(self.outputs, branches),
            )

    def kept(self, x, branch):
        """The input in the shape of the output."""
        return x if self.shortcut is None else self.shortcut_norm(self.shortcut(x, branch), branch)

    def forward(self, x, branch):
        kept = self.kept(x, branch)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = functional.relu(norm(conv(x, branch), branch))
        return functional.relu(self.norms[-1](self.convs[-1](x, branch), branch) + kept)


class Padded(Residual):
    """Two 3×3 convolutions; where shapes change the input gives every second pixel and zeros (He et
    al. 2015, option A).
    """

    def __init__(self, inputs, width, stride, branches):
        super().__init__(
            [(inputs, width, 3, stride), (width, width, 3, 1)], branches, projected=False
        )
        self.stride, self.missing = stride, width - inputs

    def kept(self, x, branch):
        """Missing channels are zeros, half of them in front."""
        before = self.missing // 2
        return functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before)
        )


def basic(inputs, width, stride, branches):
    """Residual block of two 3×3 convolutions."""
    return Residual([(inputs, width, 3, stride), (width, width, 3, 1)], branches)


def bottleneck(inputs, width, stride, branches):
    """Residual block 1×1, 3×3, 1×1 with expansion 4; the stride sits on the 3×3 (v1.5)."""
    return Residual(
        [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)], branches
    )


class Trunk(nn.Module):
    """Images in [0, 1] to pooled features h; normalising the input is its first operation."""

    def __init__(self, stem, block, blocks, widths, branches, normal):
        super().__init__()
        for name, values in zip(("mean", "std"), normal, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        kernel, stride, self.pool = stem
        self.conv, self.norm = Conv(3, widths[0], kernel, stride), BatchNorm(widths[0], branches)
        self.blocks, self.features = nn.ModuleList(), widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for position in range(count):
                self.blocks.append(
                    block(self.features, width, 2 if stage and not position else 1, branches)
                )
                self.features = self.blocks[-1].outputs

    def forward(self, x, branch=0):
        x = functional.relu(self.norm(self.conv((x - self.mean) / self.std, branch), branch))
        if self.pool:
            x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x, branch)
        return x.mean((2, 3))


# stems: kernel, stride, max-pool
CIFAR_STEM, SMALL_STEM, IMAGENET_STEM = (3, 1, False), (3, 2, False), (7, 2, True)
WIDTHS = (64, 128, 256, 512)
ARCHITECTURES = {
    "convnet": (CIFAR_STEM, Plain, (0, 1, 1), (16, 32, 64)),  # 16-pixel images, the demo
    "resnet10_small": (
        SMALL_STEM,
        basic,
        (1, 1, 1, 1),
        (16, 32, 64, 128),
    ),  # 32-pixel images on a CPU
    "resnet32": (CIFAR_STEM, Padded, (5, 5, 5), (16, 32, 64)),  # that of the supervised tables
    "resnet18_cifar": (CIFAR_STEM, basic, (2, 2, 2, 2), WIDTHS),
    "resnet18": (IMAGENET_STEM, basic, (2, 2, 2, 2), WIDTHS),
    "resnet50": (IMAGENET_STEM, bottleneck, (3, 4, 6, 3), WIDTHS),
}


class Foreign(nn.Module):
    """A network of torchvision or timm, without its classifier; it takes images as ``Trunk`` does.

    Its features h are what its last linear layer reads (torchvision), or its pooled features
    (timm); ``layer`` says which. Input is normalised as its library says, else as for ImageNet.
    Only to be evaluated: large sets go through it a few images at a time, which changes nothing
    without batch statistics.
    """

    def __init__(self, architecture):
        super().__init__()
        library, _, name = architecture.partition("/")
        if library == "timm":
            self.network, (mean, std, _) = timm_network(name), timm_input(name)
            self.layer = "the pooled features before the classifier"
            self.features = getattr(self.network, "head_hidden_size", self.network.num_features)
        else:
            self.network, mean, std = torchvision_network(name), MEAN, STD
            layers = [
                place
                for place, module in self.network.named_modules()
                if isinstance(module, nn.Linear)
            ]
            if not layers:
                raise ValueError(
                    f"{architecture} has no linear layer at its end, whose input the features "
                    "would be; take another"
                )
            self.layer, self.features = (
                f"what its layer {layers[-1]} reads",
                self.network.get_submodule(layers[-1]).in_features,
            )
            self.network.set_submodule(layers[-1], nn.Identity())
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x, branch=0):
        part = max(1, BUDGET.pixels // x[0, 0].numel())
        return torch.cat([self.network((some - self.mean) / self.std) for some in x.split(part)])


def torchvision_network(name):
    """A classification network of torchvision without weights."""
    library = sources.import_torchvision().models
    if name not in (names := library.list_models(module=library)):
        raise ValueError(f"torchvision classifies with no {name!r}; there are {', '.join(names)}")
    network = library.get_model(name, weights=None)
    if hasattr(network, "transform_input"):
        # Inception's published weights want it, and torchvision sets it with them alone
        network.transform_input = True
    return network


def import_timm():
    """timm, which builds on torchvision."""
    sources.import_torchvision()
    import timm

    return timm


def timm_network(name):
    """A network of timm without classifier and weights; vision transformers take images of any size
    that their patches divide.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name.split(".")[0], timm.list_models(), 5))
        raise ValueError(
            f"timm has no {name!r}; "
            f"{f'near it are {near}' if near else 'timm.list_models() lists what it has'}"
        )
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # a network that has no such option
        return timm.create_model(name, pretrained=False, num_classes=0)


def timm_input(name):
    """Channel means and deviations and side in pixels of the images that a network of timm was
    trained with.
    """
    timm = import_timm()
    if not timm.is_model(name):
        timm_network(name)  # says what there is
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return config["mean"], config["std"], config["input_size"][-1]


def usual_size(architecture):
    """The side in pixels of the images that published weights of a network of torchvision or timm
    were trained with.
    """
    return (
        timm_input(architecture.removeprefix("timm/"))[2]
        if architecture.startswith("timm/")
        else 224
    )


def trunk(architecture, branches, normal=(MEAN, STD)):
    """A fresh trunk by its name in ``ARCHITECTURES``, its input normalised by these channel means
    and deviations, or a foreign one.
    """
    if architecture.startswith(("torchvision/", "timm/")):
        return Foreign(architecture)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"no architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}, and "
            "torchvision/<name> or timm/<name> "
            f"with its weights"
        )
    return Trunk(*ARCHITECTURES[architecture], branches, normal)


class Head(nn.Module):
    """Projection head: (Linear, BN, ReLU) × (layers − 1), then Linear and BN; only the first Linear
    has a bias (SDCLR's code).

    Without layers the projections are the features themselves.
    """

    def __init__(self, features, layers, branches, outputs=128):
        super().__init__()
        widths = [features] * layers + [outputs]
        self.linears = nn.ModuleList(
            nn.Linear(i, o, bias=not k)
            for k, (i, o) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.norms = nn.ModuleList(BatchNorm(width, branches, flat=True) for width in widths[1:])

    def forward(self, x, branch=0, layers=None):
        """Project; ``layers`` stops after that many (with their ReLU), for fine-tuning from the
        first.
        """
        for k in range(layers or len(self.linears)):
            x = self.linears[k](x)
            if k < len(self.norms):
                x = self.norms[k](x, branch)
            if k + 1 < len(self.linears):
                x = functional.relu(x)
        return x


class SiameseHead(Head):
    """SimSiam's projector, or predictor: every Linear has a bias; at the end a BN that scales
    nothing, or none (rwSAM's code).
    """

    def __init__(self, inputs, hidden, outputs, layers, branches, predicts):
        super().__init__(inputs, layers, branches, outputs)
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.linears = nn.ModuleList(
            nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            BatchNorm(width, branches, flat=True, affine=k < layers - 1)
            for k, width in enumerate(widths[1:layers] if predicts else widths[1:])
        )


class Encoder(nn.Module):
    """A trunk and its projection head; branch 1 is the pruned twin."""

    def __init__(self, architecture, head_layers, branches):
        super().__init__()
        self.trunk = trunk(architecture, branches)
        self.head = Head(self.trunk.features, head_layers, branches)

    def forward(self, x, branch=0):
        return self.head(self.trunk(x, branch), branch)

    @torch.no_grad()
    def refresh_masks(self, fraction):
        """Set the masks of all convolutions from the weights as they are now."""
        convs = [module for module in self.trunk.modules() if isinstance(module, Conv)]
        for conv, mask in zip(
            convs, magnitude_masks([conv.weight for conv in convs], fraction), strict=True
        ):
            conv.mask.copy_(mask)


class SiameseEncoder(Encoder):
    """A trunk with SimSiam's projector, four times as wide as its features, and predictor, a
    bottleneck of their width.
    """

    def __init__(self, architecture, head_layers, branches):
        super().__init__(architecture, head_layers, branches)
        features, width = self.trunk.features, 4 * self.trunk.features  # 512 and 2,048 on CIFAR
        self.head = SiameseHead(features, width, width, head_layers, branches, predicts=False)
        self.predictor = SiameseHead(width, features, width, 2, branches, predicts=True)


def magnitude_masks(weights, fraction):
    """Masks that keep all but the smallest ``fraction`` of the weights, by one threshold over all
    tensors.

    Returns a list of bool tensors. The threshold is the ⌈fraction · total⌉-th magnitude, counted
    from 0; ties with it are kept, and fraction 1 keeps the largest (SDCLR's Mask.magnitudePruning).
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the pruned fraction is {fraction}; it must lie in [0, 1]")
    sizes = [weight.numel() for weight in weights]
    magnitudes = torch.empty(sum(sizes), device=weights[0].device, dtype=weights[0].dtype)
    for part, weight in zip(magnitudes.split(sizes), weights, strict=True):
        torch.abs(weight.detach(), out=part.view_as(weight))
    position = min(math.ceil(fraction * len(magnitudes)), len(magnitudes) - 1)
    threshold = gpu.smallest(magnitudes, position)
    return [
        mask.view_as(weight)
        for mask, weight in zip((magnitudes >= threshold).split(sizes), weights, strict=True)
    ]
