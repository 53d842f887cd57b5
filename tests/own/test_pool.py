"""Picks from images of one's own: one file of settings in, a table and a page out, and nothing made
twice.
"""

import base64
import io
import json
import re
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors import torch as safetensors
from sklearn.decomposition import PCA
from toy import image_set

from longtail.command import reproduce
from longtail.images import places, sources
from longtail.learn import encode, models, train
from longtail.own import embeddings, encoders, gallery, inventory, pool, request
from longtail.pick import samplers
from longtail.store import paths, runs
from longtail.store.settings import read_yaml

SMALL = {
    "budget": 4,
    "size": 16,
    "architecture": "convnet",
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 8,
    "views": 2,
    "ecle_repeats": 1,
    "prototypes": 3,
}
TAUGHT = {
    "architecture",
    "size",
    "epochs",
    "warmup_epochs",
    "batch_size",
}  # what a given encoder's training has decided


def photographs(folder, count, seed):
    """A folder of small pictures of several kinds and shapes."""
    folder.mkdir(parents=True)
    for number, image in enumerate(image_set(count, 24, seed).images):
        kind, wide = ("png", "jpg", "webp")[number % 3], 24 + 5 * (number % 4)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((wide, 24)).save(
            folder / f"{number:02d}.{kind}"
        )


def demand(root, name="mine", **settings):
    """Write a file of settings, without those of training when an encoder is given; returns its
    address.
    """
    usual = {
        key: value for key, value in SMALL.items() if "encoder" not in settings or key not in TAUGHT
    }
    (root / f"{name}.yaml").write_text(
        yaml.safe_dump({"seed_images": "seed", "pool_images": "pool", **usual, **settings})
    )
    return str(root / f"{name}.yaml")


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """20 seed and 40 pool images with a broken file in each, refused once and then picked from:
    what the command said and left.
    """
    root = tmp_path_factory.mktemp("album")
    photographs(root / "seed", 20, seed=0)
    photographs(root / "pool" / "holidays", 40, seed=1)
    (root / "pool" / "empty").mkdir()
    (root / "pool" / "text.jpg").write_text("no image")
    (root / "seed" / "cut.png").write_bytes((root / "seed" / "00.png").read_bytes()[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RESULTS", root / "results")
        yield SimpleNamespace(root=root, results=root / "results/mine")


@pytest.fixture(scope="module")
def picked(album):
    """The album after the request has been carried out."""
    assert reproduce.main([demand(album.root, skip_broken=True)]) == 0
    return album


def pictures(place):
    """The readable images of a place, in memory."""
    squares, names, _ = sources.read_images(places.files_of(place).files, 16)
    return sources.ImageSet(squares, torch.full((len(names),), sources.UNKNOWN), tuple(names))


def picks(root, name="mine"):
    return pd.read_csv(root / f"results/{name}/picks.csv")


# ---- the command


def test_broken_files_are_all_named_and_stop_it_before_anything_is_trained(album, capsys):
    assert reproduce.main([demand(album.root, "strict")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("strict failed: ValueError: 2 files are no readable images")
        and "skip_broken: true" in line
    )
    assert re.fullmatch(
        r"seed/cut\.png \(.+\)\npool/text\.jpg \(8 bytes of no known kind\)\n",
        (album.root / "results/strict/broken.txt").read_text(),
    )
    assert (
        not (album.root / "results/strict/runs").exists()
        and not (album.root / "results/strict/picks.csv").exists()
    )


def test_every_sampler_has_its_picks_with_paths_that_exist(picked):
    table = picks(picked.root)
    assert list(table) == [
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
    ]
    assert list(table.sampler.unique()) == ["mak", "tailness", "proximity", "k_center", "random"]
    for _, some in table.groupby("sampler"):
        assert list(some["rank"]) == [1, 2, 3, 4] and some.path.is_unique
    assert all((picked.root / path).is_file() for path in [*table.path, *table.nearest_seed])
    assert (
        table.path.str.startswith("pool/holidays/").all()
        and table.nearest_prototype.between(1, 3).all()
    )


def test_picks_and_neighbours_are_those_of_the_features(picked):
    results, table = runs.Results("mine"), picks(picked.root).set_index("sampler")
    [run] = results.done()
    seed, others = (pictures(picked.root / name) for name in ("seed", "pool"))
    encoder = train.encoder_of(run, results)
    near, far = (
        torch.nn.functional.normalize(encode.features(encoder, images, "float32"))
        for images in (seed, others)
    )
    in_files = inventory.take("pool", {"pool": picked.root / "pool"}, 16).in_files(16)
    ecle, distance = samplers.score_pool(
        run, results, pool.SeedAndPool(seed, in_files), views=2, batch=512, repeats=1, prototypes=3
    )
    expected = samplers.mak(ecle, far, near, budget=4, prototypes=3)
    assert list(table.loc["mak"].path) == [f"pool/{others.names[place]}" for place in expected]
    hardest = ecle.argsort(descending=True)[:4]
    assert list(table.loc["tailness"].path) == [f"pool/{others.names[place]}" for place in hardest]
    assert list(table.loc["tailness"].nearest_seed) == [
        f"seed/{seed.names[place]}" for place in (far[hardest] @ near.T).argmax(1)
    ]
    assert (np.diff(table.loc["proximity"].distance) > 0).all()


def test_picks_are_a_place_for_the_next_request(picked):
    table = picks(picked.root)
    for sampler, some in table.groupby("sampler"):
        found = places.files_of(picked.results / "picks" / f"{sampler}.txt")
        assert [read() for _, read in found.files] == [
            (picked.root / path).read_bytes() for path in some.path
        ]
    (picked.root / "both.txt").write_text("seed\n" + (picked.results / "picks/mak.txt").read_text())
    names = [name for name, _ in places.files_of(picked.root / "both.txt").files]
    assert len(names) == 21 + 4 and sum(name.startswith("seed/") for name in names) == 21


def page_data(folder):
    """What the script of a page is given."""
    page = (folder / "gallery.html").read_text()
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )


def test_page_loads_nothing_and_links_to_what_is_there(picked):
    page = (picked.results / "gallery.html").read_text()
    assert (
        not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
        and "default-src 'none'; img-src data:;" in page
    )
    linked = set(re.findall(r'href="([^#"]+)"', page))
    assert linked == {"picks.csv", "pool.csv", "broken.txt", "duplicates.csv"} and all(
        (picked.results / name).exists() for name in linked
    )
    assert "2 files left out" in page and str(picked.root) not in page


def test_page_has_every_pick_with_why_it_was_taken(picked):
    data, table = page_data(picked.results), picks(picked.root)
    whole = pd.read_csv(picked.results / "pool.csv").set_index("path")
    assert [some["name"] for some in data["samplers"]] == list(table.sampler.unique()) and len(
        data["pool"]
    ) == 40
    for some in data["samplers"]:
        mine = table[table.sampler == some["name"]]
        shown = [data["pool"][str(place)] for place in some["picks"]]
        assert [one["path"] for one in shown] == list(mine.path)
        for one, row in zip(shown, mine.itertuples(), strict=True):
            assert (
                one["ecle_percentile"]
                == row.ecle_percentile
                == round(100 * (whole.ecle <= row.ecle).mean(), 1)
            )
            assert data["seed"][str(int(one["nearest"]))]["path"] == row.nearest_seed and one[
                "cosine"
            ] == pytest.approx(row.cosine)
            assert (one["nearest_prototype"], one["distance"]) == (
                row.nearest_prototype,
                pytest.approx(row.distance, abs=1e-4),
            )
            assert (picked.results / unquote(one["href"])).resolve() == (
                picked.root / one["path"]
            ).resolve()
            assert Image.open(
                io.BytesIO(base64.b64decode(one["src"].removeprefix("data:image/webp;base64,")))
            ).size == (96, 96)
        assert some["shared"] == [
            len({*mine.path} & {*table.path[table.sampler == other["name"]]})
            for other in data["samplers"]
        ]
    assert all(
        -1 <= one[axis] <= 1
        for part in ("seed", "pool")
        for one in data[part].values()
        for axis in "xy"
    )


def test_page_shows_where_samplers_cut(picked):
    data, whole, table = (
        page_data(picked.results),
        pd.read_csv(picked.results / "pool.csv"),
        picks(picked.root),
    )
    cut = {some["name"]: some["cut"] for some in data["samplers"]}
    assert cut["random"] is None and cut["k_center"] is None
    assert (
        cut["tailness"]
        == table[table.sampler == "tailness"].ecle.min()
        == whole.ecle.nlargest(4).min()
    )
    assert (
        cut["proximity"]
        == table[table.sampler == "proximity"].distance.max()
        == whole.distance.nsmallest(4).max()
    )
    assert cut["mak"] == whole.score.nlargest(6).min() <= table[table.sampler == "mak"].score.min()
    assert all(
        sum(data["histograms"][name]["counts"]) == 40 for name in ("ecle", "distance", "score")
    )


def test_few_images_are_placed_by_principal_components_and_many_by_tsne():
    features = torch.nn.functional.normalize(
        torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).double()
    ).numpy()
    far = gallery.placed(features[:8])
    expected = PCA(2).fit_transform(features[:8])
    assert (
        np.abs(np.corrcoef(far[:, 0], expected[:, 0])[0, 1]) == pytest.approx(1)
        and gallery.how(60) == "t-SNE, perplexity 19"
    )
    assert (gallery.placed(features) == gallery.placed(features)).all() and np.abs(
        gallery.placed(features)
    ).max() == pytest.approx(1)
    assert gallery.placed(features[:1]).shape == (1, 2)


HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>.png".replace("/", "\u2215"),
    "javascript:alert(1).png",
    'a" onload="alert(1).png',
    "{{ 7 * 7 }}.png",
    "&lt;b&gt; é 100%25 #?.png",
    "-rf .png",
]


