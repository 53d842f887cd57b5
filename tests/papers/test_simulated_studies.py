"""The judge on simulated studies whose truth is known: 2,000 draws each, through the code that
judges the claims.

A study is k arms in n replicates with noise of its own and a shift that all arms of a replicate
share. Bounds are the promise (5 %) and, on both sides, what theory gives with three standard errors
of 2,000 draws, so that a judge that is too careful fails as well.
"""

import numpy as np
import pytest
from scipy import stats

from longtail.papers import inference

DRAWS, NOISE, SHIFT = 2000, 1.0, 5.0  # SHIFT: replicates differ far more than arms do


def study(effects, replicates, seed, missing=0, noise=NOISE):
    """Values (rows, draws) with the arm and the replicate of each row; arm i has the mean
    ``effects[i]``; the last rows may be missing.
    """
    generator = np.random.default_rng(seed)
    arms, places = (
        np.repeat(np.arange(len(effects)), replicates),
        np.tile(np.arange(replicates), len(effects)),
    )
    shared = generator.normal(0, SHIFT, (replicates, DRAWS))
    values = (
        np.asarray(effects, float)[arms, None]
        + shared[places]
        + generator.normal(0, noise, (len(arms), DRAWS))
    )
    keep = slice(len(arms) - missing)
    return values[keep], arms[keep], places[keep]


def judged(effects, replicates, seed, test="above", paper=np.nan, missing=0, noise=NOISE):
    """Verdicts (draws,) of arm 1 over arm 0, and the estimate."""
    estimate = inference.fit_arms(*study(effects, replicates, seed, missing, noise)).contrast(1, 0)
    return inference.verdict(test, *estimate.interval, paper), estimate


def share(verdicts, word):
    return float(np.mean(verdicts == word))


def slack(rate):
    """Three standard errors of a rate over the draws."""
    return 3 * np.sqrt(rate * (1 - rate) / DRAWS)


@pytest.mark.parametrize(
    "arms, replicates, missing", [(2, 3, 0), (2, 5, 0), (6, 3, 0), (12, 5, 0), (6, 5, 2)]
)
@pytest.mark.parametrize("test", ["above", "below"])
def test_no_effect_is_seldom_supported(arms, replicates, missing, test):
    verdicts, _ = judged([0] * arms, replicates, 10 * arms + replicates, test, missing=missing)
    for word in ("supported", "contradicted"):
        assert share(verdicts, word) <= 0.05 and share(verdicts, word) == pytest.approx(
            0.025, abs=slack(0.025)
        ), word


def test_pooled_noise_gives_the_variance_its_promised_distribution():
    _, estimate = judged([0, 0, 1, 2, 3, 4], 3, 1)
    assert estimate.freedom == 10
    scaled = 10 * (estimate.error / (NOISE * np.sqrt(2 / 3))) ** 2
    assert stats.kstest(scaled, stats.chi2(10).cdf).pvalue > 0.001


@pytest.mark.parametrize("claims", [3, 12])
def test_a_paper_without_any_effect_is_seldom_given_one(claims):
    """All primary claims against one shared reference: at most 5 % of the papers get a single
    verdict by chance.
    """
    model = inference.fit_arms(*study([0] * (claims + 1), 5, claims))
    estimates = [model.contrast(arm, 0) for arm in range(1, claims + 1)]
    adjusted = inference.holm(np.stack([estimate.p for estimate in estimates], -1))
    decided = [
        np.isin(
            inference.verdict("above", *estimate.interval, adjusted=adjusted[:, place]),
            ["supported", "contradicted"],
        )
        for place, estimate in enumerate(estimates)
    ]
    wrong = np.any(decided, 0).mean()
    assert (
        wrong <= 0.05 + slack(0.05) and wrong >= 0.01
    )  # by the first bound it keeps its promise, by the second it still decides


def test_without_correction_such_a_paper_would_often_be_given_one():
    """What the test above would see if the correction did nothing: it can fail."""
    model = inference.fit_arms(*study([0] * 13, 5, 12))
    plain = np.stack([model.contrast(arm, 0).p for arm in range(1, 13)], -1)
    assert (plain.min(-1) <= inference.LEVEL).mean() > 0.2


def test_holm_still_finds_what_is_there_beside_claims_without_effect():
    model = inference.fit_arms(*study([0, 5, 0, 0], 5, 8))
    adjusted = inference.holm(np.stack([model.contrast(arm, 0).p for arm in (1, 2, 3)], -1))
    assert (adjusted[:, 0] <= 0.05).mean() > 0.99
    assert (adjusted[:, 1:].min(-1) <= 0.05).mean() <= 0.05 + slack(0.05)


