"""The one loop: pre-train a run, with checkpoints and resume; several runs side by side."""

import contextlib
import gzip
import io
import itertools
import json
import os
import pickle
import time
from concurrent import futures
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from safetensors import torch as safetensors
from tqdm import tqdm

from longtail.images import views
from longtail.learn import methods
from longtail.learn.methods.simclr import FINAL_RATE as FINAL_RATE
from longtail.learn.methods.simclr import warmup_cosine as warmup_cosine
from longtail.store import arms, gpu, processes, runs

MOMENTUM = 0.9  # SDCLR's and MAK's scripts, all data sets
FILES = (
    "log.csv",
    "notes.csv.gz",
    "encoder.safetensors",
)  # of a finished run: ``done.json`` has their digests
# encoders kept of a run, evenly spaced, so that its accuracy can be followed over time; the last is
# the encoder
SNAPSHOTS = 10


def plan(study, arm, split, seed, settings):
    """The run of one arm and the images it trains on: ``(Run, ImageSet)``.

    ``settings`` holds the fields of ``Run`` that all arms share; ``arms.read_arm`` says what an arm
    is. The depth of the head is the published one unless given. A method that picks images as it
    trains gets the study's pool, behind the seed.
    """
    own, options = arms.read_arm(arm)
    kind = methods.find(own["method"])
    images = study.seed if own["subset"] == "long_tail" else study.balanced
    if kind.picks:
        images, own = (
            images + study.pool.subset(range(len(study.pool))),
            own | {"reserve": len(study.pool)},
        )
    chosen = methods.write_options(methods.read_options(kind, options))
    given = settings | {"head_layers": kind.head_layers, "options": chosen} | own | kind.fixed
    run = runs.Run(**given, split=split, seed=seed, images=images.digest)
    for name in arms.OF_AN_ARM - {"budget", *kind.fixed}:  # notebooks are also run by hand
        arms.in_range(name, getattr(run, name), run.name)
    kind(run)  # refuses settings that do not fit, before anything is trained
    return run, images


@dataclass(frozen=True)
class Course:
    """The updates of a run."""

    updates: tuple  # in each epoch
    warmup: int  # of the first ones, while the rate rises

    @property
    def epochs(self):
        return len(self.updates)

    @property
    def total(self):
        return sum(self.updates)

    def steps(self, epoch):
        """The numbers of an epoch's updates, which count from 1; epochs count from 0."""
        before = sum(self.updates[:epoch])
        return range(before + 1, before + self.updates[epoch] + 1)


def course(run, images, extra=lambda epoch: 0):
    """The ``Course`` of a run on so many images, to which a method adds ``extra(epoch)`` of its
    pool.

    A last batch of a single image is dropped. ``schedule="updates"`` gives a run with added images
    as many as the seed alone gets.
    """

    def steps(n):
        return n // run.batch_size + (n % run.batch_size > 1)

    used = images - run.reserve
    if not run.epochs:
        return Course((), 0)
    if run.epochs <= run.warmup_epochs:
        raise ValueError(
            f"{run.name}: {run.warmup_epochs} warm-up epochs leave nothing of {run.epochs}; lower "
            "warmup_epochs"
        )
    if not steps(used):
        raise ValueError(f"{run.name}: {used} images make no batch of at least two")
    updates = [steps(used + extra(epoch)) for epoch in range(run.epochs)]
    planned = steps(run.seeds(images)) if run.schedule == "updates" else steps(used)
    left = run.epochs * planned if run.schedule == "updates" else sum(updates)
    ends = itertools.accumulate(updates)
    updates = [
        n - max(0, end - left) for n, end in zip(updates, ends, strict=True) if end - n < left
    ]  # cut where the plan ends
    return Course(tuple(updates), run.warmup_epochs * planned)


