"""The smoke test, line by line: on a GPU where there is one, else on the processor with a tape in
place of CUDA graphs.
"""

import contextlib

import gpu_smoke
import pytest
import torch
from tape import stand_in

from longtail.images import views
from longtail.store import gpu, paths


@pytest.mark.parametrize("name", gpu_smoke.CHECKS)
def test_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(
        torch.backends.cudnn, "deterministic", gpu_smoke.CHECKS[name] not in gpu_smoke.TIMED
    )
    with contextlib.nullcontext() if gpu.here() else stand_in():
        try:
            assert gpu_smoke.CHECKS[name]()
        except gpu_smoke.Left as reason:
            pytest.skip(str(reason))


def test_views_are_compiled_in_both_updates_that_are_compared(tmp_path, monkeypatch):
    """A compiled view differs in the last place, of which updates that learn make much: the
    comparison would fail where all is right.
    """
    asked, whole = [], views.augment
    monkeypatch.setattr(
        views,
        "augment",
        lambda *given, fused=False, **named: asked.append(fused) or whole(*given, **named),
    )
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    with stand_in(compiles=True):
        gpu_smoke.replays("simclr")
    assert all(asked) and len(asked) > 24  # two views of twelve updates, then of what is recorded


def test_exit_status_is_the_number_of_failures(monkeypatch, capsys):
    def fails():
        gpu_smoke.checked(0.5, 0.1)

    monkeypatch.setattr(paths, "RESULTS", paths.RESULTS)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(gpu_smoke, "CHECKS", {"one": lambda: "found", "two": fails})
    assert gpu_smoke.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "ok   one: found",
        "FAIL two: AssertionError: differs by 0.5, allowed is 0.1",
        "1 of 2 checks failed",
    ]
    monkeypatch.setattr(gpu_smoke, "CHECKS", {"one": lambda: "found"})
    assert gpu_smoke.main() == 0
