"""What a run is, its name, its folder, whether it is done; all rows as one frame."""

import contextlib
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

RECIPE = 1      # raised by hand when a change of the code alters the numbers of a run
POLL_SECONDS = 0.2      # between two attempts to hold a run that another process holds


@dataclass(frozen=True)
class Run:
    """Every choice that decides a pre-trained encoder; equal runs share one folder."""

    dataset: str            # digits, cifar10, cifar100, imagenet100 or the name of a folder of images
    subset: str             # long_tail or balanced; given when the encoder was
    split: int              # which class permutation ranks the classes by size
    seed: int               # weights, order of the images, views
    method: str             # one of methods.METHODS, or several joined by +, such as sdclr+bcl
    head_layers: int
    architecture: str
    size: int               # side of the square views, pixels
    policy: str             # law of the random views, see views.POLICIES
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: int
    temperature: float
    prune_fraction: float   # share of the convolution weights that SDCLR's pruned branch lacks
    precision: str          # float32 (IEEE, on GPUs too: no TF32) or bfloat16 (autocast)
    images: str             # digest of the training images and their order; of the weights of an encoder that was given
    added: str = "none"     # how the images beyond the seed were picked
    budget: int = 0         # how many were, or how many of its pool the method picks at a time
    schedule: str = "epochs"    # epochs, or updates: cut to as many updates as the seed alone gets
    recipe: int = RECIPE
    options: str = ""       # the method's own settings, all of them, as "name=value …"; empty for one that has none
    reserve: int = 0        # how many of the images, the last ones, the method only picks from

    @property
    def digest(self):
        """First 8 hex digits of SHA-256 over the sorted JSON of all fields; the two last only count where they say something."""
        deciding = {key: value for key, value in asdict(self).items() if value or key not in ("options", "reserve")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]

    def seeds(self, images):
        """How many of so many images are the seed: those that were neither picked nor are a pool."""
        return images - (self.reserve or self.budget)

    @property
    def name(self):
        """Readable and unique, e.g. ``sdclr-cifar10_long_tail-split1-seed1-b8be02fb``."""
        added = "" if self.added == "none" else f"-{self.added}{self.budget}-{self.schedule}"
        return f"{self.method}-{self.dataset}_{self.subset}-split{self.split}-seed{self.seed}{added}-{self.digest}"


FIELDS = [field.name for field in fields(Run)]
OF_AN_ARM = {"head_layers", "architecture", "policy", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs",
             "temperature", "prune_fraction", "precision", "budget"}      # fields that an arm may set for itself
KEEPERS = {"data": "01_data", "images": "01_data", "plan": "02_pretrain", "classifier": "03_evaluate", "picking": "05_sampling"}
KEYS = ["run", "dataset", "subset", "split", "seed", "method", "head_layers", "epochs", "added", "budget", "schedule"]