def initialise(run):
    """A fresh encoder, its method and its optimiser, decided by the run alone."""
    method = methods.find(run.method)(run)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        encoder = method.network(run.architecture, run.head_layers, method.branches)
    encoder = encoder.to(runs.device(), memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        encoder.parameters(), run.learning_rate, MOMENTUM, weight_decay=run.weight_decay, fused=True
    )
    return encoder, method, optimizer


def pretrain(run, images, results, progress=True, wait=True, checkpoint_seconds=20):
    """Pre-train a run on an image set; returns at once when it is done, and goes on where an
    earlier process stopped.

    Writes ``log.csv`` by epoch, ``encoder.safetensors`` and at last ``done.json`` into the run's
    folder. Raises ``FloatingPointError`` when a loss is not finite. A damaged checkpoint is not
    used, which a line says. A run that another process holds is waited for, or left to it. The run
    that a method learns from is made first.
    """
    reference = None if results.is_done(run) else methods.find(run.method).reference(run)
    if reference:
        pretrain(reference, images, results, progress, True, checkpoint_seconds)
    with runs.claim(results.folder(run), wait) as held:
        if held and not results.is_done(run):
            train(
                run,
                images,
                results.folder(run),
                progress,
                checkpoint_seconds,
                reference and encoder_of(reference, results),
            )


def train(run, images, folder, progress, checkpoint_seconds, teacher=None):
    """Train without labels, for the process that holds the run; ``teacher`` is the encoder of the
    run that the method learns from.
    """
    if run.images != images.digest:
        raise ValueError(
            f"{run.name} was planned for images {run.images}, these are {images.digest}"
        )
    gpu.forget_peak()
    images = replace(images, images=images.images.to(runs.device()))
    if run.precision == "bfloat16_gpu" and not gpu.computes(images.images):
        raise ValueError(
            f"{run.name} is to be trained on a GPU and this machine has none; copy the finished "
            "run here, or use precision bfloat16"
        )
    encoder, method, optimizer = initialise(run)
    method.start(images, teacher)
    plan, step = (
        course(run, len(images), method.extra),
        Step(run, encoder, method, optimizer, images.images),
    )

    def one(epoch):
        method.before_epoch(encoder, epoch)
        return train_epoch(step, epoch, rates := method.rates(epoch, plan)), rates[-1]

    def over(epochs):
        if epochs in snapshot_epochs(plan.epochs):
            content = weights_of(encoder)
            runs.write(
                folder
                / "snapshots"
                / f"epoch-{epochs:04d}-{runs.sha256(run.name.encode() + content)[:8]}.safetensors",
                content,
            )

    log = loop(
        run,
        folder,
        plan.epochs,
        one,
        {"encoder": encoder, "optimizer": optimizer, "method": method.state, "notes": method.notes},
        progress,
        checkpoint_seconds,
        over,
    )
    if method.notes:
        text = notes(method).to_csv(index=False)  # a row for each image; most of a run's rows
        runs.write(folder / "notes.csv.gz", gzip.compress(text.encode(), mtime=0))
    finish(run, folder, encoder, log, len(images))


def loop(run, folder, epochs, one, parts, progress, checkpoint_seconds, over=lambda epochs: None):
    """The loop of every run: from its checkpoint on, epoch by epoch, with a log and checkpoints;
    returns the log.

    ``one(epoch)`` trains an epoch, counted from 0, and gives the loss of each update (on the
    device) and the last learning rate. ``parts``: name -> what a checkpoint keeps, modules and the
    like, or dicts. ``over(epochs)`` is told how many epochs are over.
    """
    runs.write(folder / "run.json", json.dumps(asdict(run), indent=1))
    log, saved = restore(run, folder / "last.pt", parts), time.perf_counter()
    steps, hidden = log[-1]["step"] if log else 0, not progress or processes.world()[0] > 0
    for epoch in tqdm(
        range(len(log), epochs),
        run.name,
        epochs,
        initial=len(log),
        mininterval=2,
        disable=hidden,
        leave=False,
    ):
        began = time.perf_counter()
        losses, rate = one(epoch)
        check_finite(losses, steps, run)
        steps += len(losses)
        log.append(
            {
                "epoch": epoch + 1,
                "step": steps,
                "loss": losses.mean().item(),
                "learning_rate": rate,
                "seconds": round(time.perf_counter() - began, 3),
            }
        )
        runs.write(folder / "log.csv", log_csv(log))
        over(epoch + 1)
        if (
            processes.agreed(time.perf_counter() - saved > checkpoint_seconds)
            and epoch + 1 < epochs
        ):
            save_checkpoint(run, folder / "last.pt", parts, log)
            saved = time.perf_counter()
    return log