def test_hostile_names_are_text_on_the_page_and_lead_to_their_files(picked):
    seed, pool = picked.root / "hostile/<b>seed</b>", picked.root / "hostile/</pool"
    pool.mkdir(parents=True)
    shutil.copytree(picked.root / "seed", seed, ignore=shutil.ignore_patterns("cut.png"))
    for number, name in enumerate(HOSTILE * 2):
        photograph = Image.fromarray(image_set(14, 24, 5).images[number].permute(1, 2, 0).numpy())
        photograph.save((seed if number < len(HOSTILE) else pool) / name)
    assert (
        reproduce.main(
            [
                demand(
                    picked.root / "hostile",
                    "hostile",
                    seed_images="<b>seed</b>",
                    pool_images="</pool",
                    samplers=["mak"],
                    budget=len(HOSTILE),
                )
            ]
        )
        == 0
    )
    results = picked.root / "results/hostile"
    page, data = (results / "gallery.html").read_text(), page_data(results)
    assert (
        page.count("<script") == page.count("</script>") == 2
        and "<b>seed" not in page
        and "</pool" not in page
        and "onerror" in page
    )
    assert not re.search(r"<(img|b)[^>]*(onerror|onload|>seed)", page) and "innerHTML" not in page
    for place in data["samplers"][0]["picks"]:
        one = data["pool"][str(place)]
        assert one["href"].startswith("./") and not set(one["href"]) & set("<>\"' #?")
        assert (results / unquote(one["href"])).resolve() == (
            picked.root / "hostile" / one["path"]
        ).resolve()
    assert len(list((results / "picks/mak").iterdir())) == len(HOSTILE)
    for file in (results / "picks/mak").iterdir():
        assert (
            re.fullmatch(r"\d_[\w.,() +-]+", file.name) and file.resolve().parent == pool.resolve()
        )


def seeds_of_prototypes():
    """Seed images of each prototype, the most frequent first."""
    [run] = (results := runs.Results("mine")).done()
    return list(results.read("nearest-k3").prototype[:20].value_counts().sort_index())


def test_prototypes_count_down(picked):
    counts = seeds_of_prototypes()
    assert counts == sorted(counts, reverse=True) and sum(counts) == 20


def files_of_runs(picked):
    """All that runs have written, without their locks."""
    return [
        path
        for path in sorted((picked.root / "results").rglob("runs/*/**/*"))
        if path.is_file() and path.name != "claim"
    ]


