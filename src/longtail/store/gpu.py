"""What a GPU changes, and the one place that knows whether there is one: its branches run anywhere
once a test puts a stand-in here.

Two questions are asked: whether this machine has a GPU (``here``) and whether one computes a tensor
(``computes``). Where one does, no shape may depend on a value and nothing may wait for the device,
so that an update can be recorded as a CUDA graph and replayed.
"""

import contextlib
import functools
import math
import os
import re
import resource
from pathlib import Path

import numpy as np
import torch

# ``precision: float32`` means IEEE single precision. By default a GPU cuts the inputs of float32
# convolutions to ten bits (TF32).
torch.backends.cudnn.allow_tf32 = False

# compiled versions of one function: one for each size of a batch and each law of views
PROGRAMS = 64


# ---- is there one?


def here():
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available()


def computes(x):
    """Whether a GPU computes this tensor, or anything else with a ``device``."""
    return x.device.type == "cuda"


def device():
    """Where tensors live: this process's GPU if there is one, else the CPU."""
    return torch.device("cuda" if here() else "cpu")


def name():
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if here() else "cpu"


def join(rank):
    """Take the GPU of this number, if there are GPUs; returns torch.distributed's backend for them,
    or for CPUs.
    """
    if here():
        torch.cuda.set_device(rank)
    return "nccl" if here() else "gloo"


# ---- arithmetic


def autocast(where, precision):
    """A context in which networks on a device compute as a run's ``precision`` says."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision != "float32")


# ---- waiting and memory


def synchronize():
    """Until the GPU has done what it was told; returns at once without one."""
    if here():
        torch.cuda.synchronize()


def forget_peak():
    """Begin to measure memory anew, so that a run is not charged for what an earlier one of this
    process took.
    """
    if here():
        torch.cuda.reset_peak_memory_stats()


def peak_memory():
    """The most bytes held at once: on the GPU since ``forget_peak``, on a CPU since the process
    began.
    """
    if here():
        return torch.cuda.max_memory_allocated()
    if (
        status := Path("/proc/self/status")
    ).exists():  # getrusage's peak includes that of the process which started this one
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def room():
    """How many bytes of a GPU one image set may take: half, the rest is for networks. Without a GPU
    images stay where they are.
    """
    return torch.cuda.mem_get_info()[1] // 2 if here() else math.inf


def kept(images):
    """Images on the device, for many passes over them, if there is ``room``; else as they are, to
    be sent part by part in every pass.
    """
    return images.to(device()) if images.nbytes <= room() else images


def sent(x):
    """A tensor of the host on the device. A copy to a GPU starts from pinned memory, so that the
    host goes on meanwhile.
    """
    return (
        x.pin_memory().to(device(), non_blocking=True)
        if here() and not computes(x)
        else x.to(device())
    )


@functools.cache
def constant(values, where, kind):
    """Fixed numbers, a tuple of them or of tuples, as a tensor of a dtype, made once a device: a
    copy from the host cannot be recorded.
    """
    return torch.tensor(values, device=where, dtype=kind)


def smallest(values, place):
    """The value of (n,) at ``place``, counted from 0, were they sorted: a tensor without
    dimensions.

    Each device by its fastest way: on a GPU torch's ``kthvalue`` takes twenty times as long as a
    sort, on a CPU five times as long as NumPy's selection.
    """
    if computes(values):
        return values.sort().values[place]
    return torch.as_tensor(np.partition(values.numpy(), place)[place])


# ---- compiled functions


def eager():
    """Whether LONGTAIL_EAGER turns off compiler and recording."""
    return bool(os.environ.get("LONGTAIL_EAGER"))


def fuses(x):
    """Whether operations on this tensor are compiled: on a GPU, where there is a compiler."""
    return computes(x) and not eager() and compiler()


@functools.cache
def compiler():
    """Whether torch's compiler works on this machine. If not, one line says why, once a process,
    and work goes on without it.

    Found by building a small function: the compiler needs a C compiler and Python's headers, which
    bare nodes lack.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.ones(8, device=device()))
    except Exception as error:  # whatever compilers, linkers and their absence raise
        reason = next(
            (
                line
                for line in reversed(str(error).splitlines())
                if "compiler" in line.lower() or ".h" in line
            ),
            str(error),
        )
        print(
            f"not compiled, so slower: {type(error).__name__}: {reason.strip()[:160]}", flush=True
        )
        return False
    return True


