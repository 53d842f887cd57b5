"""The compiler, of random views and of Sinkhorn: programs by size and law, kept after a
measurement, done without if need be.
"""

import functools
import os
import subprocess
import sys

import pytest
import torch
from tape import stand_in
from toy import IMAGES, planned

from longtail.bench import floor
from longtail.images import views
from longtail.learn.methods import gh
from longtail.store import gpu, paths


@pytest.fixture
def programs(monkeypatch):
    """Counts the programs that the compiler makes, with torch's own operators in place of the
    kernels it would build.
    """
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    for clear in (
        made := (torch._dynamo.reset, views._compiled.cache_clear, gh._fused_round.cache_clear)
    ):
        clear()
    yield counter
    for clear in made:
        clear()


def fused(count, policy):
    return views.augment(
        IMAGES.images, torch.arange(count), views.POLICIES[policy], 1, 2, 0, fused=True
    )


def test_every_size_and_law_is_a_program_of_its_own_also_the_ninth(programs):
    """A profile trains in two sizes and few laws; all laws in two sizes are more than the eight
    that torch keeps.
    """
    kinds = [(count, policy) for policy in views.POLICIES for count in (8, 5)]
    for count, policy in kinds:
        fused(count, policy)
    made = (
        len(kinds) - 2
    )  # digits and halves differ in their crops alone, which are no part of a program
    assert programs.frame_count == made
    for count, policy in kinds:
        whole = views.augment(IMAGES.images, torch.arange(count), views.POLICIES[policy], 1, 2, 0)
        assert (fused(count, policy) - whole).abs().max() <= 1e-5
    assert programs.frame_count == made > 8


def test_more_programs_than_are_kept_are_an_error_and_not_slow(programs, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", 2)
    fused(2, "digits"), fused(3, "digits")
    with pytest.raises(Exception, match="recompile"):
        fused(4, "digits")


def test_views_are_still_compiled_after_a_measurement(programs, monkeypatch):
    class Plain:
        def __init__(self, work, memory):
            self.result, self.replay = work(), work

    monkeypatch.setattr(floor, "matmul_rate", lambda precision: 1e9)
    with stand_in(compiles=True), monkeypatch.context() as patch:
        patch.setattr(gpu, "Graph", Plain)
        assert floor.training_rate(planned(), 20, 1, 1)["gflop_per_update"] > 0
    assert programs.frame_count == 1  # the size of a batch
    fused(5, "digits")
    assert programs.frame_count == 2


def test_all_rounds_of_sinkhorn_are_one_program(programs):
    generator = torch.Generator().manual_seed(0)
    logits, prior = torch.randn(3, 2, 8, 6, generator=generator), torch.rand(6, generator=generator)
    uncompiled = [gh.sinkhorn(each, prior) for each in logits]
    with stand_in(compiles=True):
        compiled = [gh.sinkhorn(each, prior) for each in logits]
    torch.testing.assert_close(compiled, uncompiled, rtol=1e-4, atol=1e-6)
    assert programs.frame_count == 1 and programs.op_count < 10


BARE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import tape, toy
from longtail.learn import train
from longtail.store import gpu, paths, runs
from pathlib import Path
compiler = gpu.compiler
paths.RESULTS = Path(sys.argv[2])
with tape.stand_in():
    gpu.compiler = compiler
    for seed in (1, 2):
        train.pretrain(toy.planned(epochs=2, seed=seed), toy.IMAGES, runs.Results("bare"), progress=False)
"""


def test_without_a_c_compiler_one_line_says_so_and_training_goes_on(tmp_path):
    bare = {
        **os.environ,
        "PATH": "/nowhere",
        "CXX": "",
        "CC": "",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", BARE, paths.ROOT / "tests", tmp_path],
        env=bare,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/done.json"))) == 2
    [line] = done.stdout.splitlines()
    assert line.startswith("not compiled, so slower: ") and "ompiler" in line
