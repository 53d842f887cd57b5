"""What holds for any input, not only for the examples of other tests: groups, splits, selection,
losses, the schema of requests.
"""

import math
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from longtail.bench.greedy import certificate
from longtail.images.studies import long_tail_counts, split_by_rule
from longtail.label import adjusted
from longtail.learn import losses
from longtail.measure.groups import SIZE_GROUPS, size_groups, summary
from longtail.own import request
from longtail.pick import samplers, selection
from longtail.store.arms import read_line, written
from longtail.store.settings import Refused, mistakes

hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")
COUNTS = some.lists(some.integers(1, 2000), min_size=2, max_size=60)
ORDER = {name: place for place, name in enumerate(reversed(SIZE_GROUPS))}  # few, medium, many


# ---- groups


@given(COUNTS, some.sampled_from(["thirds", "thresholds"]), some.randoms(use_true_random=False))
def test_groups_go_by_size_alone(counts, rule, draw):
    groups = size_groups(counts, rule)
    for one, first in zip(counts, groups, strict=True):
        for other, second in zip(counts, groups, strict=True):
            assert (one != other or first == second) and (
                one >= other or not first or ORDER[first] <= ORDER[second]
            )
    order = draw.sample(range(len(counts)), len(counts))
    assert size_groups([counts[place] for place in order], rule) == [
        groups[place] for place in order
    ]


@given(some.integers(3, 60).flatmap(lambda classes: some.permutations(range(1, classes + 1))))
def test_thirds_of_classes_of_different_sizes_are_thirds(counts):
    groups, third = size_groups(counts, "thirds"), len(counts) // 3
    assert (groups.count("few"), groups.count("medium"), groups.count("many")) == (
        third,
        third,
        len(counts) - 2 * third,
    )


@given(
    some.lists(
        some.tuples(some.floats(0, 100), some.sampled_from(SIZE_GROUPS)), min_size=1, max_size=40
    )
)
def test_a_summary_lies_between_its_classes(classes):
    accuracy, groups = zip(*classes, strict=True)
    found = summary(accuracy, groups)
    means = [found[name] for name in SIZE_GROUPS if name in found]
    assert (
        min(accuracy) - 1e-9 <= min(means)
        and max(means) <= max(accuracy) + 1e-9
        and 0 <= found["balance"] <= 50
    )
    assert math.isclose(
        found["all"],
        sum(found[name] * groups.count(name) for name in set(groups)) / len(groups),
        abs_tol=1e-9,
    )


# ---- splits


@given(
    some.integers(2, 2000),
    some.integers(2, 40),
    some.floats(0.001, 1),
    some.sampled_from(["exponential", "step"]),
)
def test_a_long_tail_never_grows_and_keeps_its_ends(largest, classes, factor, kind):
    try:
        counts = long_tail_counts(largest, classes, factor, kind)
    except ValueError as error:
        assert int(largest * factor) < 1 and "raise one" in str(error)
        return
    assert (
        counts == sorted(counts, reverse=True)
        and counts[0] == largest
        and counts[-1] == int(largest * factor) >= 1
    )