@pytest.mark.parametrize(
    "arms, replicates, effect", [(2, 3, 2.0), (6, 3, 0.5), (6, 5, 1.0), (12, 5, 1.5)]
)
@pytest.mark.parametrize("test", ["above", "below"])
def test_the_papers_effect_is_seldom_called_smaller(arms, replicates, effect, test):
    signed = effect if test == "above" else -effect
    verdicts, _ = judged([0, signed] + [0] * (arms - 2), replicates, 100 + arms, test, paper=signed)
    assert share(verdicts, "smaller") <= 0.025 + slack(0.025)
    assert share(verdicts, "contradicted") <= 0.025


def test_smaller_is_said_when_it_is_true():
    verdicts, _ = judged([0] * 12, 8, 5, paper=3.0)
    assert share(verdicts, "smaller") > 0.9


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("arms, replicates", [(2, 3), (2, 8), (4, 3), (8, 5)])
def test_power_is_what_was_computed(arms, replicates, effect):
    verdicts, estimate = judged([0, effect] + [0] * (arms - 2), replicates, 7 * arms + replicates)
    computed = inference.power(effect, NOISE * np.sqrt(2 / replicates), estimate.freedom)
    found = share(verdicts, "supported") + share(verdicts, "contradicted")
    assert found == pytest.approx(computed, abs=0.05) and found == pytest.approx(
        computed, abs=slack(computed) + 1e-3
    )


@pytest.mark.parametrize("arms, replicates", [(2, 3), (4, 5), (10, 3)])
def test_the_minimum_detectable_effect_is_detected_in_four_of_five_studies(arms, replicates):
    freedom = (arms - 1) * (replicates - 1)
    effect = inference.detectable(NOISE * np.sqrt(2 / replicates), freedom)
    verdicts, _ = judged([0, effect] + [0] * (arms - 2), replicates, 3 * arms + replicates)
    assert 1 - share(verdicts, "undecided") == pytest.approx(0.8, abs=slack(0.8))


@pytest.mark.parametrize("arms, effect", [(2, 1.5), (5, 1.0)])
def test_the_replicates_asked_for_are_enough_and_one_less_is_not(arms, effect):
    pilot = inference.Estimate(0.3, NOISE * np.sqrt(2 / 4), (arms - 1) * 3, 4)
    count = inference.needed(effect, pilot)
    verdicts, _ = judged([0, effect] + [0] * (arms - 2), count, 17)
    assert 1 - share(verdicts, "undecided") >= 0.8 - slack(0.8)
    assert inference.power(effect, NOISE * np.sqrt(2 / (count - 1)), (arms - 1) * (count - 2)) < 0.8


def test_missing_rows_leave_the_paired_difference_unbiased():
    _, estimate = judged([0, 2, 5], 4, 23, missing=2)
    assert (
        estimate.effect.mean() == pytest.approx(2, abs=4 * NOISE * np.sqrt(2 / 4 / DRAWS))
        and estimate.freedom == 4
    )
    inside = (estimate.interval[0] < 2) & (estimate.interval[1] > 2)
    assert inside.mean() == pytest.approx(0.95, abs=slack(0.95))


@pytest.mark.parametrize(
    "truth, tolerance, word", [(0.0, 2.0, "supported"), (4.0, 2.0, "contradicted")]
)
def test_a_sameness_and_a_number_are_judged_by_their_tolerance(truth, tolerance, word):
    model = inference.fit_arms(*study([0, truth, 0, 0, 0, 0], 8, 3))
    low, high = model.contrast(1, 0).interval
    assert share(inference.verdict("same", low, high, tolerance=tolerance), word) > 0.8
    assert (
        share(inference.verdict("number", low + 7, high + 7, tolerance=tolerance, value=7.0), word)
        > 0.8
    )
    border = inference.fit_arms(*study([0, tolerance, 0, 0, 0, 0], 8, 3)).contrast(1, 0).interval
    assert share(inference.verdict("same", *border, tolerance=tolerance), "supported") <= 0.05


@pytest.mark.parametrize("truth, tolerance", [(0.0, 1.2), (0.4, 1.5), (2.0, 1.0)])
def test_the_power_of_a_sameness_is_what_was_computed(truth, tolerance):
    estimate = inference.fit_arms(*study([0, truth, 0, 0], 6, 31)).contrast(1, 0)
    found = share(inference.verdict("same", *estimate.interval, tolerance=tolerance), "supported")
    computed = inference.power_within(truth, NOISE * np.sqrt(2 / 6), estimate.freedom, tolerance)
    assert found == pytest.approx(computed, abs=slack(computed) + 1e-3)


def test_the_replicates_that_a_sameness_asks_for_are_enough():
    pilot = inference.Estimate(0.0, NOISE * np.sqrt(2 / 3), 6, 3)
    count = inference.needed(0.2, pilot, tolerance=1.0)
    estimate = inference.fit_arms(*study([0, 0.2, 0, 0], count, 37)).contrast(1, 0)
    assert share(
        inference.verdict("same", *estimate.interval, tolerance=1.0), "supported"
    ) >= 0.8 - slack(0.8)
    assert inference.power_within(0.2, NOISE * np.sqrt(2 / (count - 1)), 3 * (count - 2), 1.0) < 0.8
    assert (
        inference.needed(1.5, pilot, tolerance=1.0) == np.inf
    )  # no number of replicates makes a difference of 1.5 the same


