"""Runs notebooks one after the other, in kernels or in this process, shows how far they are, and
knows which ones are fresh.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from functools import partial

from longtail.command.profiles import is_parameters, source
from longtail.store import paths

RECORDED = {
    ".csv",
    ".json",
    ".md",
    ".tex",
    ".pdf",
    ".png",
}  # files that decide whether a notebook is fresh
QUIET_SECONDS = 8  # of silence after which a running notebook says where it is
ADDRESS = re.compile(r"(<[\w.]+(?: object)?) at 0x[0-9a-f]+")
STYLED = re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-f])")  # pandas draws the id of a styled table


# ---- freshness


def state(profile):
    """Digest of all that the notebooks of a profile have written and asked for, without the
    notebooks' own copies.
    """
    from longtail.store.runs import Results

    digest, results = hashlib.sha256(), Results(profile)
    own = [
        path
        for root in (results.root, results.figures)
        for path in sorted(root.rglob("*"))
        if path.suffix in RECORDED and path.is_file() and root / "notebooks" not in path.parents
    ]
    for path in own + results.files():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.parent.name}/{path.name} {content}\n".encode())
    return digest.hexdigest()


def images(values):
    """Size and time of every file under the data folder that a parameter names, alone, in a folder,
    or as the zip it goes into.
    """
    listed = [
        item
        for value in values.values()
        for item in (value if isinstance(value, list) else [value])
    ]
    named = [paths.DATA / item for item in listed if isinstance(item, str) and item]
    files = {
        file for path in named for file in (path, *path.parents, *path.rglob("*")) if file.is_file()
    }
    return sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def stamp(notebook, values, now, executed):
    """Digest of all that decides a notebook's output, and of its executed copy: parameters,
    notebook, sources, images and the state of the results.
    """
    known = [values, now, images({**notebook.defaults, **values})]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode() + notebook.path.read_bytes())
    digest.update(executed.read_bytes())
    for path in sorted(
        one
        for kind in ("py", "csv", "html", "yaml")
        for one in (paths.ROOT / "src" / "longtail").rglob(f"*.{kind}")
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def past_runs(plan):
    """What is known of the notebooks that ran: name -> seconds, runs, stamp. A damaged record is
    none.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads((plan.folder / "record.json").read_text())
        if isinstance(known, dict) and all(isinstance(entry, dict) for entry in known.values()):
            return known
    return {}


def is_fresh(plan, notebook, values, entry, now):
    """Whether the executed copy shows what running it again would show, the results being in the
    state ``now``.
    """
    executed = plan.folder / f"{notebook.name}.ipynb"
    return executed.exists() and entry.get("stamp") == stamp(notebook, values, now, executed)


def fresh(plan):
    """Names of the notebooks that need not run again."""
    known = past_runs(plan)
    now = state(plan.profile) if known else ""
    return {
        book.name
        for book, values in plan.jobs
        if book.name in known and is_fresh(plan, book, values, known[book.name], now)
    }


# ---- one notebook


class Terminal(io.TextIOBase):
    """Where the bars of a running notebook go; after a silence it says itself how far the notebook
    is.
    """

    def __init__(self, name, copy, expected):
        self.name, self.copy, self.expected = name, copy, expected
        self.began, self.muted = time.perf_counter(), False
        self.last = self.began
        self.ended = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def write(self, text):
        self.last = time.perf_counter()
        return 0 if self.muted else sys.stderr.write(text)

    def flush(self):
        sys.stderr.flush()

    def interrupt(self, *_):
        """Answer Ctrl-C: what the kernel says of its own end is nobody's business."""
        self.write("\n")  # a bar has no end of its line
        self.muted = logging.getLogger("asyncio").disabled = True
        raise KeyboardInterrupt

    def watch(self):
        """Until the notebook has ended, write a line after each silence."""
        while not self.ended.wait(1):
            if time.perf_counter() - self.last > QUIET_SECONDS:
                seconds = time.perf_counter() - self.began
                left = (
                    f", about {max(1, self.expected - seconds):.0f} s left" if self.expected else ""
                )
                with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                    self.write(f"{self.name:<16} {seconds:7.0f} s{place(self.copy)}{left}\n")
                    self.flush()


