"""One command makes everything once, keeps failures apart from successes and refuses what it does
not know.
"""

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
from pathlib import Path

import nbformat
import pytest
from conftest import PARAMETERS, reproduce

from longtail.command import estimate, profiles
from longtail.command.execution import alone, images
from longtail.command.reproduce import customised, main, make_plan
from longtail.store import paths, runs
from longtail.store.settings import Refused

STOP = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


# The demo -----------------------------------------------------------------------------------------
# --------------------


def test_demo_succeeds(demo):
    assert demo.first.status == 0, demo.first.err
    lines = [line for line in demo.first.out.splitlines() if line.endswith("runs made")]
    assert len(lines) == len(list(paths.NOTEBOOKS.glob("*.ipynb")))


def test_demo_leaves_executed_copies_and_pages_that_load_nothing(demo):
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        executed = demo.results / "notebooks" / path.name
        assert nbformat.read(executed, as_version=4).metadata.kernelspec.name == "python3"
        page = executed.with_suffix(".html").read_text()
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="?(https?:)?//', page), path.name
        assert (
            str(paths.ROOT) not in executed.read_text() + page
            and str(demo.root) not in executed.read_text() + page
        ), path.name
    assert not list(demo.results.glob("notebooks/*.failed.ipynb"))


def test_demo_index_leads_only_to_files_that_exist(demo):
    index = demo.results / "notebooks/index.html"
    links = re.findall(r'(?:href|src)="([^"]+)"', index.read_text())
    assert len(links) > len(list(paths.NOTEBOOKS.glob("*.ipynb")))
    assert all((index.parent / link.partition("#")[0]).exists() for link in links)


@pytest.mark.parametrize(
    "part, endings", [("figures", ("pdf", "png", "csv")), ("tables", ("csv", "md", "tex"))]
)
def test_demo_writes_each_figure_and_table_in_three_formats(demo, part, endings):
    folder = demo.figures if part == "figures" else demo.results / "tables"
    names = {path.stem for path in folder.iterdir()}
    assert names
    assert all((folder / f"{name}.{ending}").stat().st_size for name in names for ending in endings)


def test_demo_document_and_tables_hold_only_signs_that_latex_has(demo):
    files = [demo.results / "notebooks/document.tex", *demo.results.glob("tables/*.tex")]
    assert len(files) > 3 and all(file.read_text().isascii() for file in files)


def test_demo_judges_the_claims(demo):
    text = (demo.results / "claims.csv").read_text()
    assert text.startswith(
        "id,claim,paper,primary,effect,low,high,n,paper_effect,mde,n_needed,verdict,"
    )
    assert re.search("supported|contradicted|smaller|undecided", text)


def test_second_pass_makes_nothing_and_takes_a_fraction(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.root.rglob("*.ipynb")}
    runs = {path: path.read_bytes() for path in demo.results.glob("runs/*/done.json")}
    second = reproduce(output=demo.root)
    assert second.status == 0, second.err
    assert (
        second.out.count("fresh") == len(list(paths.NOTEBOOKS.glob("*.ipynb")))
        and "made" not in second.out
    )
    assert {path: path.stat().st_mtime_ns for path in demo.root.rglob("*.ipynb")} == before
    assert {path: path.read_bytes() for path in demo.results.glob("runs/*/done.json")} == runs
    assert second.seconds < min(60, demo.first.seconds / 4)


def test_dry_run_of_the_finished_demo_finds_every_run(demo):
    dry = reproduce("--dry-run", output=demo.root)
    assert dry.status == 0 and "0 runs missing" in dry.out, dry.out + dry.err
    assert re.search(r"runs done [1-9]", dry.out)


