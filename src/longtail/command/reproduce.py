"""Runs the notebooks of a profile, or picks from one's own images; refuses what it does not know,
and redoes nothing that is fresh.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from longtail.command import estimate, execution, profiles
from longtail.store import paths
from longtail.store.settings import Damaged, Refused, read_value, read_yaml, template

STOPPED = "stopped; finished runs and checkpoints are kept, the same command goes on from them"
EPILOG = """run_all.sh itself takes, before everything else:
  --test [ARGS]         lint and tests, with pytest's arguments
  --no-setup            use the python3 that is there instead of making .venv; for bare GPU nodes

examples:
  ./run_all.sh                          the demo: all notebooks, no download
  ./run_all.sh cifar10-small --redraw   figures, tables and claims from the shipped rows
  ./run_all.sh 04 -p phi_views 6        one notebook with another value, in results/demo-custom
  ./run_all.sh mine.yaml                a profile of your own, or picks from your own images
"""


@dataclass
class Plan:
    """One invocation: where the results go, and each selected notebook with the values it is
    given.
    """

    profile: str
    about: str
    hours: float
    usual: list  # (notebook, values) of all there are, as the profile has them
    jobs: list  # (notebook, values) of the selected ones
    folder: Path  # executed copies, HTML, the record of what is fresh
    changes: dict  # what -p says


def make_plan(words, changes, folder, names=True):
    """Everything an invocation will do, checked before anything is written; ``names=False`` leaves
    names to a later look.
    """
    notebooks, known = profiles.notebooks_of(folder), read_yaml(folder / "profiles.yaml")
    profile, written = profiles.find_profile(words, folder)
    numbers = [word for word in words if word.isdigit()]
    listed = (
        written.get("notebooks") if isinstance(written.get("notebooks"), list) else []
    )  # else the schema tells
    selected = profiles.select(numbers or [str(number) for number in listed], notebooks)
    said, changed = profiles.settled(
        profile, written, changes, notebooks, selected, {"demo": None, **known}, names
    )
    name = profile + (profiles.CUSTOM if changed else "")
    jobs = [(book, {**book.own(said), **book.own(changed), "profile": name}) for book in selected]
    return Plan(
        name,
        said.get("about", ""),
        said.get("hours", 0.0),
        [(book, book.own(said)) for book in notebooks],
        jobs,
        paths.RESULTS / name / "notebooks",
        changed,
    )


def has_run(options, notebooks):
    """Whether all that is asked for was run before with the same values: they named what there is,
    and need no look at the rooms.
    """
    if options.dry_run or options.plain or options.redraw:
        return False
    try:
        plan = make_plan(options.words, options.p, notebooks, names=False)
    except Refused:  # to be told together with the names that do not exist
        return False
    return len(execution.fresh(plan)) == len(plan.jobs)


@contextlib.contextmanager
def customised(plan):
    """Forget what other values of -p left in the plan of a custom profile, so that it starts from
    its profile's; no run is lost.

    Held until the command has ended: commands with the same values share the profile, one with
    others is refused.
    """
    note, changes = (
        plan.folder.parent / "changes.json",
        json.dumps(plan.changes, indent=1, sort_keys=True),
    )
    if not plan.changes:
        yield
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    with open(note, "a+", encoding="utf-8", errors="replace") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        if file.read() != changes:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"another command runs {plan.profile} with other values of -p; wait for it to "
                    "end"
                ) from None
            (note.parent / "plan.json").unlink(missing_ok=True)
            file.truncate(0)
            with paths.writing(note, len(changes)):
                file.write(changes)
                file.flush()
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def dry_run(plan):
    """Print what would run, what is fresh, which runs are done and missing, and how long the rest
    may take.
    """
    ran, done, asked = execution.past_runs(plan), estimate.finished_runs(), []
    fresh = execution.fresh(plan) if installed() else set()
    wanted = estimate.wanted if installed() else lambda values: []
    for notebook, values in plan.jobs:
        word = "fresh" if notebook.name in fresh else "stale" if notebook.name in ran else "new"
        runs = estimate.Expected(wanted(only(notebook, merged(plan.usual + plan.jobs))), done)
        asked += runs.asked
        print(
            f"{notebook.name:<16} {word:<6} runs done {runs.done}, missing {len(runs.missing)}  ",
            *(
                f"{name}={json.dumps(value, ensure_ascii=False)}"
                for name, value in values.items()
                if value != notebook.defaults[name]
            ),
        )
    if not installed():
        print(
            "runs are counted, and names checked, once the packages are there; the profile states "
            f"{plan.hours:g} hours for all of it"
        )
        return 0
    everything = [
        run for notebook, _ in plan.usual for run in wanted(only(notebook, merged(plan.usual)))
    ]
    print(estimate.Expected(asked, done).told(everything, plan.hours))
    return 0


def installed():
    """Whether the packages of the notebooks are there, as they are not before the first run on a
    fresh clone.
    """
    return importlib.util.find_spec("torch") is not None


def merged(jobs):
    """The parameters of several notebooks in one dict, later ones over earlier ones, what is given
    over what is default.
    """
    defaults = {
        name: value for notebook, _ in reversed(jobs) for name, value in notebook.defaults.items()
    }
    return defaults | {name: value for _, values in jobs for name, value in values.items()}


def only(notebook, values):
    """The ``values``, but lists of runs only where they are the notebook's own."""
    return {
        name: value
        for name, value in values.items()
        if name in notebook.kinds or name not in estimate.LISTS
    }


