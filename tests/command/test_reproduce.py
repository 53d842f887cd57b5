"""One command makes everything once, keeps failures apart from successes and refuses what it does not know."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
from conftest import PARAMETERS, reproduce

from longtail.command.reproduce import alone, images, main, wanted
from longtail.store import paths, runs

STOP = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


# The demo -------------------------------------------------------------------------------------------------------------

def test_demo_succeeds(demo):
    assert demo.first.status == 0, demo.first.err
    lines = [line for line in demo.first.out.splitlines() if "runs reused" in line]
    assert len(lines) == len(list(paths.NOTEBOOKS.glob("*.ipynb")))


def test_demo_leaves_executed_copies_and_pages_that_load_nothing(demo):
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        executed = demo.results / "notebooks" / path.name
        assert nbformat.read(executed, as_version=4).metadata.kernelspec.name == "python3"
        page = executed.with_suffix(".html").read_text()
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="?(https?:)?//', page), path.name
        assert str(paths.ROOT) not in executed.read_text() + page and str(demo.root) not in executed.read_text() + page, path.name
    assert not list(demo.results.glob("notebooks/*.failed.ipynb"))


def test_demo_index_leads_only_to_files_that_exist(demo):
    index = demo.results / "notebooks/index.html"
    links = re.findall(r'(?:href|src)="([^"]+)"', index.read_text())
    assert len(links) > len(list(paths.NOTEBOOKS.glob("*.ipynb")))
    assert all((index.parent / link).exists() for link in links)


@pytest.mark.parametrize("part, endings", [("figures", ("pdf", "png", "csv")), ("tables", ("csv", "md", "tex"))])
def test_demo_writes_each_figure_and_table_in_three_formats(demo, part, endings):
    folder = demo.figures if part == "figures" else demo.results / "tables"
    names = {path.stem for path in folder.iterdir()}
    assert names
    assert all((folder / f"{name}.{ending}").stat().st_size for name in names for ending in endings)


def test_demo_judges_the_claims(demo):
    text = (demo.results / "claims.csv").read_text()
    assert text.startswith("id,claim,paper,primary,effect,low,high,n,paper_effect,mde,n_needed,verdict,")
    assert re.search("supported|contradicted|smaller|undecided", text)


def test_second_pass_makes_nothing_and_takes_a_fraction(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.root.rglob("*.ipynb")}
    runs = {path: path.read_bytes() for path in demo.results.glob("runs/*/done.json")}
    second = reproduce(output=demo.root)
    assert second.status == 0, second.err
    assert second.out.count("fresh") == len(list(paths.NOTEBOOKS.glob("*.ipynb"))) and "made" not in second.out
    assert {path: path.stat().st_mtime_ns for path in demo.root.rglob("*.ipynb")} == before
    assert {path: path.read_bytes() for path in demo.results.glob("runs/*/done.json")} == runs
    assert second.seconds < min(60, demo.first.seconds / 4)


def test_dry_run_of_the_finished_demo_finds_every_run(demo):
    dry = reproduce("--dry-run", output=demo.root)
    assert dry.status == 0 and "0 runs missing" in dry.out, dry.out + dry.err
    assert re.search(r"runs done [1-9]", dry.out)


# Throw-away notebooks -------------------------------------------------------------------------------------------------

def ran(folder, profile="demo"):
    """Names of what an invocation left beside the results, without the index, the record and the lock."""
    return sorted(path.name for path in (folder.parent / "results" / profile / "notebooks").iterdir()
                  if path.suffix != ".json" and path.stem not in ("index", "claim"))


@pytest.mark.parametrize("cell, error", [("raise ValueError('no such\\nclass')", "ValueError: no such class"), (STOP, "DeadKernelError")])
def test_failed_or_killed_notebook_is_kept_as_failed(book, capfd, cell, error):
    book("01_good", "print(seeds)")
    book("02_bad", cell)
    folder = book("03_never")
    assert main([], folder) == 1
    assert ran(folder) == ["01_good.html", "01_good.ipynb", "02_bad.failed.ipynb"]
    assert capfd.readouterr().err.splitlines()[0].startswith(f"02_bad failed: {error}")


def test_figures_are_in_the_executed_copy_whatever_back_end_is_set(book, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    folder = book("01_draws", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nfirst = plt.gcf()", "assert plt.gcf() is not first")
    assert main([], folder) == 0
    executed = (paths.RESULTS / "demo/notebooks/01_draws.ipynb").read_text()
    assert '"image/png"' in executed


def test_mended_notebook_replaces_its_failure_and_the_rest_is_fresh(book, capsys):
    book("01_good")
    folder = book("02_mended", "rate / 0")
    assert main([], folder) == 1
    book("02_mended", "rate / 2")
    assert main([], folder) == 0
    assert "fresh" in capsys.readouterr().out and not any("failed" in name for name in ran(folder))


def test_broken_notebook_loses_its_old_success(book):
    folder = book("01_once")
    assert main([], folder) == 0
    book("01_once", "nothing")
    assert main([], folder) == 1
    assert ran(folder) == ["01_once.failed.ipynb"]


def test_changed_result_or_notebook_makes_it_stale(book, capsys):
    folder = book("01_writes", "from pathlib import Path\nPath('../results/demo/rows.csv').write_text('1')")
    assert main([], folder) == main([], folder) == 0
    assert "fresh" in capsys.readouterr().out
    (folder.parent / "results/demo/rows.csv").write_text("2")
    assert main([], folder) == 0
    assert "made" in capsys.readouterr().out


def test_plain_gives_parameters_and_leaves_figures_apart(book, capfd):
    cells = "import matplotlib.pyplot as plt\nplt.plot(seeds)", "assert not plt.gca().lines\ndisplay(profile, seeds, rate, float)"
    folder = book("01_plain", *cells)
    assert main(["long", "--plain", "-p", "seeds", "[3]"], folder) == 0
    assert capfd.readouterr().out.startswith("long [3] 1.0")
    assert not (folder.parent / "results").exists()


@pytest.mark.parametrize("cell", ["rate / 0", "raise SystemExit(0)"])
def test_plain_failure_is_one_line_with_its_place(book, capsys, cell):
    assert main(["--plain"], book("01_plain", "rate", cell)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("01_plain failed: ") and line.endswith("(cell 4, line 1)")


@pytest.mark.parametrize("arguments, profile", [
    (["long", "-p", "seeds", "[2]"], "long"), (["long", "-p", "seeds", "[4]"], "long-custom"), (["long", "-p", "rate", "1"], "long"),
    (["long", "-p", "rate", "2e-3"], "long-custom"), (["-p", "seeds", "[2]"], "demo"), (["-p", "seeds", "[]"], "demo-custom")])
def test_only_narrowing_keeps_the_profile(book, capfd, arguments, profile):
    assert main([*arguments, "--plain"], book("01_says", "print(profile, type(rate).__name__)")) == 0
    assert capfd.readouterr().out.startswith(f"{profile} float")


def test_own_profile_starts_from_a_base(book, capfd, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: long\nseeds: [7]\n")
    assert main([str(tmp_path / "mine.yaml"), "--plain"], book("01_says", "print(profile, seeds, rate)")) == 0
    assert capfd.readouterr().out.startswith("mine [7] 1.0")


def test_files_of_one_name_in_two_folders_do_not_share_results(book, capsys, tmp_path):
    folder = book("01_says", "print(seeds)")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text("base: long\n")
    assert main([str(tmp_path / "here/mine.yaml"), "--plain"], folder) == 0
    assert main([str(tmp_path / "there/mine.yaml"), "--plain"], folder) == 2
    assert f"results/mine holds what {tmp_path / 'here/mine.yaml'} asked for" in capsys.readouterr().err
    assert main([str(tmp_path / "here/mine.yaml"), "--plain"], folder) == 0


def test_a_second_command_waits_for_the_notebooks_of_the_first(book, capsys):
    folder, ended = book("01_says", "print(seeds)"), []
    with alone(paths.RESULTS / "demo/notebooks"):
        second = threading.Thread(target=lambda: ended.append(main([], folder)))
        second.start()
        second.join(3)
        assert second.is_alive() and not ended and not list((paths.RESULTS / "demo/notebooks").glob("*.ipynb"))
    second.join(120)
    assert ended == [0] and (paths.RESULTS / "demo/notebooks/01_says.ipynb").exists()
    assert "another command runs notebooks of demo; waiting" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [
    (["huge"], "no profile huge; there are demo, long"), (["07"], "no notebook 07; there are 01_only"),
    (["-p", "epoch", "3"], "no notebook has a parameter epoch; there are rate, seeds"), (["-p", "profile", "x"], "parameter profile"),
    (["-p", "seeds", "3"], "seeds takes list[int], not 3"), (["-p", "seeds", "[a]"], "seeds takes list[int]"),
    (["-p", "rate", "fast"], "rate takes float, not 'fast'"), (["-p", "rate", "yes"], "rate takes float, not True"),
    (["-p", "rate"], "expected 2 arguments"), (["--fast"], "--fast"), (["demo", "long"], "one profile at a time"),
    (["-p", "rate", "{"], "YAML"), (["lost.yaml"], "lost.yaml cannot be read"), (["long.yaml"], "another name"),
    (["typo.yaml"], "no notebook has a parameter epoch"),
    (["text.yaml"], "seeds takes list[int], not '1' (str)"), (["list.yaml"], "no mapping"), (["lift.yaml"], "base tall")])
def test_refused_in_one_line_and_nothing_written(book, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, content in {"long": "", "typo": "epoch: 3", "text": "seeds: '1'", "list": "[1]", "lift": "base: tall"}.items():
        Path(f"{name}.yaml").write_text(content)
    folder = book("01_only")
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments, folder) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_counts_runs_and_hours(book, capsys):
    folder = book("01_trains", parameters=PARAMETERS + '\narms: list[str] = ["simclr long_tail"]  # which\nepochs: int = 5  # of each')
    (folder / "profiles.yaml").write_text("long: {hours: 3, seeds: [1, 2, 3]}")
    assert main(["long", "--dry-run"], folder) == 0
    printed = capsys.readouterr().out
    assert "runs done 0, missing 3" in printed and "seeds=[1, 2, 3]" in printed and "3 hours in all, as stated" in printed
    assert not (folder.parent / "results").exists()
    some = dict.fromkeys(runs.FIELDS, 0) | {"method": "simclr", "subset": "long_tail", "added": "none", "split": 1, "recipe": runs.RECIPE}
    finish(runs.Run(**some | {"seed": 2, "epochs": 5}), seconds=1800)
    finish(runs.Run(**some | {"seed": 3, "epochs": 6}), seconds=1800)
    assert main(["long", "--dry-run"], folder) == 0
    printed = capsys.readouterr().out
    assert "runs done 1, missing 2" in printed and "2 runs missing: 1 hours of one process, as 2 took" in printed


def test_rows_of_the_tables_are_counted_with_their_budgets():
    retrain = ["random", "mak", "mak alpha=0.5", "mak budget=40 ratio=2"]
    rows = wanted({"retrain": retrain, "equal_updates": ["mak"], "budget": 30}, [(1, 7)])
    assert [(row["added"], row["schedule"], row["budget"]) for row in rows] == [
        ("random", "epochs", 30), ("mak", "epochs", 30), ("mak", "epochs", 30), ("mak", "epochs", 40), ("mak", "updates", 30)]


def test_runs_alike_in_all_that_a_plan_tells_are_counted_apart(book, capsys):
    retrain = '\nretrain: list[str] = ["mak", "mak alpha=0.5"]  # rows\nbudget: int = 9  # picks'
    folder = book("05_samples", parameters=PARAMETERS + retrain)
    (folder / "profiles.yaml").write_text("long: {hours: 3, seeds: [1, 2]}")
    some = dict.fromkeys(runs.FIELDS, 0) | {"added": "mak", "schedule": "epochs", "budget": 9, "split": 1, "recipe": runs.RECIPE}
    for seed, digest in ((1, "a"), (1, "b"), (2, "a")):
        finish(runs.Run(**some | {"seed": seed, "images": digest}), seconds=60)
    assert main(["long", "--dry-run"], folder) == 0
    assert "runs done 3, missing 1" in capsys.readouterr().out


def test_images_decide_freshness_wherever_a_parameter_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    for name in ("mine.zip", "pool/a/1.png", "pool/2.png", "scenes.zip", "unnamed.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    seen = images({"dataset": "mine.zip/seed", "outsiders": ["pool", "letters", "scenes.zip"], "lists": "", "seeds": [1], "rate": 0.5})
    assert [Path(file).relative_to(tmp_path).as_posix() for file, *_ in seen] == ["mine.zip", "pool/2.png", "pool/a/1.png", "scenes.zip"]


def finish(run, seconds):
    """Put a finished run on disk without running anything."""
    folder = runs.Results("long").folder(run)
    runs.write(folder / "run.json", json.dumps(asdict(run)))
    runs.write(folder / "done.json", json.dumps({"seconds": seconds}))


# The shell and Jupyter ------------------------------------------------------------------------------------------------

def test_run_all_works_from_any_folder_and_hands_arguments_on(tmp_path):
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([paths.ROOT / "run_all.sh", "--no-setup", "no-such-profile"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PATH": search, "LONGTAIL_OUTPUT": str(tmp_path)})
    assert done.returncode == 2 and "no profile no-such-profile" in done.stderr
    assert not list(tmp_path.iterdir())


def test_jupyterlab_starts_and_lists_the_notebooks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={paths.ROOT}"]
    with open(tmp_path / "log", "w") as log:
        lab = subprocess.Popen(command, env={**os.environ, **folders}, stdout=log, stderr=log)
    try:
        listed = patient(f"http://127.0.0.1:{port}/api/contents/notebooks?token={token}", lab)
        assert {path.name for path in paths.NOTEBOOKS.glob("*.ipynb")} <= {entry["name"] for entry in listed["content"]}
    finally:
        lab.terminate()
        lab.wait(20)


def patient(address, process):
    """JSON from a server of ours that is still starting."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(120):
        assert process.poll() is None, "jupyter lab ended by itself"
        try:
            return json.load(direct.open(address, timeout=10))
        except urllib.error.URLError:
            time.sleep(0.5)
    raise TimeoutError(address)
