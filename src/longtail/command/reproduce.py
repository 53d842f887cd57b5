"""Runs the notebooks of a profile, or picks from one's own images; refuses what it does not know, and redoes nothing that is fresh."""

import argparse
import ast
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from longtail.store import paths
from longtail.store.settings import Refused, checked, read_yaml, refuse_unknown

RESERVED = {"about": "str", "hours": "float", "cores": "int", "gpus": "int", "base": "str", "notebooks": "list[str]"}   # no parameters
OWN = {"seed_images", "pool_images"}    # a file that names one of them asks for picks from images of one's own
RECORDED = {".csv", ".json", ".md", ".tex", ".pdf", ".png"}         # files that decide whether a notebook is fresh


class Notebook:
    """What is known of a notebook before it runs: title, question, its parameters' kinds and defaults."""

    def __init__(self, path):
        self.path, self.name, self.number = path, path.stem, path.stem[:2]
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title, _, below = source(self.cells[0]).strip().partition("\n")
        question, mark, _ = below.partition("?")
        self.title, self.question = title.lstrip("# 0123456789"), " ".join(question.split()).strip("*_ ") + mark if mark else ""
        text = "\n".join(source(cell) for cell in self.cells if is_parameters(cell))
        parameters = [node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)]
        self.kinds = {node.target.id: ast.unparse(node.annotation) for node in parameters}
        self.defaults = {node.target.id: ast.literal_eval(node.value) for node in parameters}


@dataclass
class Plan:
    """One invocation: where the results go, and each selected notebook with the values it is given."""

    profile: str
    about: str
    hours: float | None
    usual: list             # (notebook, values) of all there are, as the profile has them
    jobs: list              # (notebook, values) of the selected ones
    folder: Path            # executed copies, HTML, the record of what is fresh


def source(cell):
    """A cell's text; the format allows one string or a list of lines."""
    return "".join(cell["source"])


def is_parameters(cell):
    """Whether papermill would put a profile's values after this cell."""
    return "parameters" in cell["metadata"].get("tags", [])


def find_profile(words, folder):
    """Name and flat settings of the profile among the command's words, or of a file of one's own that may start from a ``base``."""
    [word, *more] = [word for word in words if not word.isdigit()] or ["demo"]
    if more:
        raise Refused(f"one profile at a time, not {' and '.join([word, *more])}; notebooks are given by number, such as 02")
    known = {"demo": None, **read_yaml(folder / "profiles.yaml")}
    if not word.endswith((".yaml", ".yml")):
        if word not in known:
            raise Refused(f"there is no profile {word}; there are {', '.join(known)}, or give a file that ends in .yaml")
        return word, known[word] or {}
    name, settings = Path(word).stem, read_yaml(Path(word))
    if name in known or not re.fullmatch(r"[\w.-]+", name):
        raise Refused(f"{word} would write to results/{name}; give the file another name, of letters and digits, that no profile has")
    if OWN & settings.keys():
        return name, settings
    if (base := settings.get("base")) and base not in known:
        raise Refused(f"{word} has the base {base}, which does not exist; there are {', '.join(known)}")
    return name, {**(known[base] or {} if base else {}), **settings}


def select(words, notebooks):
    """The notebooks of the given numbers, all of them when there are none."""
    if unknown := (numbers := {word.zfill(2) for word in words}) - {notebook.number for notebook in notebooks}:
        raise Refused(f"there is no notebook {', '.join(sorted(unknown))}; there are {', '.join(book.name for book in notebooks)}")
    return [notebook for notebook in notebooks if not numbers or notebook.number in numbers]


def narrows(old, changes):
    """Whether changed values only leave out some of a list, and splits and seeds still go together as they did."""
    if not all(value == old[name] or (isinstance(value, list) and value and all(item in old[name] for item in value))
               for name, value in changes.items()):
        return False
    if not changes.keys() & {"splits", "seeds"} or not old.keys() >= {"splits", "seeds"}:
        return True
    from longtail.store.runs import pairs
    try:
        return set(pairs({**old, **changes}["splits"], {**old, **changes}["seeds"])) <= set(pairs(old["splits"], old["seeds"]))
    except ValueError as error:
        raise Refused(str(error)) from None