def test_second_time_nothing_is_made(picked, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of_runs(picked)}
    shown = [
        (picked.results / name).read_bytes() for name in ("picks.csv", "gallery.html", "broken.txt")
    ]
    assert reproduce.main([demand(picked.root, skip_broken=True)]) == 0
    assert " 0 runs made" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert files_of_runs(picked) == list(before)
    assert [
        (picked.results / name).read_bytes() for name in ("picks.csv", "gallery.html", "broken.txt")
    ] == shown


def test_dry_run_counts_files_and_writes_nothing(album, capsys):
    asked = [demand(album.root, "dry"), "-p", "budget", "3", "--dry-run"]
    assert reproduce.main(asked) == 1
    assert "2 files are no readable images" in capsys.readouterr().err
    assert reproduce.main([*asked, "-p", "skip_broken", "true"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"seed_images +seed\npool_images +pool\n", said) and re.search(
        r"budget +3\n", said
    )
    assert "pool, pool: 40 images: 14 PNG, 13 JPEG, 13 WEBP; short sides 24 to 24 pixels" in said
    assert (
        "pool, pool: 1 files are no readable images, such as pool/text.jpg (8 bytes of no known "
        "kind)" in said
    )
    assert not (album.root / "results/dry").exists()


def test_dry_run_tells_what_the_run_would_stop_at(album, capsys):
    assert reproduce.main([demand(album.root, "dry", budget=4000), "--dry-run"]) == 1
    assert "budget is 4000, but pool has 40 images" in capsys.readouterr().err
    torch.save({"conv1.weight": torch.zeros(3)}, album.root / "unfit.pth")
    given = {"encoder": "unfit.pth", "architecture": "torchvision/shufflenet_v2_x0_5", "size": 32}
    for words in (["--dry-run"], []):
        assert reproduce.main([demand(album.root, "dry", **given), *words]) == 1
        said = capsys.readouterr()
        assert "holds no weights of torchvision/shufflenet_v2_x0_5" in said.err
        assert "pool, pool" not in said.out  # told before a pool of any size is read


def test_memory_without_a_unit_an_empty_place_and_a_sampler_twice(album, capsys):
    wrong = {"memory": 4, "pool_images": [], "seed_images": ""}
    assert reproduce.main([demand(album.root, "bad", **wrong)]) == 2
    said = capsys.readouterr().err
    assert "memory is 4; give 2 GB or more, such as 4 GB" in said
    assert "pool_images is empty" in said and "seed_images is empty" in said
    places = {"seed_images": "seed", "pool_images": "pool", "samplers": ["mak", "random", "mak"]}
    assert request.ask("mine", places, album.root).samplers == ["mak", "random"]


# ---- where images lie


def test_zip_and_list_give_the_picks_of_the_folder(picked):
    with zipfile.ZipFile(picked.root / "all.zip", "w") as archive:
        for file in sorted((picked.root / "pool").rglob("*.*")):
            archive.write(file, f"all/{file.relative_to(picked.root)}")
    lines = [
        f"{file.relative_to(picked.root)}{' 7' if place % 2 else ''}"
        for place, file in enumerate(sorted(picked.root.glob("seed/*")))
    ]
    (picked.root / "seed.txt").write_text("\n".join([*lines, "", "seed/lost.png"]))
    assert (
        reproduce.main(
            [
                demand(
                    picked.root,
                    "packed",
                    seed_images="seed.txt",
                    pool_images="all.zip/pool",
                    skip_broken=True,
                )
            ]
        )
        == 0
    )
    packed, loose = picks(picked.root, "packed"), picks(picked.root)
    assert list(packed.path) == [f"all.zip/all/{path}" for path in loose.path] and list(
        packed.nearest_seed
    ) == list(loose.nearest_seed)
    assert (
        "seed/lost.png (no such file, line 23 of seed.txt)"
        in (picked.root / "results/packed/broken.txt").read_text()
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"budget": 41}, "budget is 41, but pool has 40 images"),
        ({"prototypes": 21}, "prototypes is 21, but seed has 20 images"),
    ],
)
def test_too_few_images_are_told_before_training(album, capsys, changes, words):
    assert reproduce.main([demand(album.root, "few", skip_broken=True, **changes)]) == 1
    assert words in capsys.readouterr().err and not (album.root / "results/few/runs").exists()


def test_a_pool_of_one_image_is_told_before_training(album, capsys):
    (album.root / "one").mkdir()
    shutil.copy(next((album.root / "pool/holidays").iterdir()), album.root / "one")
    asked = demand(album.root, "single", pool_images="one", budget=1, skip_broken=True)
    assert reproduce.main([asked, "--dry-run"]) == 1
    assert "one has 1 image that can be picked: there is nothing" in capsys.readouterr().err


# ---- copies


@pytest.fixture(scope="module")
def copies_on_disk(tmp_path_factory):
    """12 pictures of the seed again in the pool, 8 of the test set, and 10 others six times over;
    30 that are there once.
    """
    root = tmp_path_factory.mktemp("copied")
    pictures = [
        Image.fromarray(image.permute(1, 2, 0).numpy()) for image in image_set(72, 60, 5).images
    ]
    for part in ("seed", "test", "pool/again", "pool/backup", "pool/new"):
        (root / part).mkdir(parents=True)
    for number, picture in enumerate(pictures):
        if number < 24:
            picture.save(root / "seed" / f"{number}.png")
        elif number < 32:
            picture.save(root / "test" / f"{number}.png")
            picture.resize((40, 40)).save(root / "pool/again" / f"t{number}.jpg")
        elif number < 42:
            for copy in range(6):
                picture.save(
                    root / "pool/backup" / f"{number}_{copy}.{'png' if copy % 2 else 'jpg'}"
                )
        else:
            picture.save(root / "pool/new" / f"{number}.png")
        if number < 12:
            mirrored = picture.transpose(Image.FLIP_LEFT_RIGHT)
            for name, some in {
                "q.jpg": picture,
                "m.jpg": mirrored,
                "c.jpg": picture.crop((3, 3, 57, 57)),
                "p.png": picture,
            }.items():
                some.save(root / "pool/again" / f"{number}{name}")
    return root


@pytest.fixture
def copied(copies_on_disk, monkeypatch):
    """These, and results beside them."""
    monkeypatch.setattr(paths, "RESULTS", copies_on_disk / "results")
    return copies_on_disk