# ---- by hand


def test_two_arms_are_the_paired_t_test_and_one_the_single_sample_one():
    left, right = np.array([3.0, 5.0, 9.0, 2.0]), np.array([1.0, 4.5, 6.0, 2.5])
    estimate = inference.fit_arms(
        [*left, *right], ["left"] * 4 + ["right"] * 4, [*range(4)] * 2
    ).contrast("left", "right")
    want = stats.ttest_rel(left, right)
    assert estimate.p == pytest.approx(want.pvalue) and estimate.interval == pytest.approx(
        tuple(want.confidence_interval())
    )
    single = inference.mean(left - right)
    assert single.p == pytest.approx(want.pvalue) and single.interval == pytest.approx(
        tuple(want.confidence_interval())
    )


def test_pooled_noise_is_the_two_way_analysis_of_variance():
    values = np.array(
        [[1.0, 4, 3], [2, 5, 3], [4, 9, 5], [0, 2, 3]]
    )  # replicates down, arms across
    estimate = inference.fit_arms(values.ravel(), [*"abc"] * 4, np.repeat(range(4), 3)).contrast(
        "b", "a"
    )
    residual = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    assert (
        estimate.freedom == 6
        and estimate.replicates == 4
        and estimate.effect == pytest.approx((values[:, 1] - values[:, 0]).mean())
    )
    assert estimate.error == pytest.approx(np.sqrt((residual**2).sum() / 6 * 2 / 4))


def test_holm_by_hand():
    assert inference.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert inference.holm([0.04, np.nan, 0.01]) == pytest.approx([0.04, np.nan, 0.02], nan_ok=True)


def test_arms_that_never_meet_are_no_difference():
    model = inference.fit_arms([1.0, 2.0, 3.0], ["a", "b", "a"], [1, 2, 3])
    with pytest.raises(ValueError, match="no replicate has both a and b"):
        model.contrast("a", "b")


def test_effects_without_noise_and_no_effect_without_noise():
    same = inference.fit_arms(
        [70.1, 60.3, 70.1, 60.3], ["a", "a", "b", "b"], [1, 2, 1, 2]
    ).contrast("a", "b")
    assert (same.effect, same.error, float(same.p)) == (0, 0, 1) and inference.verdict(
        "above", *same.interval, 2.0
    ) == "smaller"
    apart = inference.fit_arms(
        [71.1, 61.3, 70.1, 60.3], ["a", "a", "b", "b"], [1, 2, 1, 2]
    ).contrast("a", "b")
    assert float(apart.p) == 0 and inference.verdict("above", *apart.interval) == "supported"


@pytest.mark.parametrize(
    "low, high, paper, word",
    [
        (1, 3, 2, "supported"),
        (-3, -1, 2, "contradicted"),
        (-1, 1, 2, "smaller"),
        (-1, 3, 2, "undecided"),
        (-1, 3, np.nan, "undecided"),
        (-1, 1, -2, "undecided"),
        (np.nan, np.nan, 2, "undecided"),
        (1, 3, 9, "supported"),
    ],
)
def test_verdicts_of_a_direction_by_hand(low, high, paper, word):
    assert inference.verdict("above", low, high, paper) == word
    assert inference.verdict("below", -high, -low, -paper) == word


def test_a_primary_claim_also_needs_its_adjusted_p():
    for sign, test in ((1, "above"), (-1, "below")):
        gain, loss = sorted((sign * 0.1, sign * 3)), sorted((-sign * 0.1, -sign * 3))
        assert (
            inference.verdict(test, *gain, adjusted=0.06)
            == inference.verdict(test, *loss, adjusted=0.06)
            == "undecided"
        )
        assert inference.verdict(test, *gain, adjusted=0.05) == "supported"
        assert inference.verdict(test, *loss, adjusted=0.01) == "contradicted"


@pytest.mark.parametrize("ratio, freedom", [(0.5, 1), (2.0, 2), (3.0, 4), (1.0, 30), (4.0, 10)])
def test_power_is_that_of_the_noncentral_t_law(ratio, freedom):
    reach = stats.t.ppf(0.975, freedom)
    want = stats.nct.sf(reach, freedom, ratio) + stats.nct.cdf(-reach, freedom, ratio)
    assert inference.power(2 * ratio, 2.0, freedom) == pytest.approx(want, abs=1e-3)


def test_an_unknown_test_is_refused():
    with pytest.raises(ValueError, match="no test 'no gain'"):
        inference.verdict("no gain", 0, 1)
