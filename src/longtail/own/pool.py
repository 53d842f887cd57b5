"""Picks from images of one's own, without labels: an encoder, the whole pool measured, picks as
tables, lists, files and a page.
"""

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from longtail.images import copies, sources
from longtail.images.memory import BUDGET, size_of
from longtail.learn import train
from longtail.own import embeddings, encoders, gallery, inventory
from longtail.own.request import DECIDED, TRAINING
from longtail.pick import samplers, scoring
from longtail.pick.hierarchical_k_means import fill
from longtail.store import paths, processes, runs
from longtail.store.settings import text_of

PARTS = {"seed": "seed_images", "test": "test_images", "pool": "pool_images"}
SURE = 0.97  # similarity from which a near copy needs no confirmation
CLOSER = 0.25  # share of the seed that may lie closer to a near copy than what it is a copy of


@dataclass(frozen=True, eq=False)
class SeedAndPool:
    """The two image sets that training and sampling ask for; what lies there is taken to be
    long-tailed.
    """

    seed: sources.ImageSet
    pool: sources.FileSet


def make(request):
    """Do what is asked and write it to results/<name>/, as OWN_IMAGES.md describes."""
    BUDGET.total = size_of(request.memory)
    results = runs.Results(request.name)
    if request.features:
        return embeddings.pick_by_features(request)
    encoder = given_encoder(request)
    found = survey(request, results.root / "files")
    report_broken(request, results, found)
    alike = duplicates(request, found)
    seed, pool = files_to_pick_from(request, found, alike)
    check_counts(request, found, seed, pool)
    study = SeedAndPool(seed.subset(range(len(seed))), pool)
    run = extractor(request, results, study, encoder)
    results.ask("arms", [run], {"run": run.name})
    if not (results.folder(run) / ".gitignore").exists():
        runs.write(results.folder(run) / ".gitignore", "*\n")  # names of other people's pictures
    alike = confirmed(request, run, results, study.seed, found, alike)
    study = replace(study, pool=pickable(found["pool"], alike).in_files(request.size))
    runs.write(results.root / "duplicates.csv", alike.to_csv(index=False))
    said = left_out(found, alike)
    for line in said:
        print(line, flush=True)
    settings = {
        "prototypes": request.prototypes,
        "views": request.views,
        "batch": request.ecle_batch,
        "repeats": request.ecle_repeats,
    }
    scored = samplers.score_pool(run, results, study, **settings)
    seed, near = neighbours(run, results, study, request.prototypes)
    whole = pool_table(request, study, found, scored, near)
    groups = {
        "none": None,
        "prototypes": near.prototype,
        "classes": near.name.map(found["pool"].classes),
    }[request.quotas]
    picks = pd.concat(
        picked(request, run, results, study, sampler, groups, settings)
        for sampler in request.samplers
    )
    if request.export != "none":
        for part, rows in zip(
            ("pool", "seed"), samplers.pool_and_seed(run, results, study), strict=True
        ):
            names = [found[part].paths[name] for name in getattr(study, part).names]
            embeddings.write_features(
                results.root / "features" / f"{part}.{request.export}", names, rows
            )
    listed = picks_table(picks, whole, alike)
    runs.write(results.root / "pool.csv", whole.to_csv(index=False))
    runs.write(results.root / "picks.csv", listed.drop(columns="index").to_csv(index=False))
    processes.first(lambda: export(request, results, study, listed))
    runs.write(
        results.root / "gallery.html",
        gallery.render(request, run, results, study, found, seed, whole, near, listed, alike, said),
    )
    print(os.path.relpath(results.root / "gallery.html"), flush=True)


def preview(request):
    """Print what lies in the places of a request, and which pictures are copies; nothing is
    written.
    """
    BUDGET.total = size_of(request.memory)
    if request.features:
        embeddings.features_given(request)
        return
    given_encoder(request)
    found = survey(request)
    alike = duplicates(request, found)
    for line in left_out(found, alike):
        print(line)
    check_counts(request, found, *files_to_pick_from(request, found, alike))
    refuse_broken(request, broken_in(found))


