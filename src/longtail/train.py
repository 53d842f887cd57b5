"""The one loop: pre-train a run, with checkpoints and resume; several runs side by side."""

import json
import math
import resource
import time
from concurrent import futures
from dataclasses import asdict
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from longtail import methods, models, runs, views

MOMENTUM, FINAL_RATE = 0.9, 1e-6        # SDCLR and MAK, all data sets (spec 2.4)


def warmup_cosine(step, total_steps, warmup_steps, base_lr, final_lr):
    """Learning rate of optimiser step 1, 2, …: linear warm-up, then cosine to ``final_lr`` at the last step (spec 2.4)."""
    if step < warmup_steps:
        return base_lr * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (base_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def plan(study, arm, split, seed, settings):
    """The run of one arm and the images it trains on: ``(Run, ImageSet)``.

    An arm is "method list [layers [temperature]]", e.g. "simclr long_tail" or "simclr balanced 3": the study's long_tail or balanced
    list, the published depth of the projection head unless given, and the settings' temperature unless given. ``settings`` holds the
    other fields of ``Run``.
    """
    method, subset, *rest = [*arm.split(), ""]
    if subset not in ("long_tail", "balanced") or len(rest) > 3:
        raise ValueError(f"no arm {arm!r}: name a method, long_tail or balanced, then perhaps the layers of its head and a temperature")
    images = study.seed if subset == "long_tail" else study.balanced
    own = {"head_layers": int(rest[0] or methods.find(method).head_layers)} | ({"temperature": float(rest[1])} if len(rest) > 2 else {})
    return runs.Run(**settings | own, method=method, subset=subset, split=split, seed=seed, images=images.digest), images


def updates(run, images):
    """(updates an epoch, updates in all, of which warm-up) of a run on so many images.

    A last batch of a single image is dropped. ``schedule="updates"`` gives a run with added images as many as the seed alone gets.
    """
    def steps(n):
        return n // run.batch_size + (n % run.batch_size > 1)
    planned = steps(images - run.budget if run.schedule == "updates" else images)
    if run.epochs <= run.warmup_epochs:
        raise ValueError(f"{run.name}: {run.warmup_epochs} warm-up epochs leave nothing of {run.epochs}; lower warmup_epochs")
    if not steps(images):
        raise ValueError(f"{run.name}: {images} images make no batch of at least two")
    return steps(images), run.epochs * planned, run.warmup_epochs * planned


def initialise(run):
    """A fresh encoder, its method and its optimiser, decided by the run alone."""
    method = methods.find(run.method)(run)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        encoder = models.Encoder(run.architecture, run.head_layers, method.branches)
    encoder = encoder.to(runs.device(), memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(encoder.parameters(), run.learning_rate, MOMENTUM, weight_decay=run.weight_decay, fused=True)
    return encoder, method, optimizer


def pretrain(run, images, results, progress=True, wait=True, checkpoint_seconds=20):
    """Pre-train a run on an image set; returns at once when it is done, and goes on where an earlier process stopped.

    Writes ``log.csv`` by epoch, ``encoder.pt`` and at last ``done.json`` into the run's folder. Raises ``FloatingPointError`` when
    a loss is not finite and ``ValueError`` for a damaged checkpoint. A run that another process holds is waited for, or left to it.
    """
    with runs.claim(results.folder(run), wait) as held:
        if held and not results.is_done(run):
            train(run, images, results.folder(run), progress, checkpoint_seconds)


def train(run, images, folder, progress, checkpoint_seconds):
    """The loop itself, for the process that holds the run."""
    if run.images != images.digest:
        raise ValueError(f"{run.name} was planned for images {run.images}, these are {images.digest}")
    pixels = images.images.to(runs.device())
    encoder, method, optimizer = initialise(run)
    a_epoch, total, warmup = updates(run, len(images))
    epochs = math.ceil(total / a_epoch)
    runs.write(folder / "run.json", json.dumps(asdict(run), indent=1))
    log = restore(folder / "last.pt", encoder, optimizer, run)
    saved = time.perf_counter()
    for epoch in tqdm(range(len(log), epochs), run.name, epochs, initial=len(log), mininterval=2, disable=not progress, leave=False):
        began = time.perf_counter()
        method.before_epoch(encoder, epoch)
        rates = [warmup_cosine(step, total, warmup, run.learning_rate, FINAL_RATE)
                 for step in range(epoch * a_epoch + 1, min((epoch + 1) * a_epoch, total) + 1)]
        losses = train_epoch(encoder, method, optimizer, pixels, run, epoch, rates)
        check_finite(losses, epoch * a_epoch, run)
        log.append({"epoch": epoch + 1, "step": epoch * a_epoch + len(rates), "loss": losses.mean().item(),
                    "learning_rate": rates[-1], "seconds": round(time.perf_counter() - began, 3)})
        runs.write(folder / "log.csv", log_csv(log))
        if time.perf_counter() - saved > checkpoint_seconds and epoch + 1 < epochs:
            save(folder / "last.pt", {"encoder": encoder.state_dict(), "optimizer": optimizer.state_dict(), "log": log})
            saved = time.perf_counter()
    finish(run, folder, encoder, log, len(images))


def log_csv(log):
    """The rows of ``log.csv`` as text."""
    return pd.DataFrame(log).to_csv(index=False)


def train_epoch(encoder, method, optimizer, pixels, run, epoch, rates):
    """One epoch of updates at the given rates; returns the mean loss of each, on the device."""
    policy = views.POLICIES[run.policy]
    order = torch.from_numpy(np.random.default_rng([run.seed, epoch]).permutation(len(pixels))).to(pixels.device)
    losses = []
    for index, rate in zip(order.split(run.batch_size), rates, strict=False):     # a cut epoch has fewer rates than batches
        first, second = (views.augment(pixels, index, policy, run.seed, epoch, view).to(memory_format=torch.channels_last)
                         for view in (0, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate          # the rate moves before the update, so that rate 0 is never used (spec 2.4)
        losses.append(method.backward(encoder, first, second, index).mean())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses)


def check_finite(losses, steps_before, run):
    """Stop a run at its first loss that is no number, before anything of it is saved."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise FloatingPointError(f"{run.name}: loss is {losses[bad[0]].item()} at step {steps_before + bad[0].item() + 1}; "
                                 f"lower learning_rate or use precision float32")


def save(path, state):
    """A checkpoint, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load(path):
    """What ``save`` wrote; ``ValueError`` naming the file if it is damaged."""
    try:
        return torch.load(path, map_location=runs.device(), weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:      # whatever torch and pickle make of foreign bytes
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise ValueError(f"{path} is damaged ({reason}); delete it to train from the start of the run") from error


def restore(path, encoder, optimizer, run):
    """Put encoder and optimiser where the checkpoint left them; returns its log, empty without one."""
    if not path.exists():
        return []
    state = load(path)
    encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["optimizer"])
    return state["log"]


def finish(run, folder, encoder, log, images):
    """Write the encoder and, last of all, ``done.json``."""
    save(folder / "encoder.pt", encoder.state_dict())
    memory = (torch.cuda.max_memory_allocated() if torch.cuda.is_available()
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    runs.write(folder / "done.json", json.dumps({
        "seconds": round(sum(row["seconds"] for row in log), 1), "peak_memory_mib": round(memory / 2**20),
        "seed_images": images - run.budget, **runs.machine(),
        "encoder_sha256": runs.sha256((folder / "encoder.pt").read_bytes()),
        "log_sha256": runs.sha256(log_csv(log).encode())}, indent=1))
    (folder / "last.pt").unlink(missing_ok=True)


def encoder_of(run, results):
    """The trained encoder of a finished run, in evaluation mode (its dense branch is branch 0)."""
    path = results.folder(run) / "encoder.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: weights are not shipped; delete {path.parent} to train the run again")
    if runs.sha256(path.read_bytes()) != json.loads((path.parent / "done.json").read_text())["encoder_sha256"]:
        raise ValueError(f"{path} is not the file that training wrote; delete {path.parent} to train the run again")
    encoder = models.Encoder(run.architecture, run.head_layers, methods.find(run.method).branches)
    encoder.load_state_dict(load(path))
    return encoder.to(runs.device(), memory_format=torch.channels_last).eval()


def side_by_side(function, jobs, processes, progress=None):
    """``function(*job)`` for every job, in as many processes with one thread each; one process means this one.

    Results come in the order of the jobs, the first error is raised. Two processes with one thread each are faster on two cores
    than one with two, and give the same numbers on any number of cores.
    """
    if processes == 1 or len(jobs) < 2:
        return [function(*job) for job in jobs]
    with futures.ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting, failed = [pool.submit(function, *job) for job in jobs], []
        while not failed and (state := futures.wait(waiting, 1, futures.FIRST_EXCEPTION)).not_done:
            failed = [job for job in state.done if job.exception()]
            if progress:
                progress()
        if failed:
            pool.shutdown(wait=False, cancel_futures=True)      # jobs under way end, none is begun
        return [job.result() for job in failed or waiting]


def pretrain_all(jobs, results, processes):
    """Pre-train all ``(run, images)`` that are not done; several processes started on the same list share it."""
    missing = [(run, images, results, processes == 1, False) for run, images in jobs if not results.is_done(run)]
    logs = [results.folder(run) / "log.csv" for run, *_ in missing]
    with tqdm(total=sum(run.epochs for run, *_ in missing), desc=f"{len(missing)} runs, epochs", mininterval=2,
              disable=processes == 1 or not missing) as bar:
        def count():
            bar.n = sum(log.read_text().count("\n") - 1 for log in logs if log.exists())
            bar.refresh()
        side_by_side(pretrain, missing, processes, count)
        for run, images, *_ in missing:         # what another process held is its to finish, or ours if it died
            pretrain(run, images, results, progress=False)
        count()
