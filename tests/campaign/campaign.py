"""A campaign against the tool: kills, torn files, hostile pictures and archives, odd values, full
disks. A table tells how each case ended.

Small takes two minutes and is what the tests run; full takes a quarter of an hour on two
cores and writes its counts, of all kinds of cases or of those named, to ``counts.csv`` and README.
Exit status 1 when a case ended badly.
"""

import argparse
import contextlib
import errno
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
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path

# before the libraries that would start threads: only a process of one thread is forked safely
os.environ |= {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import pandas as pd
import psutil
import torch
import toy
import yaml
from PIL import Image

from longtail.command import profiles, reproduce
from longtail.images import memory, pixels, sources
from longtail.learn import train
from longtail.own import pool, request
from longtail.store import paths, runs
from longtail.store.settings import mistakes

GOOD = (
    "as before",
    "refused",
    "named",
    "read",
)  # read: as other pixels, as any viewer shows a picture with changed bytes
BAD = ("silently wrong", "no name", "hang", "code run", "outside", "memory", "orphans")
ACCIDENTS = {  # errors that no user can act on, whatever they name
    "AssertionError",
    "AttributeError",
    "IndexError",
    "KeyError",
    "NameError",
    "TypeError",
    "UnboundLocalError",
    "UnicodeDecodeError",
}
SIZES = {  # values of each parameter, files, trainings and commands
    "small": {
        "parameters": 3,
        "requests": 30,
        "images": 60,
        "archives": 40,
        "disk": 13,
        "torn": 24,
        "picked": 20,
        "checkpoints": 8,
        "kills": 4,
        "commands": 1,
    },
    "full": {
        "parameters": 20,
        "requests": 120,
        "images": 1200,
        "archives": 520,
        "disk": 60,
        "torn": 308,
        "picked": 150,
        "checkpoints": 144,
        "kills": 70,
        "commands": 3,
    },
}
COUNTS = Path(__file__).with_name("counts.csv")
QUOTED = "Broken on purpose"  # begins README's line
PATIENCE = 300  # seconds after which a case hangs
ALLOWED = 2**30  # bytes that a case may take beyond what its process has
SPACE = 2**30  # the memory that decoding is told to keep within

STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "pickle.find_class",
}
ORDINARY = ("git", "lscpu")  # programs that ask for commit and cores
CHANGES = {
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.rename",
    "os.truncate",
    "os.symlink",
    "os.link",
    "os.chmod",
    "shutil.rmtree",
}


# ---- one case in a process of its own


def watch(folder, noted):
    """Note programs that this process starts, but ordinary ones, classes it unpickles, and paths
    that it writes outside of ``folder``.
    """

    def hook(event, arguments):
        if event in STARTS and not str(arguments[0]).endswith(ORDINARY):
            noted.append("code run")
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and isinstance(arguments[0], str | bytes | os.PathLike):
            beside = arguments[1] if event in ("os.remove", "os.rmdir") else -1  # an open folder
            base = os.readlink(f"/proc/self/fd/{beside}") if beside >= 0 else ""
            path = os.path.abspath(os.path.join(base, os.fsdecode(arguments[0])))
            if (
                not path.startswith((f"{folder}/", "/dev/null"))
                and path != str(folder)
                and "__pycache__" not in path
            ):
                noted.append("outside")

    sys.addaudithook(hook)


