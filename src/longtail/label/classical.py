"""Classical methods for uneven classes, and linear heads on frozen encoders that use them beside
the losses.
"""

from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from longtail.label import adjusted, supervised
from longtail.learn import encode, train
from longtail.measure import probes
from longtail.measure.groups import size_groups
from longtail.store import runs

# ---- decisions


def move_threshold(probabilities, cost):
    """Probabilities moved by costs, p_k · Σ_j cost[k, j], renormalised; decide by the largest (Zhou
    and Liu 2006).

    probabilities (n, K), cost (K, K): of deciding j where k is true -> (n, K). With row sums π^−τ
    it is post-hoc logit adjustment. It is the decision of least expected cost only where every row
    of costs is constant off the diagonal.
    """
    probabilities, cost = torch.as_tensor(probabilities), torch.as_tensor(cost)
    if cost.shape != (probabilities.shape[1],) * 2:
        raise ValueError(
            f"costs have shape {tuple(cost.shape)} for {probabilities.shape[1]} classes; give one "
            "row and one column a class"
        )
    if not ((cost >= 0) & cost.isfinite()).all() or (cost.diagonal() != 0).any():
        raise ValueError(
            "a cost is negative or not finite, or one on the diagonal is not 0; a right decision "
            "costs nothing, a wrong one "
            "0 or more"
        )
    moved = probabilities * cost.sum(1)
    undecided = (~(moved.sum(1) > 0)).nonzero()
    if len(undecided):
        raise ValueError(
            f"no class of image {undecided[0].item()} has both a probability and a cost above 0; "
            f"let a wrong decision cost something in every class"
        )
    return moved / moved.sum(1, keepdim=True)


def plugin_threshold(labels):
    """The share of positive labels (> 0): decide positive where the probability exceeds it (Menon
    et al. 2013).

    labels (n,) of the training set, never of the test set -> float.
    """
    positive = adjusted.as_labels(labels) > 0
    if not 0 < positive.sum() < len(positive):
        raise ValueError(
            f"{int(positive.sum())} of {len(positive)} labels are positive; the threshold needs "
            "both kinds"
        )
    return positive.double().mean().item()


# ---- COG: local clusters inside the large classes (Wu, Xiong and Chen 2010)


def cluster_sizes(counts):
    """Clusters of each class, so that each is about as large as the median class; and copies of
    each class, for COG-OS.

    The published text gives no rule; this one is our own. Returns two lists of K integers.
    """
    sizes = adjusted.class_sizes(counts)
    target = sizes.quantile(0.5)
    return [
        [max(1, round(value)) for value in ratio.tolist()]
        for ratio in (sizes / target, target / sizes)
    ]


def local_clusters(features, labels, clusters, seed=0):
    """The cluster of every image inside its class, by k-means: features (n, d) scaled, labels (n,),
    clusters of each class -> (n,).
    """
    from sklearn.cluster import KMeans

    labels = adjusted.as_labels(labels).numpy()
    found = np.zeros(len(labels), dtype=np.int64)
    for label, count in enumerate(clusters):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise ValueError(
                f"class {label} has {len(members)} images for {count} clusters; ask for fewer"
            )
        if count > 1:
            found[members] = KMeans(count, n_init=10, random_state=seed).fit_predict(
                np.asarray(features)[members]
            )
    return torch.from_numpy(found)


def sub_labels(labels, cluster, clusters):
    """New labels, one for each cluster of each class, and the class of each new label: (n,), (n,),
    K numbers -> (n,), (ΣK,).

    A learner is trained on the new labels; ``of_sub[prediction]`` is its class.
    """
    clusters = torch.as_tensor(clusters)
    of_sub = torch.arange(len(clusters)).repeat_interleave(clusters)
    return (clusters.cumsum(0) - clusters)[adjusted.as_labels(labels)] + torch.as_tensor(
        cluster
    ), of_sub


def class_logits(logits, of_sub, together):
    """One logit a class from those of its sub-labels: (n, ΣK), the class of each sub-label (ΣK,) ->
    (n, K).

    ``together``: torch.amax decides for the class of the best sub-label, as COG does;
    torch.logsumexp for the class whose sub-labels are most probable in sum.
    """
    return torch.stack(
        [together(logits[:, of_sub == label], 1) for label in range(int(of_sub.max()) + 1)], 1
    )


def oversampled(labels, copies):
    """Positions that hold every image of a class as often as ``copies`` says: (n,), K numbers ->
    (m,).
    """
    return torch.arange(len(labels)).repeat_interleave(
        torch.as_tensor(copies)[adjusted.as_labels(labels)]
    )


# ---- SMOTE


def _check_sizes(have, sizes, neighbours):
    """Refuses sizes that cannot be made of the images that classes have: both by class."""
    if neighbours < 1:
        raise ValueError(
            f"{neighbours} neighbours; SMOTE needs at least one, and two images in every class "
            "that it enlarges"
        )
    for label, size in sizes.items():
        images = have.get(label, 0)
        if size < 0:
            raise ValueError(f"{size} images of class {label} are asked for; ask for 0 or more")
        if size > images <= neighbours:
            raise ValueError(
                f"class {label} has {images} images, SMOTE with {neighbours} neighbours needs "
                f"{neighbours + 1}; "
                + (
                    f"ask for at most {images - 1} of them"
                    if images > 1
                    else "leave the class out, it has no neighbours"
                )
            )