def snapshot_epochs(epochs):
    """After which epochs of a run its encoder is kept: ten, evenly spaced, without the end, where
    the run's own encoder is written.
    """
    return sorted({round(part * epochs / SNAPSHOTS) for part in range(1, SNAPSHOTS)} - {0, epochs})


def snapshots(run, results):
    """Epoch -> file of the encoders that were kept of a run, and are still there, in order; a name
    holds the digest of run and weights.
    """
    files = sorted((results.folder(run) / "snapshots").glob("epoch-*.safetensors"))
    return {
        epoch: file
        for file in files
        if (epoch := int(file.name.split("-")[1])) in snapshot_epochs(run.epochs)
    }


def notes(method):
    """What a method noted between epochs, as rows: name, epoch (how many were over), place in the
    noted tensor, value.
    """
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "name": name,
                    "epoch": epoch,
                    "place": range(len(values)),
                    "value": values.cpu().numpy(),
                }
            )
            for name, noted in method.notes.items()
            for epoch, values in noted.items()
        ]
    ).round(5)


def log_csv(log):
    """The rows of ``log.csv`` as text."""
    return pd.DataFrame(log, columns=["epoch", "step", "loss", "learning_rate", "seconds"]).to_csv(
        index=False
    )


class Step:
    """One update of the encoder.

    A GPU spends more time on waiting for orders than on a small network's work, so there an update
    is recorded once for each size of a batch and each phase of the method, as a CUDA graph, and
    replayed; with several processes the same lines run one by one. LONGTAIL_EAGER=1 turns off
    compiler and graphs, LONGTAIL_COMPILE=1 compiles the encoder too, with rounding of its own.
    """

    def __init__(self, run, encoder, method, optimizer, pixels):
        self.run, self.encoder, self.method, self.optimizer, self.pixels = (
            run,
            encoder,
            method,
            optimizer,
            pixels,
        )
        self.policy = views.POLICIES[run.policy]
        self.epoch = torch.zeros((), dtype=torch.int64, device=pixels.device)
        self.fused = gpu.fuses(pixels)
        self.recorded = gpu.Recorded(self.update, self.changed, wanted=processes.world()[1] == 1)
        self.rate = (
            torch.zeros((), device=pixels.device) if gpu.computes(pixels) else None
        )  # a graph reads it; a CPU takes the number
        if self.fused and os.environ.get("LONGTAIL_COMPILE"):
            encoder.compile(dynamic=False)

    def __call__(self, index, rate):
        """Update by the images ``index`` (n,) at a rate; gives the mean loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.rate is None else self.rate.fill_(rate)
        return self.recorded((self.method.phase(), len(index)), index)

    def update(self, index):
        """The update itself; nothing here depends on a value that the host would have to read."""
        mine = processes.share(index)
        first, second = (
            views.augment(
                self.pixels,
                mine,
                self.policy,
                self.run.seed,
                self.epoch,
                view,
                fused=self.fused,
                boost=self.method.boost,
            ).to(memory_format=torch.channels_last)
            for view in (0, 1)
        )
        loss = self.method.backward(self.encoder, first, second, index).mean()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def changed(self):
        """What an update changes: weights, statistics, momentum and the method's memory."""
        momenta = [kept["momentum_buffer"] for kept in self.optimizer.state.values()]
        return [
            *self.encoder.parameters(),
            *self.encoder.buffers(),
            *momenta,
            *self.method.state.values(),
        ]