def pairs(splits, seeds):
    """(split, seed) of each replicate: lists of equal length side by side, a list of one repeated, as NumPy broadcasts."""
    if len(splits) != len(seeds) and 1 not in (len(splits), len(seeds)) or not splits or not seeds:
        raise ValueError(f"{len(splits)} splits and {len(seeds)} seeds: give as many of both, or one of either")
    count = max(len(splits), len(seeds))
    return list(zip(splits * (count // len(splits)), seeds * (count // len(seeds)), strict=True))


def read_arm(arm):
    """What an arm says, as two dicts: fields of ``Run``, and whatever else it sets by name (options of its method).

    An arm is "method list [layers [temperature]] [name=value …]", e.g. "simclr long_tail", "simclr balanced 3", "bcl long_tail
    weight_decay=5e-4 draws=1": a method, the study's long_tail or balanced list, then what differs from the settings of all arms.
    """
    words = [word for word in arm.split() if "=" not in word]
    named = dict(word.split("=", 1) for word in arm.split() if "=" in word)
    if not 2 <= len(words) <= 4 or words[1] not in ("long_tail", "balanced"):
        raise ValueError(f"no arm {arm!r}: name a method, long_tail or balanced, then perhaps the layers of its head, a temperature, "
                         f"and further settings as name=value")
    known = {key: named.pop(key) for key in OF_AN_ARM & named.keys()}
    given = dict(zip(("method", "subset", "head_layers", "temperature"), words, strict=False)) | known
    kinds = {field.name: field.type for field in fields(Run)}
    return {key: kinds[key](value) for key, value in given.items()}, named


def sha256(content):
    """SHA-256 of bytes, as hex."""
    return hashlib.sha256(content).hexdigest()


def write(path, content):
    """Write bytes or text so that the file is either absent, old or whole; of several processes the first writes, the others wait."""
    if processes.world()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        content = content.encode() if isinstance(content, str) else content
        try:
            part.write_bytes(content)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, f"{error.strerror}, writing {memoryview(content).nbytes} bytes", str(path)) from error
    processes.agreed(None)


def sync(folder):
    """Have the disk keep the files of a folder, before ``done.json`` says that they are there."""
    for path in [folder, *folder.iterdir()] if processes.world()[0] == 0 else []:
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def is_remembered(folder, name, settings):
    """Whether the measurement ``name`` was made with these settings."""
    record = folder / f"{name}.json"
    return record.exists() and recorded(record)["settings"] == json.loads(json.dumps({**settings, "recipe": RECIPE}))


def remember(folder, name, settings, compute):
    """The rows of one measurement: read if they exist for equal settings, else computed and written.

    ``settings`` is JSON data naming everything beyond the run that decides the rows. Raises ``ValueError`` when the file
    on disk is not the one that was written.
    """
    rows, record = folder / f"{name}.csv", folder / f"{name}.json"
    if processes.first(lambda: is_remembered(folder, name, settings)):
        return read_rows(rows)
    began = time.perf_counter()
    processes.first(lambda: record.unlink(missing_ok=True))     # killed between the two writes, there is no record rather than a wrong one
    text = compute().to_csv(index=False)
    write(rows, text)
    write(record, json.dumps({"settings": {**settings, "recipe": RECIPE}, "sha256": sha256(text.encode()), **machine(),
                              "seconds": round(time.perf_counter() - began, 2)}, indent=1))
    return read_rows(rows)


def recorded(file):
    """The JSON data of a file; ``ValueError`` naming the file if it is cut."""
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no whole JSON file ({error}); restore it, or delete it and what it describes") from error


def read_rows(path, record=None, key="sha256"):
    """Rows of a CSV file, checked against the digest in their record; the one beside them unless another is named."""
    record = record or path.with_suffix(".json")
    content = path.read_bytes() if path.exists() else b""
    if sha256(content) != recorded(record)[key]:
        raise ValueError(f"{path} is cut, edited or missing: it differs from what {record.name} recorded. "
                         f"Restore it, or delete both files to measure again.")
    return pd.read_csv(io.BytesIO(content))


@contextlib.contextmanager
def claim(folder, wait):
    """Hold a run for this process; yields False at once if another process holds it and ``wait`` is false.

    An advisory lock, so that a killed process leaves nothing stale behind. Of several processes the first holds it for all; while it
    tries, all agree again and again, since one that waits for another's lock would leave the rest in an exchange until they give up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "claim")
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
    ours = _git("rev-parse", "--show-toplevel") == str(paths.ROOT)      # not a repository that this folder was only unpacked in
    commit = _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "src") else "") if ours else ""
    return {"commit": commit or "unknown", "torch": torch.__version__, "device": gpu.name(),
            "threads": torch.get_num_threads(), "processes": processes.world()[1]}


def _git(*words):
    """What git says of this checkout; nothing on a bare node without git."""
    with contextlib.suppress(OSError):
        return subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True).stdout.strip()
    return ""


class Results:
    """Everything a profile has on disk: its runs, their rows, its figures."""

    def __init__(self, profile):
        self.profile = profile
        self.root = paths.RESULTS / profile
        self.figures = paths.FIGURES / profile

    def keep(self, name, settings):
        """Note settings that later notebooks need, as ``<name>.json`` beside the runs."""
        write(self.root / f"{name}.json", json.dumps(settings, indent=1))

    def kept(self, name):
        """What ``keep`` noted."""
        file = self.root / f"{name}.json"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing; {KEEPERS.get(name, 'a notebook before this one')} writes it: run that first")
        return json.loads(file.read_text())

    def folder(self, run):
        """Where a run keeps its checkpoint, log and rows."""
        return self.root / "runs" / run.name

    def is_done(self, run):
        """``done.json`` is written last and is the only meaning of done."""
        return (self.folder(run) / "done.json").exists()

    def done(self, **match):
        """Finished runs whose fields equal the given values (or are among a given list), sorted by name."""
        unknown = set(match) - set(FIELDS)
        if unknown:
            raise KeyError(f"a run has no field {', '.join(sorted(unknown))}; it has {', '.join(FIELDS)}")
        found = [Run(**recorded(done.parent / "run.json")) for done in sorted(self.root.glob("runs/*/done.json"))]
        found = [run for run in found if run.recipe == RECIPE]
        wanted = {key: value if isinstance(value, list) else [value] for key, value in match.items()}
        return [run for run in found if all(getattr(run, key) in values for key, values in wanted.items())]

    def planned(self, **match):
        """Finished runs of the plan that notebook 02 noted; an error when there is none."""
        names = self.kept("plan")
        found = [run for run in self.done(**match) if run.name in names]
        if not found:
            raise FileNotFoundError(f"no run of the plan in {self.root / 'runs'} is done with {match or 'anything'}: run 02_pretrain first")
        return found

    def read(self, name, **match):
        """Rows of the measurement ``name`` (may hold ``*``) of all matching finished runs, with the runs' keys in front."""
        frames = []
        for run in self.done(**match):
            keys = {**asdict(run), "run": run.name}
            for record in sorted(self.folder(run).glob(f"{name}.json")):
                rows = read_rows(record.with_suffix(".csv"))
                own = [key for key in KEYS if key not in rows]      # a row's own value stands where both have one
                frames.append(pd.concat([pd.DataFrame([{key: keys[key] for key in own}] * len(rows), columns=own), rows], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)

    def logs(self, **match):
        """Training logs of matching finished runs: keys, epoch, step, loss, learning_rate, seconds."""
        frames = [read_rows(self.folder(run) / "log.csv", self.folder(run) / "done.json", "log_sha256").assign(
            **{key: getattr(run, key, None) for key in KEYS} | {"run": run.name}) for run in self.done(**match) if run.epochs]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)

    def scores(self, **match):
        """Accuracies of all protocols: keys, protocol, selection, group, accuracy (percent), images."""
        frame = self.read("scores-*", **match)
        return frame if len(frame) else pd.DataFrame(columns=[*KEYS, "protocol", "selection", "group", "accuracy", "images"])

    def notes(self, **match):
        """What methods noted between epochs: keys, name, epoch (how many were over), place in what was noted, value."""
        frame = self.read("notes", **match)
        return frame if len(frame) else pd.DataFrame(columns=[*KEYS, "name", "epoch", "place", "value"])
