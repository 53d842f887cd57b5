"""A page of picks that needs nothing beside it: why each was taken, a map of pool and picks, what
the samplers rank by.
"""

import base64
import io
import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.functional import normalize

from longtail.images import pixels
from longtail.pick import samplers
from longtail.pick.samplers import SAMPLERS
from longtail.store import runs

TYPICAL = 6  # seed images shown for a prototype
SIDE = 96  # of a thumbnail, pixels
OTHERS, SEEDS = (
    1500,
    500,
)  # at most so many pool images that nobody picked, and seed images, are on the map
EMBEDDED = 4000  # points that t-SNE places; more are placed by their two principal components
PERPLEXITY = 30
BINS = 48


def render(request, run, results, study, found, seed, whole, near, listed, alike, said):
    """The page as text.

    seed: rows of ``pool.neighbours`` of the seed, near: those of the pool; whole, listed: rows of
    ``pool.csv`` and ``picks.csv``.
    """
    import jinja2

    shown = listed[listed["rank"] <= request.shown]
    spots = {
        part: rows.set_index("index")[["x", "y"]].round(4)
        for part, rows in points(run, results, study, shown).groupby("part")
    }
    prototypes = [
        {
            "number": number,
            "count": len(rows),
            "seeds": rows.nlargest(TYPICAL, "closeness").index.tolist(),
            "picks": listed.sampler[listed.nearest_prototype == number].value_counts().to_dict(),
        }
        for number, rows in seed.groupby("prototype")
    ]
    seeds = {
        *spots["seed"].index,
        *near.nearest[shown["index"]],
        *(place for one in prototypes for place in one["seeds"]),
    }
    files = study.pool.images.files
    paths = [found["seed"].paths[name] for name in study.seed.names]
    known = {
        "seed": {
            place: picture(*found["seed"].files[place], paths[place], results.root)
            for place in sorted(seeds)
        },
        "pool": {
            place: picture(*files[place], whole.path[place], results.root)
            for place in spots["pool"].index
        },
    }
    for part, rows in spots.items():
        for place, where in rows.iterrows():
            known[part][place] |= where.to_dict()
    copied = Counter(alike.group[alike.kind.isin(["exact", "near"])])
    copied = dict(zip(alike.path, alike.group.map(copied), strict=True))
    measured = whole.drop(columns=["path", "nearest_seed"]).assign(nearest=near.nearest).round(4)
    for place, row in measured.loc[spots["pool"].index].iterrows():
        known["pool"][place] |= row.to_dict() | {"copies": int(copied.get(whole.path[place], 0))}
    taken = [
        {
            "name": name,
            "picks": some["index"][: request.shown].tolist(),
            "count": len(some),
            "cut": score_cut(request, name, whole),
            "measure": SAMPLERS[name].score,
            "ecle": some.ecle.mean(),
            "distance": some.distance.mean(),
            "prototypes": some.nearest_prototype.nunique(),
            "about": [SAMPLERS[name].takes, SAMPLERS[name].suits],
            "shared": [
                len({*some.path} & {*listed.path[listed.sampler == other]})
                for other in request.samplers
            ],
        }
        for name in request.samplers
        for some in [listed[listed.sampler == name]]
    ]
    data = known | {
        "name": request.name,
        "run": run.name,
        "samplers": taken,
        "bins": BINS,
        "histograms": {
            name: dict(
                zip(
                    ("counts", "edges"),
                    map(np.ndarray.tolist, np.histogram(whole[name], BINS)),
                    strict=True,
                )
            )
            for name in ("ecle", "distance", "score")
        },
    }
    page = jinja2.Template(
        Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"), autoescape=True
    )
    return page.render(
        request=request,
        run=run,
        study=study,
        average=whole[["ecle", "distance"]].mean(),
        samplers=taken,
        data=data,
        said=said,
        settings={
            name: value for name, value in vars(request).items() if name not in ("name", "folder")
        },
        prototypes=prototypes,
        broken=sum(len(part.broken) for part in found.values()),
        groups=alike.group.nunique(),
        mapped={part: len(rows) for part, rows in spots.items()},
        how=how(sum(map(len, spots.values()))),
    )


def picture(name, read, path, folder):
    """What the page holds of an image: its path, a link to its file where it has one of its own, a
    thumbnail.
    """
    with io.BytesIO() as file:
        Image.fromarray(pixels.decoded(read(), SIDE)).save(file, "WEBP", quality=75)
        found = {
            "path": path,
            "src": "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(),
        }
    if read.own:
        address = os.path.relpath(read.file, folder).encode("utf-8", "surrogateescape")
        found["href"] = "./" + quote(address)  # never a scheme of its own
    return found


def score_cut(request, name, whole):
    """Where a sampler cuts the pool by what it ranks by, the least of the candidates for MAK; None
    where it does not.
    """
    sampler = SAMPLERS[name]
    if not sampler.score or request.quotas != "none":
        return None
    ranked = np.sort(whole[sampler.score])
    count = min(len(whole), int(sampler.fixed.get("ratio", request.ratio) * request.budget))
    return ranked[count - 1] if sampler.highest_first is False else ranked[-count]


# ---- the map


def how(count):
    """How so many points are placed on the map."""
    return (
        f"t-SNE, perplexity {min(PERPLEXITY, (count - 1) // 3)}"
        if 12 <= count <= EMBEDDED
        else "their two principal components"
    )


def points(run, results, study, shown):
    """Where images lie on the map: all shown picks, others of the pool and the seed, drawn by lot
    where there are many.

    Rows: part (seed or pool), index, x, y; read from disk when placed before.
    """
    draw = np.random.default_rng(0)
    picked = np.unique(shown["index"])
    others = np.setdiff1d(np.arange(len(study.pool)), picked)
    some = {
        "seed": np.sort(draw.permutation(len(study.seed))[:SEEDS]),
        "pool": np.sort([*picked, *draw.permutation(others)[:OTHERS]]),
    }
    index, part = (
        np.concatenate([*some.values()]),
        np.repeat([*some], [len(rows) for rows in some.values()]),
    )

    def rows():
        pool, seed = samplers.pool_and_seed(run, results, study)
        features = torch.cat(
            [
                normalize(rows[some[name]].float().cpu())
                for name, rows in (("seed", seed), ("pool", pool))
            ]
        ).double()
        return pd.DataFrame(
            {
                "part": part,
                "index": index,
                **dict(zip("xy", placed(features.numpy()).T, strict=True)),
            }
        )

    settings = {
        "pool": study.pool.digest,
        "seed": study.seed.digest,
        "precision": run.precision,
        "how": how(len(index)),
        "images": runs.sha256(index.tobytes()),
    }
    return results.remember(run, "map", settings, rows)


def placed(features):
    """Points (n, 2) for features (n, d), centred, the longest side from −1 to 1."""
    if how(len(features)).startswith("t-SNE"):
        from openTSNE import TSNE

        near = np.asarray(
            TSNE(
                perplexity=min(PERPLEXITY, (len(features) - 1) // 3),
                neighbors="exact",
                random_state=0,
            ).fit(features)
        )
    else:
        centred = features - features.mean(0)
        near = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        near = np.pad(near, ((0, 0), (0, 2 - near.shape[1])))
    least, most = near.min(0), near.max(0)
    return (2 * near - least - most) / max((most - least).max(), 1e-12)