def test_no_copy_is_picked_and_all_are_listed(copied, capsys):
    assert (
        reproduce.main([demand(copied, budget=40, test_images="test", samplers=["mak", "random"])])
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "106 of 146 pool images are left out: 48 copies of the seed's images, 8 copies of the test "
        "set's, 50 copies of others" in said
    )
    table, groups = picks(copied), pd.read_csv(copied / "results/mine/duplicates.csv")
    for _, some in table.groupby("sampler"):  # as many as there are different pictures
        shown = {re.sub(r"_\d\..*", "", path) for path in some.path}
        assert len(shown) == 40 and not some.path.str.contains("again").any()
    assert (
        not set(table.path) & set(groups.path[~groups.pickable])
        and groups.group.nunique() == 12 + 8 + 10
    )
    first = groups.drop_duplicates("group").set_index("group")
    assert (
        first.place.value_counts() == pd.Series({"seed": 12, "pool": 10, "test": 8})
    ).all() and (first.similarity == 1).all()
    exact = groups[groups.path.str.endswith("p.png")]
    assert (
        len(exact) == 12
        and (exact.kind == "exact").all()
        and (groups[groups.path.str.endswith("m.jpg")].kind == "near").all()
    )
    assert "duplicates.csv</a> has 30 groups" in (copied / "results/mine/gallery.html").read_text()


def test_near_copies_that_may_be_picked_are_marked(copied, capsys):
    assert (
        reproduce.main(
            [demand(copied, "near", budget=94, samplers=["random"], keep_near_copies=True)]
        )
        == 0
    )
    assert "near copies in the pool may be picked" in capsys.readouterr().out
    table, groups = picks(copied, "near"), pd.read_csv(copied / "results/near/duplicates.csv")
    near = table[table.path.isin(groups.path[groups.kind == "near"])]
    assert (
        len(near) and near.similarity.between(0.9, 1).all() and near.copy_of.isin(groups.path).all()
    )
    assert (
        table[~table.path.isin(near.path)].copy_of.isna().all()
        and not table.path.isin(groups.path[groups.kind == "exact"]).any()
    )


def test_the_largest_of_several_copies_is_the_one_to_pick_then_the_one_with_the_shortest_name(
    copied,
):
    (copied / "sizes").mkdir()
    for number in range(4):
        picture = Image.fromarray(image_set(72, 60, 5).images[40 + number].permute(1, 2, 0).numpy())
        for name, side in {"a small": 30, "b large (1)": 60, "b large": 60}.items():
            picture.resize((side, side)).save(copied / "sizes" / f"{number} {name}.jpg", quality=85)
    assert reproduce.main([demand(copied, "sizes", pool_images="sizes", samplers=["random"])]) == 0
    assert sorted(picks(copied, "sizes").path) == [
        f"sizes/{number} b large.jpg" for number in range(4)
    ]


def test_a_path_that_a_list_has_twice_counts_once(copied, capsys):
    lines = [f"pool/new/{file.name}" for file in sorted((copied / "pool/new").iterdir())]
    (copied / "twice.txt").write_text("\n".join(lines + lines))
    assert reproduce.main([demand(copied, "twice", budget=31, pool_images="twice.txt")]) == 1
    printed = capsys.readouterr()
    assert (
        "30 paths are listed twice and count once" in printed.out
        and "budget is 31, but twice.txt has 30 images" in printed.err
    )


def test_a_blank_seed_is_refused_before_training(copied, capsys):
    (copied / "blank").mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(copied / "blank" / f"{number}.png")
    assert reproduce.main([demand(copied, "blank", seed_images="blank")]) == 1
    printed = capsys.readouterr()
    assert (
        "8 images are of one colour" in printed.out
        and "every image of blank is of one colour" in printed.err
    )
    assert not (copied / "results/blank/runs").exists()


def test_two_files_of_one_name_do_not_overwrite_each_other(copied, capsys):
    for place in ("spring", "autumn"):
        (copied / place).mkdir()
    images = {
        "seed_images": str(copied / "seed"),
        "pool_images": str(copied / "pool/new"),
        "samplers": ["random"],
    }
    first, second = (demand(copied / place, "season", **images) for place in ("spring", "autumn"))
    assert reproduce.main([first]) == 0
    kept = (copied / "results/season/picks.csv").read_bytes()
    assert (
        reproduce.main([second]) == 2 and f"holds what {first} asked for" in capsys.readouterr().err
    )
    assert (copied / "results/season/picks.csv").read_bytes() == kept and reproduce.main(
        [first]
    ) == 0
    shutil.move(
        copied / "spring", copied / "summer"
    )  # the folder was moved: its results are nobody else's
    assert reproduce.main([second]) == 0


# ---- a second round, rejects, quotas, files


def test_second_round_takes_picks_as_seed_and_leaves_out_rejects_and_their_copies(copied, capsys):
    assert reproduce.main([demand(copied, "first", budget=10, samplers=["mak"])]) == 0
    table = picks(copied, "first")
    folder = copied / "results/first/picks/mak"
    assert [file.resolve() for file in sorted(folder.iterdir())] == [
        copied / path for path in table.path
    ]
    groups = pd.read_csv(copied / "results/first/duplicates.csv")
    inside = groups[(groups.place == "pool") & groups.pickable].path
    rejected = [
        *inside[~inside.isin(table.path)].head(2),
        next(
            path
            for path in sorted(pd.read_csv(copied / "results/first/pool.csv").path)
            if path not in {*table.path, *groups.path}
        ),
    ]
    worst = table.path.iloc[-1]  # a pick that lies in the seed of the second round
    (copied / "no.txt").write_text("\n".join([*rejected, worst, "pool/lost.png"]))
    capsys.readouterr()
    second = demand(
        copied,
        "second",
        seed_images=["seed", "results/first/picks/mak"],
        rejects="no.txt",
        budget=10,
        samplers=["random"],
    )
    assert reproduce.main([second]) == 0
    said = capsys.readouterr().out
    assert (
        "seed, seed + results/first/picks/mak: 34 images" in said
        and "no.txt: 4 pool images are rejected, 1 lines name none" in said
    )
    assert "1 seed images are rejected ones and left out" in said
    assert "5 copies of rejected ones" in said or "10 copies of rejected ones" in said
    whole = pd.read_csv(copied / "results/second/pool.csv")
    barred = {
        *table.path,
        *rejected,
        *groups.path[
            groups.group.isin(groups.group[groups.path.isin(rejected + list(table.path))])
        ],
    }
    assert not barred & set(whole.path) and set(picks(copied, "second").path) <= set(whole.path)
    assert set(whole.path) == set(pd.read_csv(copied / "results/first/pool.csv").path) - barred
    assert any(path.startswith("results/first/picks/mak/") for path in whole.nearest_seed)


