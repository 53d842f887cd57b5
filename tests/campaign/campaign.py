"""A campaign against the tool: kills, torn files, odd values, odd requests, full disks. Prints how each case ended, as a table.

``python tests/campaign/campaign.py [small | full] [seed]``: small takes a minute and is what the tests run. Exit status 1 when a case
ended silently wrong, without naming what is wrong, never, or with something written where it does not belong.
"""

import contextlib
import functools
import io
import itertools
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import pandas as pd
import torch
import toy
import yaml

from longtail.command import profiles, reproduce
from longtail.learn import train
from longtail.store import paths, runs
from longtail.store.settings import mistakes

GOOD, BAD = ("as before", "refused", "named"), ("silently wrong", "no name", "hang", "outside")
SIZES = {"small": {"kills": 12, "torn": 24, "parameters": 3, "requests": 30, "disk": 13},
         "full": {"kills": 120, "torn": 400, "parameters": 20, "requests": 300, "disk": 60}}       # values of each parameter
PATIENCE = 120      # seconds after which a case hangs


def told(work):
    """What ``work`` gives in a process of its own: ("value", it) or ("error", type, text), or ("hang",)."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        try:
            answer = ("value", work())
        except BaseException as error:
            answer = ("error", type(error).__name__, str(error))
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(PATIENCE)
        content = pipe.read()
        signal.alarm(0)
    return pickle.loads(content) if os.waitpid(child, 0)[1] == 0 else ("hang",)


def judged(answer, reference, names):
    """How a case ended: as before, with an error that names one of ``names``, or badly."""
    if answer[0] == "hang":
        return "hang"
    if answer[0] == "value":
        return "as before" if answer[1] == reference else "silently wrong"
    return "named" if any(name in answer[2] for name in names) else "no name"


def trained(root, method="sdclr"):
    """Train a toy run in ``root`` and measure it, or go on with both; what a reader then sees of it."""
    paths.RESULTS = root
    run, results = toy.planned(method=method), runs.Results("toy")
    results.keep("data", {"dataset": "toy"})
    results.ask("arms", [run], {})
    train.pretrain(run, toy.IMAGES, results, progress=False, checkpoint_seconds=0)
    results.remember(run, "scores", {"probe": "toy"}, lambda: pd.DataFrame({"group": ["all"], "accuracy": [method.count("c") / 3]}))
    return read(root, method)


def read(root, method="sdclr"):
    """What tables see: the encoder, the log, the rows and the settings of the toy run."""
    paths.RESULTS = root
    run, results = toy.planned(method=method), runs.Results("toy")
    if lost := results.missing():       # tables say so
        raise ValueError(f"missing: {', '.join(lost)}")
    [kept] = results.planned()
    weights = train.encoder_of(kept, results).state_dict()
    log = results.logs(seed=run.seed).drop(columns="seconds")
    return (runs.sha256(b"".join(value.numpy().tobytes() for value in weights.values())), log.to_csv(), results.read("scores").to_csv(),
            results.kept("data"))


# ---- the kinds of cases: each gives (what was tried, how it ended)

def kills(count, draw, folder):
    """Processes killed at any moment of training, then the same command again: the same encoder and log, nothing left over."""
    for case in range(count):
        method = draw.choice(sorted(toy.FAMILY))
        references[method] = references.get(method) or told(lambda: trained(folder / f"whole-{method}", method))[1]      # noqa: B023
        root = folder / f"killed-{case}"
        for moment in ["checkpoint", draw.uniform(0.02, 0.5), draw.uniform(0.02, 0.5)]:
            toy.killed(lambda: trained(root, method), moment)       # noqa: B023
        ended = judged(told(lambda: trained(root, method)), references[method], [])     # noqa: B023
        yield f"{method}, three times", "silently wrong" if list(root.rglob("*.part")) and ended == "no name" else ended


def torn(count, draw, folder):
    """Every file of a run and its plan cut, flipped, emptied, lost or another's; then the run is read, and training goes on."""
    whole, other = folder / "whole", folder / "other"
    reference, _ = told(lambda: trained(whole))[1], told(lambda: trained(other, "simclr"))
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "claim")
    for case in range(count):
        file, damage = files[case % len(files)], draw.choice(["cut", "flip", "empty", "lost", "swap"])
        root = folder / f"torn-{case}"
        shutil.copytree(whole, root)
        broken, content = root / file, (whole / file).read_bytes()
        if damage == "lost":
            broken.unlink()
        elif damage == "swap":
            broken.write_bytes(next((path for path in other.rglob(file.name)), whole / file).read_bytes())
        else:
            at = draw.randrange(max(1, len(content)))
            flipped = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1:] if content else b"x"
            broken.write_bytes({"cut": content[:at], "empty": b"", "flip": flipped}[damage])
        for command in (read, trained):
            yield f"{file} {damage}, {command.__name__}", judged(told(functools.partial(command, root)), reference, [str(root), "toy"])
        shutil.rmtree(root)


ODD = [-1, 0, 1, 2, -10**30, 10**30, 0.5, -0.5, math.nan, math.inf, "", "x", "1e-3", "1e999", "../x", "é\n", None, True, [], [[]],
       [None], [-1], {"a": 1}, [1] * 1000, "!!python/object:os.system", "{}", "$HOME"]