# ---- images


def survey(request, folder=None):
    """The inventories of seed, test set, rejected pictures and pool, in this order; what lies there
    is printed.

    ``folder`` keeps their records.
    """
    if inside := [
        text
        for key in PARTS.values()
        for text in request.texts(key)
        if request.place(text).resolve().is_relative_to(runs.Results(request.name).root.resolve())
    ]:
        raise ValueError(
            f"{inside[0]} lies in results/{request.name}, which this request writes anew; give its "
            "file another name"
        )
    found = {}
    for part, key in PARTS.items():
        given = {text: request.place(text) for text in request.texts(key)}
        found[part] = inventory.take(part, given, request.size, folder and folder / f"{part}.jsonl")
        for line in found[part].sentences() if given else ():
            print(line, flush=True)
    pool, no = found.pop("pool"), rejects(request)
    chosen = np.array(
        [os.path.normpath(request.place(pool.paths[name])) in no for name, _ in pool.files], bool
    )
    if no:
        print(
            f"{request.rejects}: {chosen.sum()} pool images are rejected",
            f"{len(no) - chosen.sum()} lines name none of them",
            sep=", ",
        )
    rejected = replace(pool.part(chosen), broken=[])
    contents = {row["content"] for row in rejected.rows}
    wanted = np.array([row["content"] not in contents for row in found["seed"].rows], bool)
    if not wanted.all():
        print(f"{(~wanted).sum()} seed images are rejected ones and left out")
        found["seed"] = found["seed"].part(wanted)
    return found | {"rejected": rejected, "pool": pool.part(~chosen)}


def rejects(request):
    """The paths that the list of rejected pictures names."""
    lines = (
        text_of(request.place(request.rejects), "the list of rejected images").splitlines()
        if request.rejects
        else []
    )
    return {
        os.path.normpath(request.place(line.strip()))
        for line in lines
        if line.strip() and not line.startswith("#")
    }


def broken_in(found):
    """What is no readable image in any part, a line each."""
    return [line for part in ("seed", "pool", "test") for line in found[part].broken]


def refuse_broken(request, lines, named=""):
    """Stop a request with files that are no readable images, unless it skips them."""
    if lines and not request.skip_broken:
        raise ValueError(
            f"{len(lines)} files are no readable images, such as {lines[0]}; {named}mend or remove "
            "them, or leave them out with skip_broken: true"
        )


def report_broken(request, results, found):
    """Name every file that is no readable image in ``broken.txt``; they stop the request unless it
    skips them.
    """
    report = results.root / "broken.txt"
    report.unlink(missing_ok=True)
    lines = broken_in(found)
    if not lines:
        return
    runs.write(report, "\n".join(lines) + "\n")
    refuse_broken(request, lines, f"{os.path.relpath(report)} names them all: ")
    print(
        f"left out {len(lines)} files that are no readable images, named in "
        f"{os.path.relpath(report)}",
        flush=True,
    )


def files_to_pick_from(request, found, alike):
    """The seed, and the pool images that may be picked, left in their files."""
    return (
        found["seed"].in_files(request.size),
        pickable(found["pool"], alike).in_files(request.size),
    )


def check_counts(request, found, seed, pool):
    """Refuse before training what the images cannot give."""
    for key, count, part in (
        ("budget", len(pool), "pool"),
        ("prototypes", len(seed), "seed"),
    ):
        if getattr(request, key) > count:
            place = " + ".join(request.texts(PARTS[part]))
            raise ValueError(
                f"{key} is {getattr(request, key)}, but {place} has {count} images for it; lower "
                f"{key}, or give more"
            )
    if len(pool) < 2:
        raise ValueError(
            f"{' + '.join(request.texts('pool_images'))} has {len(pool)} image that can be picked: "
            "there is nothing to choose between; give a larger pool"
        )
    if all(row["blank"] for row in found["seed"].rows):
        raise ValueError(
            f"every image of {' + '.join(request.texts('seed_images'))} is of one colour: nothing "
            "can be learned from them; "
            f"look at the files"
        )
    if request.quotas == "classes" and not all(
        name in found["pool"].classes for name, _ in found["pool"].files
    ):
        raise ValueError(
            "quotas: classes shares the budget among classes, but the pool has none; give a folder "
            "of class folders or a list "
            "or table with labels, or ask for quotas: prototypes"
        )