def test_a_request_does_not_read_what_it_will_overwrite(copied, capsys):
    assert (
        reproduce.main(
            [
                demand(
                    copied,
                    "mine",
                    seed_images=["seed", "results/mine/picks/mak"],
                    budget=3,
                    samplers=["mak"],
                )
            ]
        )
        != 0
    )
    (copied / "results/mine/picks/mak").mkdir(parents=True, exist_ok=True)
    capsys.readouterr()
    assert (
        reproduce.main(
            [
                demand(
                    copied,
                    "mine",
                    seed_images=["seed", "results/mine/picks/mak"],
                    budget=3,
                    samplers=["mak"],
                )
            ]
        )
        == 1
    )
    assert (
        "lies in results/mine, which this request writes anew; give its file another name"
        in capsys.readouterr().err
    )


def test_picks_are_copied_where_links_are_not_wanted_and_out_of_archives(picked):
    with zipfile.ZipFile(picked.root / "loose.zip", "w") as archive:
        for file in sorted((picked.root / "pool/holidays").iterdir()):
            archive.write(file, f"2024/{file.name}")
    for name, settings in {
        "zipped": {"pool_images": "loose.zip"},
        "copies": {"picked_files": "copies"},
    }.items():
        assert (
            reproduce.main(
                [demand(picked.root, name, samplers=["mak"], skip_broken=True, **settings)]
            )
            == 0
        )
        files = sorted((picked.root / f"results/{name}/picks/mak").iterdir())
        assert not any(file.is_symlink() for file in files)
        table = picks(picked.root, name)
        originals = [picked.root / "pool/holidays" / Path(path).name for path in table.path]
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in originals]
        assert [re.sub(r"^\d_", "", file.name) for file in files] == [
            file.name for file in originals
        ]
    assert (
        picks(picked.root, "zipped").path.str.startswith("loose.zip/2024/").all()
    )  # as `unzip -l` prints them
    assert "href" not in next(iter(page_data(picked.root / "results/zipped")["pool"].values()))
    assert (
        reproduce.main(
            [demand(picked.root, "copies", samplers=["mak"], skip_broken=True, picked_files="none")]
        )
        == 0
    )
    assert not list((picked.root / "results/copies/picks/mak").iterdir())
    assert len((picked.root / "results/copies/picks/mak.txt").read_text().splitlines()) == 4


def test_quotas_share_the_budget_among_classes_and_prototypes(copied, capsys):
    asked = {
        "seed_images": "test",
        "pool_images": ["pool/again", "pool/new"],
        "budget": 12,
        "samplers": ["mak", "tailness", "random"],
    }
    assert reproduce.main([demand(copied, "classless", quotas="classes", **asked)]) == 1
    assert (
        "quotas: classes shares the budget among classes, but the pool has none"
        in capsys.readouterr().err
    )
    rows = [
        f"{file.relative_to(copied)},{'rare' if n < 3 else 'common' if n < 10 else 'usual'}"
        for n, file in enumerate(sorted((copied / "pool/new").iterdir()))
    ]
    (copied / "classes.csv").write_text("path,class\n" + "\n".join(rows))
    classes = dict(row.split(",") for row in rows)
    assert (
        reproduce.main(
            [demand(copied, "shared", quotas="classes", **asked | {"pool_images": "classes.csv"})]
        )
        == 0
    )
    whole = pd.read_csv(copied / "results/shared/pool.csv").set_index("path")
    for name, some in picks(copied, "shared").groupby("sampler"):
        assert some.path.is_unique and list(some["rank"]) == list(range(1, 13))
        assert some.path.map(classes).value_counts().to_dict() == {
            "usual": 5,
            "common": 4,
            "rare": 3,
        }
        if name == "tailness":
            for kind, mine in some.groupby(some.path.map(classes)):
                assert set(mine.path) == set(
                    whole.ecle[[classes[path] == kind for path in whole.index]]
                    .nlargest(len(mine))
                    .index
                )
    assert reproduce.main([demand(copied, "spread", quotas="prototypes", **asked)]) == 0
    sizes = pd.read_csv(copied / "results/spread/pool.csv").nearest_prototype.value_counts()
    for _, some in picks(copied, "spread").groupby("sampler"):
        assert some.nearest_prototype.value_counts().to_dict() == pool.even_shares(
            sizes.to_dict(), 12
        )


@pytest.mark.parametrize(
    "sizes, budget, expected",
    [
        ({"a": 9, "b": 9}, 5, {"a": 3, "b": 2}),
        ({"a": 1, "b": 9, "c": 9}, 9, {"a": 1, "b": 4, "c": 4}),
        ({"a": 2, "b": 3}, 5, {"a": 2, "b": 3}),
        ({1: 5, 2: 5, 3: 5}, 2, {1: 1, 2: 1}),
        ({"a": 1000, "b": 10**6}, 5000, {"a": 1000, "b": 4000}),
    ],
)
def test_even_shares(sizes, budget, expected):
    assert pool.even_shares(sizes, budget) == expected


def test_doubtful_copies_stay_in_the_pool(copied, monkeypatch, capsys):
    monkeypatch.setattr(pool, "SURE", 1.01)
    monkeypatch.setattr(pool, "CLOSER", -1.0)  # nothing is confirmed
    assert reproduce.main([demand(copied, "doubt", budget=20, samplers=["random"])]) == 0
    groups = pd.read_csv(copied / "results/doubt/duplicates.csv")
    doubtful = groups[groups.kind == "doubtful"]
    assert (
        f"{len(doubtful)} images look like copies, but the encoder tells them apart"
        in capsys.readouterr().out
    )
    assert (
        len(doubtful) > 30
        and doubtful.cosine.between(-1, 1).all()
        and doubtful.pickable.equals(doubtful.place == "pool")
    )
    assert set(doubtful.path[doubtful.pickable]) <= set(
        pd.read_csv(copied / "results/doubt/pool.csv").path
    )


