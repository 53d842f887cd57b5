import torch
import torch.distributed as dist
from utils import nt_xent

from .mask import Mask


def gatherFeatures(features, local_rank, world_size):
    gathered = [torch.zeros_like(features) for _ in range(world_size)]
    dist.all_gather(gathered, features)
    gathered[local_rank] = features
    return torch.cat(gathered)


def train_prune(
    train_loader, model, optimizer, scheduler, epoch, log, local_rank, rank, world_size, args=None
):
    Mask(model).magnitudePruning(
        args.prune_percent - args.random_prune_percent, args.random_prune_percent
    )
    total, images = 0, 0
    for i, inputs in enumerate(train_loader):
        scheduler.step()
        inputs = inputs.cuda(non_blocking=True)
        optimizer.zero_grad()
        model.module.set_prune_flag(True)
        with torch.no_grad():
            pruned = gatherFeatures(model(inputs[:, 1]), rank, world_size)
        model.module.set_prune_flag(False)
        dense = gatherFeatures(model(inputs[:, 0]), rank, world_size)
        loss = nt_xent(dense, t=args.temperature, features2=pruned)
        loss.backward()
        model.module.set_prune_flag(True)
        nt_xent(
            dense.detach(),
            t=args.temperature,
            features2=gatherFeatures(model(inputs[:, 1]), rank, world_size),
        ).backward()
        optimizer.step()
        total, images = total + loss.item() * len(inputs), images + len(inputs)
        if i % args.print_freq == 0 or i == len(train_loader) - 1:
            log.info(f"{epoch} {i} {total / images}")
    return total / images