def train_epoch(step, epoch, rates):
    """One epoch of updates at the given rates; returns the mean loss of each, on the device."""
    used = step.method.used()
    order = torch.from_numpy(
        np.random.default_rng([step.run.seed, epoch]).permutation(len(used))
    ).to(used.device)
    step.epoch.fill_(epoch)
    batches = zip(
        used[order].split(step.run.batch_size), rates, strict=False
    )  # a cut epoch has fewer rates than batches
    return torch.stack(
        [step(index, rate) for index, rate in batches]
    )  # the rate moves before the update: 0 is never used, as in SDCLR's script


def check_finite(losses, steps_before, run):
    """Stop a run at its first loss that is no number, before anything of it is saved."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise FloatingPointError(
            f"{run.name}: loss is {losses[bad[0]].item()} at step "
            f"{steps_before + bad[0].item() + 1}; "
            f"lower the learning rate, or use precision float32"
        )


def save_checkpoint(run, path, parts, log):
    """A checkpoint, whole or not at all: a line with digest and name of its run, then the state of
    ``parts`` as torch saves it.
    """
    content = io.BytesIO()
    torch.save(
        {
            "log": log,
            **{
                name: part if isinstance(part, dict) else part.state_dict()
                for name, part in parts.items()
            },
        },
        content,
    )
    runs.write(
        path, f"{runs.sha256(content.getbuffer())} {run.name}\n".encode() + content.getbuffer()
    )


def load_checkpoint(run, path):
    """The state that ``save`` wrote for this run; None without a file, or, said in a line, for a
    damaged one or another run's.
    """
    if not path.exists():
        return None
    head, _, content = path.read_bytes().partition(b"\n")
    if head == f"{runs.sha256(content)} {run.name}".encode():
        with contextlib.suppress(
            pickle.UnpicklingError, EOFError, RuntimeError
        ):  # somebody else wrote it
            return torch.load(io.BytesIO(content), map_location=runs.device(), weights_only=True)
    print(
        f"{path} is damaged, or another run's; {run.name} starts again from its first epoch",
        flush=True,
    )
    return None


def restore(run, path, parts):
    """Put all ``parts`` where the checkpoint left them; returns its log, empty without one."""
    state = load_checkpoint(run, path)
    for name, part in parts.items() if state else ():
        part.update(state[name]) if isinstance(part, dict) else part.load_state_dict(state[name])
    return state["log"] if state else []


def finish(run, folder, encoder, log, images):
    """Write the encoder, where it is kept, and last of all ``done.json`` with the digests of all;
    no epochs leave a log without rows.
    """
    runs.write(folder / "log.csv", log_csv(log))
    if encoder is not None:
        keep_encoder(folder / "encoder.safetensors", encoder)
    runs.sync(folder)
    files = {
        path.name: runs.sha256(path.read_bytes())
        for path in map(folder.joinpath, FILES)
        if path.exists()
    }
    runs.write_record(
        folder / "done.json",
        {
            "seconds": round(sum(row["seconds"] for row in log), 1),
            "peak_memory_mib": round(gpu.peak_memory() / 2**20),
            "seed_images": run.seeds(images),
            **runs.machine(),
            "files": files,
        },
    )
    if processes.world()[0] == 0:
        (folder / "last.pt").unlink(missing_ok=True)


def weights_of(encoder):
    """An encoder's weights as the content of a safetensors file, in half precision, which is all
    that is measured of it later.

    A tensor with values beyond the range of half precision stays in its own.
    """
    half = {
        name: value.half() if value.is_floating_point() and value.half().isfinite().all() else value
        for name, value in encoder.state_dict().items()
    }
    return safetensors.save({name: value.contiguous() for name, value in half.items()})


def keep_encoder(path, encoder):
    """Write ``weights_of`` an encoder."""
    runs.write(path, weights_of(encoder))


def encoder_of(run, results, epoch=None):
    """The trained encoder of a finished run, in evaluation mode (its dense branch is branch 0), or
    as it was after some ``epoch``.
    """
    folder = results.folder(run)
    path = (
        folder / "encoder.safetensors"
        if epoch is None
        else snapshots(run, results).get(epoch, folder / "snapshots")
    )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: not all weights are shipped; delete {folder} to train the run "
            "again"
        )
    content = path.read_bytes()
    if epoch is None:
        right = runs.sha256(content) == results.ended(run)["files"].get(path.name)
    else:
        right = runs.sha256(run.name.encode() + content)[:8] == path.stem.split("-")[2]
    if not right:
        raise ValueError(
            f"{path} is not the file that training wrote; delete {folder} to train the run again"
        )
    method = methods.find(run.method)
    encoder = method.network(run.architecture, run.head_layers, method.branches)
    try:
        encoder.load_state_dict(safetensors.load(content))
    except RuntimeError as error:
        raise ValueError(f"{path} is of another network than run.json beside it says") from error
    return encoder.to(runs.device(), memory_format=torch.channels_last).eval()


def side_by_side(function, jobs, count, progress=None):
    """``function(*job)`` for every job, ``count`` at a time in processes with one thread each; one
    means this one.

    Results come in the order of the jobs, the first error is raised. Two processes with one thread
    each are faster on two cores than one with two, and give the same numbers on any number of
    cores.
    """
    named = {
        "desc": getattr(function, "func", function).__name__,
        "mininterval": 2,
        "leave": False,
        "disable": progress is not None,
    }
    if count == 1 or len(jobs) < 2 or processes.world()[1] > 1:
        return [function(*job) for job in tqdm(jobs, **named)]
    context = get_context(
        "forkserver"
    )  # imports once, for all processes that a notebook starts, what takes seconds
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    with (
        futures.ProcessPoolExecutor(count, context, processes.begin_worker) as pool,
        tqdm(total=len(jobs), **named) as bar,
    ):
        waiting, failed = [pool.submit(function, *job) for job in jobs], []
        workers = list(pool._processes.values())  # the pool itself only knows how to wait for them
        try:
            while (
                not failed and (state := futures.wait(waiting, 1, futures.FIRST_EXCEPTION)).not_done
            ):
                failed = [job for job in state.done if job.exception()]
                bar.update(len(state.done) - bar.n)
                if progress:
                    progress()
        except KeyboardInterrupt:
            for worker in workers:
                worker.kill()
            raise
        if failed:
            pool.shutdown(wait=False, cancel_futures=True)  # jobs under way end, none is begun
        return [job.result() for job in failed or waiting]


def make_all(make, jobs, results, count, is_made):
    """``make(run, images, results, progress, wait)`` for all ``(run, images)`` that are not made,
    ``count`` at a time.

    Several processes that were started on the same list share it.
    """
    missing = [
        (run, images, results, count == 1, False) for run, images in jobs if not is_made(run)
    ]
    logs = [results.folder(run) / "log.csv" for run, *_ in missing]
    with tqdm(
        total=sum(run.epochs for run, *_ in missing),
        desc=f"{len(missing)} runs, epochs",
        mininterval=2,
        disable=count == 1 or not missing or processes.world()[0] > 0,
    ) as bar:

        def progress():
            bar.n = sum(log.read_bytes().count(b"\n") - 1 for log in logs if log.exists())
            bar.refresh()

        side_by_side(make, missing, count, progress)
        for (
            run,
            images,
            *_,
        ) in missing:  # what another process held is its to finish, or ours if it died
            make(run, images, results, False, True)
        progress()


def pretrain_all(jobs, results, count):
    """Pre-train all ``(run, images)`` that are not done, ``count`` at a time; several processes
    started on the same list share it.
    """
    make_all(pretrain, jobs, results, count, results.is_done)