# ---- given encoders


def test_run_of_ours_gives_the_picks_it_gave(picked):
    [run] = runs.Results("mine").done()
    folder = runs.Results("mine").folder(run).relative_to(picked.root)
    assert (
        reproduce.main([demand(picked.root, "again", encoder=str(folder), skip_broken=True)]) == 0
    )
    pd.testing.assert_frame_equal(picks(picked.root, "again"), picks(picked.root))
    [same] = runs.Results("again").done()
    assert (
        same.subset == "given"
        and same.images != run.images
        and not list((picked.root / "results/again").rglob("log.csv"))
    )


def test_damaged_run_is_refused_by_name(picked, tmp_path):
    [run] = (results := runs.Results("mine")).done()
    folder = tmp_path / run.name
    shutil.copytree(results.folder(run), folder)
    (folder / "encoder.safetensors").write_bytes(b"else")
    with pytest.raises(ValueError, match="encoder.safetensors is not the file that training wrote"):
        encoders.own_run(folder, results)
    with pytest.raises(ValueError, match=rf"done\.json was written as {run.name}/done\.json"):
        encoders.own_run(folder.rename(tmp_path / "renamed"), results)


def network(name, classes=10):
    """A torchvision network with random weights, and the statistics of images that went through
    it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = sources.import_torchvision().models.get_model(
            name, weights=None, num_classes=classes
        )
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # statistics of this batch alone
        made.train()(torch.randn(4, 3, 32, 32))
    return made.eval()


def legacy(state):
    """A state dict with DenseNet's old names."""
    for key in list(state):
        state[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)] = state.pop(key)
    return state


@pytest.mark.parametrize(
    "name, packed",
    [
        ("shufflenet_v2_x0_5", lambda state: state),
        ("mnasnet0_5", lambda state: {"state_dict": state, "epoch": 3}),
        (
            "mobilenet_v3_small",
            lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        ),
        ("densenet121", legacy),
    ],
)
def test_torchvision_features_are_the_input_of_the_classifier(tmp_path, name, packed):
    theirs, images = (
        network(name),
        torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    )
    last, seen = (
        [module for module in theirs.modules() if isinstance(module, torch.nn.Linear)][-1],
        [],
    )
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (models.MEAN, models.STD))
    with torch.no_grad():
        theirs((images - mean) / std)
    torch.save(packed(theirs.state_dict()), tmp_path / "weights.pth")
    with torch.no_grad():
        ours = encoders.foreign_encoder(tmp_path / "weights.pth", f"torchvision/{name}", 32)(images)
    torch.testing.assert_close(ours, seen[0].flatten(1), atol=1e-5, rtol=1e-5)


def named(prefix, state):
    """A state dict with this in front of all names."""
    return {prefix + name: value for name, value in state.items()}


def numbered(state, net):
    """A state dict as torch numbers the layers of a Sequential made of the network's children."""
    places = {name: str(number) for number, (name, _) in enumerate(net.named_children())}
    return {
        ".".join([places[name.split(".")[0]], *name.split(".")[1:]]): value
        for name, value in state.items()
    }


# how other tools save a network: plain state dict, the same without the classifier, network -> what
# is in the file
LAYOUTS = {
    "MoCo": lambda whole, body, net: {
        "epoch": 9,
        "state_dict": named("module.encoder_q.", body)
        | {"module.encoder_q.fc.0.weight": torch.zeros(9, 9), "module.queue": torch.zeros(3)}
        | named("module.encoder_k.", zeros(body)),
    },
    "DINO": lambda whole, body, net: {
        "student": named("module.backbone.", zeros(body)),
        "teacher": named("backbone.", body),
        "epoch": 9,
    },
    "solo-learn": lambda whole, body, net: {
        "state_dict": named("backbone.", body) | {"classifier.weight": torch.zeros(9, 9)}
    },
    "lightly": lambda whole, body, net: {"state_dict": named("backbone.", numbered(body, net))},
    "VISSL": lambda whole, body, net: {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": named("_feature_blocks.", body), "heads": {}}}
        }
    },
    "SwAV": lambda whole, body, net: (
        named("module.", body) | {"module.prototypes.weight": torch.zeros(3, 9)}
    ),
    "NumPy beside": lambda whole, body, net: {
        "epoch": 1,
        "best_acc": np.float64(71.3),
        "state_dict": whole,
    },
    "another classifier": lambda whole, body, net: (
        body | {"fc.weight": torch.zeros(7, 9), "fc.bias": torch.zeros(7)}
    ),
    "half precision": lambda whole, body, net: {
        name: value.half() if value.is_floating_point() else value for name, value in whole.items()
    },
    "BYOL": lambda whole, body, net: {"online_network_state_dict": named("encoder.", body)},
    "a Lightning of settings that are no dict": lambda whole, body, net: {
        "state_dict": named("backbone.", body),
        "hyper_parameters": SimpleNamespace(lr=0.1, folder=Path("data"), kinds=defaultdict(list)),
    },
    "compiled": lambda whole, body, net: named("_orig_mod.", whole),
    "compiled DDP": lambda whole, body, net: named("module._orig_mod.", whole),
}


def zeros(state):
    """The same names and shapes without content."""
    return {name: torch.zeros_like(value) for name, value in state.items()}


@pytest.fixture(scope="module")
def small():
    """A small torchvision network, and its features of three images as this package gives them of
    its plain state dict.
    """
    net = network("shufflenet_v2_x0_5")
    state = dict(net.state_dict())
    return net, state, {name: value for name, value in state.items() if not name.startswith("fc.")}