def told(work, folder):
    """What ``work`` gives in a process of its own: ("value", it), ("error", type, text), ("hang",),
    or what it did and may not do.
    """
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads here: a fork may stand still on what another holds"
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        had = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        watch(folder, noted := [])
        try:
            answer = ("value", work())
        except BaseException as error:
            answer = ("error", type(error).__name__, str(error))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - had > ALLOWED / 1024:
            noted.append("memory")
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump((noted[0],) if noted else answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(PATIENCE)
        content = pipe.read()
        signal.alarm(0)
    ended = os.waitpid(child, 0)[1]
    return (
        pickle.loads(content)
        if ended == 0
        else ("hang",)
        if ended == signal.SIGKILL
        else ("error", "signal", f"ended by {ended}")
    )


def judged(answer, reference, names, other="silently wrong"):
    """How a case ended: as before, with an error of one line that names one of ``names``, or badly;
    ``other`` is what another value is.
    """
    if answer[0] in BAD:
        return answer[0]
    if answer[0] == "value":
        return "as before" if answer[1] == reference else other
    if answer[1] in ACCIDENTS:
        return "no name"
    return "named" if any(name in answer[2] for name in names) else "no name"


def damaged(content, damage, draw, other=b""):
    """The bytes of a file after a bad day: cut, one bit flipped, emptied, another's."""
    at = draw.randrange(max(1, len(content)))
    flipped = (
        content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        if content
        else b"x"
    )
    return {"cut": content[:at], "empty": b"", "flip": flipped, "swap": other}[damage]


# ---- a toy run, as training leaves it and as tables read it


def trained(root, method="sdclr", seed=1):
    """Train a toy run in ``root`` and measure it, or go on with both; what a reader then sees of
    it.
    """
    paths.RESULTS = root
    run, results = toy.planned(method=method, seed=seed), runs.Results("toy")
    results.keep("data", {"dataset": "toy"})
    results.ask("arms", [run], {})
    train.pretrain(run, toy.IMAGES, results, progress=False, checkpoint_seconds=0)
    results.remember(
        run,
        "scores",
        {"probe": "toy"},
        lambda: pd.DataFrame({"group": ["all"], "accuracy": [method.count("c") / 3]}),
    )
    return read(root)


def read(root):
    """What tables see: the encoder, the log, the rows and the settings of the toy run."""
    paths.RESULTS = root
    results = runs.Results("toy")
    if lost := results.missing():  # tables say so
        raise ValueError(f"missing: {', '.join(lost)}")
    [kept] = results.planned()
    weights = train.encoder_of(kept, results).state_dict()
    log = results.logs(seed=kept.seed).drop(columns="seconds")
    return (
        runs.sha256(b"".join(value.numpy().tobytes() for value in weights.values())),
        log.to_csv(),
        results.read("scores").to_csv(),
        results.kept("data"),
    )


def stopped(root, **settings):
    """Train until nothing but ``done.json`` is missing, the last checkpoint being there."""

    def stop(_):
        raise InterruptedError

    runs.sync = stop
    trained(root, **settings)


# ---- the kinds of cases: each gives (what was tried, how it ended)


def kills(count, draw, folder):
    """Trainings killed three times, at any moment, then the same command again: the same encoder
    and log, nothing left over.
    """
    references = {}
    for case in range(count):
        method = draw.choice(sorted(toy.FAMILY))
        work = functools.partial(trained, method=method)
        if method not in references:
            references[method] = told(functools.partial(work, folder / f"whole-{method}"), folder)[
                1
            ]
        root = folder / f"killed-{case}"
        moments = ["checkpoint", draw.uniform(0.02, 0.5), draw.uniform(0.02, 0.5)]
        died = sum(toy.killed(functools.partial(work, root), moment) for moment in moments)
        ended = judged(told(functools.partial(work, root), folder), references[method], [])
        yield from [(method, "outside" if list(root.rglob("*.part")) else ended)] * died


def torn(count, draw, folder):
    """Every file of a run and its plan cut, flipped, emptied, lost or another's; then the run is
    read, and training goes on.
    """
    whole, other = folder / "whole", folder / "other"
    reference, _ = (
        told(lambda: trained(whole), folder)[1],
        told(lambda: trained(other, "simclr"), folder),
    )
    files = sorted(
        path.relative_to(whole)
        for path in whole.rglob("*")
        if path.is_file() and not path.name.startswith("claim")
    )
    for case in range(count):
        file, damage = (
            files[case % len(files)],
            draw.choice(["cut", "flip", "empty", "lost", "swap"]),
        )
        root = folder / f"torn-{case}"
        shutil.copytree(whole, root)
        if damage == "lost":
            (root / file).unlink()
        else:
            others = next((path for path in other.rglob(file.name)), whole / file).read_bytes()
            (root / file).write_bytes(damaged((whole / file).read_bytes(), damage, draw, others))
        for command in (read, trained):
            yield (
                f"{file} {damage}, {command.__name__}",
                judged(
                    told(functools.partial(command, root), folder), reference, [str(root), "toy"]
                ),
            )
        shutil.rmtree(root)


def picks(folder, root):
    """Pick from a folder's own images, or go on with it; the tables of picks, pool and copies."""
    paths.RESULTS = root
    settings = {**REQUEST, "seed_images": "seed", "pool_images": "pool"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pool.make(request.ask("mine", settings, folder))
    return [
        (root / "mine" / name).read_bytes() for name in ("picks.csv", "pool.csv", "duplicates.csv")
    ]


REQUEST = {"budget": 3, "epochs": 2, "warmup_epochs": 1, "size": 16, "views": 2, "prototypes": 2}
REQUEST |= {"batch_size": 8, "samplers": ["mak", "k_center"]}


def picked(count, draw, folder):
    """Every file that picks from one's own images leave, damaged as above, every other time with
    all that could be read instead of it gone, too; then the same picks are asked for again.
    """
    for part, some in (("seed", smooth(draw, 10)), ("pool", smooth(draw, 16))):
        (folder / part).mkdir()
        for number, values in enumerate(some):
            Image.fromarray(values).save(folder / part / f"{number}.png")
        shutil.copy(folder / part / "0.png", folder / part / "again.png")
    whole, root = folder / "whole", folder / "results"
    reference = told(functools.partial(picks, folder, root), folder)[1]
    root.rename(whole)
    files = sorted(
        path.relative_to(whole)
        for path in whole.rglob("*")
        if path.suffix in (".json", ".jsonl", ".csv", ".chunks", ".npy", ".safetensors")
    )
    for case in range(count):
        file, damage = (
            files[case % len(files)],
            draw.choice(["cut", "flip", "flip", "empty", "lost", "swap"]),
        )
        shutil.copytree(whole, root, symlinks=True)
        content = (root / file).read_bytes()
        like = [path for path in root.rglob(f"*{file.suffix}") if path.name != file.name]
        other = draw.choice(sorted(like)).read_bytes() if like else b"x"
        (root / file).unlink()
        if damage != "lost":
            (root / file).write_bytes(damaged(content, damage, draw, other))
        for record in root.glob("runs/*/*-*.json") if draw.random() < 0.5 else ():
            if record != root / file:
                record.unlink()
        answer = told(functools.partial(picks, folder, root), folder)
        yield f"{file.name} {damage}", judged(answer, reference, [str(root)])
        shutil.rmtree(root)


class Canary:
    """What a hostile pickle holds: unpickled, it starts a program."""

    def __reduce__(self):
        return os.system, ("true",)


def checkpoints(count, draw, folder):
    """The last checkpoint of a training cut, flipped, emptied, another run's or a hostile pickle;
    then the same command again.
    """
    told(lambda: stopped(folder / "half"), folder)
    others = {"another method's": {"method": "simclr"}, "another seed's": {"seed": 2}}
    for name, settings in others.items():
        told(functools.partial(stopped, folder / name, **settings), folder)
    reference = told(lambda: trained(folder / "whole"), folder)[1]
    [last] = (folder / "half").rglob("last.pt")
    head, name = last.read_bytes().partition(b"\n")[0].split()
    evil = pickle.dumps(Canary())
    swaps = [next((folder / name).rglob("last.pt")).read_bytes() for name in others]
    swaps += [
        evil,
        head + b" " + name + b"\n" + evil,
        runs.sha256(evil).encode() + b" " + name + b"\n" + evil,
    ]
    for case in range(count):
        damage, root = (
            draw.choice(["cut", "flip", "empty", "swap", "flip"]),
            folder / f"torn-{case}",
        )
        shutil.copytree(folder / "half", root)
        broken = root / last.relative_to(folder / "half")
        broken.write_bytes(damaged(last.read_bytes(), damage, draw, swaps[case % len(swaps)]))
        with contextlib.redirect_stdout(io.StringIO()):
            answer = told(functools.partial(trained, root), folder)
        yield damage, judged(answer, reference, [str(broken)])
        shutil.rmtree(root)


ODD = [
    -1,
    0,
    1,
    2,
    -(10**30),
    10**30,
    0.5,
    -0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "1e-3",
    "1e999",
    "../x",
    "é\n",
    None,
    True,
    [],
    [[]],
    [None],
    [-1],
    {"a": 1},
    [1] * 1000,
    "!!python/object:os.system",
    "{}",
    "$HOME",
]


def parameters(count, draw, folder):
    """Every parameter of every notebook at extreme and wrong values, as by -p: refused by its name,
    or kept exactly.
    """
    notebooks = profiles.notebooks_of(paths.NOTEBOOKS)
    model = profiles.parameters_schema(notebooks)
    rules = model.model_json_schema()["properties"]
    for name in sorted(model.model_fields):
        for value in draw.sample(ODD, count):
            asked = f"{name}={value!r}"[:60]
            kept, wrong = mistakes(model, {name: value})
            if wrong:
                yield (
                    asked,
                    "refused"
                    if all(key == name and text.startswith(name) for key, text in wrong)
                    else "no name",
                )
            else:
                right = fits(kept[name], rules[name]) and (
                    kept[name] == value or kept[name] == number(value)
                )
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
        return (
            isinstance(value, list)
            and len(value) >= rule.get("minItems", 0)
            and all(fits(item, rule["items"]) for item in value)
        )
    kinds = {"integer": int, "number": (int, float), "boolean": bool, "string": str}
    if "enum" in rule:
        return value in rule["enum"]
    right = isinstance(value, kinds[rule["type"]]) and isinstance(value, bool) == (
        rule["type"] == "boolean"
    )
    return right and ("minimum" not in rule or rule["minimum"] <= value <= rule["maximum"])


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = [
    "\t",
    "\0",
    "&a [*a]",
    "'",
    "{",
    "\ufeff",
    ": :",
    "!!python/name:os.system ",
    "[" * 3000,
    LAUGHS,
    "9" * 5000,
]


def requests(count, draw, folder):
    """Files of one's own, profiles and requests for picks, with odd names, keys, values and bytes:
    refused in words, or a plan.
    """
    for part, some in (("seed", smooth(draw, 12)), ("pool", smooth(draw, 24))):
        (folder / part).mkdir()
        for number, values in enumerate(some):
            Image.fromarray(values).save(folder / part / f"{number}.png")
    good = {"seed_images": "seed", "pool_images": "pool", "budget": 2}
    (folder / "mine.yaml").write_text(yaml.safe_dump(good))
    status, said = asked(
        folder / "mine.yaml"
    )  # imports, once for all processes, what takes seconds
    assert status == 0, said
    profile = [
        "base",
        "about",
        "hours",
        "notebooks",
        "seeds",
        "budget",
        "arms",
        "dataset",
        "lists",
        "seed_images",
        "on",
        "5",
        "<<",
        "é",
    ]
    for case in range(count):
        own = case % 2 == 0  # picks from one's own images
        sound = case % 6 == 4  # to be accepted
        keys = draw.sample(sorted(request.ASKED) if own else profile, draw.randint(0, 4))
        settings = good if own else {}
        odd = {} if sound else {key: draw.choice(ODD) for key in keys}
        text = yaml.safe_dump(settings | odd, allow_unicode=True)
        if case % 3 == 0:  # broken as a text, too
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(BROKEN) + text[at:]
        name = draw.choice(
            [
                "mine",
                "..",
                ".",
                "a b",
                "demo",
                "demo-custom",
                "runs",
                "ü",
                "a{b}",
                "-p",
                "x" * 190,
                "$HOME",
            ]
        )
        name = "mine" if sound else name
        (folder / f"{name}.yaml").write_bytes(
            text.encode(
                "utf-8" if sound else draw.choice(["utf-8", "utf-16", "latin-1"]), errors="replace"
            )
        )
        answer = told(functools.partial(asked, folder / f"{name}.yaml"), folder)
        ended = judged(
            answer, None, [], other="as before" if answer[1:] and answer[1][0] == 0 else "refused"
        )
        said = answer[1][1] if answer[0] == "value" else ""
        unsaid = ended == "refused" and (not said or any(kind in said for kind in ACCIDENTS))
        wrong = "silently wrong" if sound and ended == "refused" else ""
        yield text[:60], wrong or ("no name" if unsaid else ended)
        (folder / f"{name}.yaml").unlink()


def asked(file):
    """The exit status of a dry run and what it says."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return reproduce.main([str(file), "--dry-run"]), output.getvalue()


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "TIFF",
    "BMP",
    "PPM",
    "AVIF",
    "JPEG2000",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
    "QOI",
    "DIB",
]
SIDE = 16


def picture(kind, values):
    """A picture as the bytes of a file of this kind."""
    content = io.BytesIO()
    more = (
        {"progressive": True}
        if kind == "JPEG"
        else {"compression": "tiff_lzw"}
        if kind == "TIFF"
        else {}
    )
    Image.fromarray(values).save(content, kind, **more)
    return content.getvalue()


def hostile(values):
    """Bytes that are no pictures, or far more than they say: name -> bytes."""
    png = picture("PNG", values)

    def sized(wide, high):  # a PNG whose header tells of another size
        header = b"IHDR" + wide.to_bytes(4, "big") + high.to_bytes(4, "big") + png[24:29]
        return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]

    known = {
        "strip": picture("PNG", np.zeros((100_000, 1), np.uint8)),
        "line": picture("PNG", np.zeros((1, 100_000), np.uint8)),
        "square": sized(13_300, 13_300),
        "endless": sized(2**31 - 1, 2**31 - 1),
        "thin": sized(2**31 - 1, 1),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\nshowpage\n",
        "PostScript in binary": b"\xc5\xd0\xd3\xc6" + bytes(28),
        "drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PDF": b"%PDF-1.4\n",
        "pickle": pickle.dumps(Canary()),
        "nothing": b"",
        "zeros": bytes(2**20),
        "page": b"<!DOCTYPE html>",
    }
    array = io.BytesIO()
    np.save(array, np.array([Canary()], object), allow_pickle=True)
    return known | {"array": array.getvalue()}


def smooth(draw, count=1):
    """Random pictures (count, 40, 30, 3)."""
    numbers = np.random.default_rng(draw.randrange(2**32)).integers(
        0, 256, (count, 5, 4, 3), dtype=np.uint8
    )
    return [np.asarray(Image.fromarray(some).resize((30, 40), Image.BILINEAR)) for some in numbers]


def images(count, draw, folder):
    """Pictures of every format cut, flipped in several places or joined, and what only looks like
    one: read, or refused in a line.
    """
    pixels.formats()
    memory.BUDGET.total = SPACE
    [values] = smooth(draw)
    whole = {kind: picture(kind, values) for kind in FORMATS if kind in Image.SAVE}
    shown = {kind: pixels.decoded(content, SIDE).tobytes() for kind, content in whole.items()}
    evil = sorted(hostile(values).items())
    for case in range(count):
        if case % 5 == 4:
            kind, content = evil[case // 5 % len(evil)]
            damage = "as it is"
        else:
            kind, damage = (
                draw.choice(sorted(whole)),
                draw.choice(["cut", "flip", "flip", "swap", "empty", "flips"]),
            )
            content = whole[kind]
            other = (
                content[: draw.randrange(len(content))]
                + whole[draw.choice(sorted(whole))][draw.randrange(200) :]
            )
            for _ in range(draw.randint(2, 30) if damage == "flips" else 1):
                content = damaged(content, damage.removesuffix("s"), draw, other)
        answer = told(
            lambda: (
                (found := pixels.decoded(content, SIDE)).shape == (SIDE, SIDE, 3)  # noqa: B023
                and found.tobytes()
            ),
            folder,
        )
        if answer[0] == "error":
            ended = (
                "named"
                if answer[1] == "OSError" and answer[2] and "\n" not in answer[2]
                else "no name"
            )
        else:
            ended = judged(
                answer,
                shown.get(kind),
                [],
                other="read" if answer[-1] and damage != "cut" else "silently wrong",
            )
        yield f"{kind} {damage}", ended


def archives(count, draw, folder):
    """Zips cut, flipped, packed in every way, with hostile members: the pictures that were packed,
    or an error that names the zip.
    """
    memory.BUDGET.total = SPACE
    pictures = {
        f"{'ab'[k % 2]}/{k}.png": picture("PNG", values) for k, values in enumerate(smooth(draw, 6))
    }
    evil = {
        "../../x.png": b"x",
        "/etc/x.png": b"x",
        "a/0.png": pictures["b/1.png"],
        "a/zeros.png": bytes(2**27),
        "a/\u202ex.png": b"x",
        "a/x.npy": pickle.dumps(Canary()),
        "a/" + "x" * 300 + ".png": b"x",
        "a/drawing.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "a\\..\\x.png": b"x",
    }
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]

    def packed(more, method):
        with zipfile.ZipFile(content := io.BytesIO(), "w", method) as archive:
            for name, some in [*pictures.items(), *more]:
                archive.writestr(name, some)
        return content.getvalue()

    wholes, path = {method: packed((), method) for method in methods}, folder / "some.zip"
    path.write_bytes(wholes[0])
    reference = told(functools.partial(unpacked, path, False), folder)[1][0]
    for _ in range(count):
        method, damage = (
            draw.choice(methods),
            draw.choice(["cut", "flip", "flip", "empty", "swap", "hostile"]),
        )
        other = wholes[method][: draw.randrange(500)] + wholes[draw.choice(methods)]
        more, content = draw.choice(sorted(evil.items())), wholes[method]
        path.write_bytes(
            packed([more], method) if damage == "hostile" else damaged(content, damage, draw, other)
        )
        skips = draw.random() < 0.5
        answer = told(functools.partial(unpacked, path, skips), folder)
        if (
            answer[0] == "value" and skips and "skipped" in answer[1][1]
        ):  # some were left out, and it says which
            right = set(answer[1][0]) <= set(reference)
            yield f"{method} {damage} {more[0]}, skipped", "named" if right else "silently wrong"
        else:
            answer = ("value", answer[1][0]) if answer[0] == "value" else answer
            yield f"{method} {damage} {more[0]}", judged(answer, reference, [str(path)])


def unpacked(path, skips):
    """Names and digests of the pictures in an archive, sorted, and what was said."""
    with contextlib.redirect_stdout(said := io.StringIO()):
        found = sources.folder(path, SIDE, skip_broken=skips)
    digests = [runs.sha256(image.numpy().tobytes()) for image in found.images]
    return sorted(zip(found.names, digests, strict=True)), said.getvalue()


def full(work, moment, root):
    """Do ``work`` on a disk that is full at so many-th write, half of which is done; how many writes
    there were.
    """
    usual, writes = paths.in_part, itertools.count(1)

    @contextlib.contextmanager
    def in_part(path, count):
        with usual(path, count) as part:
            if next(writes) == moment:
                part.write_bytes(bytes(count // 2))
                raise OSError(errno.ENOSPC, "No space left on device", str(part))
            yield part

    paths.in_part = in_part
    work(root)
    return next(writes) - 1


def disk(count, draw, folder):
    """No space at any write of a training, of picks and of features: the error names path and
    bytes, no part is left, and with space the same command ends as ever.
    """
    for part, some in (("seed", smooth(draw, 10)), ("pool", smooth(draw, 16))):
        (folder / part).mkdir()
        for number, values in enumerate(some):
            Image.fromarray(values).save(folder / part / f"{number}.png")
    works = {"training": trained, "picks": functools.partial(picks, folder)}
    references, moments = {}, []
    for name, work in works.items():
        references[name] = told(functools.partial(work, folder / f"whole-{name}"), folder)[1]
        kept = functools.partial(full, work, 0, folder / f"counted-{name}")
        moments += [(name, moment) for moment in range(1, 1 + told(kept, folder)[1])]
    for name, moment in draw.sample(moments, min(count, len(moments))):
        root, work, tried = folder / f"full-{name}-{moment}", works[name], f"{name}, write {moment}"
        stopped_at = told(functools.partial(full, work, moment, root), folder)
        ended = judged(stopped_at, None, [str(root)])
        yield tried, "outside" if list(root.rglob("*.part")) else ended
        again = told(functools.partial(work, root), folder)
        yield f"{tried}, then space", judged(again, references[name], [])


# ---- whole commands

COMMAND = {
    "splits": [1, 2],
    "seeds": [1],
    "largest": 20,
    "factor": 0.2,
    "epochs": 6,
    "warmup_epochs": 1,
    "batch_size": 16,
    "curves": [],
    "arms": ["bcl long_tail", "ts long_tail period=2"],  # neither of the two that 02 compares
    "protocols": ["knn"],
    "reseeded": 2,
    "l2_grid": [0.01],
    "labelled_per_class": 10,
    "pool_per_class": 5,
    "outsider_count": 20,
    "notebooks": ["01", "02", "03"],
}


def commands(count, draw, folder):
    """The command itself, with workers, killed at any moment, alone or beside another on the same
    profile, until it has come to its end.
    """
    (folder / "mine.yaml").write_text(yaml.safe_dump(COMMAND))
    begin(folder, "whole", []).wait()
    reference, seconds = made(folder / "whole"), 60
    for case in range(count):
        modes, root = [["--plain"], ["--plain", "--plain"], []][case % 3], f"case-{case}"
        for _ in range(3 if count > 1 else 1):
            started = [begin(folder, root, [mode]) for mode in modes] or [begin(folder, root, [])]
            until(lambda: any(one.poll() is not None for one in started), draw.uniform(1, seconds))  # noqa: B023
            for one in started:
                one.kill()
                one.wait()
            yield (
                f"{modes}, killed",
                "as before" if until(lambda: not of(folder / root), 20) else "orphans",  # noqa: B023
            )
        started = [begin(folder, root, [mode]) for mode in modes] or [begin(folder, root, [])]
        statuses = [one.wait() for one in started]
        right = (
            not any(statuses)
            and made(folder / root) == reference
            and not list((folder / root).rglob("*.part"))
        )
        yield (
            f"{modes}, in the end {statuses}",
            "as before" if right else "silently wrong" if not any(statuses) else "no name",
        )


def begin(folder, root, words):
    """Start the command on a small profile, with results of its own."""
    environment = {
        **os.environ,
        "LONGTAIL_OUTPUT": str(folder / root),
        "PYTHONPATH": str(paths.ROOT / "src"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "longtail.command.reproduce", folder / "mine.yaml", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def made(root):
    """All that decides tables: encoders, rows and the plan, without times and machines."""
    found = {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".safetensors", ".csv")
        and path.name != "log.csv"
        and "figures" not in path.parts
    }
    return found, runs.read_record(root / "results/mine/plan.json")


def of(output):
    """Processes that were started for these results and still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get("LONGTAIL_OUTPUT") == str(output)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def until(condition, seconds):
    """Wait for a condition, no longer than so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


# ---- all of it

KINDS = (parameters, requests, images, archives, disk, torn, picked, checkpoints, kills, commands)


def campaign(kind, size, seed):
    """All cases of a kind at a size, as (what was tried, how it ended), and a row of counts."""
    with tempfile.TemporaryDirectory() as folder:
        before, paths.RESULTS = outside(), Path(folder) / "results"
        cases = list(
            kind(
                SIZES[size][kind.__name__],
                random.Random(f"{seed} {kind.__name__}"),
                Path(folder).resolve(),
            )
        )
        cases += [(f"written: {path}", "outside") for path in outside() - before]
    counts = Counter(ended for _, ended in cases)
    return cases, {"cases": len(cases), **{ended: counts[ended] for ended in (*GOOD, *BAD)}}


def outside():
    """Files of the repository that a case may not touch."""
    kept = (paths.ROOT / "src", paths.NOTEBOOKS, paths.ROOT / "results", paths.ROOT / "figures")
    return {
        (str(path), path.stat().st_mtime_ns)
        for root in kept
        for path in itertools.chain([root], root.rglob("*"))
        if path.exists() and "__pycache__" not in path.parts
    }


def sentence(counts):
    """The line in README that tells how the cases of ``counts.csv`` ended."""
    cases, bad = (
        counts.cases,
        ", ".join(
            f"{'written outside' if name == 'outside' else name} {counts[name].sum()}"
            for name in BAD
        ),
    )
    return (
        f"{QUOTED}, {cases.sum():,} times ([tests/campaign](tests/campaign/campaign.py)): "
        f"{cases.kills} kills of trainings, "
        f"{cases.commands} whole commands killed or carried on, {cases.torn // 2} torn files × 2 commands, "
        f"{cases.picked} torn files of picks, {cases.checkpoints} torn checkpoints, "
        f"{cases.images:,} pictures, {cases.archives} zips, {cases.requests} requests, "
        f"{cases.parameters:,} values of parameters, "
        f"{cases.disk // 2} full disks. {bad.capitalize()}."
    )


def main(arguments=None):
    """Run all kinds, or those named, and print the table; the number of cases that ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", choices=SIZES, default="small")
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("kind", nargs="*", help=", ".join(kind.__name__ for kind in KINDS))
    options = parser.parse_args(arguments)
    size, seed, named = options.size, options.seed, options.kind
    if unknown := set(named) - {kind.__name__ for kind in KINDS}:
        parser.error(f"there is no kind {min(unknown)}")
    torch.set_num_threads(1)
    table, bad = (
        pd.read_csv(COUNTS, index_col="kind").T.to_dict() if size == "full" and named else {},
        [],
    )
    for kind in KINDS:
        if not named or kind.__name__ in named:
            began = time.perf_counter()
            cases, table[kind.__name__] = campaign(kind, size, seed)
            print(
                f"{kind.__name__}: {len(cases)} cases in {time.perf_counter() - began:.0f} s",
                flush=True,
            )
            bad += [(kind.__name__, *case) for case in cases if case[1] in BAD]
            print(*bad[-9:], sep="\n", end="\n" * bool(bad), flush=True)
    counts = pd.DataFrame(table).T.rename_axis("kind")
    if size == "full":
        counts.to_csv(COUNTS)
        lines = (paths.ROOT / "README.md").read_text().split("\n")
        (paths.ROOT / "README.md").write_text(
            "\n".join(sentence(counts) if line.startswith(QUOTED) else line for line in lines)
        )
    print(counts.to_markdown())
    return len(bad)


if __name__ == "__main__":
    sys.exit(bool(main()))
