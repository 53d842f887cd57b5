"""What several processes, or one with little memory, find: started by tests as a process of its
own, so that forking is safe.

``python several.py <question> <folder> …``: each question is a function below and leaves files in
the folder.
"""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import toy
from torch import distributed, multiprocessing

from longtail.learn import encode
from longtail.pick import selection, shards
from longtail.store import processes

PICKED = {"count": 2000, "width": 16, "seed": 60, "budget": 300}
SHARES = [
    [2000],
    [700, 1300],
    [5, 0, 1595, 400],
    [0, 2000, 0, 0],
]  # rows of each process: 1, 2, 4, uneven, empty
PATIENCE = 300  # seconds that an exchange may take
LARGE, WIDTH, ALLOWED = 330_000, 128, 100 * 2**20  # 161 MiB of features, 100 MiB to work with


def features(count, width, seed):
    """Positive rows, the last quarter copies of the first, so that there are real ties."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).relu() + 0.01
    rows[-(count // 4) :] = rows[: count // 4]
    return rows


def inputs():
    """Pool features, seed features, losses and distances that two processes make alike; losses and
    distances have ties too.
    """
    pool, seed = (
        features(PICKED["count"], PICKED["width"], 0),
        features(PICKED["seed"], PICKED["width"], 1),
    )
    loss, distance = (
        torch.rand(2, len(pool), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        .mul(200)
        .round()
        / 7
    )
    return pool, seed, loss, distance


def together(function, count, *arguments):
    """``function(*arguments)`` in so many processes with a gloo group; rank r's result is the r-th
    line of the file it names.
    """
    multiprocessing.start_processes(
        _member, (count, function, arguments), count, start_method="fork"
    )


def _member(rank, count, function, arguments):
    store, os.environ["WORLD_SIZE"] = f"file://{arguments[0]}.{count}.store", str(count)
    distributed.init_process_group(
        "gloo", store, rank=rank, world_size=count, timeout=timedelta(seconds=PATIENCE)
    )
    function(*arguments)
    distributed.destroy_process_group()


def claiming(folder):
    """Two processes, whose exchanges may take three seconds, want a run that another process holds
    for six.
    """
    from longtail.store import runs  # noqa: F401, once for all processes

    globals()["PATIENCE"] = 3
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder / "claim"], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        together(_claim, 2, folder / "held")


HOLD = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); time.sleep(6)"


def _claim(path):
    from longtail.store import runs

    began, moments = time.monotonic(), {}
    with runs.claim(path.parent, wait=False) as held:
        moments["at once"] = held
    with runs.claim(path.parent, wait=True) as held:
        moments |= {"in the end": held, "seconds": time.monotonic() - began}
    Path(f"{path}.{processes.world()[0]}.json").write_text(json.dumps(moments))


def selecting(folder):
    """Picks, scores and certificates of every way in SHARES to spread the pool, and those of a
    process with little memory.
    """
    import longtail.pick.samplers  # noqa: F401, once for all processes

    multiprocessing.start_processes(_frugal, (folder,), 1, start_method="fork")
    for number, counts in enumerate(SHARES):
        together(_select, len(counts), folder / str(number), counts)


def _select(path, counts):
    from longtail.bench.greedy import certificate
    from longtail.pick import samplers
    from longtail.pick.hierarchical_k_means import hierarchical_k_means

    group = shards.everyone()
    pool, seed, loss, distance = inputs()
    mine = slice(sum(counts[: group.rank]), sum(counts[: group.rank + 1]))
    picks = [
        selection.k_center(pool[mine], seed, PICKED["budget"], block=block, group=group)
        for block in (40, 1024)
    ]
    picks.append(
        selection.k_center(pool[mine], seed, PICKED["budget"], picks=picks[0][:100], group=group)
    )
    picks.append(selection.k_center(pool[mine], seed, len(pool), group=group))
    q = samplers.score(loss[mine], distance[mine], 0.3, group)
    picks += [
        samplers.core_set(q, pool[mine], seed, budget, ratio, group)
        for budget, ratio in ((PICKED["budget"], 1.5), (40, 1.0))
    ]
    picks.append(hierarchical_k_means(pool[mine], 40, (20, 5), steps=1, group=group))
    by_sampler = {
        name: samplers.sample(
            name, loss[mine], distance[mine], pool[mine], seed, 40, 0.3, 1.5, 0, group
        ).tolist()
        for name in samplers.SAMPLERS
        if group.size < 3
    }  # of more it takes minutes
    swapped = picks[0].clone()
    swapped[[50, 200]] = picks[0][[200, 50]]
    violations = [
        certificate(pool[mine], seed, order, group=group) for order in (picks[0], swapped)
    ]
    broken = pool[mine].clone()
    broken[: group.rank] = torch.nan  # on the first process all is well
    refused = ""
    try:
        selection.k_center(broken, seed, 5, group=group)
    except ValueError as error:
        refused = str(error)
    Path(f"{path}.{group.rank}.json").write_text(
        json.dumps(
            {
                "picks": [order.tolist() for order in picks],
                "samplers": by_sampler,
                "score": group.gather(q).tolist(),
                "violations": violations,
                "refused": refused,
            }
        )
    )


def _frugal(_, folder):
    """Picks from features in a file, by a process that may not have as much memory as they take."""
    now = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + ALLOWED,) * 2)
    pool = np.load(folder / "pool.npy", mmap_mode="r")
    picks = selection.k_center(pool, torch.from_numpy(np.load(folder / "seed.npy")), 12)
    try:
        np.array(pool)
    except MemoryError as error:
        (folder / "frugal.json").write_text(
            json.dumps({"picks": picks.tolist(), "features in memory": str(error)})
        )


# ---- scoring a pool with an extractor

HOW = {"views": 3, "batch": 16, "repeats": 2}
CHUNK = 16  # images; the pool has 60, so that there are four chunks, the last one smaller


def extractor(root, images):
    """(run, results) of an untrained extractor that counts as finished, in a results folder of its
    own.
    """
    from longtail.learn import train
    from longtail.store import runs

    run, results = toy.planned(images), runs.Results("here")
    results.root, results.store = Path(root), Path(root) / "runs"
    if not results.is_done(run):
        runs.write(results.folder(run) / "run.json", json.dumps(asdict(run)))
        train.finish(
            run, results.folder(run), train.initialise(run)[0], [{"seconds": 0.0}], len(images)
        )
    results.ask("arms", [run], {})
    return run, results


class Study:
    """Sixty pictures to pick from, the first twenty of them as seed."""

    def __init__(self):
        self.pool = toy.image_set(60)
        self.seed = self.pool.subset(range(20))


def score(root):
    """Losses, features and picks of the pool, as lists, and the chunks that had to be measured for
    them.
    """
    from longtail.pick import samplers, scoring

    encode.CHUNK, put, measured, study = CHUNK, scoring.Stored.put, [], Study()
    run, results = extractor(root, study.seed)
    scoring.Stored.put = lambda stored, start, rows: [
        put(stored, start, rows),
        measured.append(chunk(stored.path, start)),
    ]
    picks = samplers.pick(run, results, study, "mak", 12, 0.3, 1.5, 4, **HOW)
    scoring.Stored.put, losses = (
        put,
        results.remember(run, "pool-ecle", results.record(run, "pool-ecle")["settings"], None).ecle,
    )
    features = samplers.pool_and_seed(run, results, study)[0]
    return {
        "losses": losses.tolist(),
        "features": features.tolist(),
        "picks": picks["index"].tolist(),
        "measured": measured,
    }


def chunk(path, start):
    """What stands for a chunk of an array: its folder, its name and its first row."""
    return f"{path.parent.name.rsplit('-', 1)[0]}/{path.name.split('.')[0]} {start}"


def recorded(root):
    """The chunks that are whole in a results folder."""
    from longtail.pick import scoring

    return [
        chunk(file, line.split()[0])
        for file in root.rglob("*.chunks")
        for line in file.read_text().split("\n")
        if scoring.CHUNK_LINE.fullmatch(line)
    ]


def scoring(folder, moments=2):
    """Scores and picks when nothing happens, after kills at awkward and at random moments, by two
    processes, and when one of two died.
    """
    draw, lines = np.random.default_rng(0), _Lines(np.inf)
    with lines:
        found = {"whole": score(folder / "whole")}
    ways = {moment: functools.partial(_die_at, moment) for moment in KILLS}
    ways |= {
        f"random {k}": _Lines(draw.integers(lines.count)).__enter__ for k in range(int(moments))
    }
    for moment, die in ways.items():
        if not (child := os.fork()):
            die()
            score(folder / moment)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, moment
        found[moment] = {"before": recorded(folder / moment), **score(folder / moment)}
    for name, dies in (("two", None), ("one dies", 1)):
        extractor(folder / name, Study().seed)
        try:
            together(_score, 2, folder / name, dies)
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException):
            found[name] = {"before": recorded(folder / name), **score(folder / name)}
        else:
            found[name] = [
                json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)
            ]
    (folder / "found.json").write_text(json.dumps(found))


class _Lines:
    """Count the lines of scoring and selection that run, and kill this process at one of them."""

    def __init__(self, last):
        self.count, self.last = 0, last

    def __enter__(self):
        sys.settrace(self.enter)

    def __exit__(self, *_):
        sys.settrace(None)

    def enter(self, frame, event, argument):
        return (
            self.line
            if Path(frame.f_code.co_filename).stem
            in ("scoring", "sampling", "selection", "ecle", "runs")
            else None
        )

    def line(self, frame, event, argument):
        self.count += 1
        if self.count > self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.line


def _score(root, dies=None):
    rank = processes.world()[0]
    if rank == dies:
        _die_at("after the other")
    found = score(root)
    Path(f"{root}.{rank}.json").write_text(json.dumps(found))


KILLS = ["within a chunk", "within a record", "between sums"]


def _die_at(moment):
    """Have this process killed at its sixth chunk, or at its fourth sum of losses."""
    from longtail.pick import scoring

    put, keep, calls = scoring.Stored.put, scoring._keep_sum, []

    def killed_put(stored, start, rows):
        calls.append(start)
        if len(calls) < 6:
            return put(stored, start, rows)
        if moment == "within a chunk":
            with open(stored.path, "r+b") as file:
                file.seek(stored.mapped().offset + start * rows[0].nbytes)
                file.write(bytes(rows[0].nbytes // 2))
        while moment == "after the other" and len(recorded(stored.path.parents[1])) < 5 + 2 * (
            1 + HOW["views"]
        ):
            time.sleep(0.01)
        if moment == "within a record":
            put(stored, start, rows)
            record = stored.records()[0]
            os.truncate(record, record.stat().st_size - 10)
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_keep(path, settings, done, total):
        keep(path, settings, done, total)
        if done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "between sums":
        scoring.SAVE_SECONDS, scoring._keep_sum = -1, killed_keep
    else:
        scoring.Stored.put = killed_put


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