def resize_classes(features, labels, sizes, neighbours=5, seed=0):
    """Features and labels with classes of other sizes: synthetic points where too few, a random
    part where too many.

    features (n, d) scaled, labels (n,), ``sizes``: class -> images wanted. SMOTE puts a synthetic
    point between one of the class and one of its ``neighbours`` nearest there (Chawla et al. 2002).
    Real points come first when nothing is left out.
    """
    from imblearn.over_sampling import SMOTE
    from imblearn.under_sampling import RandomUnderSampler

    labels = adjusted.as_labels(labels).numpy()
    have = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    _check_sizes(have, sizes, neighbours)
    if grown := {label: size for label, size in sizes.items() if size > have.get(label, 0)}:
        features, labels = SMOTE(
            sampling_strategy=grown, k_neighbors=neighbours, random_state=seed
        ).fit_resample(features, labels)
    if cut := {label: size for label, size in sizes.items() if size < have.get(label, 0)}:
        features, labels = RandomUnderSampler(
            sampling_strategy=cut, random_state=seed
        ).fit_resample(features, labels)
    return features, labels


# ---- heads on frozen encoders


def prepared(arm, features, labels, counts, neighbours, seed):
    """What a head is trained on, as a classical method changes it: features, labels and the class
    of each label.
    """
    if arm == "smote":
        sizes = dict.fromkeys(range(len(counts)), round(sum(counts) / len(counts)))
        features, labels = (
            torch.as_tensor(part)
            for part in resize_classes(features.cpu(), labels.cpu(), sizes, neighbours, seed)
        )
    elif arm in ("cog", "cog_os"):
        clusters, copies = cluster_sizes(counts)
        subs, of_sub = sub_labels(
            labels.cpu(), local_clusters(features.cpu(), labels.cpu(), clusters, seed), clusters
        )
        index = oversampled(labels.cpu(), copies if arm == "cog_os" else [1] * len(counts))
        return features[index.to(features.device)], subs[index], of_sub
    return features, labels, torch.arange(len(counts))


def head_logits(arm, train_set, test_features, counts, schedule, neighbours, seed):
    """Test logits (n, K) of one linear head: a method of ``adjusted.LOSSES``, or smote, cog,
    cog_os, posthoc_la around cross-entropy.
    """
    features, labels, of_sub = prepared(arm, *train_set, counts, neighbours, seed)
    counted = np.bincount(labels.cpu(), minlength=len(of_sub))
    method = adjusted.method_of(
        *adjusted.read_loss("ce" if arm in CLASSICAL else arm), counted, schedule
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = supervised.output_layer(features.shape[1], len(of_sub), method).to(runs.device())
    optimizer = supervised.optimizer_of(head, head, method, schedule)
    labels = labels.to(runs.device())
    update = supervised.Update(head, optimizer, labels)
    for epoch in range(schedule.epochs):
        supervised.train_labelled_epoch(
            update, lambda order, epoch: features[order], labels, method, schedule, seed, epoch
        )
    with torch.no_grad():
        classes = class_logits(head(test_features), of_sub, torch.amax)
    return adjusted.posthoc_logit_adjust(classes, counts) if arm == "posthoc_la" else classes


CLASSICAL = ("smote", "cog", "cog_os", "posthoc_la")
HEADS = supervised.Schedule(
    20, 64, 0.1, drops=(15,), drop=0.1
)  # of linear heads: enough for one layer on standardised features


def heads(run, results, study, arms, schedule, neighbours, group_rule="thirds"):
    """Linear heads on a frozen pre-trained encoder, trained on the labels of its own long-tailed
    list: read from disk when made before.

    Rows: head, group, accuracy, images. Features are standardised by those of the list.
    """
    settings = {
        "arms": arms,
        "schedule": asdict(schedule),
        "neighbours": neighbours,
        "group_rule": group_rule,
        "counts": study.counts,
        "seed": study.seed.digest,
        "test": study.test.digest,
    }

    def rows():
        encoder = train.encoder_of(run, results)
        seen, test = (
            encode.features(encoder, images, run.precision) for images in (study.seed, study.test)
        )
        seen, test = probes.standardised(seen, test)
        train_set = seen, study.seed.labels.to(runs.device())
        groups = size_groups(study.counts, group_rule)
        return pd.DataFrame(
            [
                (arm, *row)
                for arm in arms
                for row in supervised.network_rows(
                    head_logits(arm, train_set, test, study.counts, schedule, neighbours, run.seed),
                    study.test.labels,
                    groups,
                )
            ],
            columns=["head", "group", "accuracy", "images"],
        )

    return results.remember(run, "heads", settings, rows)
