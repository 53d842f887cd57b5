from .resnet_prune_multibn import ResNet


def resnet32_prune_dual_s(num_classes):
    return ResNet((5, 5, 5), (16, 32, 64), projected=False)
