"""Picks from images of one's own: one file of settings in, a table and a page out, and nothing made twice."""

import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from toy import image_set

from longtail import evaluate, given, models, own, paths, reproduce, runs, sampling, sources, train
from longtail.gallery import TAKES

SMALL = {"budget": 4, "size": 16, "architecture": "convnet", "epochs": 2, "warmup_epochs": 1, "batch_size": 8, "views": 2,
         "ecle_repeats": 1, "prototypes": 3}
TAUGHT = {"architecture", "size", "epochs", "warmup_epochs", "batch_size"}      # what a given encoder's training has decided


def photographs(folder, count, seed):
    """A folder of small pictures of several kinds and shapes."""
    folder.mkdir(parents=True)
    for number, image in enumerate(image_set(count, 24, seed).images):
        kind, wide = ("png", "jpg", "webp")[number % 3], 24 + 5 * (number % 4)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((wide, 24)).save(folder / f"{number:02d}.{kind}")


def demand(root, name="mine", **settings):
    """Write a file of settings, without those of training when an encoder is given; returns its address."""
    usual = {key: value for key, value in SMALL.items() if "encoder" not in settings or key not in TAUGHT}
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"seed_images": "seed", "pool_images": "pool", **usual, **settings}))
    return str(root / f"{name}.yaml")


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """20 seed and 40 pool images with a broken file in each, refused once and then picked from: what the command said and left."""
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


def picks(root, name="mine"):
    return pd.read_csv(root / f"results/{name}/picks.csv")


# ---- the command