def pick_own(name, settings, options):
    """Pick from images of one's own as the file asks, or print what lies in its places and what
    would be done.
    """
    from longtail.own import pool, request
    from longtail.store.runs import claim

    numbers = [word for word in options.words if word.isdigit()]
    if numbers:
        raise Refused(
            f"{name} names images of your own, which no notebook reads; leave out "
            f"{' '.join(numbers)}"
        )
    [file] = options.words
    asked = request.ask(name, settings | options.p, Path(file).parent, settings.lines)
    if options.dry_run:
        for key in request.ASKED:
            print(f"{key:<16} {getattr(asked, key)}")
        return 0 if execution.attempt(name, partial(pool.preview, asked)) else 1
    settle(name, file, paths.RESULTS / name)
    with claim(paths.RESULTS / name, wait=True, name="claim-picks"):  # a second command waits
        return 0 if execution.attempt(name, partial(pool.make, asked)) else 1


def taken(name, file):
    """Refuse a file whose results would overwrite those of another file with the same name."""
    note = paths.RESULTS / name / "made_for.txt"
    if (
        note.exists()
        and (other := Path(note.read_text("utf-8", "replace").strip())) != Path(file).absolute()
        and other.exists()
    ):
        raise Refused(
            f"results/{name} holds what {other} asked for; give {file} another name, or delete "
            "that folder"
        )


def settle(name, file, *folders):
    """Note which file these results were made for, and have git ignore the folders."""
    for folder in folders:
        if not (folder / ".gitignore").exists():
            with paths.in_part(folder / ".gitignore", 2) as part:
                part.write_text("*\n")
    note = paths.RESULTS / name / "made_for.txt"
    content = os.fsencode(f"{Path(file).absolute()}\n")
    if not note.exists() or note.read_bytes() != content:  # results may be there to read only
        with paths.in_part(note, len(content)) as part:
            part.write_bytes(content)


def print_schema(kind, notebooks):
    """Print what a profile or a request may say: names, defaults, ranges, help, as a file to start
    from or as JSON schema for editors.
    """
    if kind != "profile":
        from longtail.own import request

        print(
            template(request.Settings)
            if kind == "request"
            else json.dumps(request.Settings.model_json_schema(), indent=1)
        )
    else:
        print(template(profiles.profile_schema(profiles.notebooks_of(notebooks))))
    return 0


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the usage."""

    def error(self, message):
        raise Refused(f"{message}; --help lists what there is")


def parse(arguments):
    """The command line as a namespace; values of -p are read as YAML."""
    parser = Parser(
        prog="run_all.sh",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="profile, file.yaml or NN",
        help="a profile (demo), then numbers of notebooks (all)",
    )
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="change a parameter; VALUE is YAML",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only list notebooks, parameters, runs done and missing, hours",
    )
    parser.add_argument(
        "--plain", action="store_true", help="run the cells in this process, without Jupyter"
    )
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="draw figures and tables anew from the rows that are there: no data, no weights, no "
        "training; figures made of pictures stay as they are",
    )
    parser.add_argument(
        "--schema",
        nargs="?",
        choices=("profile", "request", "request.json"),
        const="profile",
        help="print what a profile, or a request for picks from your own images, may say; "
        "request.json: for editors",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        options.p = {name: read_value(value) for name, value in options.p}
    except ValueError as error:
        raise Refused(f"-p: a value is no YAML: {error}") from None
    return options


def run(options, notebooks):
    """What the parsed command line asks for; returns the exit status."""
    if options.schema:
        return print_schema(options.schema, notebooks)
    profile, settings = profiles.find_profile(options.words, notebooks)
    file = next((word for word in options.words if profiles.is_file_name(word)), None)
    if file:
        taken(profile, file)
    if profiles.OWN & settings.keys():
        return pick_own(profile, settings, options)
    looks = options.dry_run and not installed()
    plan = make_plan(
        options.words, options.p, notebooks, names=not looks and not has_run(options, notebooks)
    )
    if options.dry_run:
        return dry_run(plan)
    with customised(plan):
        if file:
            settle(profile, file, paths.RESULTS / profile, paths.FIGURES / profile)
        if options.plain or options.redraw:
            return execution.run_plain(plan, options.redraw)
        return execution.run_notebooks(plan)


def main(arguments=None, notebooks=paths.NOTEBOOKS):
    """The command; returns its exit status: 0, 1 for what failed, 2 for a refused request, 130
    after Ctrl-C.
    """
    for name in ("LONGTAIL_OUTPUT", "LONGTAIL_DATA"):
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])  # kernels run in notebooks/
    try:
        return run(parse(arguments), notebooks)
    except Refused as error:
        return say(f"refused: {error}", 2)
    except Damaged as error:
        return say(f"stopped: {error}", 1)
    except KeyboardInterrupt:
        return say(STOPPED, 130)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python complains of it once more at its end
        return say("stopped: nobody reads the output any more", 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return say(
            f"stopped: {place}{error.strerror or error}; free it, or set LONGTAIL_OUTPUT to a "
            "folder that can be written",
            1,
        )


def say(message, status):
    """Print how the command ended, where anybody still listens; gives the status back."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