@given(some.data(), some.integers(2, 8))
def test_lists_of_a_split_have_their_sizes_and_no_image_twice(data, classes):
    counts = sorted(
        data.draw(some.lists(some.integers(1, 9), min_size=classes, max_size=classes)), reverse=True
    )
    ranks = data.draw(some.permutations(range(classes)))
    orders = [
        np.array(data.draw(some.permutations(range(100 * label, 100 * label + 12))))
        for label in range(classes)
    ]
    long_tail, balanced, shared = split_by_rule(orders, counts, ranks, range(classes))
    label_of = [
        np.bincount(np.asarray(part) // 100, minlength=classes).tolist()
        for part in (long_tail, balanced, shared)
    ]
    assert (
        label_of[0] == [counts[rank] for rank in ranks]
        and len(set(label_of[1])) == len(set(label_of[2])) == 1
    )
    assert label_of[2][0] == min(counts) and abs(sum(label_of[1]) - sum(counts)) < classes
    for part in (long_tail, balanced, shared):
        assert len(set(part)) == len(part)
    assert set(shared) <= set(long_tail) & set(balanced)


# ---- selection

ROWS = arrays.arrays(
    np.float32,
    some.tuples(some.integers(2, 24), some.just(3)),
    elements=some.integers(-3, 3).map(float),
)


def plain(pool, seed, budget):
    """Greedy K-center as it is defined, one pick after the other, over the same grid."""
    grid, centers = selection.grids(
        torch.from_numpy(pool), torch.from_numpy(seed), selection.Alone()
    )
    rows, centers, picks = grid.whole().double(), centers.double(), []
    for _ in range(budget):
        nearest = (rows @ centers.T).amax(1)
        nearest[picks] = math.inf
        picks.append(int(nearest.argmin()))
        centers = torch.cat([centers, rows[picks[-1]][None]])
    return picks


@given(ROWS, ROWS, some.data())
def test_k_center_is_the_greedy_of_its_definition(pool, seed, data):
    budget, block = data.draw(some.integers(1, len(pool))), data.draw(some.integers(1, 30))
    picks = selection.k_center(torch.from_numpy(pool), torch.from_numpy(seed), budget, block=block)
    assert picks.tolist() == plain(pool, seed, budget)
    assert certificate(torch.from_numpy(pool), torch.from_numpy(seed), picks) == 0


@given(ROWS, some.data())
def test_every_sampler_picks_as_many_different_images_as_it_is_asked_for(pool, data):
    count, budget = len(pool), data.draw(some.integers(1, len(pool)))
    numbers = some.lists(some.floats(0, 9, width=32), min_size=count, max_size=count)
    hard, far = torch.tensor(data.draw(numbers)), torch.tensor(data.draw(numbers))
    asked = {
        "budget": budget,
        "alpha": data.draw(some.floats(0, 1)),
        "ratio": data.draw(some.floats(1, 3)),
        "generator_seed": 1,
    }
    rows = torch.from_numpy(pool)
    for name in samplers.SAMPLERS:
        try:
            picks = samplers.sample(name, hard, far, rows, rows[:2], **asked).tolist()
        except (
            ValueError
        ) as error:  # all losses equal, or too few kinds of images for clusters: said in words
            assert str(error)
            continue
        assert len(set(picks)) == len(picks) == budget and set(picks) <= set(range(count)), name


@given(some.lists(some.floats(0, 9, width=32), min_size=3, max_size=30), some.data())
def test_scores_do_not_mind_the_unit_of_losses_and_distances(values, data):
    loss, distance = (
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(data.draw(some.permutations(values)), dtype=torch.float64),
    )
    hypothesis.assume(loss.std() > 1e-3)
    alpha = data.draw(some.floats(0, 1))
    torch.testing.assert_close(
        samplers.score(8 * loss + 4, 2 * distance, alpha),
        samplers.score(loss, distance, alpha),
        atol=1e-6,
        rtol=1e-6,
    )


# ---- losses

VIEWS = arrays.arrays(
    np.float64,
    some.tuples(some.just(2), some.integers(2, 8), some.just(4)),
    elements=some.floats(-1, 1),
)


@given(VIEWS, some.floats(0.05, 5), some.randoms(use_true_random=False))
def test_nt_xent_is_a_cross_entropy_of_each_image_in_any_order(views, temperature, draw):
    first, second = torch.from_numpy(views + 0.1)
    found = losses.nt_xent(first, second, temperature)
    assert (found >= -1e-9).all() and found.isfinite().all()
    torch.testing.assert_close(losses.nt_xent(second, first, temperature), found)
    order = torch.tensor(draw.sample(range(len(found)), len(found)))
    torch.testing.assert_close(
        losses.nt_xent(first[order], second[order], temperature), found[order]
    )


LOGITS = arrays.arrays(
    np.float64, some.tuples(some.integers(1, 6), some.just(4)), elements=some.floats(-20, 20)
)


@given(
    LOGITS,
    some.lists(some.integers(1, 500), min_size=4, max_size=4),
    some.floats(0, 2),
    some.floats(-5, 5),
)
def test_adjusted_losses_do_not_mind_a_shift_of_all_logits(values, counts, tau, shift):
    logits, labels = torch.from_numpy(values), torch.arange(len(values)) % 4
    specs = (
        adjusted.ce(),
        adjusted.logit_adjusted(counts, tau),
        adjusted.ldam(counts, 0.5, 30.0),
        adjusted.class_balanced(counts, 0.9),
    )
    for spec in specs:
        found = adjusted.adjusted_cross_entropy(logits, labels, spec)
        assert found >= 0 and found.isfinite()
        torch.testing.assert_close(
            adjusted.adjusted_cross_entropy(logits + shift, labels, spec),
            found,
            atol=1e-6,
            rtol=1e-6,
        )
    torch.testing.assert_close(
        adjusted.adjusted_cross_entropy(logits, labels, adjusted.logit_adjusted(counts, 0.0)),
        adjusted.adjusted_cross_entropy(logits, labels, adjusted.ce()),
    )


@given(some.lists(some.integers(1, 10**6), min_size=1, max_size=30), some.floats(0, 0.9999))
def test_class_weights_sum_to_the_classes_and_favour_the_rare(counts, b):
    weights = adjusted.class_balanced_weights(counts, b)
    assert math.isclose(weights.sum(), len(counts), rel_tol=1e-9)
    by_size = weights[torch.tensor(counts).argsort(stable=True)]
    assert (by_size.diff() <= 1e-9).all()


# ---- what people write

VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: (
        some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    some.dictionaries(
        some.sampled_from(sorted(request.ASKED)) | some.text(max_size=12), VALUES, max_size=6
    )
)
def test_a_request_is_taken_as_written_or_refused_by_the_names_of_its_mistakes(settings):
    kept, wrong = mistakes(request.Settings, settings)
    named = {name for name, _ in wrong}
    assert all(text and text.isprintable() for _, text in wrong)
    assert not named & kept.keys() and settings.keys() <= named | kept.keys()
    if not wrong:
        assert all(
            kept[name] == value or float(value) == kept[name] for name, value in settings.items()
        )


@given(some.dictionaries(some.sampled_from(sorted(request.ASKED)), VALUES, max_size=6))
def test_a_request_whose_images_are_missing_is_refused_and_nothing_else_happens(settings):
    with pytest.raises(Refused, match="mine"):
        request.ask("mine", settings, Path("/nowhere/at/all"))


@given(
    some.lists(some.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3),
    some.dictionaries(
        some.from_regex(r"[a-z]{1,5}", fullmatch=True),
        some.from_regex(r"[a-z0-9.=-]{1,5}", fullmatch=True),
        max_size=3,
    ),
)
def test_a_line_says_what_was_written(words, named):
    assert read_line(written(words, named)) == (words, named)
