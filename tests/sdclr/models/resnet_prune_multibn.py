import torch
from torch import nn
from torchvision.models.utils import load_state_dict_from_url  # noqa: F401
from utils import NormalizeByChannelMeanStd


class prune_conv2d(nn.Conv2d):
    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.prune_mask, self.prune_flag = torch.ones_like(self.weight), False

    def forward(self, x):
        return self._conv_forward(
            x, self.weight * self.prune_mask if self.prune_flag else self.weight
        )


class batch_norm_multiple(nn.Module):
    def __init__(self, kind, channels):
        super().__init__()
        self.bn_list = nn.ModuleList([kind(channels), kind(channels)])

    def forward(self, x, pruned):
        return self.bn_list[int(pruned)](x)


class Downsample(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv, self.bn = (
            prune_conv2d(inputs, outputs, 1, stride),
            batch_norm_multiple(nn.BatchNorm2d, outputs),
        )

    def forward(self, x, pruned):
        return self.bn(self.conv(x), pruned)


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, projected):
        super().__init__()
        self.conv1, self.bn1 = (
            prune_conv2d(inputs, outputs, 3, stride),
            batch_norm_multiple(nn.BatchNorm2d, outputs),
        )
        self.conv2, self.bn2 = (
            prune_conv2d(outputs, outputs, 3),
            batch_norm_multiple(nn.BatchNorm2d, outputs),
        )
        self.changes, self.extra = stride > 1, outputs - inputs
        self.downsample = (
            Downsample(inputs, outputs, stride) if projected and self.changes else None
        )

    def forward(self, x, pruned):
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x), pruned).relu()), pruned)
        if self.downsample:
            x = self.downsample(x, pruned)
        elif self.changes:
            x = x[:, :, ::2, ::2]
            zeros = torch.zeros(len(x), self.extra // 2, *x.shape[2:], dtype=x.dtype)
            x = torch.cat([zeros, x, zeros], 1)
        return (inner + x).relu()


class proj_head(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.fc1, self.bn1 = (
            nn.Linear(features, features),
            batch_norm_multiple(nn.BatchNorm1d, features),
        )
        self.fc2, self.bn2 = (
            nn.Linear(features, features, bias=False),
            batch_norm_multiple(nn.BatchNorm1d, features),
        )
        self.fc3, self.bn3 = (
            nn.Linear(features, outputs, bias=False),
            batch_norm_multiple(nn.BatchNorm1d, outputs),
        )

    def forward(self, x, pruned):
        x = self.bn2(self.fc2(self.bn1(self.fc1(x), pruned).relu()), pruned).relu()
        return self.bn3(self.fc3(x), pruned)


class ResNet(nn.Module):
    def __init__(self, blocks, widths, projected):
        super().__init__()
        self.normalize = NormalizeByChannelMeanStd([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.conv1, self.bn1 = (
            prune_conv2d(3, widths[0], 3),
            batch_norm_multiple(nn.BatchNorm2d, widths[0]),
        )
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            before = widths[max(stage - 1, 0)]
            layer = [
                BasicBlock(width if k else before, width, 1 if k or not stage else 2, projected)
                for k in range(count)
            ]
            setattr(self, f"layer{stage + 1}", nn.ModuleList(layer))
        self.stages, self.fc = len(blocks), nn.Linear(widths[-1], 10)
        self.set_prune_flag(False)

    def set_prune_flag(self, flag):
        self.pruned = flag
        for module in self.modules():
            if isinstance(module, prune_conv2d):
                module.prune_flag = flag

    def forward(self, x):
        x = self.bn1(self.conv1(self.normalize(x)), self.pruned).relu()
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x, self.pruned)
        return self.fc(x.mean((2, 3)), self.pruned)


def prune_resnet18_dual(num_classes, imagenet):
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), projected=True)