def test_broken_files_are_all_named_and_stop_it_before_anything_is_trained(album, capsys):
    assert reproduce.main([demand(album.root, "strict")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("strict failed: ValueError: 2 files are no readable images") and "skip_broken: true" in line
    assert re.fullmatch(r"seed/cut\.png \(.+\)\npool/text\.jpg \(8 bytes of no known kind\)\n",
                        (album.root / "results/strict/broken.txt").read_text())
    assert [path.name for path in (album.root / "results/strict").iterdir()] == ["broken.txt"]


def test_every_sampler_has_its_picks_with_paths_that_exist(picked):
    table = picks(picked.root)
    assert list(table) == ["sampler", "rank", "path", "ecle", "distance", "score", "nearest_prototype", "nearest_seed"]
    assert list(table.sampler.unique()) == ["mak", "tailness", "proximity", "k_center", "random"]
    for _, some in table.groupby("sampler"):
        assert list(some["rank"]) == [1, 2, 3, 4] and some.path.is_unique
    assert all((picked.root / path).is_file() for path in [*table.path, *table.nearest_seed])
    assert table.path.str.startswith("pool/holidays/").all() and table.nearest_prototype.between(1, 3).all()


def test_picks_and_neighbours_are_those_of_the_features(picked):
    results, table = runs.Results("mine"), picks(picked.root).set_index("sampler")
    [run] = results.done()
    seed, pool = (own.find(picked.root / name, 16).images for name in ("seed", "pool"))
    encoder = train.encoder_of(run, results)
    near, far = (torch.nn.functional.normalize(evaluate.features(encoder, images, "float32")) for images in (seed, pool))
    ecle, distance = sampling.score_pool(run, results, own.Study(seed, pool), views=2, batch=512, repeats=1, prototypes=3)
    expected = sampling.mak(ecle, far, near, budget=4, prototypes=3)
    assert list(table.loc["mak"].path) == [f"pool/{pool.names[place]}" for place in expected]
    hardest = ecle.argsort(descending=True)[:4]
    assert list(table.loc["tailness"].path) == [f"pool/{pool.names[place]}" for place in hardest]
    assert list(table.loc["tailness"].nearest_seed) == [f"seed/{seed.names[place]}" for place in (far[hardest] @ near.T).argmax(1)]
    assert (np.diff(table.loc["proximity"].distance) > 0).all()


def test_page_shows_all_picks_and_loads_nothing(picked):
    page = (picked.results / "gallery.html").read_text()
    shown = re.findall(r'src="([^"]{,30})', page)
    assert len(shown) == 20 + 5 * (4 + 4 * own.NEAREST) + sum(min(8, count) for count in seeds_of_prototypes())
    assert all(source.startswith("data:image/jpeg;base64,") for source in shown)
    assert set(re.findall(r'href="([^#"]+)"', page)) == {"picks.csv", "broken.txt"} and (picked.results / "broken.txt").exists()
    assert "2 files left out" in page and all(Path(path).name in page for path in picks(picked.root).path)
    assert str(picked.root) not in page


def seeds_of_prototypes():
    """Seed images of each prototype, the most frequent first."""
    [run] = (results := runs.Results("mine")).done()
    return list(pd.read_csv(results.folder(run) / "neighbours-k3.csv").prototype[:20].value_counts().sort_index())


def test_prototypes_count_down(picked):
    counts = seeds_of_prototypes()
    assert counts == sorted(counts, reverse=True) and sum(counts) == 20


def files_of_runs(picked):
    """All that runs have written, without their locks."""
    return [path for path in sorted(picked.results.rglob("runs/*/**/*")) if path.is_file() and path.name != "claim"]


def test_second_time_nothing_is_made(picked, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of_runs(picked)}
    shown = [(picked.results / name).read_bytes() for name in ("picks.csv", "gallery.html", "broken.txt")]
    assert reproduce.main([demand(picked.root, skip_broken=True)]) == 0
    assert "runs reused 1, made 0" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert files_of_runs(picked) == list(before)
    assert [(picked.results / name).read_bytes() for name in ("picks.csv", "gallery.html", "broken.txt")] == shown


def test_dry_run_counts_files_and_writes_nothing(album, capsys):
    assert reproduce.main([demand(album.root, "dry"), "-p", "budget", "3", "--dry-run"]) == 0
    assert re.search(r"seed_images +seed \(21 files\)\npool_images +pool \(41 files\)\nbudget +3\n", capsys.readouterr().out)
    assert not (album.root / "results/dry").exists()


# ---- where images lie

def test_zip_and_list_give_the_picks_of_the_folder(picked):
    with zipfile.ZipFile(picked.root / "all.zip", "w") as archive:
        for file in sorted((picked.root / "pool").rglob("*.*")):
            archive.write(file, f"all/{file.relative_to(picked.root)}")
    lines = [f"{file.relative_to(picked.root)}{' 7' if place % 2 else ''}" for place, file in enumerate(sorted(picked.root.glob("seed/*")))]
    (picked.root / "seed.txt").write_text("\n".join([*lines, "", "seed/lost.png"]))
    assert reproduce.main([demand(picked.root, "packed", seed_images="seed.txt", pool_images="all.zip/pool", skip_broken=True)]) == 0
    packed, loose = picks(picked.root, "packed"), picks(picked.root)
    assert list(packed.path) == [f"all.zip/{path}" for path in loose.path] and list(packed.nearest_seed) == list(loose.nearest_seed)
    assert "seed/lost.png (No such file or directory)" in (picked.root / "results/packed/broken.txt").read_text()


def test_pool_images_that_the_seed_has_are_left_out(album, tmp_path):
    shutil.copytree(album.root / "pool", tmp_path / "pool")
    for file in sorted(album.root.glob("seed/0*")):
        shutil.copy(file, tmp_path / "pool" / f"again-{file.name}")
    seed, pool = own.find(album.root / "seed", 16).images, own.find(tmp_path / "pool", 16).images
    assert len(pool) == 50 and own.without(pool, seed).digest == own.find(album.root / "pool", 16).images.digest


@pytest.mark.parametrize("changes, words", [
    ({"budget": 41}, "budget is 41, but pool has 40 images"), ({"prototypes": 21}, "prototypes is 21, but seed has 20 images")])
def test_too_few_images_are_told_before_training(album, capsys, changes, words):
    assert reproduce.main([demand(album.root, "few", skip_broken=True, **changes)]) == 1
    assert words in capsys.readouterr().err and not (album.root / "results/few/runs").exists()


# ---- given encoders

def test_run_of_ours_gives_the_picks_it_gave(picked):
    [run] = runs.Results("mine").done()
    folder = runs.Results("mine").folder(run).relative_to(picked.root)
    assert reproduce.main([demand(picked.root, "again", encoder=str(folder), skip_broken=True)]) == 0
    pd.testing.assert_frame_equal(picks(picked.root, "again"), picks(picked.root))
    [same] = runs.Results("again").done()
    assert same.subset == "given" and same.images != run.images and not list((picked.root / "results/again").rglob("log.csv"))


def test_damaged_run_is_refused_by_name(picked, tmp_path):
    [run] = (results := runs.Results("mine")).done()
    shutil.copytree(results.folder(run), tmp_path / "run")
    (tmp_path / "run/encoder.safetensors").write_bytes(b"else")
    with pytest.raises(ValueError, match="encoder.safetensors is not the file that training wrote"):
        given.own_run(tmp_path / "run", results)


def network(name, classes=10):
    """A torchvision network with random weights, and the statistics of images that went through it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = sources.import_torchvision().models.get_model(name, weights=None, num_classes=classes)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None      # statistics of this batch alone
        made.train()(torch.randn(4, 3, 32, 32))
    return made.eval()


def legacy(state):
    """A state dict with DenseNet's old names."""
    for key in list(state):
        state[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)] = state.pop(key)
    return state


@pytest.mark.parametrize("name, packed", [
    ("shufflenet_v2_x0_5", lambda state: state), ("mnasnet0_5", lambda state: {"state_dict": state, "epoch": 3}),
    ("mobilenet_v3_small", lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}), ("densenet121", legacy)])
