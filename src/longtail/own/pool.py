"""Picks from images of one's own, without labels: an encoder, picks from a pool, a table and a page of them."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from longtail.images import places, sources
from longtail.learn import train
from longtail.own import copies, encoders, gallery, inventory
from longtail.own.request import DECIDED, TRAINING
from longtail.pick import samplers
from longtail.store import runs

NEAREST = 5         # seed images kept for every image
TILE = 4096         # images compared with the seed at once


@dataclass(frozen=True, eq=False)
class Study:
    """The two image sets that training and sampling ask for; what lies there is taken to be long-tailed."""

    seed: sources.ImageSet
    pool: sources.FileSet


# ---- what is made of a request

def make(request):
    """Do what is asked: ``picks.csv``, ``duplicates.csv``, ``gallery.html`` and, for broken files, ``broken.txt`` in results/<name>/.

    The picks of each sampler are also a list of paths, ``picks/<sampler>.txt``, a place for the next request; not of a zip or tar.
    """
    results = runs.Results(request.name)
    runs.write(results.root / ".gitignore", "*\n")      # other people's pictures
    seed, pool, test = found = take(request, results.root / "files")
    report_broken(request, results, found)
    alike = duplicates(request, found)
    runs.write(results.root / "duplicates.csv", alike.to_csv(index=False))
    study = Study(in_memory(request, seed), without(request, pool, alike))
    said = left_out(pool, alike)
    for line in said:
        print(line, flush=True)
    check(request, seed, study)
    run = extractor(request, results, study)
    results.ask("arms", [run], {"run": run.name})
    runs.write(results.folder(run) / ".gitignore", "*\n")      # names of other people's pictures
    scoring = {"prototypes": request.prototypes, "views": request.views, "batch": request.ecle_batch, "repeats": request.ecle_repeats}
    picks = pd.concat(samplers.pick(run, results, study, sampler, request.budget, request.alpha, request.ratio, **scoring)
                      for sampler in request.samplers)
    near = neighbours(run, results, study, request.prototypes)
    picks = picks.join(near.iloc[len(study.seed):].reset_index(drop=True).drop(columns="name"), on="index")
    runs.write(results.root / "picks.csv", (listed := table(request, study, picks, alike)).to_csv(index=False))
    for sampler, some in listed.groupby("sampler") if on_disk(request) else ():
        runs.write(results.root / "picks" / f"{sampler}.txt", "".join(f"{request.place(path)}\n" for path in some.path))
    measured = pd.DataFrame(dict(zip(("ecle", "distance"), samplers.score_pool(run, results, study, **scoring), strict=True)))
    page = gallery.render(request, run, study, found, picks, near.iloc[:len(study.seed)], measured.mean(), said)
    runs.write(results.root / "gallery.html", page)
    print(os.path.relpath(results.root / "gallery.html"), flush=True)


def look(request):
    """Print what lies in the places of a request, and which pictures are copies; nothing is written."""
    found = take(request)
    alike = duplicates(request, found)
    for line in left_out(found[1], alike):
        print(line)


# ---- images

def take(request, folder=None):
    """The inventories of seed, pool and test set, their records in ``folder``; what lies there is printed."""
    found = []
    for part, text in (("seed", request.seed_images), ("pool", request.pool_images), ("test", request.test_images)):
        record = folder and folder / f"{part}.jsonl"
        found.append(inventory.take(text, request.place(text), request.size, record) if text else inventory.Inventory("", [], [], [], []))
        for line in found[-1].sentences() if text else ():
            print(f"{part}, {text}: {line}", flush=True)
    return found


def path_of(text, name):
    """Path of an image, relative to the file of the request, from the text that names its place there."""
    return str((Path(text).parent if places.is_list(text) else Path(text)) / name)


def on_disk(request):
    """Whether the pool's images are files of their own, so that a list can name them."""
    place = places.container(request.place(request.pool_images))
    return place.is_dir() or places.is_list(place)


def report_broken(request, results, found):
    """Name every file that is no readable image in ``broken.txt``; they stop the request unless it skips them."""
    report = results.root / "broken.txt"
    report.unlink(missing_ok=True)
    lines = [path_of(part.text, line) for part in found for line in part.broken]
    if not lines:
        return
    runs.write(report, "\n".join(lines) + "\n")
    if not request.skip_broken:
        raise ValueError(f"{len(lines)} files are no readable images, such as {lines[0]}; {os.path.relpath(report)} names them all: "
                         f"mend or remove them, or leave them out with skip_broken: true")
    print(f"left out {len(lines)} files that are no readable images, named in {os.path.relpath(report)}", flush=True)


def duplicates(request, found):
    """The pictures of seed, test set and pool that have copies, by group: rows of ``copies.groups``, paths as in ``picks.csv``."""
    parts = [("seed", found[0]), ("test", found[2]), ("pool", found[1])]
    contents = [content for _, part in parts for content in part.contents]
    hashes, colours = (np.concatenate(both) for both in zip(*(part.prints() for _, part in parts), strict=True))
    leaders, similarity = copies.leaders(contents, hashes, colours)
    names = [path_of(part.text, name) for _, part in parts for name, _ in part.files]
    rows = copies.groups([place for place, part in parts for _ in part.files], names, contents, leaders, similarity)
    return rows.assign(pickable=rows.pickable | ((rows.place == "pool") & (rows.kind == "near") & request.keep_near_copies))