# ---- copies


def duplicates(request, found):
    """The pictures that have copies, by group: rows of ``copies.groups``, paths as in
    ``picks.csv``.

    Of copies within the pool the largest picture comes first and can be picked; among equally large
    ones that with the shortest name.
    """
    pool = found["pool"]
    order = sorted(
        range(len(pool)),
        key=lambda place: (
            -pool.rows[place]["wide"] * pool.rows[place]["high"],
            len(pool.files[place][0]),
        ),
    )
    found = found | {
        "pool": replace(
            pool,
            files=[pool.files[place] for place in order],
            rows=[pool.rows[place] for place in order],
        )
    }
    parts = found.values()
    contents = [row["content"] for part in parts for row in part.rows]
    hashes, colours = (
        np.concatenate(both) for both in zip(*(part.prints() for part in parts), strict=True)
    )
    leaders, similarity = copies.leaders(contents, hashes, colours)
    names = [part.paths[name] for part in parts for name, _ in part.files]
    rows = copies.groups(
        [place for place, part in found.items() for _ in part.files],
        names,
        contents,
        leaders,
        similarity,
    )
    return rows.assign(
        pickable=rows.pickable
        | ((rows.place == "pool") & (rows.kind == "near") & request.keep_near_copies)
    )


def confirmed(request, run, results, seed, found, alike):
    """The same rows with the ``cosine`` of near copies and the first of their group, by the
    encoder's features.

    One that is less similar than ``SURE`` is doubtful, and may be picked, where more than a quarter
    of the seed lies closer to it.
    """
    first = alike.group.map(alike.drop_duplicates("group").set_index("group").path)
    near = alike.index[alike.kind == "near"]
    by_path = {part.paths[file[0]]: file for part in found.values() for file in part.files}
    names = list(dict.fromkeys([*alike.path[near], *first[near]]))
    alike = alike.assign(cosine=np.nan)
    if not names:
        return alike
    images = replace(found["pool"], files=[(name, by_path[name][1]) for name in names]).in_files(
        request.size
    )
    vectors = dict(
        zip(
            names,
            normalize(scoring.measured_features(run, results, images, "copies").float()),
            strict=True,
        )
    )
    known = normalize(scoring.measured_features(run, results, seed, "seed").float())
    for row in near:
        copy = vectors[alike.path[row]]
        alike.loc[row, "cosine"] = cosine = float(copy @ vectors[first[row]])
        if alike.similarity[row] < SURE and (known @ copy > cosine).float().mean() > CLOSER:
            alike.loc[row, ["kind", "pickable"]] = "doubtful", alike.place[row] == "pool"
    return alike.round({"cosine": 3})


def pickable(pool, alike):
    """The pool images that may be picked: one of each group of copies, none of those that seed,
    test set or rejected pictures hold.
    """
    barred = set(alike.path[(alike.place == "pool") & ~alike.pickable])
    return pool.part([pool.paths[name] not in barred for name, _ in pool.files])