def test_torchvision_features_are_the_input_of_the_classifier(tmp_path, name, packed):
    theirs, images = network(name), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    last, seen = [module for module in theirs.modules() if isinstance(module, torch.nn.Linear)][-1], []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (models.MEAN, models.STD))
    with torch.no_grad():
        theirs((images - mean) / std)
    torch.save(packed(theirs.state_dict()), tmp_path / "weights.pth")
    run = SimpleNamespace(architecture=f"torchvision/{name}", head_layers=0, size=32)
    with torch.no_grad():
        ours = given.foreign_encoder(tmp_path / "weights.pth", run)(images)
    torch.testing.assert_close(ours, seen[0].flatten(1), atol=1e-5, rtol=1e-5)


def test_torchvision_weights_pick_and_decide_what_is_remembered(picked, capsys):
    address = demand(picked.root, "given", encoder="weights.pth", architecture="torchvision/shufflenet_v2_x0_5", size=32,
                     samplers=["mak", "random"], skip_broken=True)
    for classes in (10, 10, 11):
        torch.save(network("shufflenet_v2_x0_5", classes).state_dict(), picked.root / "weights.pth")
        assert reproduce.main([address]) == 0
    assert re.findall(r"runs reused (\d), made (\d)", capsys.readouterr().out) == [("0", "1"), ("1", "0"), ("1", "1")]
    run = runs.Results("given").done()[0]
    assert (run.method, run.subset, run.size, run.head_layers, run.epochs) == ("given", "given", 32, 0, 0)
    assert len(picks(picked.root, "given")) == 8


@pytest.mark.parametrize("architecture, size, content, words", [
    ("torchvision/shufflenet_v2_x1_0", 32, None, "holds no weights of torchvision/shufflenet_v2_x1_0"),
    ("torchvision/shufflenet_v2_x9", 32, None, "no 'shufflenet_v2_x9'; there are alexnet"),
    ("torchvision/squeezenet1_1", 32, None, "squeezenet1_1 has no linear layer"),
    ("torchvision/shufflenet_v2_x0_5", 32, b"else", "is no file of weights that torch reads"),
    ("torchvision/shufflenet_v2_x0_5", 32, [1, 2], "holds no mapping of names to tensors")])