def place(copy):
    """Which cell of a notebook runs, and under which heading, from the copy that papermill keeps
    writing.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
        at = next(
            k
            for k, cell in enumerate(cells)
            if cell["metadata"].get("papermill", {}).get("status") == "running"
        )
        headings = [
            line.lstrip("# ")
            for cell in cells[:at]
            if cell["cell_type"] == "markdown"
            for line in source(cell).splitlines()
            if line.startswith("#")
        ]
        return f", cell {at + 1} of {len(cells)}: {headings[-1]}"
    return ""


def execute(notebook, values, executed, expected=None):
    """Run one notebook; ``executed`` is replaced only if every cell succeeded, whatever the output
    file itself says.
    """
    import nbformat
    import papermill

    tried = executed.with_suffix(".failed.ipynb")
    terminal, main = (
        Terminal(notebook.name, tried, expected),
        threading.current_thread() is threading.main_thread(),
    )
    usual = signal.signal(signal.SIGINT, terminal.interrupt) if main else None
    try:
        with paths.writing(tried, "all"):
            papermill.execute_notebook(
                *(
                    str(path).replace("{", "{{").replace("}", "}}")
                    for path in (notebook.path, tried)
                ),
                values,
                kernel_name="python3",
                cwd=str(notebook.path.parent),
                start_timeout=180,
                progress_bar=False,
                stderr_file=terminal,
                extra_arguments=["--log-level=CRITICAL"],
            )  # kernels warn of an open loopback
    finally:
        terminal.ended.set()
        if main:
            signal.signal(signal.SIGINT, usual)
    done = nbformat.writes(without_chance(nbformat.read(tried, as_version=4))).encode() + b"\n"
    with paths.in_part(executed, len(done)) as part:
        part.write_bytes(done)
    tried.unlink()


def without_chance(executed):
    """An executed notebook without what differs between two runs of equal numbers: times, random
    ids, addresses, bars.
    """
    ids = {}

    def steady(text):
        text = ADDRESS.sub(r"\1", text)
        return STYLED.sub(lambda found: ids.setdefault(found.group(), f"T_{len(ids):05d}"), text)

    executed.metadata = {
        key: executed.metadata[key]
        for key in ("kernelspec", "language_info")
        if key in executed.metadata
    }
    for number, cell in enumerate(executed.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = joined_text(
                output for output in cell.outputs if output.get("name") != "stderr"
            )
            for output in cell.outputs:
                output.update({"text": steady(output.text)} if "text" in output else {})
                data = output.get("data", {})
                data.update(
                    {kind: steady(text) for kind, text in data.items() if kind.startswith("text/")}
                )
    return executed


def joined_text(outputs):
    """Outputs with each run of printed text as one, however it was cut on its way from the
    kernel.
    """
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def execute_plain(notebook, values, redraw=False):
    """Run the code cells of one notebook in this process, as a kernel would but without Jupyter; to
    ``redraw``, those that need no images.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    namespace = {"__name__": "__main__", "display": print}
    with contextlib.chdir(notebook.path.parent):
        for number, cell in enumerate(notebook.cells, 1):
            if cell["cell_type"] == "code" and not (redraw and needs_images(cell)):
                exec(compile(source(cell), f"{notebook.name} cell {number}", "exec"), namespace)
                namespace.update(values if is_parameters(cell) else {})
                pyplot.close(
                    "all"
                )  # as the inline back end does: the next plot gets a figure of its own


