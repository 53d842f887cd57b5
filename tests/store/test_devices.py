"""Every question of a GPU goes through one module, and what differs there is set and measured."""

import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from tape import Watch, address
from torch.overrides import TorchFunctionMode
from toy import IMAGES, image_set, planned, proximity_tolerance

from longtail.images import sources, views
from longtail.learn import encode, train
from longtail.measure import evaluate, sampled
from longtail.pick import samplers, scoring, selection
from longtail.store import gpu, paths, runs

SOURCE = paths.ROOT / "src" / "longtail"


def test_one_module_knows_of_gpus():
    """But for what runs the authors' code, which calls ``.cuda()``; what must not leave the host is
    refused from any device.
    """
    found = [
        f"{file.name}: {line}"
        for file in SOURCE.rglob("*.py")
        if file.name not in ("gpu.py", "authors.py")
        for line in file.read_text().splitlines()
        if re.search(r"torch\.cuda|is_cuda|\.cuda\(|\"cuda\"|device\.type [!=]=", line)
    ]
    assert [line.split(":")[0] for line in found] == ["processes.py"] and "Tensor" in found[0]


def test_float32_is_ieee_also_in_convolutions():
    """torch's default would cut the inputs of a GPU's float32 convolutions to ten bits."""
    asked = "import torch, longtail.learn.train; print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_convolutions_are_tried_out_only_where_shapes_repeat(monkeypatch):
    with gpu.fastest_convolutions():
        assert torch.backends.cudnn.benchmark
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        with gpu.fastest_convolutions():
            assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_convolutions_are_tried_out_where_an_update_is_recorded(monkeypatch):
    """With parts of torch.cuda that do nothing."""
    monkeypatch.setattr(torch, "cuda", MagicMock())
    tried = []
    gpu.Graph(lambda: tried.append(torch.backends.cudnn.benchmark), None)
    assert tried == [True] * 4


def test_a_run_is_not_charged_for_the_memory_of_an_earlier_one(tmp_path, monkeypatch):
    """A counter in place of the GPU's: every run takes 7 MiB, the process before them 500."""
    peak = [500]
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "forget_peak", lambda: peak.__setitem__(0, 7))
    monkeypatch.setattr(gpu, "peak_memory", lambda: peak[0] * 2**20)
    run, results = planned(epochs=2), runs.Results("memory")
    train.pretrain(run, IMAGES, results, progress=False)
    assert runs.recorded(results.folder(run) / "done.json")["peak_memory_mib"] == 7


@pytest.mark.parametrize("place", [0, 3, 7])
def test_the_value_at_a_place_is_the_same_by_both_ways(monkeypatch, place):
    values = torch.tensor([3.0, -1.0, 3.0, 0.5, torch.inf, 2.0, -1.0, 9.0])
    found = [gpu.smallest(values, place)]
    monkeypatch.setattr(gpu, "computes", lambda x: True)
    with Watch():  # no copy to the host
        found.append(gpu.smallest(values, place))
    assert found == [values.sort().values[place]] * 2


# ---- the compiled encoder


def test_the_encoder_is_compiled_where_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: calls.append(how))
    for asked, fuses in (("", True), ("1", True), ("1", False)):
        monkeypatch.setenv("LONGTAIL_COMPILE", asked)
        monkeypatch.setattr(gpu, "fuses", lambda x, fuses=fuses: fuses)
        train.Step(planned(), *train.initialise(planned()), IMAGES.images)
    assert calls == [{"dynamic": False}]  # asked for, and where there is a compiler


# ---- copies to the device


class Copies(TorchFunctionMode):
    """Counts the bytes of some images of the host that go to the device, of which a copy stands for
    the one there.
    """

    def __init__(self, *images):
        super().__init__()
        self.host, self.bytes = {address(each) for each in images}, 0

    def __torch_function__(self, function, kinds, arguments=(), named=None):
        result = function(*arguments, **named or {})
        if function is torch.Tensor.to and address(arguments[0]) in self.host:
            self.bytes += arguments[0].nbytes
            return result.clone()
        return result