def features_by(file):
    """Features of three images by the weights in a file."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return encoders.foreign_encoder(file, "torchvision/shufflenet_v2_x0_5", 32)(images)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_weights_of_other_tools_give_the_same_features_and_say_what_was_used(
    tmp_path, capsys, small, layout
):
    net, whole, body = small
    torch.save(whole, tmp_path / "plain.pth")
    torch.save(layout(whole, body, net), tmp_path / "theirs.pth")
    theirs, plain = features_by(tmp_path / "theirs.pth"), features_by(tmp_path / "plain.pth")
    rounded = layout is LAYOUTS["half precision"]
    assert (
        torch.nn.functional.cosine_similarity(theirs, plain).min() > 0.999
        if rounded
        else torch.equal(theirs, plain)
    )
    assert re.search(rf"theirs\.pth: {len(body)} tensors used.*left aside", capsys.readouterr().out)


def test_safetensors_are_read(tmp_path, small):
    torch.save(small[1], tmp_path / "plain.pth")
    safetensors.save_file(small[1], tmp_path / "weights.safetensors")
    assert torch.equal(
        features_by(tmp_path / "weights.safetensors"), features_by(tmp_path / "plain.pth")
    )
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:99])
    with pytest.raises(ValueError, match="cut.safetensors is no whole file of safetensors"):
        features_by(tmp_path / "cut.safetensors")


def test_pickled_models_and_diverged_weights_are_refused_as_such(tmp_path, small):
    net, whole, _ = small
    torch.save(net, tmp_path / "model.pth")
    with pytest.raises(
        ValueError,
        match=r"model\.pth is a pickled torchvision\.models\.shufflenetv2\.ShuffleNetV2, whose code",
    ):
        features_by(tmp_path / "model.pth")
    torch.save({"model": net, "epoch": 3}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth is a pickled .*ShuffleNetV2, whose code"):
        features_by(tmp_path / "model.pth")
    torch.save(
        whole | {"conv5.0.weight": torch.full_like(whole["conv5.0.weight"], torch.nan)},
        tmp_path / "nan.pth",
    )
    with pytest.raises(ValueError, match=r"conv5\.0\.weight holds NaN"):
        features_by(tmp_path / "nan.pth")


def test_weights_that_are_none_are_named(tmp_path, small):
    whole, file = small[1], tmp_path / "odd.pth"
    name = "conv5.0.weight"
    holds_itself = {}
    holds_itself["model"] = {"teacher": holds_itself}
    numbered = dict(enumerate(whole.values()))
    for odd, words in (
        (holds_itself, "holds no mapping of names to tensors"),
        (numbered, "holds no mapping of names to tensors"),
        (whole | {name: whole[name].to(torch.complex64)}, f"{name} does not"),
        (whole | {name: whole[name].to_sparse()}, f"{name} does not"),
        (whole | {name: whole[name].to("meta")}, f"{name} does not"),
    ):
        torch.save(odd, file)
        with pytest.raises(ValueError, match=words) as caught:
            features_by(file)
        assert str(file) in str(caught.value)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("odd/data/0", bytes(2**26))
    with pytest.raises(ValueError, match=r"odd\.pth .*64 MB packed into"):
        features_by(file)


def test_torchvision_weights_pick_and_decide_what_is_remembered(picked, capsys):
    address = demand(
        picked.root,
        "given",
        encoder="weights.pth",
        architecture="torchvision/shufflenet_v2_x0_5",
        size=32,
        samplers=["mak", "random"],
        skip_broken=True,
    )
    for classes in (10, 10, 11):
        torch.save(network("shufflenet_v2_x0_5", classes).state_dict(), picked.root / "weights.pth")
        assert reproduce.main([address]) == 0
    assert re.findall(r"(\d) runs made", capsys.readouterr().out) == ["1", "0", "1"]
    run = runs.Results("given").done()[0]
    assert (run.method, run.subset, run.size, run.head_layers, run.epochs) == (
        "given",
        "given",
        32,
        0,
        0,
    )
    assert len(picks(picked.root, "given")) == 8


@pytest.mark.parametrize(
    "architecture, size, content, words",
    [
        (
            "torchvision/shufflenet_v2_x1_0",
            32,
            None,
            "holds no weights of torchvision/shufflenet_v2_x1_0",
        ),
        ("torchvision/shufflenet_v2_x9", 32, None, "no 'shufflenet_v2_x9'; there are alexnet"),
        ("torchvision/squeezenet1_1", 32, None, "squeezenet1_1 has no linear layer"),
        ("torchvision/shufflenet_v2_x0_5", 32, b"else", "is no file of weights that torch reads"),
        ("torchvision/shufflenet_v2_x0_5", 32, b"<!DOCTYPE html>", "is a web page, and no file"),
        ("torchvision/shufflenet_v2_x0_5", 32, b"", "is empty, and no file of weights"),
        (
            "torchvision/shufflenet_v2_x0_5",
            32,
            {"conv1.0.weight": torch.zeros(24, 1, 3, 3)},
            "conv1.0.weight does not, being (24, 1, 3, 3) and not (24, 3, 3, 3)",
        ),
        ("torchvision/shufflenet_v2_x0_5", 32, [1, 2], "holds no mapping of names to tensors"),
    ],
)
def test_unfit_weights_are_refused_in_a_sentence(tmp_path, architecture, size, content, words):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content or network("shufflenet_v2_x0_5").state_dict(), file)
    with pytest.raises(ValueError, match=re.escape(words)):
        encoders.foreign_encoder(file, architecture, size)


def test_network_that_wants_other_sizes_says_so(tmp_path):
    torch.save(network("densenet121").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match="torchvision/densenet121 takes no images of 16 pixels .* take 224"
    ):
        encoders.foreign_encoder(
            tmp_path / "weights.pth",
            "torchvision/densenet121",
            16,
        )


def test_given_encoders_are_never_trained():
    with pytest.raises(ValueError, match="a given encoder is not trained"):
        train.methods.find("given")(SimpleNamespace(name="given-x"))


# ---- what is refused


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"epoch": 3}, "no setting epoch; perhaps epochs is meant; there are alpha, architecture"),
        ({"base": "demo"}, "no setting base"),
        ({"name": "other"}, "no setting name"),
        ({"pool_images": None}, "pool_images is missing"),
        ({"seed_images": "lost"}, "/lost is missing"),
        ({"encoder": "lost.pth"}, "/lost.pth is missing"),
        ({"budget": "many"}, "budget takes a whole number, not 'many'"),
        ({"budget": 0}, "budget is 0"),
        ({"views": 1}, "views is 1"),
        ({"alpha": 1.5}, "alpha is 1.5; it lies between 0 and 1"),
        ({"size": 4}, "size is 4"),
        ({"samplers": []}, "samplers is empty"),
        (
            {"samplers": ["mak", "mask"]},
            "samplers: there is no mask; there are hierarchical_k_means",
        ),
        ({"samplers": "mak"}, "samplers takes a list of text, not 'mak'"),
        ({"method": "given"}, "method: there is no given; there are sdclr, simclr"),
        ({"policy": "cifar_classifier"}, "policy: there is no"),
        ({"precision": "half"}, "precision: there is no half"),
        ({"architecture": "resnet9"}, "architecture resnet9: convnet"),
        ({"encoder": "some.pth"}, "needs an architecture"),
        ({"architecture": "torchvision/resnet50"}, "needs a file of its weights"),
        ({"encoder": "seed"}, "/seed is no run"),
        (
            {"encoder": "some.pth", "architecture": "torchvision/resnet50", "epochs": 3},
            "so that epochs would change nothing",
        ),
        (
            {"encoder": "run", "policy": "cifar", "size": 32},
            "so that policy, size would change nothing",
        ),
        ({"encoder": "run"}, "run.json describes another run than the name of its folder"),
        ({"pool_images": "some.pth"}, "some.pth is no place of images"),
        ({"pool_images": "notes.txt"}, "notes.txt is no text"),
    ],
)
def test_refused_in_one_line_and_nothing_written(tmp_path, capsys, monkeypatch, settings, words):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    for name in ("seed", "pool", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "some.pth").write_bytes(b"weights")
    (tmp_path / "notes.txt").write_bytes(b"\xff\xd8\0\1")
    (tmp_path / "run/run.json").write_text("{}")
    asked = {
        key: value
        for key, value in {"seed_images": "seed", "pool_images": "pool", **settings}.items()
        if value is not None
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(asked))
    before = sorted(tmp_path.rglob("*"))
    assert reproduce.main([str(tmp_path / "mine.yaml")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    (tmp_path / "seed").mkdir()
    (tmp_path / "wrong.yaml").write_text(
        "seed_images: seed\npool_images: lost\n# a comment\nbudget: 0.5\nalpha: 3\nbudgets: 4\n"
        "samplers: [mak, mask]\nepochs: true\nskip_broken: 'yes'\non: 1\n5: five\nencoder:\n"
    )
    assert reproduce.main([str(tmp_path / "wrong.yaml")]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "refused: wrong has 10 mistakes:"
    for number, words in {
        2: "lost is missing",
        4: "budget takes a whole number, not 0.5",
        5: "alpha is 3; it lies between 0 and 1",
        6: "no setting budgets",
        7: "samplers: there is no mask",
        8: "epochs takes a whole number, not True",
        9: "skip_broken takes true or false, not 'yes'",
        10: "no setting on",
        11: "no setting 5",
        12: "encoder is empty",
    }.items():
        assert (
            sum(line.startswith(f"  line {number}: ") and words in line for line in lines) == 1
        ), words
    assert "; perhaps budget is meant; there are" in "".join(lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_requests_are_read_in_any_encoding_that_can_be_told(tmp_path, encoding):
    (tmp_path / "mine.yaml").write_bytes("seed_images: Vögel\npool_images: pool\n".encode(encoding))
    settings = read_yaml(tmp_path / "mine.yaml")
    assert settings == {"seed_images": "Vögel", "pool_images": "pool"} and settings.lines == {
        "seed_images": 1,
        "pool_images": 2,
    }


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "seed_images: a\nbudget: 3\nbudget: 30\n",
            "line 3: budget is there twice, first in line 2",
        ),
        ("seed_images:\ta\n", "it has a tab: use blanks"),
        ('seed_images: "C:\\Users\\me"\n', "line 1: expected escape sequence"),
        ("- seed_images: a\n", "is no mapping of names to values"),
        ("a: {b: 1, b: 2}\n", "line 1: b is there twice"),
        ("a: [1\n", "cannot be read as YAML: line 2"),
        ("a: \0\n", "is no text; save the settings as UTF-8"),
    ],
)
def test_what_is_no_request_is_refused_with_line_and_remedy(tmp_path, capsys, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    assert reproduce.main([str(tmp_path / "mine.yaml")]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


def test_notebooks_are_not_run_with_images_of_ones_own(album, capsys):
    assert reproduce.main([demand(album.root), "02"]) == 2
    assert "leave out 02" in capsys.readouterr().err


def test_defaults_are_within_what_is_accepted(album):
    default = request.ask("mine", {"seed_images": "seed", "pool_images": "pool"}, album.root)
    assert (
        request.ask(
            "mine",
            {key: value for key, value in vars(default).items() if key not in ("name", "folder")},
            album.root,
        )
        == default
    )


def test_every_sampler_says_what_it_takes_and_what_it_suits():
    assert all(
        sampler.takes.endswith(".") and sampler.suits.endswith(".")
        for sampler in samplers.SAMPLERS.values()
    )


def test_schema_says_what_an_editor_needs(capsys):
    assert reproduce.main(["--schema", "request.json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == request.ASKED.keys() and schema["required"] == [
        "seed_images",
        "pool_images",
    ]
    assert (
        all(entry["description"] for entry in schema["properties"].values())
        and schema["additionalProperties"] is False
    )
    assert (
        schema["properties"]["alpha"]["maximum"],
        schema["properties"]["memory"]["default"],
    ) == (1, "4 GB")


def test_memory_is_checked_and_used(album, capsys, monkeypatch):
    monkeypatch.setattr(pool.BUDGET, "total", pool.BUDGET.total)
    assert reproduce.main([demand(album.root, "little", memory="100 MB")]) == 2
    assert "memory is 100 MB; give 2 GB or more, such as 4 GB" in capsys.readouterr().err
    assert (
        reproduce.main([demand(album.root, "dry", memory="3 GB", skip_broken=True), "--dry-run"])
        == 0
        and pool.BUDGET.total == 3 * 2**30
    )


def test_features_can_be_taken_elsewhere(picked):
    pytest.importorskip("pyarrow")
    for kind in ("npy", "parquet"):
        assert (
            reproduce.main(
                [
                    demand(
                        picked.root, "taken", skip_broken=True, export=kind, samplers=["proximity"]
                    )
                ]
            )
            == 0
        )
        results = runs.Results("taken")
        [run] = results.done()
        names, found = embeddings.read_features(results.root / f"features/pool.{kind}")
        images = pictures(picked.root / "pool")
        assert names == [f"pool/{name}" for name in images.names]
        assert torch.equal(
            found, encode.features(train.encoder_of(run, results), images, "float32")
        )
