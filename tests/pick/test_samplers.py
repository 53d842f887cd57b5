"""Sampling against the reference's own picks, against naive greedy, and against anything that must
not matter.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from longtail.images import studies
from longtail.learn import train
from longtail.pick import samplers
from longtail.store import paths, runs

GOLDEN = paths.ROOT / "tests" / "golden"


def cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def features(count, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).relu() + 0.01


@pytest.mark.parametrize("case", cases("mak_selection"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mak_picks_what_the_reference_picks(case, dtype):
    pool, seed, loss, distance = (
        torch.tensor(case[key], dtype=dtype)
        for key in ("pool_features", "seed_features", "loss", "distance")
    )
    q = samplers.score(loss, distance, case["alpha"])
    torch.testing.assert_close(q, torch.tensor(case["q"], dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.argsort(q, stable=True)[-case["C"] :].tolist() == case["top_C_ascending_q"]
    assert (
        samplers.core_set(q, pool, seed, case["K"], case["core_ratio"]).tolist()
        == case["picks_in_order"]
    )


@pytest.mark.parametrize("case", cases("proximity_distance"))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_proximity_is_the_reference(case, dtype):
    pool, seed = np.array(case["pool_features"], dtype), np.array(case["seed_features"], dtype)
    ours = samplers.proximity(pool, seed, case["k"]).double()
    torch.testing.assert_close(
        ours, torch.tensor(case["distance"], dtype=torch.float64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("case", cases("kmeans_inertia"))
def test_k_means_is_as_tight_as_the_reference(case):
    assert (
        samplers._k_means(np.array(case["x"]), case["k"], 0).inertia_
        <= 1.03 * case["inertia_n_init_10"]
    )


def test_mak_is_its_parts():
    pool, seed, loss = (
        features(60),
        features(30, seed=1),
        torch.rand(60, generator=torch.Generator().manual_seed(2)),
    )
    distance = samplers.proximity(pool, seed, 10)
    parts = samplers.core_set(samplers.score(loss, distance, 0.3), pool, seed, 12, 1.5)
    assert torch.equal(samplers.mak(loss, pool, seed, 12), parts)
    assert torch.equal(samplers.sample("mak", loss, distance, pool, seed, 12, 0.3, 1.5, 0), parts)


def test_score_ranks_by_one_term_when_the_other_is_constant():
    q = samplers.score(torch.tensor([1.0, 3.0, 2.0]), torch.full((3,), 0.7), 0.3)
    assert q.argsort().tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    "sampler",
    [name for name, record in samplers.SAMPLERS.items() if record.score or name == "k_center"],
)
def test_order_of_the_pool_does_not_matter(sampler):
    pool, seed = features(80), features(30, seed=1)
    loss, distance = (
        torch.rand(80, generator=torch.Generator().manual_seed(2)),
        samplers.proximity(pool, seed, 5),
    )
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    straight = samplers.sample(sampler, loss, distance, pool, seed, 20, 0.3, 1.5, 0)
    shuffled = samplers.sample(
        sampler, loss[order], distance[order], pool[order], seed, 20, 0.3, 1.5, 0
    )
    assert torch.equal(order[shuffled], straight)
    assert len(straight.unique()) == 20


def test_samplers_take_what_their_names_say():
    pool, seed, loss, distance = (
        features(50),
        features(5, seed=1),
        torch.arange(50.0),
        torch.arange(50.0).flip(0),
    )
    picks = {
        name: samplers.sample(name, loss, distance, pool, seed, 6, 0.3, 2.0, 4).tolist()
        for name in samplers.SAMPLERS
    }
    assert (
        picks["tailness"]
        == picks["proximity"]
        == picks["tailness_proximity"]
        == [49, 48, 47, 46, 45, 44]
    )  # the best first
    assert set(picks["mak"]) <= set(range(38, 50))
    assert picks["k_center"] == samplers.k_center(pool, seed, 6).tolist()
    assert len(set(picks["random"])) == 6
    assert (
        picks["random"]
        == samplers.sample("random", None, None, pool, seed, 6, None, None, 4).tolist()
    )
    assert (
        picks["random"]
        != samplers.sample("random", None, None, pool, seed, 6, None, None, 5).tolist()
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda pool, seed: samplers.mak(torch.rand(9), pool, seed, 10, prototypes=3),
            "pool has 9 images, fewer than the budget of 10",
        ),
        (
            lambda pool, seed: samplers.mak(torch.rand(9), pool, seed, 0, prototypes=3),
            "budget is 0",
        ),
        (
            lambda pool, seed: samplers.mak(torch.rand(8), pool, seed, 2, prototypes=3),
            "8 losses but 9 distances",
        ),
        (
            lambda pool, seed: samplers.mak(
                torch.full((9,), torch.nan), pool, seed, 2, prototypes=3
            ),
            "ecle holds NaN",
        ),
        (
            lambda pool, seed: samplers.mak(torch.rand(9), pool, seed, 2),
            "10 prototypes from 5 seed images",
        ),
        (
            lambda pool, seed: samplers.mak(torch.rand(9), pool, seed, 2, alpha=1.5, prototypes=3),
            "alpha 1.5",
        ),
        (lambda pool, seed: samplers.core_set(torch.rand(9), pool, seed, 2, 0.5), "ratio 0.5"),
        (
            lambda pool, seed: samplers.sample("best", None, None, pool, seed, 2, 0.3, 1.5, 0),
            "no sampler 'best'; choose one of random",
        ),
    ],
)
def test_refuses_with_a_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(9, 4), torch.rand(5, 4))


# ---- of a finished run

RUN = runs.Run(
    dataset="digits",
    subset="long_tail",
    split=1,
    seed=1,
    method="simclr",
    head_layers=2,
    architecture="convnet",
    size=16,
    policy="digits",
    epochs=1,
    batch_size=64,
    learning_rate=0.1,
    weight_decay=0.0,
    warmup_epochs=0,
    temperature=0.2,
    prune_fraction=0.9,
    precision="float32",
    images="",
)
HOW = {"alpha": 0.3, "ratio": 1.5, "prototypes": 4, "views": 3, "batch": 16, "repeats": 2}


@pytest.fixture
def study():
    return studies.study(
        "digits",
        16,
        1,
        20,
        0.1,
        "exponential",
        pool_per_class=4,
        outsiders="letters",
        outsider_count=20,
    )


@pytest.fixture
def picks(tmp_path, study):
    """Picks of an untrained extractor with a results folder of its own for each study asked
    about.
    """

    def of(study, sampler="mak", budget=20, place="here", **changes):
        results = runs.Results(place)
        results.root, results.store = tmp_path / place, tmp_path / place / "runs"
        run = replace(RUN, images=study.seed.digest)
        runs.write(results.folder(run) / "run.json", json.dumps(asdict(run)))
        train.finish(
            run, results.folder(run), train.initialise(run)[0], [{"seconds": 0.0}], len(study.seed)
        )
        return samplers.pick(run, results, study, sampler, budget, **HOW | changes)

    return of


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_picks_do_not_know_the_labels(picks, study, sampler):
    blind = {
        part: replace(getattr(study, part), labels=getattr(study, part).labels.flip(0))
        for part in ("seed", "pool")
    }
    honest, shuffled = (
        picks(study, sampler),
        picks(replace(study, **blind), sampler, place="shuffled"),
    )
    assert not torch.equal(study.pool.labels, blind["pool"].labels)
    pd.testing.assert_frame_equal(honest, shuffled)


RANKED = [name for name, record in samplers.SAMPLERS.items() if record.highest_first is not None]


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_rank_1_is_the_best_whatever_the_score(picks, study, sampler):
    rows, record = picks(study, sampler), samplers.SAMPLERS[sampler]
    assert rows["rank"].tolist() == list(range(1, 21)) and len(set(rows["index"])) == 20
    if sampler in RANKED:
        own = rows[record.score]
        assert (
            own.is_monotonic_decreasing if record.highest_first else own.is_monotonic_increasing
        ) and own.iloc[0] != own.iloc[-1]


def test_shipped_picks_have_the_best_first():
    files = [
        file
        for file in paths.ROOT.glob("results/**/picks-*.csv")
        if file.name.split("-")[1] in RANKED
    ]
    if not files:
        pytest.skip("no picks that a score ranks are shipped")
    for file in files:
        rows = pd.read_csv(file).sort_values("rank")
        assert (
            rows[samplers.SAMPLERS[rows.sampler[0]].score].is_monotonic_decreasing
            if samplers.SAMPLERS[rows.sampler[0]].highest_first
            else rows.distance.is_monotonic_increasing
        ), file


def test_rank_1_is_the_best_score_where_the_pool_leaves_nothing_to_spread(picks, study):
    assert picks(study, "mak", budget=len(study.pool)).score.is_monotonic_decreasing


def test_a_run_scores_and_picks_once(picks, study, monkeypatch):
    first = picks(study)
    monkeypatch.setattr(samplers, "core_set", None)
    pd.testing.assert_frame_equal(first, picks(study))


@pytest.mark.parametrize(
    "budget, message", [(0, "budget is 0"), (61, "pool has 60 images, fewer than the budget of 61")]
)
def test_impossible_budgets_are_refused_and_leave_no_picks(picks, study, tmp_path, budget, message):
    with pytest.raises(ValueError, match=message):
        picks(study, budget=budget)
    assert not list(tmp_path.rglob("picks-*"))


def test_enlarged_runs_are_seed_and_picks(picks, study):
    taken, run = picks(study), replace(RUN, images=study.seed.digest)
    enlarged, images = samplers.with_picks(run, study, taken, "mak", "updates")
    assert images.names == study.seed.names + tuple(taken.name)
    assert (enlarged.added, enlarged.budget, enlarged.schedule, enlarged.epochs) == (
        "mak",
        20,
        "updates",
        run.epochs,
    )
    assert samplers.with_picks(run, study, taken, "random", "overhead", 7)[0].epochs == 7
    with pytest.raises(ValueError, match="schedule 'overhead' with epochs None"):
        samplers.with_picks(run, study, taken, "mak", "overhead")


# ---- rows of the tables


def test_a_row_says_how_it_departs_from_the_settings():
    usual = {"budget": 100, "alpha": 0.3, "ratio": 1.5, "prototypes": 10, "views": 4}
    assert samplers.row("k_center", usual) == {"sampler": "k_center", **usual}
    assert samplers.row("mak alpha=0.5 prototypes=20", usual) == {
        **usual,
        "sampler": "mak",
        "alpha": 0.5,
        "prototypes": 20,
    }
    assert usual["alpha"] == 0.3 and type(samplers.row("mak ratio=2", usual)["ratio"]) is float


@pytest.mark.parametrize(
    "text",
    [
        "best",
        "mak alpha",
        "mak alpha 0.5",
        "mak alpha=high",
        "mak alpha=1 alpha=2",
        "mak budget=1.5",
        "mak views=5",
        "mak depth=3",
    ],
)
def test_rows_that_say_nothing_are_refused(text):
    with pytest.raises(
        ValueError,
        match=f"no row '{text}'; name one of random, .*, then perhaps|'{text}' cannot be read",
    ):
        samplers.row(
            text, {"budget": 100, "alpha": 0.3, "ratio": 1.5, "prototypes": 10, "views": 4}
        )


@pytest.mark.parametrize(
    "given",
    [
        [0, 1, 1],
        [0, 1],
        [0, 1, 2, 3],
        [0, 1, -1],
        [0, 1, 9],
        [0.0, 1.0, 2.0],
        [True, False, True],
        [],
    ],
)
def test_picks_that_are_none_are_refused_by_the_samplers_name(monkeypatch, given):
    record = replace(samplers.SAMPLERS["random"], take=lambda **_: given)
    monkeypatch.setitem(samplers.SAMPLERS, "odd", record)
    with pytest.raises(
        ValueError, match="the sampler odd gave .* 3 different indices, from 0 to 8"
    ):
        samplers.sample("odd", None, None, torch.rand(9, 2), None, 3, 0.3, 1.5, 0)


def test_a_raised_version_changes_the_settings_of_picks(monkeypatch):
    assert all(samplers.versioned(name) == {} for name in samplers.SAMPLERS)
    record = replace(samplers.SAMPLERS["random"], version=2)
    monkeypatch.setitem(samplers.SAMPLERS, "random", record)
    assert samplers.versioned("random") == {"version": 2}
