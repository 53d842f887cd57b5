"""What rows say about a difference between arms: estimates, intervals, corrections, power and
verdicts. It reads no file.

Every function takes numbers or arrays of draws (last axis), so that the simulated studies of the
tests run the very code that judges.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05  # two-sided, of intervals, p values and corrections
POWER = 0.8  # at which an effect counts as detectable
MOST = 10**6  # replicates; more than anybody runs
# what is smaller than this share of the values is rounding of floating-point numbers
NOTHING = 1e-9
VERDICTS = ("supported", "contradicted", "smaller", "undecided", "not tested", "not run")


@dataclass(frozen=True)
class Estimate:
    """An effect, its standard error and degrees of freedom, and how many replicates (pairs) it
    rests on.
    """

    effect: np.ndarray | float
    error: np.ndarray | float
    freedom: int
    replicates: int

    @property
    def interval(self):
        """The 95 % t interval, (low, high); without degrees of freedom it is unknown, (NaN,
        NaN).
        """
        half = (
            stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error
            if self.freedom
            else np.full_like(self.error, np.nan)
        )
        return self.effect - half, self.effect + half

    @property
    def p(self):
        """Two-sided p value of no effect; NaN without degrees of freedom."""
        if not self.freedom:
            return np.full_like(self.error, np.nan)
        exact = np.where(np.abs(self.effect) > 0, np.inf, 0.0)  # of effects without any noise
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(np.asarray(self.error) > 0, np.abs(self.effect) / self.error, exact)
        return 2 * stats.t.sf(ratio, self.freedom)


@dataclass(frozen=True)
class Fit:
    """One linear model of a measure, value = arm + replicate + noise, with the noise of all arms
    pooled; made by ``fit_arms``.
    """

    arms: list
    pairs: np.ndarray  # (arms, arms): replicates that two arms share
    means: np.ndarray  # (arms, …): of arms, up to a constant that contrasts do not see
    unscaled: np.ndarray  # (arms, arms): their covariance over the noise's variance
    variance: np.ndarray | float
    freedom: int
    scale: float  # of the values, to know rounding from an effect

    def contrast(self, left, right):
        """Left arm minus right arm, as an ``Estimate``; ``ValueError`` if no replicate has both."""
        first, second = self.arms.index(left), self.arms.index(right)
        if not self.pairs[first, second]:
            raise ValueError(f"no replicate has both {left} and {right}")
        effect = self.means[first] - self.means[second]
        effect = np.where(np.abs(effect) > NOTHING * self.scale, effect, 0.0)
        width = (
            self.unscaled[first, first]
            + self.unscaled[second, second]
            - 2 * self.unscaled[first, second]
        )
        return Estimate(
            effect, np.sqrt(width * self.variance), self.freedom, int(self.pairs[first, second])
        )


def fit_arms(values, arms, replicates):
    """Ordinary least squares of ``values`` (rows,) or (rows, draws) on arm and replicate, one label
    a row; rows may be missing.

    The variance is pooled over all arms: few pairs borrow degrees of freedom from arms beside them,
    at the price of taking the noise as equal in all. Complete data of k arms in n replicates leave
    (k − 1)(n − 1) degrees, and of two arms the paired t test.
    """
    values = np.asarray(values, float)
    names, arm = np.unique(np.asarray(arms), return_inverse=True)
    replicate = np.unique(np.asarray(replicates), return_inverse=True)[1]
    here, there = np.eye(len(names))[arm], np.eye(replicate.max() + 1)[replicate]
    design = np.hstack([here, there])
    inverse = np.linalg.pinv(design.T @ design, hermitian=True)
    coefficients = inverse @ (design.T @ values)
    freedom = len(values) - np.linalg.matrix_rank(design)
    scale, residuals = np.abs(values).max(initial=0), values - design @ coefficients
    residuals = np.where(np.abs(residuals) > NOTHING * scale, residuals, 0.0)
    variance = (residuals**2).sum(0) / freedom if freedom else np.full(values.shape[1:], np.nan)
    shared = (here.T @ there > 0).astype(int)
    return Fit(
        list(names),
        shared @ shared.T,
        coefficients[: len(names)],
        inverse[: len(names), : len(names)],
        variance,
        int(freedom),
        scale,
    )


def mean(values):
    """The mean of values (replicates,) or (replicates, draws) with nothing to pair them with: the
    one-sample t interval.
    """
    values = np.asarray(values, float)
    count = len(values)
    error = values.std(0, ddof=1) / count**0.5 if count > 1 else np.full(values.shape[1:], np.nan)
    scale, effect = np.abs(values).max(initial=0), values.mean(0)
    return Estimate(
        np.where(np.abs(effect) > NOTHING * scale, effect, 0.0),
        np.where(error > NOTHING * scale, error, 0.0 * error),
        count - 1,
        count,
    )


def holm(p):
    """Holm's adjusted p values over the last axis: each holds at 5 % in all cases where the whole
    family errs at most so often.

    NaN, a test that was not made, is no member of the family and stays NaN.
    """
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaN come last
    members = np.sum(~np.isnan(p), axis=-1, keepdims=True)
    steps = np.take_along_axis(p, order, -1) * np.maximum(members - np.arange(p.shape[-1]), 1)
    adjusted = np.where(
        np.isnan(steps), np.nan, np.minimum(np.maximum.accumulate(np.nan_to_num(steps), -1), 1)
    )
    found = np.empty_like(p)
    np.put_along_axis(found, order, adjusted, -1)
    return found


@cache
def _spreads(freedom):
    """Equally likely values of (estimated over true standard deviation), from the chi-squared law:
    midpoints of 4,000 classes.
    """
    return np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom)


def power(effect, error, freedom, level=LEVEL):
    """How often the two-sided t test at ``level`` finds a true effect (same unit as its standard
    error): the tails of the noncentral t law.

    Summed over the law of the estimated noise, since SciPy's ``nct`` gives NaN for large effects
    with many degrees of freedom.
    """
    if not error > 0:
        return 1.0 if effect else level
    reach, shift = stats.t.ppf(1 - level / 2, freedom) * _spreads(freedom), abs(effect / error)
    return float(np.mean(special.ndtr(shift - reach) + special.ndtr(-shift - reach)))


def detectable(error, freedom, level=LEVEL):
    """The smallest true effect that is found with 80 % power: the minimum detectable effect; NaN
    without degrees of freedom.
    """
    if not freedom or not np.isfinite(error):
        return np.nan
    return float(
        error * optimize.brentq(lambda ratio: power(ratio, 1.0, freedom, level) - POWER, 0.1, 1e4)
    )


def power_within(effect, error, freedom, tolerance, level=LEVEL):
    """How often the interval of a true effect lies within ± ``tolerance``, all in one unit: of a
    sameness or a number.
    """
    if not error > 0:
        return float(abs(effect) <= tolerance)
    reach = stats.t.ppf(1 - level / 2, freedom) * _spreads(freedom)
    inside = special.ndtr((tolerance - effect) / error - reach) - special.ndtr(
        (-tolerance - effect) / error + reach
    )
    return float(np.mean(np.maximum(inside, 0)))


def needed(effect, estimate, tolerance=0.0, level=LEVEL):
    """How many replicates decide in the paper's favour with 80 % power, if its effect is true and
    noise and arms are as in ``estimate``.

    With a ``tolerance``: how many put the interval within it. NaN without an effect or an interval,
    infinite where a million are too few. The standard error falls as 1/√n, the degrees of freedom
    grow as n − 1.
    """
    now = estimate.replicates
    if not estimate.freedom or now < 2 or not np.isfinite(effect):
        return np.nan

    def found(count):
        error, freedom = (
            estimate.error * (now / count) ** 0.5,
            estimate.freedom * (count - 1) / (now - 1),
        )
        reached = (
            power_within(effect, error, freedom, tolerance, level)
            if tolerance
            else power(effect, error, freedom, level)
        )
        return reached >= POWER

    if not found(MOST):
        return np.inf
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def verdict(test, low, high, paper=np.nan, tolerance=0.0, value=0.0, adjusted=None):
    """Supported, contradicted, smaller or undecided, as an array of words, from a 95 % interval;
    NaN bounds decide nothing.

    ``test``: *above* or *below*, the effect's claimed side of zero; *same*, within ± ``tolerance``
    of zero; *number*, of ``value``. Supported: the interval lies on the claimed side, or within the
    tolerance. Contradicted: on the other side, or outside the tolerance. Smaller: it holds zero and
    ends short of the ``paper``'s effect, if one is printed on the claimed side. Undecided: anything
    else. ``adjusted``: p values that have to be at most 0.05 too, or the first two become undecided
    (Holm's, for primary claims).
    """
    low, high, paper = (np.asarray(bound, float) for bound in (low, high, paper))
    if test in ("same", "number"):
        centre = value if test == "number" else 0.0
        supported = (low >= centre - tolerance) & (high <= centre + tolerance)
        contradicted = (low > centre + tolerance) | (high < centre - tolerance)
        smaller = np.zeros_like(supported)
    elif test in ("above", "below"):
        if test == "below":
            low, high, paper = -high, -low, -paper
        supported, contradicted = low > 0, high < 0
        smaller = (low <= 0) & (high >= 0) & (paper > high)
    else:
        raise ValueError(f"no test {test!r}; there are above, below, same and number")
    if adjusted is not None:
        significant = np.asarray(adjusted) <= LEVEL
        supported, contradicted = supported & significant, contradicted & significant
    return np.select(
        [supported, contradicted, smaller], ["supported", "contradicted", "smaller"], "undecided"
    )