def left_out(found, alike):
    """What a person should know of copies: a few sentences, none without copies."""
    copied = alike[alike.kind.isin(["exact", "near"])]
    barred = copied[(copied.place == "pool") & ~copied.pickable]
    first = alike[~alike.duplicated("group")].set_index("group").place
    of = barred.group.map(first).value_counts()
    said = []
    if len(barred):
        whose = ", ".join(
            f"{of[place]} copies of {what}"
            for place, what in (
                ("seed", "the seed's images"),
                ("test", "the test set's"),
                ("rejected", "rejected ones"),
                ("pool", "others in the pool"),
            )
            if place in of
        )
        exact = (barred.kind == "exact").sum()
        said.append(
            f"{len(barred)} of {len(found['pool'])} pool images are left out: {whose} ({exact} "
            f"exact, {len(barred) - exact} near)"
        )
    if len(found["rejected"]):
        said.append(f"{len(found['rejected'])} pool images are left out because they are rejected")
    if kept := ((copied.place == "pool") & copied.pickable).sum():
        said.append(
            f"{kept} near copies in the pool may be picked, as keep_near_copies asks; picks.csv "
            "marks them"
        )
    if doubtful := (alike.kind == "doubtful").sum():
        said.append(
            f"{doubtful} images look like copies, but the encoder tells them apart: they are kept, "
            "and duplicates.csv calls them "
            f"doubtful"
        )
    if tested := ((copied.place == "test") & (copied.group.map(first) == "seed")).sum():
        said.append(
            f"{tested} images of the test set are copies of the seed's: what is measured on them "
            "is too good"
        )
    if twice := (copied.place == "seed").sum():
        said.append(f"{twice} images of the seed are copies of others in it")
    return said


# ---- encoder and measurements


def given_encoder(request):
    """The encoder of the file of weights that a request gives; None where it gives none."""
    file = request.place(request.encoder)
    if request.encoder and file.is_file() and not request.features:
        return encoders.foreign_encoder(file, request.architecture, request.size)
    return None


def extractor(request, results, study, encoder):
    """The run whose encoder scores the pool: trained on the seed now or before, or given."""
    place = request.place(request.encoder)
    if request.encoder and place.is_dir():
        return encoders.own_run(place, results)
    settings = {name: getattr(request, name) for name in DECIDED - {"method", "seed"}}
    run, images = train.plan(
        study, f"{request.method} long_tail", 0, request.seed, {"dataset": request.name, **settings}
    )
    if request.encoder:
        unknown = dict.fromkeys(TRAINING, 0) | {"method": "given", "head_layers": 0}
        return encoders.foreign_run(place, encoder, replace(run, **unknown), results)
    train.pretrain(run, images, results)
    return run


def neighbours(run, results, study, prototypes):
    """What lies nearest to each image by cosine, of the seed and of the pool: two frames, read from
    disk when measured before.

    Rows: name, prototype (1 has the most seed images), closeness to it, nearest (position in the
    seed), cosine with that one.
    """

    def nearest_of(tile, seed, means):
        (closeness, prototype), (cosine, nearest) = (tile @ means.T).max(1), (tile @ seed.T).max(1)
        columns = {
            "prototype": prototype + 1,
            "closeness": closeness,
            "nearest": nearest,
            "cosine": cosine,
        }
        return pd.DataFrame({name: values.numpy(force=True) for name, values in columns.items()})

    def rows():
        pool, seed = samplers.pool_and_seed(run, results, study)
        means, seed = normalize(samplers.centroids(seed, prototypes).to(seed)), normalize(seed)
        means = means[
            torch.bincount((seed @ means.T).argmax(1), minlength=prototypes).argsort(
                descending=True, stable=True
            )
        ]
        parts = [
            nearest_of(normalize(tile.to(seed)), seed, means)
            for some in (seed, pool)
            for tile in some.split(samplers.COMPARED)
        ]
        return pd.concat(parts).assign(name=study.seed.names + study.pool.names)

    settings = {"pool": study.pool.digest, "seed": study.seed.digest, "precision": run.precision}
    both = results.remember(run, f"nearest-k{prototypes}", settings, rows)
    return both.iloc[: len(study.seed)], both.iloc[len(study.seed) :].reset_index(drop=True)


def pool_table(request, study, found, scored, near):
    """What was measured of every image that could be picked, in the pool's order: the columns of
    ``pool.csv``.
    """
    ecle, distance = (pd.Series(values.numpy()) for values in scored)
    return pd.DataFrame(
        {
            "path": [found["pool"].paths[name] for name in study.pool.names],
            "ecle": ecle,
            "ecle_percentile": (100 * ecle.rank(pct=True)).round(1),
            "distance": distance,
            "score": samplers.score(*scored, request.alpha).numpy(),
            "nearest_prototype": near.prototype,
            "nearest_seed": [
                found["seed"].paths[study.seed.names[place]] for place in near.nearest
            ],
            "cosine": near.cosine.round(4),
        }
    )