def accuracies_and_copies(monkeypatch, room, protocol):
    """Class accuracies of one probe, and how many times the labelled and the test images were
    copied, when a set may take so many bytes.
    """
    monkeypatch.setattr(gpu, "room", lambda: room)
    study = SimpleNamespace(
        validation=image_set(6, seed=2), test=image_set(9, seed=3), classes=("a", "b", "c")
    )
    encoder = train.initialise(run := planned())[0].eval()
    how = replace(evaluate.PROTOCOLS[protocol], epochs=4, drops=(), batch=8)
    with Copies(IMAGES.images) as labelled, Copies(study.test.images) as test:
        found = evaluate.train_and_choose(
            encoder, run, study, [IMAGES], how, views.POLICIES["digits_classifier"], [1], 1
        )
    return (
        found["last_epoch"],
        labelled.bytes / IMAGES.images.nbytes,
        test.bytes / study.test.images.nbytes,
    )


@pytest.mark.parametrize("protocol", ["linear", "fewshot_finetune"])
def test_images_are_copied_to_the_device_once_for_all_epochs(monkeypatch, protocol):
    found, labelled, test = accuracies_and_copies(monkeypatch, 1e9, protocol)
    assert (labelled, test) == (1, 1)
    monkeypatch.setattr(encode, "CHUNK", 7)
    assert torch.equal(found, accuracies_and_copies(monkeypatch, 1e9, protocol)[0])


def test_images_without_room_on_the_device_are_sent_in_every_epoch(monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", 7)
    found, labelled, test = accuracies_and_copies(monkeypatch, 10, "linear")
    assert (labelled, test) == (4, 1) and torch.equal(
        found, accuracies_and_copies(monkeypatch, 1e9, "linear")[0]
    )


def test_room_is_half_of_a_gpu(monkeypatch):
    assert gpu.room() == math.inf
    monkeypatch.setattr(gpu, "here", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 80))
    assert gpu.room() == 40


# ---- decoding


@pytest.fixture
def pictures(tmp_path):
    for number in range(40):
        Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        ).save(tmp_path / f"{number:02d}.png")
    return tmp_path


def test_all_cores_decode_whatever_the_number_of_threads_of_torch(pictures, monkeypatch):
    monkeypatch.setattr(sources, "decoders", lambda: 4)
    barrier, whole = threading.Barrier(4, timeout=20), sources.decoded
    monkeypatch.setattr(
        sources, "decoded", lambda *given: barrier.wait() and 0 or whole(*given)
    )  # four at once, or an error
    together = sources.folder(pictures, 16).images, sources.files(pictures, 16).images[:]
    monkeypatch.undo()
    monkeypatch.setattr(sources, "decoders", lambda: 1)
    assert all(torch.equal(images, sources.folder(pictures, 16).images) for images in together)
    assert torch.get_num_threads() == 1


