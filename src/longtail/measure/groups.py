"""Classes by size: many, medium and few, and means of accuracies over them."""

import numpy as np

SIZE_GROUPS = ("many", "medium", "few")


def size_groups(counts, rule):
    """The size group of each class, list of "many", "medium", "few", from its images in the
    long-tailed list, as SDCLR and MAK report them.

    ``thirds``: by rank, ⌊C/3⌋ few, ⌊C/3⌋ medium, the rest many; ``thresholds``: many above 100
    images, few below 20. Equal classes share their group: thirds go by their mean rank, two sizes
    are few and many, and where all classes are equal, as those of another data set, which have no
    images in the list, none has a group: "".
    """
    counts = np.asarray(counts)
    if rule not in ("thirds", "thresholds"):
        raise ValueError(f"no rule {rule!r} for size groups; there are thirds and thresholds")
    if rule == "thresholds":
        return (
            ["many" if count > 100 else "few" if count < 20 else "medium" for count in counts]
            if counts.any()
            else [""] * len(counts)
        )
    sizes = np.unique(counts)
    if len(sizes) < 3:
        return [
            "" if len(sizes) == 1 else "few" if count == sizes[0] else "many" for count in counts
        ]
    third = len(counts) // 3
    ranks = [((counts < count).sum() + (counts <= count).sum() - 1) / 2 for count in counts]
    return ["few" if rank < third else "medium" if rank < 2 * third else "many" for rank in ranks]


def summary(class_accuracy, groups):
    """Means of class accuracies over each size group and over all classes, and the balance of one
    run, as SDCLR and MAK report them.

    A class without test images, whose accuracy is NaN, is in none of them.

    Balance is the population standard deviation of the three group means; the papers' tables call
    it Std.
    """
    accuracy, groups = np.asarray(class_accuracy, dtype=float), np.asarray(groups)
    accuracy, groups = accuracy[~np.isnan(accuracy)], groups[~np.isnan(accuracy)]
    means = {
        name: float(accuracy[groups == name].mean())
        for name in SIZE_GROUPS
        if (groups == name).any()
    }
    return means | {
        "balance": float(np.std(list(means.values()) or [np.nan])),
        "all": float(accuracy.mean()),
    }