def explain(error):
    """The last line of a traceback, with the cell it came from where that is known."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if " cell " in frame.filename
    ]
    where = f" (cell {places[-1].filename.split()[-1]}, line {places[-1].lineno})" if places else ""
    return f"{kind}: {' '.join(str(text).split())}{where}"


# ---- all of a plan


def finished():
    """How many runs are done, of any profile."""
    return len(list((paths.RESULTS / "runs").glob("*/done.json")))


def attempt(name, work):
    """Do the work and say how it went in one line; returns the same as data, or nothing when it
    failed.
    """
    before, began = finished(), time.perf_counter()
    try:
        work()
    except BrokenPipeError:
        raise
    except (Exception, SystemExit) as error:
        print(f"{name} failed: {explain(error)}", file=sys.stderr)
        return None
    entry = {"seconds": round(time.perf_counter() - began, 1), "made": finished() - before}
    print(f"{name:<16} {entry['seconds']:7.1f} s   {entry['made']} runs made", flush=True)
    return entry


def needs_images(cell):
    """Whether a cell needs images or encoders, which its tag says."""
    return bool(cell) and "images" in cell["metadata"].get("tags", [])


def run_plain(plan, redraw=False):
    """Run the selected notebooks without Jupyter; the first failure ends it. Under torchrun only
    the first process speaks.

    To ``redraw`` figures and tables from rows, cells that need images are left out, and notebooks
    whose imports have that tag.
    """
    jobs = [job for job in plan.jobs if not (redraw and needs_images(job[0].imports))]
    with contextlib.redirect_stdout(
        sys.stdout if os.environ.get("RANK", "0") == "0" else io.StringIO()
    ):
        return (
            0
            if all(
                attempt(book.name, partial(execute_plain, book, values, redraw))
                for book, values in jobs
            )
            else 1
        )


@contextlib.contextmanager
def alone(folder):
    """Hold the notebooks of a profile: a second command waits, so that neither undoes the other's
    copies and record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"another command runs notebooks of {folder.parent.name}; waiting for it to end",
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_notebooks(plan):
    """Run the selected notebooks that are not fresh, each in a kernel of its own, and write the
    site where it is older than what it shows; the first failure ends it.
    """
    os.environ.pop(
        "MPLBACKEND", None
    )  # kernels inherit it; another back end than theirs would keep the figures out of the pages

    with alone(plan.folder):
        known, succeeded, now = past_runs(plan), [], state(plan.profile)
        ran = False
        try:
            for notebook, values in plan.jobs:
                executed = plan.folder / f"{notebook.name}.ipynb"
                entry = known.get(notebook.name, {})
                if is_fresh(plan, notebook, values, entry, now):
                    print(f"{notebook.name:<16} fresh", flush=True)
                else:
                    ran = True
                    entry = attempt(
                        notebook.name,
                        partial(execute, notebook, values, executed, entry.get("seconds")),
                    )
                    now = state(plan.profile)
                if not entry:
                    print(
                        f"see {os.path.relpath(executed.with_suffix('.failed.ipynb'))}",
                        file=sys.stderr,
                    )
                    break
                known[notebook.name] = entry
                succeeded.append((notebook, values))
        finally:
            if ran:
                note(plan, known, succeeded)
        index = plan.folder / "index.html"
        if ran or not is_newest(index):
            from longtail.command.pages import write_site

            write_site(plan, known)
        print(os.path.relpath(index), flush=True)
        return 0 if len(succeeded) == len(plan.jobs) else 1


def is_newest(index):
    """Whether the site is there, and newer than what it shows of this and of other profiles."""
    shown = [index.with_name("record.json"), *paths.RESULTS.glob("*/claims.csv")]
    times = [file.stat().st_mtime for file in shown if file.exists()]
    return index.exists() and index.stat().st_mtime >= max(times, default=0)


def note(plan, known, succeeded):
    """Record how the notebooks ran, and the state of the results that they left together and are
    fresh against.
    """
    from longtail.store.runs import write

    now = state(plan.profile)
    for notebook, values in succeeded:
        executed = plan.folder / f"{notebook.name}.ipynb"
        known[notebook.name]["stamp"] = stamp(notebook, values, now, executed)
    write(plan.folder / "record.json", json.dumps(known, indent=1, sort_keys=True))
