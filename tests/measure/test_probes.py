"""Probes without a step size, on features made here: the solution itself, whoever finds it, and
neighbours one by one.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from longtail.measure import probes


@pytest.fixture(scope="module")
def features():
    """Overlapping clouds of five classes, uneven in size, correlated and of unequal scale: known,
    labels, asked, truth.
    """
    generator = torch.Generator().manual_seed(0)
    centres, mix = torch.randn(5, 20, generator=generator), torch.randn(20, 20, generator=generator)
    labels = torch.cat([torch.arange(5), torch.randint(5, (595,), generator=generator) ** 2 // 4])
    points = (centres[labels] + 1.5 * torch.randn(600, 20, generator=generator)) @ mix
    return points[:400], labels[:400], points[400:], labels[400:]


def gradient(features, labels, weight, bias, l2):
    """The largest derivative of the objective, from its definition."""
    probability = (features @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(
        labels, len(weight)
    )
    return max(
        (probability.T @ features / len(labels) + l2 * weight).abs().max(),
        probability.mean(0).abs().max(),
    )


@pytest.mark.parametrize("solver", [probes.by_scikit_learn, probes.by_torch])
@pytest.mark.parametrize("classes", [5, 2])
@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_the_solution_is_where_the_gradient_vanishes(features, solver, classes, l2):
    known, labels = probes.standardised(features[0])[0].double(), features[1] % classes
    weight, bias = solver(known, labels, l2, torch.zeros(classes, 20, dtype=torch.float64))
    assert gradient(known, labels, weight, bias, l2) < 2 * probes.SMALLEST_GRADIENT
    assert (
        gradient(known, labels, weight, bias, 2 * l2) > 2 * probes.SMALLEST_GRADIENT
    )  # of this weight alone


@pytest.mark.parametrize("classes", [5, 2])
def test_torch_finds_what_scikit_learn_finds(features, classes):
    known, asked = (part.double() for part in probes.standardised(features[0], features[2]))
    labels, truth = features[1] % classes, features[3] % classes
    first = torch.zeros(classes, 20, dtype=torch.float64)
    accuracies = []
    for solver in (probes.by_scikit_learn, probes.by_torch):
        weight, bias = solver(known, labels, 1e-3, first)
        accuracies.append(
            100 * ((asked @ weight.T + bias).argmax(1) == truth).double().mean().item()
        )
    assert abs(accuracies[0] - accuracies[1]) <= 0.1 and accuracies[0] > 120 / classes


def test_other_row_orders_and_first_weights_give_the_same_answers(features):
    known, labels, asked, _ = features
    answers = [
        probes.Converged("train", 1e-3).decide(known, labels, asked, seed) for seed in range(5)
    ]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    weights = [probes.fit(known.double(), labels, 1e-3, seed)[0] for seed in (1, 2)]
    assert not torch.equal(*weights) and torch.allclose(
        *weights, atol=0.02
    )  # other ways, the same place


def test_it_is_scikit_learns_classifier_on_standardised_features(features):
    known, labels, asked, _ = (part.numpy() for part in features)
    mean, deviation = known.mean(0), known.std(0, ddof=1)
    model = LogisticRegression(C=1 / (1e-2 * len(labels)), tol=1e-6, max_iter=1000).fit(
        (known - mean) / deviation, labels
    )
    assert (
        probes.Converged("train", 1e-2).decide(*features[:3], 1).tolist()
        == model.predict((asked - mean) / deviation).tolist()
    )


@pytest.mark.parametrize("solver", [probes.by_scikit_learn, probes.by_torch])
def test_iterations_that_run_out_are_an_error(features, solver, monkeypatch):
    monkeypatch.setattr(probes, "ITERATIONS", 3)
    with pytest.raises(
        probes.NotConverged,
        match="not converged after 3 iterations with L2 weight 0.0001; raise the weight",
    ):
        solver(features[0].double(), features[1], 1e-4, torch.zeros(5, 20, dtype=torch.float64))


@pytest.mark.parametrize(
    "labels, l2, message",
    [
        ([0, 2, 2, 0], 1e-3, r"labelled images of each class: \[2, 0, 2\]; a classifier needs"),
        ([0] * 4, 1e-3, r"of each class: \[4\]"),
        ([0, 1, 0, 1], 0.0, "the L2 weight is 0.0; without one above 0"),
        ([0, 1, 0, 1], float("nan"), "the L2 weight is nan"),
    ],
)
def test_what_has_no_solution_is_refused(labels, l2, message):
    with pytest.raises(ValueError, match=message):
        probes.fit(torch.randn(4, 3).double(), torch.tensor(labels), l2)


def test_features_that_do_not_vary_are_left_out():
    known = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    known[:, 1] = 2.0
    asked = known.clone()
    asked[:, 1] = 5.0
    first, second = probes.standardised(known, asked)
    assert torch.equal(first, second) and not first[:, 1].any()
    assert first[:, [0, 2]].mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert first[:, [0, 2]].std(0).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("neighbours", [1, 7, 200, 1000])
def test_nearest_neighbours_are_those_of_brute_force(features, neighbours, monkeypatch):
    known, labels, asked, truth = features
    expected = []
    for image in asked.double().numpy():
        cosine = np.array(
            [
                image @ other / np.linalg.norm(image) / np.linalg.norm(other)
                for other in known.double().numpy()
            ]
        )
        votes = np.zeros(5)
        for place in np.argsort(-cosine)[:neighbours]:
            votes[labels[place]] += np.exp(cosine[place] / 0.07)
        expected.append(votes.argmax())
    probe = probes.Nearest("train", neighbours)
    assert (
        probe.decide(known, labels, asked, 1).tolist()
        == expected
        == probe.decide(known, labels, asked, 2).tolist()
    )
    assert (np.array(expected) == truth.numpy()).mean() > 0.4
    monkeypatch.setattr(probes, "BLOCK", 7)
    assert probe.decide(known, labels, asked, 1).tolist() == expected


def test_near_neighbours_weigh_more():
    known, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    near = torch.tensor([[1.0, 0.1]])
    assert probes.Nearest("train").decide(known, labels, near, 1).tolist() == [0]
    assert probes.Nearest("train", temperature=10.0).decide(known, labels, near, 1).tolist() == [1]
