"""Several processes, started by torchrun, that work on one run together: rows and sums over all of
them.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

import torch
from torch import distributed
from torch.utils._pytree import tree_leaves

from longtail.store import gpu


def world():
    """(rank of this process, number of processes); the first call joins what torchrun started,
    without it there is one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group(gpu.join(int(os.environ.get("LOCAL_RANK", 0))))
    return distributed.get_rank(), distributed.get_world_size()


def agreed(value):
    """What the first process holds, in all of them; also the place where they wait for it.

    It travels as a pickle, and one of a GPU's tensor would land on the first process's GPU:
    ``TypeError`` for such a tensor.
    """
    if any(
        isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu" for leaf in tree_leaves(value)
    ):
        raise TypeError(
            "a tensor on a GPU cannot be agreed on; give a list of its numbers, or its copy on the "
            "CPU"
        )
    if world()[1] > 1:
        told = [value]
        distributed.broadcast_object_list(told)
        value = told[0]
    return value


def first(make):
    """What ``make()`` gives in the first process, for all; the others do not call it."""
    return agreed(make() if world()[0] == 0 else None)


def begin_worker():
    """Set up a worker: one thread, Ctrl-C is its parent's to answer, and it ends when its parent
    has gone, however that ended.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch():
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def barrier():
    """Go on when all processes have come here."""
    if world()[1] > 1:
        distributed.barrier()


def share(rows):
    """This process's part of a batch: consecutive rows, as even as can be."""
    rank, size = world()
    return rows.tensor_split(size)[rank]


def rows_of_all(row):
    """The rows (d,) of all processes, (processes, d), in one exchange; without gradients."""
    rows = row.new_zeros(world()[1], len(row))
    rows[world()[0]] = row
    distributed.all_reduce(rows)  # sums with zeros are exact
    return rows


def summed(values):
    """The sum of a tensor over all processes; without gradients."""
    distributed.all_reduce(values := values.clone())
    return values


def gather(rows, total):
    """The rows (total, d) of all processes in order, of which this one holds its ``share``.

    Only its own carry gradients: those that each process finds for its own rows, summed over
    processes, are the whole gradient.
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
        gradients = [
            parameter.grad for parameter in model.parameters() if parameter.grad is not None
        ]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(
            gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
