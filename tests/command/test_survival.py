"""The command on a bad day: killed, stopped, without git, without space, with damaged notes and
folders that are none.
"""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from longtail.command.reproduce import main
from longtail.store import paths, runs

SLEEPS = "import time\nfrom longtail.learn import train\ntrain.side_by_side(time.sleep, [(600,), (600,)], 2)"
CALL = "import sys, pathlib; from longtail.command.reproduce import main; sys.exit(main(sys.argv[2:], pathlib.Path(sys.argv[1])))"


@pytest.fixture
def start(tmp_path):
    """Starts the command on throw-away notebooks, in a process of its own, which ends with the
    test.
    """
    started = []

    def begin(folder, *words, **more):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "LONGTAIL_OUTPUT": str(tmp_path)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", CALL, folder, *words], env=environment, **pipes, **more
            )
        )
        return started[-1]

    yield begin
    for command in started:
        command.kill()


def of(output):
    """Processes that were started for these results."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("LONGTAIL_OUTPUT") == str(output)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition, seconds=400):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.5)
    return condition()


@pytest.mark.parametrize("mode", ["", "--plain"])
def test_nothing_is_left_of_a_killed_command(book, start, tmp_path, mode):
    command = start(book("01_trains", SLEEPS), *mode.split())
    workers = 4 if mode else 5  # the command, perhaps a kernel, the server of forks and two workers
    assert until(lambda: len(of(tmp_path)) >= workers), of(tmp_path)
    command.kill()
    command.communicate()
    assert until(lambda: not of(tmp_path), 60), of(tmp_path)


@pytest.mark.parametrize("mode", ["", "--plain"])
def test_ctrl_c_ends_with_its_sentence(book, start, tmp_path, mode):
    command = start(book("01_trains", SLEEPS), *mode.split(), start_new_session=True)
    assert until(lambda: len(of(tmp_path)) >= (4 if mode else 5))
    time.sleep(2)
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=200)
    assert command.returncode == 130 and "Traceback" not in out + err, err
    assert (
        err.splitlines()[-1].startswith("stopped; finished runs and checkpoints are kept")
        and err.count("stopped") == 1
    )
    assert until(lambda: not of(tmp_path), 60), of(tmp_path)


def test_output_that_nobody_reads_ends_in_one_line(book, start):
    command = start(book("01_says", "print(seeds)"))
    command.stdout.close()
    assert (
        command.stderr.read().splitlines()[-1] == "stopped: nobody reads the output any more"
        and command.wait() == 1
    )


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text(""), lambda path: path.symlink_to("nowhere/at/all")],
    ids=["a file", "a dangling link"],
)
def test_what_is_no_folder_is_named_in_one_line(book, capsys, make):
    folder = book("01_says", "print(seeds)")
    make(paths.RESULTS)
    assert main([], folder) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped: {paths.RESULTS}") and "LONGTAIL_OUTPUT" in line


def test_empty_and_odd_folders_for_output(book, tmp_path, monkeypatch):
    folder = book("01_says", "print(seeds)")
    monkeypatch.setenv("LONGTAIL_OUTPUT", "")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "{a} {0} ü" / "results")
    assert main([], folder) == 0 and os.environ["LONGTAIL_OUTPUT"] == ""
    assert (tmp_path / "{a} {0} ü/results/demo/notebooks/01_says.ipynb").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"01_says": 3}', "\0"])
def test_a_damaged_record_is_no_record(book, capsys, content):
    folder = book("01_says", "print(seeds)")
    record = paths.RESULTS / "demo/notebooks/record.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    assert main([], folder) == 0 and "made" in capsys.readouterr().out
    assert json.loads(record.read_text())["01_says"]["stamp"]


def test_a_damaged_plan_ends_every_command_in_one_line(book, capsys):
    folder = book("01_says", "print(seeds)")
    assert main([], folder) == 0
    runs.Results("demo").keep("a", {})
    plan = paths.RESULTS / "demo/plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"settings", b"setting\xf3"))
    capsys.readouterr()
    for words in ([], ["--dry-run"], ["01"]):
        assert main(words, folder) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"stopped: {plan} is no whole JSON file")


@pytest.mark.parametrize("damage", [lambda text: text[:99], lambda text: text.replace("1", "7")])
def test_an_executed_copy_that_was_changed_is_made_again(book, capsys, damage):
    folder = book("01_says", "print(seeds)")
    book("02_says", "print(seeds)")
    assert main([], folder) == 0
    copies = [paths.RESULTS / f"demo/notebooks/0{number}_says.ipynb" for number in (1, 2)]
    whole = copies[0].read_text()
    for copy in copies:
        copy.write_text(damage(copy.read_text()))
    capsys.readouterr()
    assert main(["01"], folder) == 0  # the page of the other is made from its copy
    assert "fresh" not in capsys.readouterr().out and copies[0].read_text() == whole


def test_notes_that_are_no_text_are_no_notes(book, tmp_path, capsys):
    folder = book("01_says", "print(seeds)")
    (tmp_path / "mine.yaml").write_text("seeds: [3]")
    (paths.RESULTS / "mine").mkdir(parents=True)
    (paths.RESULTS / "mine/made_for.txt").write_bytes(b"\xff\xfe\0")
    (paths.RESULTS / "demo-custom").mkdir(parents=True)
    (paths.RESULTS / "demo-custom/changes.json").write_bytes(b"\xff\xfe\0")
    assert main([str(tmp_path / "mine.yaml")], folder) == 0
    assert main(["-p", "seeds", "[4]"], folder) == 0


def test_without_git_and_in_a_foreign_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    here = runs.machine()["commit"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit = [
        "git",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-C",
        str(tmp_path),
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "theirs",
    ]
    subprocess.run(commit, check=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "unpacked")
    paths.ROOT.mkdir()
    assert runs.machine()["commit"] == "unknown"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as a hook has it
    assert runs.machine()["commit"] == "unknown"
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert len(runs.machine()["commit"]) == 40 and runs.machine()["commit"] != here
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.machine()["commit"] == "unknown"


def test_a_full_disk_is_named_and_leaves_no_part(tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the write in the same
    way.
    """
    code = (
        f"import resource; from pathlib import Path; from longtail.store import runs\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"runs.write(Path({str(tmp_path)!r}) / 'small', b'x' * 999)\n"
        f"runs.write(Path({str(tmp_path)!r}) / 'large', b'x' * 2000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and f"writing 2000 bytes: '{tmp_path / 'large'}'" in done.stderr.splitlines()[-1]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_papermill_by_hand_works_in_any_folder(tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        paths.NOTEBOOKS / "01_data.ipynb",
        "out.ipynb",
        "-p",
        "profile",
        "by-hand",
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "LONGTAIL_OUTPUT": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "out.ipynb", "results"]


@pytest.mark.parametrize("output", [None, "", "x"])
def test_where_results_go(output, tmp_path):
    """An empty LONGTAIL_OUTPUT is none, and no folder that the command was started in."""
    environment = {name: value for name, value in os.environ.items() if name != "LONGTAIL_OUTPUT"}
    environment |= {} if output is None else {"LONGTAIL_OUTPUT": output}
    line = "from longtail.store import paths; print(paths.RESULTS)"
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str((tmp_path / "x" if output else paths.ROOT) / "results")
