"""What a run is, its name, its folder, whether it is done; what a profile asks of the one store of
runs, and all rows as one frame.
"""

import contextlib
import fnmatch
import hashlib
import io
import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, fields

import filelock
import pandas as pd
import torch

from longtail.store import gpu, paths, processes
from longtail.store.gpu import device as device
from longtail.store.settings import Damaged

RECIPE = 1  # raised by hand when a change of the code alters the numbers of a run
POLL_SECONDS = 0.2  # between two attempts to hold a run that another process holds
# reads floats as they were written, which pandas does by itself from 3.1 on
AS_WRITTEN = (
    {}
    if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
    else {"float_precision": "round_trip"}
)


@dataclass(frozen=True)
class Run:
    """Every choice that decides a trained network, with labels or without; equal runs share one
    folder.
    """

    dataset: str  # digits, cifar10, cifar100, imagenet100 or the name of a folder of images
    # long_tail or balanced; given when the encoder was; with labels the kind of tail, exponential
    # or step
    subset: str
    # which class permutation ranks the classes by size; with labels 0 is the published list
    split: int
    seed: int  # weights, order of the images, views
    # one of methods.METHODS, or several joined by +, such as sdclr+bcl; with labels one of
    # adjusted.LOSSES
    method: str
    head_layers: int
    architecture: str
    size: int  # side of the square views, pixels
    policy: str  # law of the random views, see views.POLICIES; empty: the images as they are
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: int
    temperature: float
    prune_fraction: float  # share of the convolution weights that SDCLR's pruned branch lacks
    # float32 (IEEE, on GPUs too: no TF32), bfloat16 (autocast), or bfloat16_gpu where a study has
    # runs of both: the same, rounded by a GPU, which trains SimCLR to other accuracies than a CPU
    precision: str
    # digest of the training images and their order; of the weights of an encoder that was given
    images: str
    added: str = "none"  # how the images beyond the seed were picked
    budget: int = 0  # how many were, or how many of its pool the method picks at a time
    schedule: str = "epochs"  # epochs, or updates: cut to as many updates as the seed alone gets
    recipe: int = RECIPE
    # From here on a field counts in the name only where it says something.
    options: str = (
        ""  # the method's own settings, all of them, as "name=value …"; empty for one that has none
    )
    reserve: int = 0  # how many of the images, the last ones, the method only picks from
    imbalance: float = 0.0  # with labels: largest over smallest class of the list, and what follows
    largest: int = 0  # images of the largest class
    drops: str = ""  # epochs, from 0, that begin at a lower learning rate, such as "160 180"
    drop: float = 0.0  # what the rate is multiplied with there
    jpeg: bool = False  # whether the images were decoded from JPEG files

    @property
    def digest(self):
        """First 8 hex digits of SHA-256 over the sorted JSON of all fields that count."""
        return digest_of(
            {key: value for key, value in asdict(self).items() if value or key not in LATER}
        )

    def seeds(self, images):
        """How many of so many images are the seed: those that were neither picked nor are a
        pool.
        """
        return images - (self.reserve or self.budget)

    @property
    def name(self):
        """Readable and unique: ``sdclr-cifar10_long_tail-split1-seed1-b8be02fb``,
        ``ce-cifar10_exponential100-split0-seed1-…``.
        """
        listed = self.subset + (f"{self.imbalance:g}" if self.imbalance else "")
        added = "" if self.added == "none" else f"-{self.added}{self.budget}-{self.schedule}"
        data = f"{self.dataset}_{listed}-split{self.split}"
        return f"{self.method}-{data}-seed{self.seed}{added}-{self.digest}"


FIELDS = [field.name for field in fields(Run)]
LATER = FIELDS[FIELDS.index("options") :]
ENCODERS = ("arms", "picked")  # parts of a plan whose runs the tables of encoders show
KEEPERS = {
    "data": "01_data",
    "images": "01_data",
    "classifier": "03_evaluate",
    "picking": "05_sampling",
    "picked_as": "05_sampling",
}
# measurements with a row for each image: read by no table or claim, so not all are shipped
BY_IMAGE = ("pool-", "picks-")
KEYS = [
    "run",
    "dataset",
    "subset",
    "split",
    "seed",
    "method",
    "head_layers",
    "epochs",
    "added",
    "budget",
    "schedule",
]