def without(request, pool, alike):
    """The pool images that may be picked, left in their files: one of each group of copies, none of those that seed or test set hold."""
    barred = set(alike.path[(alike.place == "pool") & ~alike.pickable])
    files = [file for file in pool.files if path_of(pool.text, file[0]) not in barred]
    images = sources.Files(files, request.size)
    return sources.FileSet(images, torch.full((len(files),), sources.UNKNOWN), tuple(name for name, _ in files))


def in_memory(request, seed):
    """The seed's squares without labels."""
    images = sources.Files(seed.files, request.size)[:]
    return sources.ImageSet(images, torch.full((len(images),), sources.UNKNOWN), tuple(name for name, _ in seed.files))


def left_out(pool, alike):
    """What a person should know of copies: a few sentences, none without copies."""
    barred = alike[(alike.place == "pool") & ~alike.pickable]
    first = alike[~alike.duplicated("group")].set_index("group").place
    of = barred.group.map(first).value_counts()
    said = []
    if len(barred):
        whose = ", ".join(f"{of[place]} copies of {what}" for place, what in (
            ("seed", "the seed's images"), ("test", "the test set's"), ("pool", "others in the pool")) if place in of)
        exact = (barred.kind == "exact").sum()
        said.append(f"{len(barred)} of {len(pool.files)} pool images are left out: {whose} ({exact} exact, {len(barred) - exact} near); "
                    f"duplicates.csv lists them")
    if kept := ((alike.place == "pool") & alike.pickable & (alike.kind == "near")).sum():
        said.append(f"{kept} near copies in the pool may be picked, as keep_near_copies asks; picks.csv marks them")
    if tested := ((alike.place == "test") & (alike.group.map(first) == "seed")).sum():
        said.append(f"{tested} images of the test set are copies of the seed's: what is measured on them is too good")
    if twice := ((alike.place == "seed") & (alike.kind != "first")).sum():
        said.append(f"{twice} images of the seed are copies of others in it")
    return said


def check(request, seed, study):
    """Refuse before training what the images cannot give."""
    for key, count, place in (("budget", len(study.pool), request.pool_images), ("prototypes", len(study.seed), request.seed_images)):
        if getattr(request, key) > count:
            raise ValueError(f"{key} is {getattr(request, key)}, but {place} has {count} images for it; lower {key}, or give more")
    if all(row["blank"] for row in seed.rows):
        raise ValueError(f"every image of {request.seed_images} is of one colour: nothing can be learned from them; look at the files")


# ---- encoder and picks

def extractor(request, results, study):
    """The run whose encoder scores the pool: trained on the seed now or before, or given."""
    place = request.place(request.encoder)
    if request.encoder and place.is_dir():
        return encoders.own_run(place, results)
    settings = {name: getattr(request, name) for name in DECIDED - {"method", "seed"}}
    run, images = train.plan(study, f"{request.method} long_tail", 0, request.seed, {"dataset": request.name, **settings})
    if request.encoder:
        unknown = dict.fromkeys(TRAINING, 0) | {"method": "given", "head_layers": 0}
        return encoders.torchvision_weights(place, replace(run, **unknown), results)
    train.pretrain(run, images, results)
    return run


def neighbours(run, results, study, prototypes):
    """The nearest prototype and the nearest seed images of every image, by cosine: read from disk when measured before.

    Rows, the seed's before the pool's: name, prototype (1 has the most seed images), closeness to it, then the positions
    ``seed_1`` … in the seed and their ``similarity_1`` …
    """
    def rows():
        pool, seed = samplers.pool_and_seed(run, results, study)
        means, seed = normalize(samplers.centroids(seed, prototypes).to(seed)), normalize(seed)
        means = means[torch.bincount((seed @ means.T).argmax(1), minlength=prototypes).argsort(descending=True, stable=True)]
        parts = [compare(normalize(tile.to(seed)), seed, means) for some in (seed, pool) for tile in some.split(TILE)]
        return pd.concat(parts).assign(name=study.seed.names + study.pool.names)

    settings = {"pool": study.pool.digest, "seed": study.seed.digest, "precision": run.precision}
    return results.remember(run, f"neighbours-k{prototypes}", settings, rows)


def compare(tile, seed, means):
    """Rows of ``neighbours`` for unit features (n, d) against those of the seed (s, d) and the prototypes (k, d)."""
    closeness, prototype = (tile @ means.T).max(1)
    similarity, nearest = (tile @ seed.T).topk(min(NEAREST, len(seed)))
    columns = {"prototype": prototype + 1, "closeness": closeness}
    for place in range(nearest.shape[1]):
        columns |= {f"seed_{place + 1}": nearest[:, place], f"similarity_{place + 1}": similarity[:, place]}
    return pd.DataFrame({name: values.numpy(force=True) for name, values in columns.items()})


def table(request, study, picks, alike):
    """The picks as people use them: where the file is, what was measured, nearest prototype and seed image, what it is a near copy of."""
    paths = [path_of(request.pool_images, name) for name in picks.name]
    first = alike[~alike.duplicated("group")].set_index("group").path
    near = alike[alike.kind == "near"].set_index("path")
    return pd.DataFrame({
        "sampler": picks.sampler, "rank": picks["rank"], "path": paths, "ecle": picks.ecle, "distance": picks.distance,
        "score": picks.score, "nearest_prototype": picks.prototype,
        "nearest_seed": [path_of(request.seed_images, study.seed.names[place]) for place in picks.seed_1],
        "copy_of": [first[near.group[path]] if path in near.index else "" for path in paths],
        "similarity": [near.similarity[path] if path in near.index else "" for path in paths]})
