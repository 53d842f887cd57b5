"""Who holds which rows of a pool: this process all of them, or several processes each some."""

import torch
from torch import distributed

from longtail.store import gpu, processes


class Alone:
    """The one process that holds every row."""

    rank, size = 0, 1

    def gather(self, values):
        """``values`` (k, …) of all processes, one after the other in the order of ranks; k may
        differ and may be 0.
        """
        return values

    def total(self, values):
        """The sum of ``values``, of one shape everywhere, over all processes."""
        return values

    def span(self, count):
        """Position of this process's first row, and all processes' rows together, when ``count``
        are here.
        """
        counts = self.gather(torch.tensor([count]))
        return int(counts[: self.rank].sum()), int(counts.sum())


class Group(Alone):
    """The processes that torchrun started (gloo or NCCL): each holds consecutive rows, in the order
    of ranks, perhaps none.
    """

    def __init__(self):
        self.rank, self.size = processes.world()
        self.device = gpu.device() if distributed.get_backend() == "nccl" else torch.device("cpu")

    def gather(self, values):
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([len(values)], device=self.device))
        padded = torch.zeros(
            int(max(counts)), *values.shape[1:], dtype=values.dtype, device=self.device
        )
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return torch.cat(
            [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
        ).to(values.device)

    def total(self, values):
        summed = values.to(self.device, copy=True)
        distributed.all_reduce(summed)
        return summed.to(values.device)


def everyone():
    """All processes that torchrun started, or this one alone."""
    return Group() if processes.world()[1] > 1 else Alone()


def collect(rows, index, base, group):
    """Rows (k, d) at positions ``index`` of all processes' rows together, of which ``rows`` are
    those from ``base`` on.
    """
    here = below(index - base, len(rows))
    mine = rows[index[here] - base]
    found = mine.new_zeros(len(index), mine.shape[1])
    found[here] = mine
    return group.total(found)  # sums with zeros are exact


def below(places, count):
    """Which of ``places`` (k,) are among the first ``count``."""
    return (places >= 0) & (places < count)
