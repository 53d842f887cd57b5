"""Several processes, started by torchrun, that work on one run together: rows, sums and batch norm over all of them."""

import os

import torch
from torch import distributed


def world():
    """(rank of this process, number of processes); the first call joins what torchrun started, without it there is one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


def agreed(value):
    """What the first process holds, in all of them; also the place where they wait for it."""
    if world()[1] > 1:
        told = [value]
        distributed.broadcast_object_list(told)
        value = told[0]
    return value


def first(make):
    """What ``make()`` gives in the first process, for all; the others do not call it."""
    return agreed(make() if world()[0] == 0 else None)


def wait():
    """Go on when all processes have come here."""
    if world()[1] > 1:
        distributed.barrier()


def share(rows):
    """This process's part of a batch: consecutive rows, as even as can be."""
    rank, size = world()
    return rows.tensor_split(size)[rank]


def gather(rows, total):
    """The rows (total, d) of all processes in order, of which this one holds its ``share``.

    Only its own carry gradients: those that each process finds for its own rows, summed over processes, are the whole gradient.
    """
    if world()[1] == 1:
        return rows
    place = share(torch.arange(total))
    start, end = (int(place[0]), int(place[-1]) + 1) if len(place) else (0, 0)
    everything = rows.new_zeros(total, *rows.shape[1:])
    everything[start:end] = rows.detach()
    distributed.all_reduce(everything)
    return torch.cat([everything[:start], rows, everything[end:]])


def add_gradients(model):
    """Sum the gradients of all processes, in place and in one message."""
    if world()[1] > 1:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


class Total(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, x):
        distributed.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(context, gradient):
        distributed.all_reduce(gradient := gradient.clone())
        return gradient


def batch_norm(norm, x):
    """``norm``, a torch BatchNorm in training, of this process's rows by the statistics of all; running statistics move as there.

    torch's own SyncBatchNorm refuses CPU tensors, so that what runs on GPUs could not be tested elsewhere.
    """
    values, dims, shape = x.float(), [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    count = Total.apply(values.new_tensor(values.numel() / values.shape[1]))
    mean = Total.apply(values.sum(dims)) / count
    centred = values - mean.view(shape)
    variance = Total.apply((centred * centred).sum(dims)) / count
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        norm.num_batches_tracked += 1
    if not norm.affine:
        return (centred * (variance + norm.eps).rsqrt().view(shape)).to(x.dtype)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return (centred * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)