def test_figures_and_tables_are_redrawn_from_rows_alone(demo):
    names = ["pretrain_loss", "accuracy_by_group", "phi", "composition", "sampling_gain"]
    names += ["diversity", "objective", "table_methods", "table_samplers", "claims_primary"]
    drawn = {demo.figures / f"{name}.{end}" for name in names for end in ("pdf", "png", "csv")}
    before = {file: file.read_bytes() for file in [*drawn, *demo.results.rglob("*.csv")]}
    for file in drawn:
        file.unlink()
    barred = "from longtail.images import studies; studies.study = None\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            barred + "from longtail.command.reproduce import main; main(['--redraw'])",
        ],
        env=os.environ | {"LONGTAIL_OUTPUT": str(demo.root), "LONGTAIL_DATA": str(demo.root)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode and "failed" not in done.stderr, done.stderr
    assert {file: file.read_bytes() for file in before} == before


# Throw-away notebooks
# -------------------------------------------------------------------------------------------------


def ran(folder, profile="demo"):
    """Names of the notebooks and their pages that an invocation left beside the results."""
    return sorted(
        path.name
        for path in (folder.parent / "results" / profile / "notebooks").iterdir()
        if path.name[0].isdigit()
    )


@pytest.mark.parametrize(
    "cell, error",
    [
        ("raise ValueError('no such\\nclass')", "ValueError: no such class"),
        (STOP, "DeadKernelError"),
    ],
)
def test_failed_or_killed_notebook_is_kept_as_failed(book, capfd, cell, error):
    book("01_good", "print(seeds)")
    book("02_bad", cell)
    folder = book("03_never")
    assert main([], folder) == 1
    assert ran(folder) == ["01_good.html", "01_good.ipynb", "02_bad.failed.ipynb"]
    assert f"\n02_bad failed: {error}" in "\n" + capfd.readouterr().err


def test_figures_are_in_the_executed_copy_whatever_back_end_is_set(book, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    folder = book(
        "01_draws",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nfirst = plt.gcf()",
        "assert plt.gcf() is not first",
    )
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


def test_broken_notebook_keeps_its_old_copy_beside_the_failure(book, capsys):
    folder = book("01_once", "print(seeds)")
    assert main([], folder) == 0
    executed = paths.RESULTS / "demo/notebooks/01_once.ipynb"
    before = executed.read_bytes()
    book("01_once", "nothing")
    assert main([], folder) == 1
    assert (
        ran(folder) == ["01_once.failed.ipynb", "01_once.html", "01_once.ipynb"]
        and executed.read_bytes() == before
    )
    capsys.readouterr()
    assert (
        main([], folder) == 1 and "fresh" not in capsys.readouterr().out
    )  # the old copy does not pass for the new notebook's


def test_executed_again_a_notebook_is_the_same_bytes_and_bars_go_to_the_terminal(book, capfd):
    cells = [
        "print(object())",
        "import pandas as pd\npd.DataFrame({'a': [1]}).style",
        "import sys, time\nprint(50, '%', sep='', file=sys.stderr)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])",
        "for k in range(3):\n    print(k, flush=True)\n    time.sleep(0.3)",
    ]
    folder = book("01_shows", *cells)
    executed = paths.RESULTS / "demo/notebooks/01_shows.ipynb"
    copies = []
    for _ in range(2):
        assert main([], folder) == 0
        copies.append(executed.read_bytes())
        (paths.RESULTS / "demo/notebooks/record.json").unlink()
    assert copies[0] == copies[1] and b"object object" in copies[0] and b"50%" not in copies[0]
    assert "50%" in capfd.readouterr().err


def test_a_cell_that_needs_images_is_left_out_when_figures_are_redrawn(book, capsys):
    folder = book("01_draws", "drawn = []", "drawn = 1 / 0", "print('drawn', drawn)")
    book("02_reads", "1 / 0")
    for name, number in (("01_draws", 2), ("02_reads", 1)):
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        code[number].metadata["tags"] = ["images"]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    assert main(["--redraw"], folder) == 0
    assert "drawn []" in capsys.readouterr().out
    assert main(["--plain"], folder) == 1


def test_what_is_known_of_a_notebook_outlives_a_run_that_fails(book):
    folder = book("01_fails", "1 / float(rate)")
    assert main([], folder) == 0
    known = (paths.RESULTS / "demo/notebooks/record.json").read_bytes()
    folder = book("01_fails", "1 / 0")
    assert main([], folder) == 1
    assert (paths.RESULTS / "demo/notebooks/record.json").read_bytes() == known


def test_a_silent_notebook_says_where_it_is(book, capfd, monkeypatch):
    monkeypatch.setattr("longtail.command.execution.QUIET_SECONDS", 1)
    assert main([], book("01_sleeps", "import time\ntime.sleep(4)")) == 0
    assert re.search(r"01_sleeps +\d+ s, cell \d of \d: A title", capfd.readouterr().err)


def test_changed_result_or_notebook_makes_it_stale(book, capsys):
    folder = book(
        "01_writes", "from pathlib import Path\nPath('../results/demo/rows.csv').write_text('1')"
    )
    assert main([], folder) == main([], folder) == 0
    assert "fresh" in capsys.readouterr().out
    (folder.parent / "results/demo/rows.csv").write_text("2")
    assert main([], folder) == 0
    assert "made" in capsys.readouterr().out


def test_plain_gives_parameters_and_leaves_figures_apart(book, capfd):
    cells = (
        "import matplotlib.pyplot as plt\nplt.plot(seeds)",
        "assert not plt.gca().lines\ndisplay(profile, seeds, rate, float)",
    )
    folder = book("01_plain", *cells)
    assert main(["long", "--plain", "-p", "seeds", "[3]"], folder) == 0
    assert capfd.readouterr().out.startswith("long-custom [3] 1.0")
    assert [path.name for path in (folder.parent / "results").rglob("*.*")] == ["changes.json"]


@pytest.mark.parametrize("cell", ["rate / 0", "raise SystemExit(0)"])
def test_plain_failure_is_one_line_with_its_place(book, capsys, cell):
    assert main(["--plain"], book("01_plain", "rate", cell)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("01_plain failed: ") and line.endswith("(cell 4, line 1)")


@pytest.mark.parametrize(
    "arguments, profile",
    [
        (["long"], "long"),
        (["long", "-p", "seeds", "[2]"], "long-custom"),
        (["long", "-p", "rate", "2e-3"], "long-custom"),
        (["-p", "seeds", "[2]"], "demo-custom"),
    ],
)
def test_changed_parameters_write_beside_the_profile(book, capfd, arguments, profile):
    assert (
        main([*arguments, "--plain"], book("01_says", "print(profile, type(rate).__name__)")) == 0
    )
    assert capfd.readouterr().out.startswith(f"{profile} float")


def test_a_changed_parameter_reads_what_is_upstream_and_writes_beside(book, capsys):
    upstream = "from longtail.store import runs\nresults = runs.Results(profile)\nresults.keep('data', {'seeds': seeds})"
    downstream = (
        "from longtail.store import runs\nresults = "
        "runs.Results(profile)\nprint(results.kept('data'), views)\n"
        "results.keep('picking', {'views': views})"
    )
    book("01_data", upstream)
    folder = book("04_ecle", downstream, parameters=PARAMETERS + "\nviews: int = 5  # of each")

    def run(*words):
        assert main([*words, "--plain"], folder) == 0
        return capsys.readouterr().out

    run()
    plan = (paths.RESULTS / "demo/plan.json").read_bytes()
    assert "{'seeds': [1, 2]} 6" in run("04", "-p", "views", "6")
    assert "{'seeds': [2]} 5" in run("-p", "seeds", "[2]")
    assert "{'seeds': [1, 2]} 7" in run(
        "04", "-p", "views", "7"
    )  # not what the command before left
    assert (paths.RESULTS / "demo/plan.json").read_bytes() == plan
    assert runs.Results("demo-custom").kept("picking") == {"views": 7} and runs.Results(
        "demo"
    ).kept("picking") == {"views": 5}


def test_own_profile_starts_from_a_base(book, capfd, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: long\nseeds: [7]\n")
    assert (
        main(
            [str(tmp_path / "mine.yaml"), "--plain"], book("01_says", "print(profile, seeds, rate)")
        )
        == 0
    )
    assert capfd.readouterr().out.startswith("mine [7] 1.0")


def test_files_of_one_name_in_two_folders_do_not_share_results(book, capsys, tmp_path):
    folder = book("01_says", "print(seeds)")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text("base: long\n")
    assert main([str(tmp_path / "here/mine.yaml"), "--plain"], folder) == 0
    assert main([str(tmp_path / "there/mine.yaml"), "--plain"], folder) == 2
    assert (
        f"results/mine holds what {tmp_path / 'here/mine.yaml'} asked for"
        in capsys.readouterr().err
    )
    assert main([str(tmp_path / "here/mine.yaml"), "--plain"], folder) == 0


def test_a_second_command_waits_for_the_notebooks_of_the_first(book, capsys):
    folder, ended = book("01_says", "print(seeds)"), []
    with alone(paths.RESULTS / "demo/notebooks"):
        second = threading.Thread(target=lambda: ended.append(main([], folder)))
        second.start()
        second.join(3)
        assert (
            second.is_alive()
            and not ended
            and not list((paths.RESULTS / "demo/notebooks").glob("*.ipynb"))
        )
    second.join(120)
    assert ended == [0] and (paths.RESULTS / "demo/notebooks/01_says.ipynb").exists()
    assert "another command runs notebooks of demo; waiting" in capsys.readouterr().out


def test_commands_with_other_values_do_not_forget_each_others_plan(book, capsys):
    """Those with the same values share a custom profile; one with others is refused while they run,
    and takes it over afterwards.
    """
    folder = book(
        "01_says",
        "from longtail.store import runs\nruns.Results(profile).keep('data', {'seeds': seeds})",
    )
    with customised(make_plan([], {"seeds": [2]}, folder)):
        assert main(["--plain", "-p", "seeds", "[2]"], folder) == 0
        before = (paths.RESULTS / "demo-custom/plan.json").read_bytes()
        assert main(["--plain", "-p", "seeds", "[3]"], folder) == 2
        assert (
            capsys.readouterr().err
            == "refused: another command runs demo-custom with other values of -p; wait for it to end\n"
        )
        assert (paths.RESULTS / "demo-custom/plan.json").read_bytes() == before
    assert main(["--plain", "-p", "seeds", "[3]"], folder) == 0
    assert runs.Results("demo-custom").kept("data") == {"seeds": [3]}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["huge"], "no profile huge; there are demo, long"),
        (["07"], "no notebook 07; there are 01_only"),
        (["-p", "epoch", "3"], "no setting epoch; there are rate, seeds"),
        (["-p", "profile", "x"], "no setting profile"),
        (["-p", "seeds", "3"], "seeds takes a list of whole numbers, not 3"),
        (["-p", "seeds", "[a]"], "seeds takes a list of whole numbers"),
        (["-p", "seeds", "[]"], "seeds is empty"),
        (["-p", "seeds", "[-1]"], "seeds is -1; it lies between 0 and"),
        (["-p", "rate", "fast"], "rate takes a number, not 'fast'"),
        (["-p", "rate", "yes"], "rate takes a number, not True"),
        (["-p", "rate", ".inf"], "rate"),
        (["-p", "rate"], "expected 2 arguments"),
        (["--fast"], "--fast"),
        (["demo", "long"], "one profile at a time"),
        (["--schema", "all"], "invalid choice"),
        (["-p", "rate", "{"], "YAML"),
        (["lost.yaml"], "lost.yaml cannot be read"),
        (["long.yaml"], "another name"),
        (["typo.yaml"], "line 1: no setting epoch"),
        (["short.yaml"], "no setting notebook"),
        (["odd.yaml"], "base takes text"),
        (["all.yaml"], "notebooks takes a list of text"),
        (["text.yaml"], "seeds takes a list of whole numbers, not '1'"),
        (["list.yaml"], "no mapping"),
        (["lift.yaml"], "base tall"),
        (["...yaml"], "give the file another name"),
        (["..yaml"], "give the file another name"),
        ([".yaml"], "give the file another name"),
        (["demo-custom.yaml"], "another name"),
        (["runs.yaml"], "another name"),
        (["a{b}.yaml"], "another name"),
    ],
)
def test_refused_in_one_line_and_nothing_written(
    book, capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "long": "",
        "typo": "epoch: 3",
        "text": "seeds: '1'",
        "list": "[1]",
        "lift": "base: tall",
        "short": "notebook: ['01']",
        "odd": "base: [1]",
        "all": "notebooks: 3",
        "..": "",
        ".": "",
        "": "",
        "demo-custom": "",
        "runs": "",
        "a{b}": "",
    }.items():
        Path(f"{name}.yaml").write_text(content)
    folder = book("01_only")
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments, folder) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_all_mistakes_are_told_at_once_with_their_lines(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("""base: cifar10-small
budget: 0
batch_size: 1
precision: bf16
selection: best
arms: [simclr longtail, nothing balanced]
methods: [simclrr]
outsider_count: -5
dataset: cifar11
architecture: resnet19
losses: ['vs beta=1']
tails: [exponential]
retrain: [mak beta=3]
protocols: [linear, guess]
policy: cifar_classifier
epoch: 3
""")
    assert main([str(file), "--dry-run"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "refused: mine has 15 mistakes:" and [
        int(line.split()[1].strip(":")) for line in lines
    ] == list(range(2, 17))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seeds": [1, 2]}, "3 splits and 2 seeds"),
        ({"epochs": 5}, "5 warm-up epochs leave nothing of 5 epochs"),
        ({"once": ["simclr long_tail epochs=4"]}, "leave nothing of 4"),
        ({"group_rule": "thresholds"}, "no class is many"),
        ({"factor": 0.001}, "a class without images"),
        ({"kind": "pareto_imagenet100"}, "table of 100 classes"),
        ({"supervised_seeds": [1]}, ""),
        ({"supervised_seeds": [1, 2]}, "6 splits and 2 seeds"),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_anything_runs(changes, words):
    if not words:
        make_plan([], changes, paths.NOTEBOOKS)
        return
    with pytest.raises(Refused, match=words):
        make_plan([], changes, paths.NOTEBOOKS)


def test_schema_is_a_file_to_start_from(capsys, tmp_path):
    assert main(["--schema"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^# budget: 100 +# a whole number from 1 to 1000000000; 05: images to pick$", printed, re.M
    )
    assert re.search(r"^# alpha: 0.3 +# a number from 0 to 1;", printed, re.M) and re.search(
        r"# float32 \| bfloat16 \| bfloat16_gpu;", printed
    )
    (tmp_path / "mine.yaml").write_text(printed.replace("# budget: 100", "budget: 7"))
    plan = make_plan([str(tmp_path / "mine.yaml")], {}, paths.NOTEBOOKS)
    assert [values for _, values in plan.jobs if len(values) > 1] == [
        {"budget": 7, "profile": "mine"}
    ]
    every = re.sub("(?m)^# (?=[a-z_]+: )", "", printed).replace('base: ""', "base: demo")
    (tmp_path / "mine.yaml").write_text(every)
    assert len(make_plan([str(tmp_path / "mine.yaml")], {}, paths.NOTEBOOKS).jobs) == len(
        list(paths.NOTEBOOKS.glob("*.ipynb"))
    )


def test_dry_run_counts_runs_and_hours(book, capsys):
    parameters = '\narms: list[str] = ["simclr long_tail"]  # which\nepochs: int = 5  # of each\ndataset: str = "digits"  # images'
    folder = book("01_trains", parameters=PARAMETERS + parameters)
    (folder / "profiles.yaml").write_text("long: {hours: 3, seeds: [1, 2, 3]}")
    assert main(["long", "--dry-run"], folder) == 0
    printed = capsys.readouterr().out
    assert "new    runs done 0, missing 3" in printed and "seeds=[1, 2, 3]" in printed
    assert "3 runs missing: about 3.0 hours, by the 3 hours that the profile states" in printed
    assert not (folder.parent / "results").exists()
    assert main(["long", "--dry-run", "-p", "epochs", "50"], folder) == 0
    assert "about 30 hours, by the 3 hours" in capsys.readouterr().out
    some = {
        "method": "simclr",
        "subset": "long_tail",
        "added": "none",
        "split": 1,
        "dataset": "digits",
    }
    finish(some | {"seed": 2, "epochs": 5}, seconds=1800)
    finish(some | {"seed": 3, "epochs": 6}, seconds=2160)
    assert main(["long", "--dry-run"], folder) == 0
    printed = capsys.readouterr().out
    assert (
        "runs done 1, missing 2" in printed
        and "2 runs missing: about 1.0 hours of one process, by finished runs like them" in printed
    )


def test_dry_run_counts_networks_with_labels_and_says_what_is_fresh(book, capsys):
    names = (
        "losses",
        "tails",
        "further_losses",
        "further_tails",
        "supervised_splits",
        "supervised_seeds",
        "supervised_size",
        "network",
        "supervised_epochs",
        "dataset",
    )
    kinds = {book.name: book for book in profiles.notebooks_of(paths.NOTEBOOKS)}["07_supervised"]
    lines = [f"{name}: {kinds.kinds[name]} = {kinds.defaults[name]!r}  # some" for name in names]
    folder = book("07_labels", parameters="\n".join([*PARAMETERS.splitlines(), *lines]))
    assert main(["--dry-run"], folder) == 0
    assert f"runs done 0, missing {6 * (11 + 2 * 2)}" in capsys.readouterr().out
    assert main([], folder) == main(["--dry-run"], folder) == 0
    assert "07_labels        fresh" in capsys.readouterr().out
    book("07_labels", "seeds", parameters="\n".join([*PARAMETERS.splitlines(), *lines]))
    assert main(["--dry-run"], folder) == 0
    assert "07_labels        stale" in capsys.readouterr().out


def test_rows_of_the_tables_are_counted_with_their_budgets():
    values = {
        "retrain": ["random", "mak", "mak alpha=0.5", "mak budget=40 ratio=2"],
        "equal_updates": ["mak"],
        "budget": 30,
        "alpha": 0.3,
        "ratio": 1.5,
        "prototypes": 10,
        "epochs": 5,
        "splits": [1],
        "seeds": [7],
    }
    assert [(row["added"], row["schedule"], row["budget"]) for row in estimate.wanted(values)] == [
        ("random", "epochs", 30),
        ("mak", "epochs", 30),
        ("mak", "epochs", 30),
        ("mak", "epochs", 40),
        ("mak", "updates", 30),
    ]
    apart = estimate.wanted(values | {"precision": "bfloat16", "picked_precision": "bfloat16_gpu"})
    assert {row["precision"] for row in apart} == {"bfloat16_gpu"} and apart[0]["added"] == "none"
    assert len(apart) == 6


def test_runs_alike_in_all_that_a_plan_tells_are_counted_apart():
    asked = [{"added": "mak", "epochs": 5, "seed": seed} for seed in (1, 2)] * 2
    counted = estimate.Expected(
        asked,
        [
            run | {"images": digest, "seconds": 1.0}
            for run, digest in zip(asked[:3], "abc", strict=True)
        ],
    )
    assert counted.done == 3 and counted.missing == [asked[1]]


def test_images_decide_freshness_wherever_a_parameter_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    for name in ("mine.zip", "pool/a/1.png", "pool/2.png", "scenes.zip", "unnamed.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    seen = images(
        {
            "dataset": "mine.zip/seed",
            "outsiders": ["pool", "letters", "scenes.zip"],
            "lists": "",
            "seeds": [1],
            "rate": 0.5,
        }
    )
    assert [Path(file).relative_to(tmp_path).as_posix() for file, *_ in seen] == [
        "mine.zip",
        "pool/2.png",
        "pool/a/1.png",
        "scenes.zip",
    ]


def finish(run, seconds):
    """Put a finished run on disk without running anything."""
    folder = paths.RESULTS / "runs" / f"seed{run['seed']}"
    runs.write(folder / "run.json", json.dumps(run))
    runs.write(folder / "done.json", json.dumps({"seconds": seconds}))


# The shell and Jupyter
# ------------------------------------------------------------------------------------------------


def test_run_all_works_from_any_folder_and_hands_arguments_on(tmp_path):
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [paths.ROOT / "run_all.sh", "--no-setup", "no-such-profile"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": search, "LONGTAIL_OUTPUT": str(tmp_path)},
    )
    assert done.returncode == 2 and "no profile no-such-profile" in done.stderr
    assert not list(tmp_path.iterdir())


def test_jupyterlab_starts_and_lists_the_notebooks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={paths.ROOT}",
    ]
    with open(tmp_path / "log", "w") as log:
        lab = subprocess.Popen(command, env={**os.environ, **folders}, stdout=log, stderr=log)
    try:
        listed = patient(f"http://127.0.0.1:{port}/api/contents/notebooks?token={token}", lab)
        assert {path.name for path in paths.NOTEBOOKS.glob("*.ipynb")} <= {
            entry["name"] for entry in listed["content"]
        }
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


# What people write --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "equal"),
    [
        ("schedules: [epochs]", []),
        ("schedules: [epochs, updates]\nretrain: [mak]", ["mak"]),
        ("schedules: [updates, epochs]", ["random", "k_center", "mak"]),
        ("equal_updates: [mak]", ["mak"]),
    ],
)
def test_a_profile_of_an_earlier_version_is_read_in_todays_words(tmp_path, lines, equal):
    (tmp_path / "mine.yaml").write_text(f"base: demo\nkind: as_is\n{lines}\n")
    plan = make_plan([str(tmp_path / "mine.yaml"), "05"], {}, paths.NOTEBOOKS)
    [(_, parameters, *_)] = plan.jobs
    assert parameters["equal_updates"] == equal and "schedules" not in parameters


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("", "holds no settings"),
        ("# budget: 3\n", "holds no settings"),
    ],
)
def test_a_file_without_settings_runs_nothing(tmp_path, content, words):
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Refused, match=words):
        make_plan([str(file)], {}, paths.NOTEBOOKS)
