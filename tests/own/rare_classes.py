"""How many of the first picks show what is rare: ``python tests/own/rare_classes.py FOLDER``, about
ten minutes on one quiet core.

Five times, with classes and images drawn anew: the seed has ten classes of Tiny-ImageNet, 150
images of the first down to 6 of the last; its five smallest classes are rare. The pool has 5,000
images: 1 % of the rare classes, 20 % of the five others, 40 % of other classes of Tiny-ImageNet and
39 % of scenes. Requests are made and carried out as a user would, once with an encoder trained on
the seed and once with one trained on CIFAR-10-LT, which is shipped. Printed: the share of rare
images among 100 picks of each sampler. The zips tiny-imagenet-100.zip and scenes-64.zip lie in
LONGTAIL_DATA; everything that is written lies in FOLDER.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from longtail.command import reproduce
from longtail.store import paths

SEEDS = range(1, 6)
SIZES = np.geomspace(150, 6, 10).round().astype(int)  # images of the seed's classes
FOREIGN = paths.ROOT / "results/runs/simclr-cifar10_long_tail-split1-seed1-b9f5d8c8"
SAMPLERS = ["random", "k_center", "tailness", "proximity", "tailness_proximity", "mak"]
ENCODERS = {"trained on the seed": {}, "trained on CIFAR-10-LT": {"encoder": str(FOREIGN)}}


def drawn(archives, number):
    """Members (archive, name) of seed, rare and other pool images of one repeat."""
    tiny, scenes = archives
    draw = np.random.default_rng(number)
    by_class = {}
    for name in tiny.namelist():
        if "/train/" in name and name.endswith(".JPEG"):
            by_class.setdefault(name.split("/")[-2], []).append((tiny, name))
    known = sorted({name.split("/")[3] for name in tiny.namelist() if "/seed/train/n" in name})
    chosen = draw.choice(known, 10, replace=False)
    files = {
        name: [members[place] for place in draw.permutation(len(members))]
        for name, members in by_class.items()
    }
    seed = [file for name, size in zip(chosen, SIZES, strict=True) for file in files[name][:size]]
    rare = [file for name in chosen[5:] for file in files[name][-10:]]
    frequent = [file for name in chosen[:5] for file in files[name][-200:]]
    others = [file for name, some in files.items() if name not in chosen for file in some]
    outside = [(scenes, name) for name in scenes.namelist() if name.endswith(".jpg")]
    some = [
        rows[place]
        for rows, count in ((others, 2000), (outside, 1950))
        for place in draw.permutation(len(rows))[:count]
    ]
    return seed, rare, frequent + some


def unpacked(files, folder, what):
    """Put members of the archives into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (archive, name) in enumerate(files):
        (folder / f"{what}-{number:04d}.jpg").write_bytes(archive.read(name))


def main(root):
    """Carry out all requests, then print the table; what was finished before is read."""
    paths.RESULTS, rows = root / "results", []
    with (
        zipfile.ZipFile(paths.DATA / "tiny-imagenet-100.zip") as tiny,
        zipfile.ZipFile(paths.DATA / "scenes-64.zip") as scenes,
    ):
        for number in SEEDS:
            seed, rare, rest = drawn((tiny, scenes), number)
            for files, part, what in (
                (seed, "seed", "seed"),
                (rare, "pool", "rare"),
                (rest, "pool", "other"),
            ):
                unpacked(files, root / f"{number}" / part, what)
            for encoder, settings in ENCODERS.items():
                asked = root / f"{'given' if settings else 'own'}{number}.yaml"
                own = {} if settings else {"size": 32, "seed": number}
                asked.write_text(
                    yaml.safe_dump(
                        {
                            "seed_images": f"{number}/seed",
                            "pool_images": f"{number}/pool",
                            "samplers": SAMPLERS,
                            **own,
                            **settings,
                        }
                    )
                )
                if reproduce.main([str(asked)]):
                    sys.exit(f"{asked} failed")
                picks = pd.read_csv(paths.RESULTS / asked.stem / "picks.csv")
                found = picks.path.str.contains("/rare-").groupby(picks.sampler).mean() * 100
                rows += [
                    {"sampler": name, "encoder": encoder, "seed": number, "rare": share}
                    for name, share in found.items()
                ]
    rows = pd.DataFrame(rows)
    rows.to_csv(root / "rare_classes.csv", index=False)
    told = (
        rows.groupby(["sampler", "encoder"])
        .rare.agg(lambda some: f"{some.mean():.1f} ± {some.std():.1f}")
        .unstack()
    )
    print(told.loc[SAMPLERS, list(ENCODERS)].to_markdown())
    print(
        f"percent of 100 picks that show a rare class, mean ± sample sd over n = {len(SEEDS)} "
        "draws of classes and images; by lot 1.0"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