def parameters(count, draw, folder):
    """Every parameter of every notebook at extreme and wrong values, as by -p: refused by its name, or kept exactly."""
    notebooks = profiles.notebooks_of(paths.NOTEBOOKS)
    model = profiles.parameters_schema(notebooks)
    rules = model.model_json_schema()["properties"]
    for name in sorted(model.model_fields):
        for value in draw.sample(ODD, count):
            asked = f"{name}={value!r}"[:60]
            kept, wrong = mistakes(model, {name: value})
            if wrong:
                yield asked, "refused" if all(key == name and text.startswith(name) for key, text in wrong) else "no name"
            else:
                right = fits(kept[name], rules[name]) and (kept[name] == value or kept[name] == number(value))
                yield asked, "as before" if right else "silently wrong"


def number(value):
    """A text that means a number, as that number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def fits(value, rule):
    """Whether a value is of a JSON schema's type and within its limits, found without pydantic."""
    if rule.get("type") == "array":
        return isinstance(value, list) and len(value) >= rule.get("minItems", 0) and all(fits(item, rule["items"]) for item in value)
    kinds = {"integer": int, "number": (int, float), "boolean": bool, "string": str}
    if "enum" in rule:
        return value in rule["enum"]
    right = isinstance(value, kinds[rule["type"]]) and isinstance(value, bool) == (rule["type"] == "boolean")
    return right and ("minimum" not in rule or rule["minimum"] <= value <= rule["maximum"])


def requests(count, draw, folder):
    """Files of one's own, profiles and requests, with odd names, keys, values and bytes: refused in words, or a plan."""
    keys = ["base", "about", "hours", "notebooks", "seeds", "budget", "arms", "dataset", "lists", "seed_images", "pool_images",
            "encoder", "samplers", "size", "on", "5", "<<", "é", "profile", "name"]
    for case in range(count):
        text = yaml.safe_dump({key: draw.choice(ODD) for key in draw.sample(keys, draw.randint(0, 5))}, allow_unicode=True)
        if case % 3 == 0:       # broken as a text, too
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(["\t", "\0", "&a [*a]", "'", "{", "\ufeff", ": :", "!!python/name:os.system "]) + text[at:]
        name = draw.choice(["mine", "..", ".", "a b", "demo", "demo-custom", "runs", "ü", "a{b}", "-p", "x" * 190, "$HOME"])
        file = folder / f"{name}.yaml"
        file.write_bytes(text.encode(draw.choice(["utf-8", "utf-16", "latin-1"]), errors="replace"))
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                status = reproduce.main([str(file), "--dry-run"])
            yield text[:60], "as before" if status == 0 else "refused" if status in (1, 2) and output.getvalue() else "no name"
        except Exception as error:
            yield f"{text[:60]!r}: {error!r}", "no name"
        file.unlink()


def full(space, root):
    """Train while no file may have more than so many bytes: the system refuses the write as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, resource.RLIM_INFINITY))
    return trained(root)


def disk(count, draw, folder):
    """No space at any moment: the error names path and bytes, no part is left, and with space the same command ends as ever."""
    reference = told(lambda: trained(folder / "whole"))[1]
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    for case in range(count):
        root, space = folder / f"full-{case}", round(1.3 * largest ** (case / max(1, count - 1)))       # from 1 byte to enough

        ended = judged(told(functools.partial(full, space, root)), reference, [str(root)])
        if ended == "named" and list(root.rglob("*.part")):
            ended = "outside"
        yield f"{space} bytes", ended
        yield f"{space} bytes, then space", judged(told(lambda: trained(root)), reference, [])     # noqa: B023


# ---- all of it

references = {}


def campaign(size, seed, show=print):
    """Run every kind at a size; returns the table of counts and the cases that ended badly."""
    torch.set_num_threads(1)
    table, bad = {}, []
    for kind in (parameters, requests, disk, torn, kills):
        with tempfile.TemporaryDirectory() as folder:
            before, began = outside(), time.perf_counter()
            paths.RESULTS = Path(folder) / "results"
            cases = list(kind(SIZES[size][kind.__name__], random.Random(f"{seed} {kind.__name__}"), Path(folder)))
            cases += [(f"written: {path}", "outside") for path in outside() - before]
        table[kind.__name__] = {"cases": len(cases), **Counter(ended for _, ended in cases), "seconds": round(time.perf_counter() - began)}
        bad += [(kind.__name__, *case) for case in cases if case[1] in BAD]
        show(f"{kind.__name__:<12}", table[kind.__name__], flush=True)
    return pd.DataFrame(table).T.reindex(columns=["cases", *GOOD, *BAD, "seconds"]).fillna(0).astype(int), bad


def outside():
    """Files of the repository that a case may not touch."""
    kept = (paths.ROOT / "src", paths.NOTEBOOKS, paths.ROOT / "results", paths.ROOT / "figures")
    return {(str(path), path.stat().st_mtime_ns) for root in kept for path in itertools.chain([root], root.rglob("*"))
            if path.exists() and "__pycache__" not in path.parts}


if __name__ == "__main__":
    size, seed = (sys.argv[1:] + ["small"])[0], (sys.argv[2:] + ["1"])[0]
    counts, failures = campaign(size, seed)
    print(counts.to_markdown())
    print(*failures[:40], sep="\n")
    sys.exit(bool(failures))
