"""Batch norm over the rows of several processes: one exchange forward, one back, and no number that
the host would wait for.

On a GPU torch's own kernels do the work, those behind its SyncBatchNorm, which reads counts on the
host in every call and refuses CPU tensors; the functions here of the same names and arguments take
their place on a CPU.
"""

import sys

import torch

from longtail.store import gpu, processes


def batch_norm(norm, x):
    """``norm``, a torch BatchNorm in training, of this process's rows by the statistics of all;
    running statistics move as there.
    """
    with torch.no_grad():
        norm.num_batches_tracked += 1
    return Synchronised.apply(x, norm.weight, norm.bias, norm)


class Synchronised(torch.autograd.Function):
    """x (n, C, …) of one process, normalised over all; it keeps x as it is and three numbers a
    channel.

    Eight passes over memory: forward two reads and a write, back four reads and a write.
    """

    @staticmethod
    def forward(context, x, weight, bias, norm):
        kernels, x = kernels_of(x), dense(x)
        count = x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32)
        # a process without rows: mean 0 and deviation 1, which its count of 0 keeps out of
        # everything
        own = (
            kernels.batch_norm_stats(x, norm.eps)
            if len(x)
            else (count.new_zeros(x.shape[1]), count.new_ones(x.shape[1]))
        )
        means, inverses, counts = processes.rows_of_all(torch.cat([*own, count])).split(
            [x.shape[1], x.shape[1], 1], 1
        )
        means, inverses, counts = means.contiguous(), inverses.contiguous(), counts.flatten()
        mean, inverse = kernels.batch_norm_gather_stats_with_counts(
            x, means, inverses, norm.running_mean, norm.running_var, norm.momentum, norm.eps, counts
        )
        context.save_for_backward(x, weight, mean, inverse, counts.int())
        return (
            kernels.batch_norm_elemt(x, weight, bias, mean, inverse, norm.eps)
            if len(x)
            else torch.empty_like(x)
        )

    @staticmethod
    def backward(context, slope):
        x, weight, mean, inverse, counts = context.saved_tensors
        kernels, slope = kernels_of(x), dense(slope)
        if len(x):
            total, along, of_weight, of_bias = kernels.batch_norm_backward_reduce(
                slope, x, mean, inverse, weight, True, True, True
            )
        else:
            total, along, of_weight, of_bias = (torch.zeros_like(mean) for _ in range(4))
        total, along = processes.summed(torch.cat([total, along])).chunk(2)
        passed = (
            kernels.batch_norm_backward_elemt(slope, x, mean, inverse, weight, total, along, counts)
            if len(x)
            else torch.empty_like(x)
        )
        return (
            (passed, of_weight, of_bias, None) if weight is not None else (passed, None, None, None)
        )


def kernels_of(x):
    """Where the five functions are that compute on this tensor's device."""
    return torch if gpu.here() and gpu.computes(x) else sys.modules[__name__]


def dense(x):
    """x as the kernels want it: channels last, or contiguous."""
    return (
        x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
    )


# ---- torch's five kernels, on a CPU


def batch_norm_stats(x, eps):
    """Mean and 1 / √(variance + eps) of each channel, (C,), (C,)."""
    variance, mean = torch.var_mean(x.float(), other_dims(x), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x, means, inverses, running_mean, running_var, momentum, eps, counts
):
    """The same of all processes, from theirs (p, C) and their counts (p,); moves the running
    statistics.
    """
    total, weight = counts.sum(), counts[:, None]
    mean = (weight * means).sum(0) / total
    variance = (weight * (inverses**-2 - eps + (means - mean) ** 2)).sum(0) / total
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, inverse, eps):
    """x normalised, scaled and shifted."""
    scale = inverse if weight is None else inverse * weight
    y = (x.float() - channels(mean, x)) * channels(scale, x)
    return (y if bias is None else y + channels(bias, x)).to(x.dtype)


def batch_norm_backward_reduce(slope, x, mean, inverse, weight, of_input, of_weight, of_bias):
    """Sums of the slope, and of the slope times x − mean; slopes of weight and bias, all (C,)."""
    slope = slope.float()
    total, along = (
        slope.sum(other_dims(x)),
        (slope * (x.float() - channels(mean, x))).sum(other_dims(x)),
    )
    return total, along, along * inverse, total


def batch_norm_backward_elemt(slope, x, mean, inverse, weight, total, along, counts):
    """The slope of x."""
    scale, count = inverse if weight is None else inverse * weight, counts.sum()
    centred = (x.float() - channels(mean, x)) * channels(inverse**2 * along / count, x)
    return ((slope.float() - channels(total / count, x) - centred) * channels(scale, x)).to(x.dtype)


def other_dims(x):
    """All dimensions but that of the channels."""
    return [0, *range(2, x.ndim)]


def channels(values, x):
    """Values (C,) shaped to meet x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
