"""Pools of any size, measured once: images decoded chunk by chunk, features, losses and distances
in mapped files with digests.

A killed run goes on with what is missing, several processes share the chunks, and any number of
them gives the same bits.
"""

import contextlib
import io
import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from longtail.learn import encode, train
from longtail.pick import ecle, shards
from longtail.store import gpu, paths, processes, runs

SAVE_SECONDS = 20  # between two savings of the running sum of losses
ANNOUNCED = 1000  # images from which the time that they took is printed
CHUNK_LINE = re.compile(r"\d+ \d+ [0-9a-f]{64}")  # start and stop of a chunk, SHA-256 of its rows


# ---- arrays on disk


def addressed(path, settings):
    """One line of JSON: the settings that decide a file, and its place,
    ``<run>/scoring/<folder>/<file>``, so that no other's passes.
    """
    return json.dumps({"file": "/".join(path.parts[-4:]), **settings}, sort_keys=True)


class Stored:
    """An array (n, …) in ``<folder>/<name>.npy``, filled in chunks of rows: a chunk counts while it
    has the digest recorded for it.

    Each process records its own chunks, one a line below the settings that decide them, and only
    once they are written.
    """

    def __init__(self, folder, name, rows, settings):
        self.path, self.rows = folder / f"{name}.npy", rows
        self.head = addressed(self.path, {**settings, "rows": rows, "recipe": runs.RECIPE})

    def records(self):
        """The files that record chunks."""
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.chunks"))

    def chunks(self):
        """Digests recorded for each chunk (start, stop) of these settings; a line cut by a kill is
        none.
        """
        found = {}
        for head, *lines in (
            [file.read_text(errors="replace").split("\n") for file in self.records()]
            if self.is_array()
            else []
        ):
            for start, stop, digest in [
                line.split() for line in lines if head == self.head and CHUNK_LINE.fullmatch(line)
            ]:
                found.setdefault((int(start), int(stop)), set()).add(digest)
        return found

    def is_array(self):
        """Whether the file is there and has all its rows; one that is damaged is like none."""
        with contextlib.suppress(Exception):  # whatever NumPy makes of a damaged head
            return len(self.mapped()) == self.rows
        return False

    def damaged(self):
        """The recorded chunks whose rows are not as they were written."""
        array = self.mapped() if self.is_array() else None
        return [
            part
            for part, digests in self.chunks().items()
            if _digest(array[slice(*part)]) not in digests
        ]

    def missing(self, size):
        """Starts of the chunks of ``size`` rows that are not there, or not as they were written."""
        whole = {start for start, _ in self.chunks().keys() - set(self.damaged())}
        return [start for start in range(0, self.rows, size) if start not in whole]

    def prepare(self, width, kind):
        """Make an empty file for rows of this shape, unless one of these settings has a chunk."""
        if not self.chunks().keys() - set(self.damaged()):
            self.remove()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            count = self.rows * math.prod(width) * np.dtype(kind).itemsize
            with paths.in_part(self.path, count) as part:
                np.lib.format.open_memmap(part, "w+", kind, (self.rows, *width)).flush()

    def put(self, start, rows):
        """Write rows (k, …) from ``start`` on, then their digest."""
        rows = rows.cpu().numpy()
        with paths.writing(self.path, rows.nbytes), open(self.path, "r+b") as file:
            file.seek(self.mapped().offset + start * rows.nbytes // len(rows))
            file.write(rows.tobytes())
        record = self.path.with_name(f"{self.path.stem}.{processes.world()[0]}.chunks")
        with paths.writing(record, len(self.head)), open(record, "a") as file:
            file.write(
                f"{'' if file.tell() else self.head}\n{start} {start + len(rows)} {_digest(rows)}\n"
            )

    def mapped(self):
        """The array in its file."""
        return np.load(self.path, mmap_mode="r+")

    def whole(self):
        """Whether every row has been written."""
        return sum(stop - start for start, stop in self.chunks()) == self.rows

    def intact(self):
        """Whether every row is as it was written; what is not is measured again."""
        return self.whole() and not self.damaged()

    def read(self):
        """The array as a tensor that stays in its file; ``ValueError`` when it is not what was
        written.
        """
        if not self.intact():
            raise ValueError(
                f"{self.path} is not what was written (rows {self.damaged()}); delete "
                f"{self.path.parent} to measure again"
            )
        return torch.from_numpy(self.mapped())

    def remove(self):
        """Delete the array and its records, records first."""
        for file in (*self.records(), self.path):
            file.unlink(missing_ok=True)


def _digest(rows):
    """SHA-256 of rows and of what they are: a damaged head may say of the same bytes that they are
    other numbers.
    """
    return runs.sha256(f"{rows.dtype.str} {rows.shape}".encode() + rows.tobytes())


def once(run, results, name, settings, rows, compute):
    """The array (``rows``, …) that ``compute()`` gives, from its file if it was computed before
    with these settings.
    """
    stored = Stored(
        results.folder(run) / "scoring" / runs.stem(name, settings), "values", rows, settings
    )

    def write(values):
        stored.remove()
        stored.prepare(values.shape[1:], values.cpu().numpy().dtype)
        stored.put(0, values)

    with runs.claim(stored.path.parent, wait=True):
        if not processes.first(stored.intact):
            values = compute()
            processes.first(lambda: write(values))
        return stored.read()


# ---- of a trained run


def measured_features(run, results, images, name):
    """Features h (n, d) of an image set by a finished run, a tensor in a file under ``name``:
    measured once, by all processes.
    """
    return _measured(run, results, images, name, 0)[0]


def losses(run, results, images, name, views, batch, repeats):
    """ECLE (n,) of an image set by a finished run, likewise; its features are measured on the way,
    so that images are decoded once.
    """
    settings = {
        "images": images.digest,
        "precision": run.precision,
        "views": views,
        "batch": batch,
        "repeats": repeats,
    }
    kept = results.folder(run) / "scoring" / runs.stem(f"{name}-ecle", settings) / "sum.npz"

    def compute():
        projections = [
            view.to(runs.device()) for view in _measured(run, results, images, name, views)[1:]
        ]
        done, total = start = processes.first(lambda: _kept_sum(kept, settings))
        saved = time.monotonic()
        for done, total in ecle.running(
            projections, run.temperature, batch, repeats, start=start, group=shards.everyone()
        ):
            if processes.agreed(time.monotonic() - saved > SAVE_SECONDS):
                _keep_sum(kept, settings, done, total)
                saved = time.monotonic()
        return total / done

    found = once(run, results, f"{name}-ecle", settings, len(images), compute)
    folder, _ = _place(run, results, images, name)
    with runs.claim(folder, wait=True):  # projections are large, and nothing asks for them again
        processes.first(
            lambda: [
                file.unlink() for file in (*kept.parent.glob(kept.name), *folder.glob("view*"))
            ]
        )
    return found


def _keep_sum(path, settings, done, total):
    """Write the sum of the losses of the first ``done`` cuts, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, settings=addressed(path, settings), done=done, total=total.cpu().numpy())
    runs.write(path, content.getvalue())


def _kept_sum(path, settings):
    """(cuts, sum of their losses) that an earlier process has kept, none for other settings."""
    with contextlib.suppress(Exception):  # a damaged one is none, whatever NumPy makes of it
        kept = np.load(path)
        if kept["settings"] == addressed(path, settings):
            return int(kept["done"]), torch.from_numpy(kept["total"])
    return 0, 0


def _measured(run, results, images, name, views):
    """Features and, one tensor each, the projections of ``views`` random views of an image set."""
    folder, settings = _place(run, results, images, name)
    arrays = [
        Stored(folder, part, len(images), settings)
        for part in ("features", *(f"view{number}" for number in range(views)))
    ]
    with runs.claim(folder, wait=True):
        if not processes.first(lambda: all(array.intact() for array in arrays)):
            _measure(train.encoder_of(run, results), run, images.images, arrays)
        return [array.read() for array in arrays]


def _place(run, results, images, name):
    """Where features and projections of an image set lie, and the settings that decide them."""
    settings = {
        "images": images.digest,
        "precision": run.precision,
        "chunk": encode.chunk_of(run.size),
    }
    return results.folder(run) / "scoring" / runs.stem(name, settings), settings


def _measure(encoder, run, images, arrays):
    """Fill what is missing of the arrays, each process its share of the chunks."""
    chunk = encode.chunk_of(run.size)

    def missing():
        starts, blank = {}, torch.zeros(1, 3, run.size, run.size, dtype=torch.uint8)
        for place, array in enumerate(arrays):
            array.prepare(_rows(encoder, run, blank, 0, place).shape[1:], np.float32)
            for start in array.missing(chunk):
                starts.setdefault(start, []).append(place)
        return sorted(starts.items())

    todo = processes.first(missing)
    mine = [todo[place] for place in processes.share(torch.arange(len(todo))).tolist()]
    began, count = time.monotonic(), sum(min(chunk, len(images) - start) for start, _ in mine)
    with (
        tqdm(
            total=count,
            desc="scoring",
            unit=" images",
            mininterval=2,
            disable=processes.world()[0] > 0 or not mine,
            leave=False,
        ) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        written = []
        for start, places, pixels in _decoded(images, mine, chunk):
            rows = [
                (place, _rows(encoder, run, pixels, start, place)) for place in places
            ]  # orders for the GPU: nothing waits here
            _done(written)
            written = [writer.submit(arrays[place].put, start, values) for place, values in rows]
            bar.update(len(pixels))
        _done(written)
    if count > ANNOUNCED and not processes.world()[0]:
        seconds = time.monotonic() - began
        print(
            f"scored {count} of {len(images)} images in {seconds:.0f} s, {count / seconds:.0f} a "
            "second",
            flush=True,
        )
    processes.barrier()  # nobody reads before all have written


def _done(jobs):
    """Wait for them; the first error of any is raised."""
    for job in jobs:
        job.result()


def _rows(encoder, run, images, start, place):
    """One chunk of array ``place``: features, or the projections of view ``place`` − 1."""
    images = images.to(runs.device())
    if place:
        return ecle.project_view(encoder, run, images, start, place - 1)
    with gpu.autocast(images.device, run.precision):
        return encode.in_chunks(encoder.trunk, images)


def _decoded(images, todo, chunk):
    """(start, places, images on the device) of each chunk to do; while one is measured the next is
    decoded and sent.
    """

    def read(start):
        return gpu.sent(images[start : start + chunk])

    with ThreadPoolExecutor(1) as reader:
        coming = (reader.submit(read, start) for start, _ in todo)
        ahead = next(coming, None)
        for start, places in todo:
            pixels, ahead = ahead.result(), next(coming, None)
            yield start, places, pixels
