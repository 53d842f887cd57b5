"""A stand-in for a GPU: every branch that a GPU takes runs on the processor, and a tape does what a
CUDA graph does.

A graph holds kernels and the addresses they read and write, no Python and no values. So does the
tape: it notes each operator with the tensors it was given and gave, and replays them on the same
tensors. A number that Python computed, or a tensor that was put in another's place, stays as it was
when the tape was made, as it would in a graph. What a graph cannot hold is refused.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from longtail.store import gpu, processes

# besides whatever gives Python a number: item(), equal, allclose, a tensor as a condition
WAITS = {
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "bincount": "bincount",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "histc": "histc",
    "repeat_interleave": "repeat_interleave",
    "_linalg_check_errors": "a factorisation",
    "lift_fresh": "a tensor made of Python numbers",
}
EMPTY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


class Refused(RuntimeError):
    """What cannot be recorded: the host would wait for the device, or copy to it."""


def address(tensor):
    """What tells whether two tensors share memory."""
    return tensor.untyped_storage()._cdata


def tensors_of(values):
    """The tensors among arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Host(TorchFunctionMode):
    """Refuses inside it what copies to the host, which on a processor is no operator."""

    def __torch_function__(self, function, kinds, arguments=(), named=None):
        if (name := getattr(function, "__name__", "")) in (
            "tolist",
            "numpy",
            "cpu",
            "__array__",
            "pin_memory",
        ):
            raise Refused(f"{name} copies to the host")
        return function(*arguments, **named or {})


class Watch(TorchDispatchMode):
    """Refuses inside it what a graph cannot hold; ``found`` are the tensors that were read and not
    made inside, by their memory.
    """

    def __init__(self, known=None):
        super().__init__()
        self.known, self.found, self.made, self.host = known, {}, {}, Host()

    def __enter__(self):
        self.host.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.host.__exit__(*error)

    def __torch_dispatch__(self, function, kinds, arguments=(), named=None):
        named, operator = named or {}, function.name().split("::")[1].split(".")[0]
        given = tensors_of((arguments, named))
        if (
            operator in WAITS
            or operator in ("index", "index_put", "index_put_", "_index_put_impl_")
            and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tensors_of(arguments[1]))
        ):
            raise Refused(f"{WAITS.get(operator, 'indexing by a mask')} waits for the device")
        result = function(*arguments, **named)
        if any(isinstance(leaf, bool | int | float) for leaf in tree_leaves(result)):
            raise Refused(f"{operator} gives Python a number, so it waits for the device")
        for tensor in given:
            if address(tensor) not in self.made:
                if self.known is not None and address(tensor) not in self.known:
                    raise Refused(
                        f"{operator} reads a tensor of the host that was not there before: "
                        f"{tuple(tensor.shape)}"
                    )
                self.found[address(tensor)] = tensor
        for tensor in tensors_of(result):
            if address(tensor) not in self.found:
                self.made[address(tensor)] = tensor  # kept, so that no other gets its memory
        self.seen(function, operator, arguments, named, result)
        return result

    def seen(self, function, operator, arguments, named, result):
        """What to do with an operator that has run."""


class Tape(Watch):
    """Every operator that ran inside, to be run again on the same tensors."""

    def __init__(self, known=None):
        super().__init__(known)
        self.calls, self.kernels = [], []

    def seen(self, function, operator, arguments, named, result):
        fresh = is_fresh(arguments, named, result)
        if fresh or function._schema.is_mutable:  # all else are views, which hold no work
            plain = [
                tree_map(
                    lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, part
                )
                for part in (arguments, named, result)
            ]
            self.calls.append((function, operator in EMPTY, *plain, fresh))
            if operator not in EMPTY and function.namespace == "aten":
                self.kernels.append(operator)

    @torch.no_grad()
    def replay(self):
        """Run all operators on the tensors they had; memory that nothing has written holds no
        number.
        """
        for function, empty, arguments, named, result, fresh in self.calls:
            if empty:
                result.fill_(torch.nan if result.is_floating_point() else -1)
                continue
            again = function(*arguments, **named)
            if fresh:
                for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                    if address(old) != address(new):
                        old.copy_(new)


def is_fresh(arguments, named, result):
    """Whether an operator gave memory that it was not given."""
    given = {address(tensor) for tensor in tensors_of((arguments, named))}
    return any(address(tensor) not in given for tensor in tensors_of(result))


class Launches(TorchDispatchMode):
    """Counts what the host launches inside: kernels one by one, and each replay of a graph as
    one.
    """

    count = 0

    def __torch_dispatch__(self, function, kinds, arguments=(), named=None):
        result, operator = (
            function(*arguments, **named or {}),
            function.name().split("::")[1].split(".")[0],
        )
        works = is_fresh(arguments, named, result) or function._schema.is_mutable
        self.count += (
            works and operator not in EMPTY and function.namespace == "aten" and not Graph.replaying
        )
        return result


class Graph:
    """What ``gpu.Graph`` is, made of a tape."""

    made = []  # (memory, kernels) of every one, in order
    replaying = False

    def __init__(self, work, memory):
        work()  # makes the optimiser's buffers and the tables that stay
        with Watch() as before:
            work()
        with Tape(before.found) as self.tape:
            self.result = work()
        Graph.made.append((memory, self.tape.kernels))

    def replay(self):
        torch.zeros(())  # one launch
        Graph.replaying = True
        self.tape.replay()
        Graph.replaying = False


@contextlib.contextmanager
def several(count=2):
    """Inside, this is the first of so many processes; messages are listed, and the others' batch
    norm counts as equal to this one's.
    """
    sent, before = [], (processes.world, torch.distributed.all_reduce)

    def reduce(rows):
        sent.append(rows)
        if rows.ndim == 2 and len(rows) == count:
            rows[1:] = rows[:1].clone()

    processes.world, torch.distributed.all_reduce = lambda: (0, count), reduce
    try:
        yield sent
    finally:
        processes.world, torch.distributed.all_reduce = before


@contextlib.contextmanager
def stand_in(records=True, compiles=False):
    """Inside, all branches of a GPU are taken; ``records`` says whether updates are recorded or
    made one by one.
    """
    names = {
        "computes": lambda x: True,
        "Graph": Graph,
        "pool": object,
        "compiler": lambda: compiles,
        "eager": lambda: not records,
    }
    before = {name: getattr(gpu, name) for name in names}
    Graph.made.clear()
    try:
        for name, value in names.items():
            setattr(gpu, name, value)
        yield Graph.made
    finally:
        for name, value in before.items():
            setattr(gpu, name, value)