def pairs(splits, seeds):
    """(split, seed) of each replicate: lists of equal length side by side, a list of one repeated,
    as NumPy broadcasts.
    """
    if len(splits) != len(seeds) and 1 not in (len(splits), len(seeds)) or not splits or not seeds:
        raise ValueError(
            f"{len(splits)} splits and {len(seeds)} seeds: give as many of both, or one of either"
        )
    count = max(len(splits), len(seeds))
    return list(zip(splits * (count // len(splits)), seeds * (count // len(seeds)), strict=True))


# ---- files: whole, and with the address and digest that tell torn and foreign ones


def sha256(content):
    """SHA-256 of bytes, as hex."""
    return hashlib.sha256(content).hexdigest()


def digest_of(data):
    """First 8 hex digits of SHA-256 over sorted JSON."""
    return sha256(json.dumps(data, sort_keys=True).encode())[:8]


def short_names(names):
    """The digests that end the names of some runs, each once, as one text; what tables and claims
    keep of the runs behind a number.
    """
    return " ".join(sorted({name.rpartition("-")[2] for name in names}))


def write(path, content):
    """Write bytes or text so that the file is either absent, old or whole; of several processes the
    first writes, the others wait.
    """
    if processes.world()[0] == 0:
        content = content.encode() if isinstance(content, str) else content
        with paths.in_part(path, memoryview(content).nbytes) as part:
            part.write_bytes(content)
    processes.agreed(None)


def sync(folder):
    """Have the disk keep the files of a folder, before ``done.json`` says that they are there; what
    killed processes began goes.
    """
    if processes.world()[0]:
        return
    for part in folder.rglob("*.part"):
        part.unlink(missing_ok=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_file() or path.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_record(path, data):
    """Write JSON data with its own address, ``<folder>/<file>``, and a digest over both, which
    ``read_record`` checks.
    """
    data = {"file": f"{path.parent.name}/{path.name}", **data}
    write(path, json.dumps({**data, "digest": digest_of(data)}, indent=1))


def read_record(path):
    """The data that ``write_record`` wrote there; ``Damaged`` if it is cut, edited or another's."""
    data = recorded(path)
    told = data.pop("digest", None) if isinstance(data, dict) else None
    if told != digest_of(data):
        raise Damaged(
            f"{path} is cut or edited: it is not what was written; restore it, or delete it and "
            "what it describes"
        )
    if (address := data.pop("file")) != f"{path.parent.name}/{path.name}":
        raise Damaged(
            f"{path} was written as {address}; put each file back where it belongs, or delete both"
        )
    return data


def recorded(file):
    """The JSON data of a file; ``Damaged`` if it is cut."""
    try:
        return json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{file} is no whole JSON file ({error}); restore it, or delete it and what it "
            "describes"
        ) from error


def read_rows(path, digest=None, **how):
    """Rows of a CSV file, checked against their digest, which is in the record beside them unless
    it is given; ``how``: more of pandas's ``read_csv``.
    """
    digest = digest or read_record(path.with_suffix(".json"))["sha256"]
    content = path.read_bytes() if path.exists() else b""
    if sha256(content) != digest:
        raise Damaged(
            f"{path} is cut, edited or missing: it differs from what was recorded of it. Restore "
            "it, or delete it and its "
            f"record to make it again."
        )
    packed = "gzip" if path.suffix == ".gz" else None
    return pd.read_csv(io.BytesIO(content), compression=packed, **AS_WRITTEN, **how)


def read_written(path, notebook, **how):
    """A table that a notebook writes anew whenever it runs; ``Damaged`` where it is none."""
    try:
        return pd.read_csv(path, **how)
    except ValueError as error:
        raise Damaged(
            f"{path} is cut or edited ({error}); delete it and run {notebook} again"
        ) from error


def stem(name, settings):
    """What the files of a measurement are called: its name and a digest of its settings, so that
    others are written beside.
    """
    return f"{name}-{digest_of({**settings, 'recipe': RECIPE})}"


def remember(folder, name, settings, compute):
    """The rows of one measurement: read if they exist for these settings, else computed and
    written.

    ``settings`` is JSON data naming everything beyond the run that decides the rows. Raises
    ``ValueError`` when the file on disk is not the one that was written.
    """
    record = folder / f"{stem(name, settings)}.json"
    if not processes.first(record.exists):
        began = time.perf_counter()
        text = compute().to_csv(index=False)
        with claim(
            folder, wait=True, name="claim-rows"
        ):  # of two commands that measured it at once the first is kept
            if not processes.first(record.exists):
                write(record.with_suffix(".csv"), text)
                write_record(
                    record,
                    {
                        "settings": {**settings, "recipe": RECIPE},
                        "sha256": sha256(text.encode()),
                        **machine(),
                        "seconds": round(time.perf_counter() - began, 2),
                    },
                )
    return read_rows(record.with_suffix(".csv"))


@contextlib.contextmanager
def claim(folder, wait, name="claim"):
    """Hold a run or a plan for this process, or what else has a ``name`` there.

    Yields False at once if another process holds it and ``wait`` is false.

    An advisory lock, so that a killed process leaves nothing stale behind. Of several processes the
    first holds it for all; while it tries, all agree again and again, since one that waits for
    another's lock would leave the rest in an exchange until they give up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / name)
    try:
        while not (held := processes.first(lambda: _taken(lock))) and wait:
            time.sleep(POLL_SECONDS)
        yield held
    finally:
        lock.release()


def _taken(lock):
    """Whether the lock could be had at once."""
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
    return lock.is_locked


def machine():
    """Where something ran: commit, device, threads, versions. Never part of a run's name."""
    ours = _git("rev-parse", "--show-toplevel") == str(
        paths.ROOT
    )  # not a repository that this folder was only unpacked in
    commit = (
        _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else "")
        if ours
        else ""
    )
    return {
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "device": gpu.name(),
        "threads": torch.get_num_threads(),
        "processes": processes.world()[1],
    }


def _git(*words):
    """What git says of this checkout; nothing on a bare node without git."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    with contextlib.suppress(OSError):
        return subprocess.run(  # without a hook's GIT_DIR, which is the repository of the hook
            ["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True, env=plain
        ).stdout.strip()
    return ""


# ---- runs on disk


def read_run(folder):
    """The run whose folder this is; ``Damaged`` unless ``run.json`` says what the folder's name
    says.
    """
    found = recorded(folder / "run.json")
    try:
        run = Run(**found)
        right = run.name == folder.name and all(
            type(getattr(run, one.name)) in ((float, int) if one.type is float else (one.type,))
            for one in fields(Run)
        )
    except (TypeError, ValueError):  # no mapping, a field too many or too few, or one of no number
        right = False
    if not right:
        raise Damaged(
            f"{folder / 'run.json'} describes another run than the name of its folder; restore it, "
            "or delete the folder"
        )
    return run


PLANNED = ("settings", "runs", "measured")  # what a plan holds


def _of_this_version(file):
    """The plan in a file; ``Damaged`` where it has another shape than plans have here."""
    plan = read_record(file)
    groups = [plan.get(name) for name in PLANNED]
    if not all(isinstance(group, dict) for group in groups) or not all(
        isinstance(entry, dict) for group in groups[1:] for entry in group.values()
    ):
        raise Damaged(
            f"{file} was written by another version; use that one, or delete it and run the "
            "notebooks again"
        )
    return plan


class Results:
    """What a profile asked for, and where it is: its plan, the runs in the one store, their rows,
    its figures.

    ``plan.json`` holds the settings that later notebooks need, the runs that were asked for, in
    parts (arms of 02_pretrain, picked of 05_sampling, labels of 07_supervised, halves of
    08_theory), and which measurements of each run. Every profile shares the runs. A profile
    ``<name>-custom`` sees what ``<name>`` asked for where it has not asked itself.
    """

    def __init__(self, profile):
        self.profile, self.store = profile, paths.RESULTS / "runs"
        self.root, self.figures = (
            paths.inside(paths.RESULTS, profile),
            paths.inside(paths.FIGURES, profile),
        )
        if self.root == self.store:
            raise ValueError(
                f"no profile can be called {profile}: results/{profile} holds the runs of all; "
                "take another name"
            )

    # -- the plan

    def plan(self):
        """``{"settings": name -> data, "runs": part -> {"settings", "names"}, "measured": run ->
        name -> file}``.
        """
        file = self.root / "plan.json"
        own = _of_this_version(file) if file.exists() else {}
        base = (
            Results(self.profile.removesuffix("-custom")).plan()
            if self.profile.endswith("-custom")
            else {}
        )
        both = {key: {**base.get(key, {}), **own.get(key, {})} for key in PLANNED}
        return both | {
            "measured": {
                run: {**base.get("measured", {}).get(run, {}), **both["measured"][run]}
                for run in both["measured"]
            }
        }

    def _note(self, group, key, value):
        """Put what ``value(old)`` gives, ``old`` being what was there or {}, into the plan; two
        commands at once lose nothing.
        """
        file = self.root / "plan.json"

        def changed():
            own = _of_this_version(file) if file.exists() else {group: {} for group in PLANNED}
            old, new = own[group].get(key), json.loads(json.dumps(value(own[group].get(key, {}))))
            own[group][key] = new
            return own if old != new else None

        if processes.first(changed) is None:  # also where results can only be read
            return
        with claim(self.root, wait=True):
            if (own := processes.first(changed)) is not None:
                write_record(file, own)

    def keep(self, name, settings):
        """Note settings that later notebooks need."""
        self._note("settings", name, lambda _: settings)

    def kept(self, name):
        """What ``keep`` noted."""
        found = self.plan()["settings"]
        if name not in found:
            raise FileNotFoundError(
                f"{self.root / 'plan.json'} has no {name}; "
                f"{KEEPERS.get(name, 'a notebook before this one')} "
                f"writes it: run that first"
            )
        return found[name]

    def ask(self, part, asked, settings):
        """Note the runs of a part: they join those that were asked for with the same settings, and
        replace those of other settings.
        """
        names, settings = [run.name for run in asked], json.loads(json.dumps(settings))
        self._note(
            "runs",
            part,
            lambda old: {
                "settings": settings,
                "names": list(
                    dict.fromkeys(
                        (old["names"] if old and old["settings"] == settings else []) + names
                    )
                ),
            },
        )

    def remember(self, run, name, settings, compute):
        """``remember`` a measurement of a run, of the profile itself without one, as what the
        profile's tables shall read.
        """
        if run is None:
            return remember(self.root, name, settings, compute)
        rows = remember(self.folder(run), name, settings, compute)
        self._note("measured", run.name, lambda old: {**old, name: stem(name, settings)})
        return rows

    def has(self, run, name, settings):
        """Whether a measurement of a run was made with these settings, for whichever profile."""
        return (self.folder(run) / f"{stem(name, settings)}.json").exists()

    def record(self, run, name):
        """What was recorded of a measurement that the plan names: settings, seconds, machine."""
        return read_record(self.folder(run) / f"{self.plan()['measured'][run.name][name]}.json")

    def names(self):
        """The names of all runs of the plan."""
        return list(
            dict.fromkeys(name for part in self.plan()["runs"].values() for name in part["names"])
        )

    def files(self):
        """All files of the store that the plan names and that are there, without weights."""
        measured = self.plan()["measured"]
        own = [
            (name, file)
            for name in self.names()
            for file in (
                "run.json",
                "done.json",
                "log.csv",
                "notes.csv.gz",
                *(
                    f"{one}.{kind}"
                    for one in measured.get(name, {}).values()
                    for kind in ("json", "csv")
                ),
            )
        ]
        return [
            path
            for path in (paths.inside(self.store, name) / file for name, file in own)
            if path.exists()
        ]

    def missing(self):
        """What the plan names and the store has not: names of runs, and ``run/measurement`` of
        finished ones, but not those BY_IMAGE.
        """
        names, measured = self.names(), self.plan()["measured"]
        lost = [name for name in names if not (self.store / name / "done.json").exists()]
        return lost + [
            f"{name}/{file}"
            for name in names
            if name not in lost
            for file in measured.get(name, {}).values()
            if not file.startswith(BY_IMAGE) and not (self.store / name / f"{file}.json").exists()
        ]

    def complete(self):
        """One sentence on how much of the plan is there: ``3 of 4 runs; missing …``."""
        names, lost = self.names(), self.missing()
        there = len(names) - sum("/" not in one for one in lost)
        told = (
            f"; missing {', '.join(lost[:4])}"
            + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
            if lost
            else ""
        )
        return f"{there} of {len(names)} runs{told}"

    # -- runs

    def folder(self, run):
        """Where a run keeps its checkpoint, log and rows, for all profiles."""
        return paths.inside(self.store, run.name)

    def is_done(self, run):
        """``done.json`` is written last and is the only meaning of done."""
        return (self.folder(run) / "done.json").exists()

    def ended(self, run):
        """What ``done.json`` says of a finished run: seconds, memory, seed images, machine, digests
        of its files.
        """
        return read_record(self.folder(run) / "done.json")

    def done(self, part=ENCODERS, **match):
        """Finished runs of the plan whose fields equal the given values (or are among a given
        list), sorted by name.
        """
        unknown = set(match) - set(FIELDS)
        if unknown:
            raise KeyError(
                f"a run has no field {', '.join(sorted(unknown))}; it has {', '.join(FIELDS)}"
            )
        planned = self.plan()["runs"]
        parts = [
            planned[one]["names"]
            for one in ([part] if isinstance(part, str) else part)
            if one in planned
        ]
        folders = [
            paths.inside(self.store, name)
            for name in sorted({name for names in parts for name in names})
        ]
        found = [read_run(folder) for folder in folders if (folder / "done.json").exists()]
        wanted = {
            key: value if isinstance(value, list) else [value] for key, value in match.items()
        }
        return [
            run
            for run in found
            if run.recipe == RECIPE
            and all(getattr(run, key) in values for key, values in wanted.items())
        ]

    def planned(self, **match):
        """Finished runs of the arms of 02_pretrain; an error when there is none."""
        found = self.done("arms", **match)
        if not found:
            raise FileNotFoundError(
                f"no run that {self.profile} asks for is done with {match or 'anything'}: run "
                "02_pretrain first"
            )
        return found

    def finished(self, part=ENCODERS, **match):
        """One row a finished run: its fields, its name, how many seed images it had."""
        return pd.DataFrame(
            [
                {**asdict(run), "run": run.name, "seed_images": self.ended(run).get("seed_images")}
                for run in self.done(part, **match)
            ],
            columns=[*FIELDS, "run", "seed_images"],
        )

    # -- rows

    def read(self, name, part=ENCODERS, **match):
        """Rows of the measurement ``name`` (may hold ``*``) of all matching finished runs, with the
        runs' keys in front.
        """
        frames, measured = [], self.plan()["measured"]
        for run in self.done(part, **match):
            files = {
                file
                for own, file in measured.get(run.name, {}).items()
                if fnmatch.fnmatchcase(own, name)
            }
            for record in sorted(self.folder(run) / f"{file}.json" for file in files):
                if record.exists():  # ``missing`` tells of the others
                    frames.append(_keyed(run, read_rows(record.with_suffix(".csv"))))
        return _joined(frames, KEYS)

    def _own_rows(self, name, columns, part, match):
        """Rows of a file that training itself has written, of all matching finished runs."""
        frames = [(run, self.rows_of(run, name)) for run in self.done(part, **match) if run.epochs]
        return _joined([_keyed(run, rows) for run, rows in frames if rows is not None], columns)

    def rows_of(self, run, name):
        """Rows of ``log.csv`` or ``notes.csv.gz`` of a finished run; None where it has no such
        file.
        """
        digest = self.ended(run)["files"].get(name)
        return read_rows(self.folder(run) / name, digest) if digest else None

    def logs(self, part=ENCODERS, **match):
        """Training logs of matching finished runs: keys, epoch, step, loss, learning_rate,
        seconds.
        """
        return self._own_rows("log.csv", KEYS, part, match)

    def notes(self, part=ENCODERS, **match):
        """What methods noted between epochs: keys, name, epoch (how many were over), place in what
        was noted, value.
        """
        return self._own_rows(
            "notes.csv.gz", [*KEYS, "name", "epoch", "place", "value"], part, match
        )

    def scores(self, part=ENCODERS, **match):
        """Accuracies of all protocols: keys, protocol, selection, group, accuracy (percent),
        images.
        """
        frame = self.read("scores-*", part, **match)
        return (
            frame
            if len(frame)
            else pd.DataFrame(
                columns=[*KEYS, "protocol", "selection", "group", "accuracy", "images"]
            )
        )


def _keyed(run, rows):
    """Rows with the keys of their run in front; a row's own value stands where both have one."""
    keys = {
        key: value
        for key, value in {"run": run.name, **asdict(run)}.items()
        if key in KEYS and key not in rows
    }
    return pd.concat(
        [pd.DataFrame([keys] * len(rows), columns=keys, index=rows.index), rows], axis=1
    )


def _joined(frames, columns):
    """Frames below each other; without any an empty one with these columns."""
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
