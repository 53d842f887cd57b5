"""Classifiers trained together against one after the other: the same accuracies, and a row that
says how much faster.
"""

import pytest

from longtail.bench import classifiers
from longtail.measure import evaluate


@pytest.mark.parametrize("protocol", ["fewshot_linear", "linear"])
def test_together_is_faster_with_the_same_accuracies(protocol):
    (row,) = classifiers.frozen_classifiers(
        3, protocol, 60, 100, 5, seeds=(1, 2, 3, 4), side=16
    ).to_dict("records")
    assert (
        row["status"] == "measured" and row["error"] <= 0.5 and row["ratio"] > 2
    )  # four classifiers for one pass


def test_other_accuracies_are_no_speed(monkeypatch):
    right = evaluate.classifiers
    monkeypatch.setattr(
        evaluate,
        "classifiers",
        lambda width, classes, seeds: right(width, classes, [seed + len(seeds) for seed in seeds]),
    )
    (row,) = classifiers.frozen_classifiers(1, "linear", 60, 100, 5, seeds=(1, 2), side=16).to_dict(
        "records"
    )
    assert row["status"] == "check failed" and row["error"] > 0.5
