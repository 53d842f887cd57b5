import math

import torch


class Mask:
    def __init__(self, model):
        self.convolutions = [module for module in model.modules() if hasattr(module, "prune_mask")]

    def magnitudePruning(self, magnitudePruneFraction, randomPruneFraction=0):
        ordered = (
            torch.cat([module.weight.detach().abs().flatten() for module in self.convolutions])
            .sort()
            .values
        )
        threshold = ordered[math.ceil(magnitudePruneFraction * len(ordered))]
        for module in self.convolutions:
            module.prune_mask = (module.weight.detach().abs() >= threshold).float()