# ---- picks


def picked(request, run, results, study, sampler, groups, settings):
    """The picks of one sampler, rows of ``samplers.pick``; with groups (n,), so many of each as
    ``even_shares`` says.

    A sampler picks in each group as if that were the pool, and the ranks go round the groups.
    """
    how = request.budget, request.alpha, request.ratio
    if groups is None:
        return samplers.pick(run, results, study, sampler, *how, **settings)

    def rows():
        scored, parts = samplers.score_pool(run, results, study, **settings), []
        pool, seed = samplers.pool_and_seed(run, results, study)
        for group, count in even_shares(Counter(groups), request.budget).items():
            members = torch.from_numpy(np.flatnonzero(groups == group))
            mine = [values[members] for values in (*scored, pool)]
            index = samplers.sample(
                sampler, *mine, seed, count, request.alpha, request.ratio, run.seed
            )
            parts.append(pd.DataFrame({"round": range(count), "index": members[index.cpu()]}))
        found = pd.concat(parts).sort_values("round", kind="stable")["index"].tolist()
        return samplers.rows_of_picks(sampler, found, study.pool.names, *scored, request.alpha)

    asked = {
        **settings,
        "groups": runs.sha256("\n".join(map(str, groups)).encode()),
        "pool": study.pool.digest,
        "seed": study.seed.digest,
        **samplers.versioned(sampler),
    }
    record = samplers.record_of(sampler, *how, request.prototypes)
    return results.remember(run, f"{record}-by-{request.quotas}", asked, rows)


def even_shares(sizes, budget):
    """A budget shared among groups as evenly as their sizes allow, the largest first where it does
    not come out even: group -> count.
    """
    order = sorted(sizes, key=lambda group: (-sizes[group], str(group)))
    shares = fill([sizes[group] for group in order], budget)
    return {group: share for group, share in zip(order, shares.tolist(), strict=True) if share}


def picks_table(picks, whole, alike):
    """The columns of ``picks.csv``, and ``index``, the row in ``pool.csv``."""
    rows = picks[["sampler", "rank", "index", "score"]].reset_index(drop=True)
    rows = rows.join(whole.drop(columns="score"), on="index")
    near = alike[(alike.kind == "near") & (alike.place == "pool")].set_index("path")
    first = alike.drop_duplicates("group").set_index("group").path
    rows = rows.assign(
        copy_of=rows.path.map(near.group).map(first), similarity=rows.path.map(near.similarity)
    )
    return rows[
        [
            "sampler",
            "rank",
            "path",
            "ecle",
            "ecle_percentile",
            "distance",
            "score",
            "nearest_prototype",
            "nearest_seed",
            "cosine",
            "copy_of",
            "similarity",
            "index",
        ]
    ]


def export(request, results, study, listed):
    """The picks of each sampler as a list of paths and, unless ``picked_files`` is none, as a
    folder: ``picks/<sampler>``.

    Files in the folder begin with their rank. Links lead to files of their own; members of archives
    are copied.
    """
    folder = results.root / "picks"
    if folder.is_symlink():  # what lies behind it is not ours
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    for sampler, some in listed.groupby("sampler"):
        (folder / sampler).mkdir(parents=True)
        listed = "".join(f"{request.place(path)}\n" for path in some.path).encode()
        with paths.in_part(folder / f"{sampler}.txt", len(listed)) as part:
            part.write_bytes(listed)
        for rank, place in (
            zip(some["rank"], some["index"], strict=True) if request.picked_files != "none" else ()
        ):
            name, read = study.pool.images.files[place]
            stem, ending = os.path.splitext(re.sub(r"[^\w.,() +-]", "_", name.rsplit("/")[-1]))
            file = folder / sampler / f"{rank:0{len(str(len(some)))}}_{stem[:60]}{ending[:10]}"
            if request.picked_files == "links" and read.own:
                file.symlink_to(read.file.absolute())
            else:
                content = read()
                with paths.in_part(file, len(content)) as part:
                    part.write_bytes(content)