def test_unfit_weights_are_refused_in_a_sentence(tmp_path, architecture, size, content, words):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content or network("shufflenet_v2_x0_5").state_dict(), file)
    with pytest.raises(ValueError, match=re.escape(words)):
        given.foreign_encoder(file, SimpleNamespace(architecture=architecture, head_layers=0, size=size))


def test_network_that_wants_other_sizes_says_so(tmp_path):
    torch.save(network("densenet121").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="torchvision/densenet121 takes no images of 16 pixels .* take 224"):
        given.foreign_encoder(tmp_path / "weights.pth", SimpleNamespace(architecture="torchvision/densenet121", head_layers=0, size=16))


def test_given_encoders_are_never_trained():
    with pytest.raises(ValueError, match="a given encoder is not trained"):
        train.methods.find("given")(SimpleNamespace(name="given-x"))


# ---- what is refused

@pytest.mark.parametrize("settings, words", [
    ({"epoch": 3}, "no setting epoch; there are alpha, architecture"), ({"base": "demo"}, "no setting base"),
    ({"name": "other"}, "no setting name"), ({"pool_images": None}, "pool_images is missing"),
    ({"seed_images": "lost"}, "/lost is missing"), ({"encoder": "lost.pth"}, "/lost.pth is missing"),
    ({"budget": "many"}, "budget takes int, not 'many'"), ({"budget": 0}, "budget is 0"), ({"views": 1}, "views is 1"),
    ({"alpha": 1.5}, "alpha is 1.5; it lies between 0 and 1"), ({"size": 4}, "size is 4"), ({"samplers": []}, "samplers is empty"),
    ({"samplers": ["mak", "mask"]}, "samplers: there is no mask; there are k_center, mak"),
    ({"samplers": "mak"}, "samplers takes list[str]"), ({"method": "given"}, "method: there is no given; there are sdclr, simclr"),
    ({"policy": "cifar_classifier"}, "policy: there is no"), ({"precision": "half"}, "precision: there is no half"),
    ({"architecture": "resnet9"}, "architecture resnet9: convnet"), ({"encoder": "some.pth"}, "needs an architecture"),
    ({"architecture": "torchvision/resnet50"}, "needs a file of its weights"), ({"encoder": "seed"}, "/seed is no run"),
    ({"encoder": "some.pth", "architecture": "torchvision/resnet50", "epochs": 3}, "so that epochs would change nothing"),
    ({"encoder": "run", "policy": "cifar", "size": 32}, "so that policy, size would change nothing"),
    ({"encoder": "run"}, "run.json does not say architecture"), ({"pool_images": "some.pth"}, "some.pth is no whole zip file"),
    ({"pool_images": "notes.txt"}, "notes.txt is no text")])
def test_refused_in_one_line_and_nothing_written(tmp_path, capsys, monkeypatch, settings, words):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    for name in ("seed", "pool", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "some.pth").write_bytes(b"weights")
    (tmp_path / "notes.txt").write_bytes(b"\xff\xd8")
    (tmp_path / "run/run.json").write_text("{}")
    asked = {key: value for key, value in {"seed_images": "seed", "pool_images": "pool", **settings}.items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(asked))
    before = sorted(tmp_path.rglob("*"))
    assert reproduce.main([str(tmp_path / "mine.yaml")]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_notebooks_are_not_run_with_images_of_ones_own(album, capsys):
    assert reproduce.main([demand(album.root), "02"]) == 2
    assert "leave out 02" in capsys.readouterr().err


def test_defaults_are_within_what_is_accepted(album):
    default, counts = own.ask("mine", {"seed_images": "seed", "pool_images": "pool"}, album.root)
    assert counts == {"seed_images": 21, "pool_images": 41}
    assert own.ask("mine", {key: value for key, value in vars(default).items() if key not in ("name", "folder")}, album.root)[0] == default


def test_page_describes_every_sampler():
    assert TAKES.keys() == sampling.SAMPLERS.keys()