def test_decoders_are_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(sources.os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert sources.decoders() == 3


MEMORY = """
import resource
import numpy as np, torch
from pathlib import Path
from longtail.images import places, sources
from longtail.store import gpu
sources.decoded = lambda content, size: np.full((size, size, 3), len(content), np.uint8)
sources.files_of = lambda path, without: places.Place([(f"{k:05d}.png", lambda: b"123") for k in range(2000)], set())
sources.folder(Path("x"), 8).digest
before = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
images = sources.folder(Path("x"), 256)
images.digest
print((gpu.peak_memory() - before) / images.images.nbytes)
"""


def test_a_set_is_in_memory_once_while_it_is_read_and_named():
    """375 MiB of squares: the peak is theirs and of the few that wait for their place."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    assert 0.9 < float(done.stdout) < 1.35


def test_the_next_chunk_is_decoded_and_the_last_one_written_while_one_is_measured(monkeypatch):
    """An encoder that waits for the reader, and a writer that waits for the encoder: one after the
    other they would wait for ever.
    """
    monkeypatch.setattr(encode, "CHUNK", 4)
    order, lock = [], threading.Lock()
    reading, measuring = ([threading.Event() for _ in range(6)] for _ in range(2))
    reading[5].set()  # after the last

    class Images:
        def __len__(self):
            return len(IMAGES)

        def __getitem__(self, part):
            reading[part.start // 4].set()
            return IMAGES.images[part]

    class Array:
        def put(self, start, rows):
            if start < 16:  # a chunk is written while the next is measured
                assert measuring[start // 4 + 1].wait(20)
            with lock:
                order.append(start)

    def rows(encoder, run, images, start, place):
        measuring[start // 4].set()
        assert len(images) == 1 or reading[start // 4 + 1].wait(
            20
        )  # a single one asks for the shape of a row
        return images

    monkeypatch.setattr(scoring, "_rows", rows)
    array = Array()
    array.prepare, array.missing = lambda *_: None, lambda size: list(range(0, 20, 4))
    scoring._measure(None, planned(), Images(), [array])
    assert order == [0, 4, 8, 12, 16]


# ---- near ties


def test_distances_of_two_machines_differ_by_the_stated_tolerance_at_most():
    """Another order of the sums stands for another machine."""
    generator = torch.Generator().manual_seed(0)
    pool, seed = (torch.randn(count, 300, generator=generator).relu() for count in (500, 60))
    order = torch.randperm(300, generator=generator)
    here, there = (
        samplers.proximity(pool, seed, 5),
        samplers.proximity(pool[:, order], seed[:, order], 5),
    )
    assert 0 < (here - there).abs().max() <= proximity_tolerance(300)


def test_spread_is_computed_where_the_cores_are(monkeypatch):
    """In integers, so that the device does not matter; here one that computes nothing."""
    asked, whole = [], selection.Grid.__init__
    monkeypatch.setattr(
        selection.Grid,
        "__init__",
        lambda grid, rows, device: asked.append(device) or whole(grid, rows, device),
    )
    monkeypatch.setattr(gpu, "device", lambda: torch.device("meta"))
    with pytest.raises(TypeError, match="meta"):
        sampled.dispersion(torch.rand(100, 8), torch.arange(9))
    assert asked == [torch.device("meta")]


def test_memory_is_that_of_this_process_in_bytes():
    """This process takes 300 MiB and starts another, which is small."""
    torch.ones(75 * 2**20)
    asked = "from longtail.store import gpu; print(gpu.peak_memory())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert 50 * 2**20 < int(done.stdout) < gpu.peak_memory() - 200 * 2**20


# ---- one run a GPU


def each_gpu(folder, gpus, fails=-1):
    """The script in a folder with a run_all.sh and an nvidia-smi of our own."""
    (folder / "each_gpu.sh").write_text((paths.ROOT / "each_gpu.sh").read_text())
    (folder / "run_all.sh").write_text(
        f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES gets $*"; [ "$CUDA_VISIBLE_DEVICES" != {fails} ]\n'
    )
    (folder / "nvidia-smi").write_text("#!/bin/sh\n" + "echo a GPU\n" * gpus)
    for name in ("run_all.sh", "nvidia-smi"):
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", folder / "each_gpu.sh", "cifar10", "02"],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_one_process_starts_for_each_gpu(tmp_path):
    done = each_gpu(tmp_path, 3)
    assert (
        sorted(done.stdout.splitlines())
        == [f"gpu {gpu}: {gpu} gets cifar10 02 --plain" for gpu in range(3)]
        and done.returncode == 0
    )
    assert each_gpu(tmp_path, 3, fails=1).returncode == 1
    without = each_gpu(tmp_path, 0)
    assert without.returncode == 1 and "lists no GPU; use ./run_all.sh" in without.stderr
