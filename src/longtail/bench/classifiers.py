"""Frozen-trunk evaluation: many classifiers on features made once, against a forward pass for every
batch of every classifier.
"""

from dataclasses import replace

import torch
from torch.nn import functional

from longtail.bench import timing, training
from longtail.bench.views import photographs
from longtail.images import sources
from longtail.images import views as random_views
from longtail.learn import encode, models, train
from longtail.measure import evaluate


def frozen_classifiers(
    rounds,
    protocol="fewshot_linear",
    labelled=100,
    validated=200,
    epochs=5,
    seeds=(1, 2, 3, 4, 5, 6),
    architecture="resnet10_small",
    side=32,
    classes=10,
):
    """All classifiers of these seeds: ours, against one after the other as the reference trains
    them.

    The reference sends every batch, and the validation set at every validation, through the trunk
    again. Check: the same views and the same order give the same accuracies on the validation set.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = models.Encoder(architecture, 2, 1).eval()
    how = replace(evaluate.PROTOCOLS[protocol], epochs=epochs, drops=(epochs // 2,))
    run = training.sdclr_run(architecture, 1, side)  # of which evaluation reads the precision alone
    pictures = photographs(labelled + validated, side)
    labels = torch.arange(labelled + validated) % classes
    sets = [
        sources.ImageSet(pictures[part], labels[part], tuple(map(str, labels[part].tolist())))
        for part in (slice(labelled), slice(labelled, None))
    ]
    policy = random_views.POLICIES["cifar_classifier"]

    def ours():
        frozen = encode.features(encoder, sets[1], run.precision)
        for epoch, layer in evaluate.train_frozen(
            encoder, run, sets[:1], how, policy, classes, seeds[0], seeds
        ):
            if epoch % how.validate_every == 0:
                right = (
                    evaluate.hits(layer, frozen, sets[1].labels, heads=len(seeds)).double().mean(0)
                )
        return right

    def one_by_one():
        return torch.stack(
            [_pass_by_pass(encoder, *sets, how, policy, classes, seeds[0], own) for own in seeds]
        )

    error = float((ours() - one_by_one()).abs().max()) * 100
    return timing.ratios(
        f"{len(seeds)} classifiers, {protocol}",
        ours,
        {"a pass for every batch": (one_by_one, "points of accuracy, same views", error, 0.5, 5.0)},
        rounds,
    )


def _pass_by_pass(encoder, labelled, validation, protocol, policy, classes, seed, own):
    """One classifier, every batch and every validation through the trunk; its last accuracy."""
    layer = evaluate.classifiers(encoder.trunk.features, classes, [own])
    optimizer = torch.optim.SGD(layer.parameters(), protocol.rate, train.MOMENTUM)
    for epoch in range(1, protocol.epochs + 1):
        optimizer.param_groups[0]["lr"] = evaluate.stepped_rate(protocol, epoch)
        for index in evaluate.batches(len(labelled), protocol.batch, own, epoch):
            with torch.no_grad():
                inputs = encoder.trunk(
                    random_views.augment(labelled.images, index, policy, seed, epoch, 0)
                )
            optimizer.zero_grad()
            functional.cross_entropy(layer(inputs), labelled.labels[index]).backward()
            optimizer.step()
        if epoch % protocol.validate_every == 0:
            with torch.no_grad():
                features = torch.cat(
                    [
                        encoder.trunk(part.float() / 255)
                        for part in validation.images.split(protocol.batch)
                    ]
                )
            right = evaluate.hits(layer, features, validation.labels).double().mean()
    return right