def compiled(function):
    """``function`` as few kernels, a program of its own for every shape of its tensors and every
    other argument.

    Raises an error at the 65th program. By default the ninth and all later ones would silently run
    uncompiled.
    """
    from torch._dynamo import config  # takes seconds to import

    config.recompile_limit, config.fail_on_recompile_limit_hit = PROGRAMS, True
    return torch.compile(function, dynamic=False)


# ---- recorded work


def pool():
    """A handle of memory that recorded graphs share; they must not be replayed at the same time."""
    return torch.cuda.graph_pool_handle()


class Graph:
    """The kernels of ``work()``, recorded after three calls that warm up, and replayed on the same
    tensors.

    ``result``: what the recorded call returned, overwritten by every replay. ``memory``: the handle
    of a ``pool``. All four calls may change tensors; the caller puts them back.
    """

    def __init__(self, work, memory):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), fastest_convolutions():
            for _ in range(3):  # compiles, chooses convolutions, makes the optimiser's buffers
                work()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # only what this thread does is recorded: NCCL's watchdog asks for events meanwhile
        with (
            torch.cuda.graph(self.graph, pool=memory, capture_error_mode="thread_local"),
            fastest_convolutions(),
        ):
            self.result = work()

    def replay(self):
        """Do the work again."""
        self.graph.replay()


@contextlib.contextmanager
def fastest_convolutions():
    """Try all of cuDNN's convolutions and keep the fastest, which pays where shapes repeat; not if
    deterministic ones are asked for.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Recorded:
    """``work(*tensors)`` recorded once for each kind of call and replayed: launches cost more than
    a small network's kernels.

    A call's ``kind`` is (phase, rest). Graphs share memory, and those of a phase that is over are
    dropped. ``kept()``: the tensors that work changes; recording leaves them as they were, and
    those it makes (an optimiser's buffers) at zero. ``wanted`` is false for work that no graph can
    hold. That and all work without a GPU or with LONGTAIL_EAGER is done as it is; inside a
    recording it becomes part of that.
    """

    under_way = False  # whether something is being recorded

    def __init__(self, work, kept=list, wanted=True):
        self.work, self.kept, self.wanted, self.graphs, self.memory = work, kept, wanted, {}, None

    def __call__(self, kind, *tensors):
        """The tensor that work returns, on the device."""
        if not self.wanted or Recorded.under_way or eager() or not computes(tensors[0]):
            return self.work(*tensors)
        if kind not in self.graphs:
            self.graphs[kind] = self.record(tensors)
            # only now: a pool whose last graph is gone cannot be recorded into again
            self.graphs = {
                other: graph for other, graph in self.graphs.items() if other[0] == kind[0]
            }
        graph, read = self.graphs[kind]
        for place, given in zip(read, tensors, strict=True):
            place.copy_(given)
        graph.replay()
        return graph.result.clone()  # the next replay overwrites it

    def record(self, tensors):
        """A graph, and the tensors that it reads."""
        read, before = (
            [given.clone() for given in tensors],
            {id(tensor): (tensor, tensor.detach().clone()) for tensor in self.kept()},
        )
        self.memory = self.memory or pool()
        Recorded.under_way = True
        try:
            graph = Graph(lambda: self.work(*read), self.memory)
        finally:
            Recorded.under_way = False
        with torch.no_grad():
            for tensor in self.kept():
                tensor.copy_(before[id(tensor)][1]) if id(tensor) in before else tensor.zero_()
        return graph, read