def make_plan(words, overrides, folder):
    """Everything an invocation will do, checked before anything is written."""
    notebooks = [Notebook(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    profile, settings = find_profile(words, folder)
    about = checked(RESERVED, settings)
    refuse_unknown(settings.keys() - RESERVED.keys(), parameters_of(notebooks), f"profile {profile}: no notebook has a parameter")
    usual = {notebook.name: checked(notebook.kinds, settings) for notebook in notebooks}
    selected = select([word for word in words if word.isdigit()] or about.get("notebooks", []), notebooks)
    refuse_unknown(overrides, parameters_of(selected), "-p: no notebook has a parameter")
    changed = [(notebook, checked(notebook.kinds, overrides)) for notebook in selected]
    if not all(narrows({**book.defaults, **usual[book.name]}, values) for book, values in changed):
        profile += "-custom"
    jobs = [(book, {**usual[book.name], **values, "profile": profile}) for book, values in changed]
    everything = [(book, usual[book.name]) for book in notebooks]
    return Plan(profile, about.get("about", ""), about.get("hours"), everything, jobs, paths.RESULTS / profile / "notebooks")


def parameters_of(notebooks):
    """Names of what can be asked of them; the profile is not."""
    return {name for notebook in notebooks for name in notebook.kinds} - {"profile"}


def finished():
    """The names of all runs that are done, of whatever profile."""
    return {mark.parent.name for mark in (paths.RESULTS / "runs").glob("*/done.json")}


def state(profile):
    """Digest of all that the notebooks of a profile have written and asked for, without the notebooks' own copies."""
    from longtail.store.runs import Results
    digest = hashlib.sha256()
    own = [path for root in (paths.RESULTS / profile, paths.FIGURES / profile) for path in sorted(root.rglob("*"))
           if path.suffix in RECORDED and root / "notebooks" not in path.parents]
    for path in own + Results(profile).files():
        digest.update(f"{path.relative_to(paths.OUTPUT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def images(values):
    """Size and time of every file under the data folder that a parameter names, alone, in a folder, or as the zip it goes into."""
    listed = [item for value in values.values() for item in (value if isinstance(value, list) else [value])]
    named = [paths.DATA / item for item in listed if isinstance(item, str) and item]
    files = {file for path in named for file in (path, *path.parents, *path.rglob("*")) if file.is_file()}
    return sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def stamp(notebook, values, now):
    """Digest of all that decides a notebook's output: parameters, notebook, sources, images and the state of the results."""
    known = [values, now, images({**notebook.defaults, **values})]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode() + notebook.path.read_bytes())
    for path in sorted(one for kind in ("py", "csv", "html", "yaml") for one in (paths.ROOT / "src" / "longtail").rglob(f"*.{kind}")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def execute(notebook, values, executed):
    """Run one notebook; ``executed`` appears only if every cell succeeded, whatever the output file itself says."""
    import nbformat
    import papermill

    from longtail.command import pages
    for old in (executed, executed.with_suffix(".html")):
        old.unlink(missing_ok=True)
    attempt = executed.with_suffix(".failed.ipynb")
    papermill.execute_notebook(str(notebook.path), str(attempt), values, kernel_name="python3", cwd=str(notebook.path.parent),
                               coalesce_streams=True, start_timeout=180, progress_bar=False,
                               extra_arguments=["--log-level=CRITICAL"])   # kernels warn that loopback is not encrypted
    done = nbformat.read(attempt, as_version=4)
    del done.metadata["papermill"]          # holds this machine's folders
    nbformat.write(done, attempt)
    pages.write_page(done, notebook.title, executed.with_suffix(".html"))
    attempt.replace(executed)


def execute_plain(notebook, values):
    """Run the code cells of one notebook in this process, as a kernel would but without Jupyter."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    namespace = {"__name__": "__main__", "display": print}
    with contextlib.chdir(notebook.path.parent):
        for number, cell in enumerate(notebook.cells, 1):
            if cell["cell_type"] == "code":
                exec(compile(source(cell), f"{notebook.name} cell {number}", "exec"), namespace)
                namespace.update(values if is_parameters(cell) else {})
                pyplot.close("all")             # as the inline back end does: the next plot gets a figure of its own


def explain(error):
    """The last line of a traceback, with the cell it came from where that is known."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if " cell " in frame.filename]
    where = f" (cell {places[-1].filename.split()[-1]}, line {places[-1].lineno})" if places else ""
    return f"{kind}: {' '.join(str(text).split())}{where}"


def attempt(name, profile, work):
    """Do the work and say how it went in one line; returns the same as data, or nothing when it failed."""
    before, began = finished(), time.perf_counter()
    try:
        work()
    except (Exception, SystemExit) as error:
        print(f"{name} failed: {explain(error)}", file=sys.stderr)
        return None
    from longtail.store.runs import Results
    entry = {"seconds": round(time.perf_counter() - began, 1), "reused": len(before & set(Results(profile).names())),
             "made": len(finished() - before)}
    print(f"{name:<16} {entry['seconds']:7.1f} s   runs reused {entry['reused']}, made {entry['made']}", flush=True)
    return entry


def run_plain(plan):
    """Run the selected notebooks without Jupyter; the first failure ends it. Under torchrun only the first process speaks."""
    with contextlib.redirect_stdout(sys.stdout if os.environ.get("RANK", "0") == "0" else io.StringIO()):
        succeeded = all(attempt(book.name, plan.profile, partial(execute_plain, book, values)) for book, values in plan.jobs)
        return 0 if succeeded else 1


@contextlib.contextmanager
def alone(folder):
    """Hold the notebooks of a profile: a second command waits, so that neither undoes the other's copies and record."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another command runs notebooks of {folder.parent.name}; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_notebooks(plan):
    """Run the selected notebooks that are not fresh, each in a kernel of its own; the first failure ends it."""
    with alone(plan.folder):
        return run_held(plan)


def run_held(plan):
    """``run_notebooks`` for the command that holds them."""
    os.environ.pop("MPLBACKEND", None)      # kernels inherit it; another back end than theirs would keep the figures out of the pages
    record = plan.folder / "record.json"
    known, succeeded = json.loads(record.read_text()) if record.exists() else {}, []
    try:
        for notebook, values in plan.jobs:
            executed, entry = plan.folder / f"{notebook.name}.ipynb", known.pop(notebook.name, {})
            if executed.exists() and entry.get("stamp") == stamp(notebook, values, state(plan.profile)):
                print(f"{notebook.name:<16} fresh", flush=True)
            else:
                entry = attempt(notebook.name, plan.profile, partial(execute, notebook, values, executed))
            if not entry:
                print(f"see {os.path.relpath(executed.with_suffix('.failed.ipynb'))}", file=sys.stderr)
                return 1
            known[notebook.name] = entry
            succeeded.append((notebook, values))
        return 0
    finally:
        now = state(plan.profile)       # what they wrote together is what they are fresh against
        for notebook, values in succeeded:
            known[notebook.name]["stamp"] = stamp(notebook, values, now)
        record.with_suffix(".part").write_text(json.dumps(known, indent=1, sort_keys=True))
        record.with_suffix(".part").replace(record)
        from longtail.command.pages import write_index
        print(write_index(plan, known), flush=True)


def wanted(values, replicates):
    """The runs a notebook makes, each as fields that tell it from most others: the arms of 02, the retrained rows of 05."""
    from longtail.store.arms import read_arm, read_line
    arms = [({"added": "none", "epochs": values["epochs"], **read_arm(arm)[0]}, pairs)
            for key, pairs in (("arms", replicates), ("once", replicates[:1])) for arm in values.get(key, [])]
    picked = [({"added": row.split()[0], "schedule": schedule, "budget": int(read_line(row)[1].get("budget", values["budget"]))},
               replicates) for key, schedule in (("retrain", "epochs"), ("equal_updates", "updates")) for row in values.get(key, [])]
    return [{**run, "split": split, "seed": seed} for run, pairs in arms + picked for split, seed in pairs]


def dry_run(plan):
    """Print what would run, what is done and how long the rest may take."""
    from longtail.store import runs
    results, missing = runs.Results(plan.profile), 0
    known = {name: value for book, values in plan.usual + plan.jobs for name, value in {**book.defaults, **values}.items()}
    for notebook, values in plan.jobs:
        runs_of = wanted({**notebook.defaults, **values}, runs.pairs(known.get("splits", [1]), known.get("seeds", [1])))
        done = round(sum(min(1, len(results.done(**run)) / runs_of.count(run)) for run in runs_of))     # equal ones share what there is
        missing += len(runs_of) - done
        print(f"{notebook.name:<16} runs done {done}, missing {len(runs_of) - done}  ",
              *(f"{name}={json.dumps(value)}" for name, value in values.items() if value != notebook.defaults[name]))
    seconds = [results.ended(run)["seconds"] for run in results.done()]
    hours = missing * sum(seconds) / len(seconds) / 3600 if seconds else plan.hours or 0
    print(f"{missing} runs missing: {hours:.2g} hours", f"of one process, as {len(seconds)} took" if seconds else "in all, as stated")
    return 0


def pick_own(name, settings, options):
    """Pick from images of one's own as the file asks, or print what lies in its places and what would be done."""
    from longtail.own import pool, request
    numbers = [word for word in options.words if word.isdigit()]
    if numbers:
        raise Refused(f"{name} names images of your own, which no notebook reads; leave out {' '.join(numbers)}")
    [file] = options.words
    asked = request.ask(name, settings | options.p, Path(file).parent, settings.lines)
    if options.dry_run:
        for key in request.FIELDS:
            print(f"{key:<16} {getattr(asked, key)}")
        pool.preview(asked)
        return 0
    settle(name, file)
    return 0 if attempt(name, name, partial(pool.make, asked)) else 1


def taken(name, file):
    """Refuse a file whose results would overwrite those of another file with the same name."""
    note = paths.RESULTS / name / "made_for.txt"
    if note.exists() and (other := Path(note.read_text(encoding="utf-8").strip())) != Path(file).absolute() and other.exists():
        raise Refused(f"results/{name} holds what {other} asked for; give {file} another name, or delete that folder")


def settle(name, file):
    """Note which file of one's own a folder of results is for."""
    note = paths.RESULTS / name / "made_for.txt"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{Path(file).absolute()}\n", encoding="utf-8")


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line instead of the usage."""

    def error(self, message):
        raise Refused(f"{message}; --help lists what there is")


def parse(arguments):
    """The command line as a namespace; values of -p are read as YAML."""
    parser = Parser(prog="run_all.sh", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="profile, file.yaml or NN", help="a profile (demo), then numbers of notebooks (all)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change a parameter; VALUE is YAML")
    parser.add_argument("--dry-run", action="store_true", help="only list notebooks, parameters, runs done and missing, hours")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of files for images of one's own, for editors")
    parser.add_argument("--plain", action="store_true", help="run the cells in this process, without Jupyter")
    options = parser.parse_intermixed_args(arguments)
    try:
        options.p = {name: yaml.safe_load(value) for name, value in options.p}
    except yaml.YAMLError as error:
        raise Refused(f"-p: a value is no YAML: {' '.join(str(error).split())}") from None
    return options


def main(arguments=None, notebooks=paths.NOTEBOOKS):
    """The command; returns its exit status: 0, 1 for a failed notebook, 2 for a refused request."""
    for name in {"LONGTAIL_OUTPUT", "LONGTAIL_DATA"} & os.environ.keys():
        os.environ[name] = os.path.abspath(os.environ[name])        # kernels run in notebooks/
    try:
        options = parse(arguments)
        if options.schema:
            from longtail.own import request
            print(request.schema())
            return 0
        profile, settings = find_profile(options.words, notebooks)
        file = next((word for word in options.words if word.endswith((".yaml", ".yml"))), None)
        if file:
            taken(profile, file)
        if OWN & settings.keys():
            return pick_own(profile, settings, options)
        plan = make_plan(options.words, options.p, notebooks)
        if file and not options.dry_run:
            settle(profile, file)
        return (dry_run if options.dry_run else run_plain if options.plain else run_notebooks)(plan)
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished runs and checkpoints are kept, the same command goes on from them", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
