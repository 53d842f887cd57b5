"""Random views: their law against torchvision's, their pixels against Pillow's, their randomness
against its contract.
"""

import contextlib
import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.datasets import load_sample_images

from longtail.bench import pillow
from longtail.images import sources, views

DRAWS, SIDE = 20_000, 32
CIFAR, IMAGENET, DIGITS = (views.POLICIES[name] for name in ("cifar", "imagenet", "digits"))
WHOLE = 2**32 - 1


@pytest.fixture(scope="module")
def torchvision():
    """torchvision.transforms, whose compiled part need not fit the installed torch."""
    sources.import_torchvision()
    return importlib.import_module("torchvision.transforms")


@pytest.fixture(scope="module")
def operations(torchvision):
    return importlib.import_module("torchvision.transforms.functional")


def photographs(count, side):
    """Windows of scikit-learn's two photographs, every second pixel: uint8 (count, 3, side,
    side).
    """
    draw, scenes = np.random.default_rng(0), load_sample_images().images
    corners = [
        (scenes[k % 2], *(draw.integers(length - 2 * side) for length in scenes[k % 2].shape[:2]))
        for k in range(count)
    ]
    windows = [scene[y : y + 2 * side : 2, x : x + 2 * side : 2] for scene, y, x in corners]
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()


def drawn(policy, count=DRAWS, seed=1, epoch=0, view=0, side=SIDE):
    return views.parameters(torch.arange(count), policy, seed, epoch, view, side)


def by_pillow(image, one, policy, operations):
    """One view (3, s, s) in whole levels: torchvision's operations on a Pillow image, with our
    parameters.
    """
    side, picture = image.shape[-1], Image.fromarray(image.permute(1, 2, 0).numpy())
    window = [int(one[name]) for name in ("y", "x", "height", "width")]
    picture = operations.resized_crop(
        picture, *window, [side, side], operations.InterpolationMode[policy.kernel.upper()]
    )
    picture = operations.hflip(picture) if one["flip"] else picture
    adjust = [
        getattr(operations, f"adjust_{name}")
        for name in ("brightness", "contrast", "saturation", "hue")
    ]
    for number in [
        n for n in one["order"].tolist() if one["jitter"] and policy.jitter[n]
    ]:  # ColorJitter leaves out what has no range
        picture = adjust[number](picture, float(one["factor"][number]))
    picture = operations.to_grayscale(picture, 3) if one["grey"] else picture
    picture = (
        picture.filter(ImageFilter.GaussianBlur(float(one["sigma"]))) if one["blur"] else picture
    )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


def errors(images, policy, operations, rounded=False):
    """Differences in levels between our views and Pillow's under the same parameters (b, 3, s,
    s).
    """
    parameters = drawn(policy, len(images), side=images.shape[-1])
    each = [{name: values[k] for name, values in parameters.items()} for k in range(len(images))]
    expected = [
        by_pillow(image, one, policy, operations) for image, one in zip(images, each, strict=True)
    ]
    with pillow.in_bytes() if rounded else contextlib.nullcontext():
        ours = views.augment(images, torch.arange(len(images)), policy, 1, 0, 0)
    return (ours * 255 - torch.stack(expected)).abs()


def equal_bytes(error):
    return (error < 0.01).float().mean().item()


# ---- law


@pytest.fixture(scope="module")
def windows(torchvision):
    """torchvision's crop windows (draws, 4): top, left, height, width."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank, area, aspect = torch.empty(3, SIDE, SIDE), list(CIFAR.area), list(CIFAR.aspect)
        return np.array(
            [torchvision.RandomResizedCrop.get_params(blank, area, aspect) for _ in range(DRAWS)],
            dtype=float,
        )


@pytest.fixture(scope="module")
def jitters(torchvision):
    """torchvision's factors (draws, 4) and the places (draws, 4) at which the four operations
    come.
    """
    ranges = [(1 - width, 1 + width) for width in CIFAR.jitter[:3]] + [
        (-CIFAR.jitter[3], CIFAR.jitter[3])
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = [torchvision.ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    return np.array([row[1:] for row in rows]), np.array(
        [row[0].argsort().tolist() for row in rows]
    )


def crop_statistics(top, left, height, width):
    return {"area": height * width, "aspect": width / height, "top": top, "left": left}


def our_crops(policy):
    ours = drawn(policy)
    return crop_statistics(*(ours[name].double().numpy() for name in ("y", "x", "height", "width")))


@pytest.mark.parametrize("statistic", ["area", "aspect", "top", "left"])
def test_crops_have_torchvision_s_law(windows, statistic):
    theirs = crop_statistics(*windows.T)[statistic]
    assert stats.ks_2samp(our_crops(CIFAR)[statistic], theirs).pvalue > 0.001
    assert (
        stats.ks_2samp(our_crops(replace(CIFAR, area=(0.08, 0.9)))[statistic], theirs).pvalue
        < 0.001
    )  # the test has power


@pytest.mark.parametrize(
    "operation, name", [*enumerate(["brightness", "contrast", "saturation", "hue"])]
)
def test_jitter_has_torchvision_s_law(jitters, operation, name):
    ours, (factors, places) = drawn(CIFAR), jitters
    assert (
        stats.ks_2samp(ours["factor"][:, operation].numpy(), factors[:, operation]).pvalue > 0.001
    )
    place = ours["order"].argsort(1)[:, operation].numpy()
    assert stats.ks_2samp(place, places[:, operation]).pvalue > 0.001
    assert stats.chisquare(np.bincount(place, minlength=4)).pvalue > 0.001


def test_all_orders_are_equally_likely():
    code = (drawn(CIFAR)["order"] * torch.tensor([64, 16, 4, 1])).sum(1)
    assert stats.chisquare(code.unique(return_counts=True)[1]).pvalue > 0.001
    assert len(code.unique()) == 24


@pytest.mark.parametrize(
    "name, policy, share",
    [
        ("flip", CIFAR, 0.5),
        ("jitter", CIFAR, 0.8),
        ("grey", CIFAR, 0.2),
        ("blur", IMAGENET, 0.5),
        ("blur", CIFAR, 0),
        ("flip", DIGITS, 0),
    ],
)
def test_shares(name, policy, share):
    found = drawn(policy)[name].double().mean().item()
    assert abs(found - share) <= 4 * (share * (1 - share) / DRAWS) ** 0.5


def test_blur_is_uniform_and_choices_are_independent():
    ours = drawn(IMAGENET)
    assert stats.kstest(ours["sigma"].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 0.001
    choices = np.stack(
        [ours[name].numpy() for name in ("flip", "jitter", "grey", "blur", "sigma", "y", "x")]
        + [*ours["factor"].T.numpy()]
    )
    correlations = np.corrcoef(choices)[np.triu_indices(len(choices), 1)]
    assert (
        np.abs(np.delete(correlations, np.nanargmax(np.abs(correlations)))).max() < 5 / DRAWS**0.5
    )


def test_offsets_of_the_padded_crop_are_uniform():
    ours = drawn(views.POLICIES["cifar_classifier"])
    for name in ("y", "x"):
        counts = np.bincount(ours[name].numpy())
        assert len(counts) == 9 and stats.chisquare(counts).pvalue > 0.001


# ---- pixels


def test_crop_and_flip_are_pillow_s(operations):
    plain, images = replace(CIFAR, jitter=(0.0,) * 4, grey_share=0.0), photographs(200, SIDE)
    error = errors(images, plain, operations)
    assert error.mean() <= 0.35 and error.max() <= 2  # Pillow's rounding alone makes 0.25
    assert equal_bytes(errors(images, plain, operations, rounded=True)) >= 0.995


@pytest.mark.parametrize(
    "name, side, count", [("cifar", 32, 300), ("digits", 16, 200), ("imagenet", 72, 40)]
)
def test_views_are_pillow_s(operations, name, side, count):
    images, policy = photographs(count, side), views.POLICIES[name]
    assert errors(images, policy, operations).mean() <= 1.5
    assert equal_bytes(errors(images, policy, operations, rounded=True)) >= 0.995


def test_bilinear_crops_are_pillow_s(operations):
    images, policy = photographs(40, 72), views.POLICIES["imagenet_classifier"]
    error = errors(images, policy, operations)
    assert error.mean() <= 0.35 and error.max() <= 2
    rounded = errors(images, policy, operations, rounded=True)
    assert (
        equal_bytes(rounded) >= 0.98
    )  # 98.9 %: windows of 48 or 64 make exact halves, which Pillow rounds either way
    assert rounded.max() < 2.01


def test_blur_is_pillow_s():
    images = photographs(60, SIDE)
    sigma = torch.linspace(0.1, 2, 60, dtype=torch.float64)
    blurred = [
        np.array(
            Image.fromarray(image.permute(1, 2, 0).numpy()).filter(
                ImageFilter.GaussianBlur(float(radius))
            )
        )
        for image, radius in zip(images, sigma, strict=True)
    ]
    expected = torch.from_numpy(np.stack(blurred)).permute(0, 3, 1, 2).float()
    with pillow.in_bytes():
        exact = (views.blur(images.float(), sigma) - expected).abs()
    assert (
        exact.mean() <= 0.002 and exact.max() <= 1
    )  # measured: 0.0002, 99.98 % of the bytes are equal
    assert (views.blur(images.float(), sigma) - expected).abs().mean() <= 0.5  # measured: 0.34


def test_classifier_s_views_are_torchvision_s(operations):
    images, policy = photographs(100, SIDE), views.POLICIES["cifar_classifier"]
    ours = drawn(policy, len(images))
    expected = []
    for image, y, x, flip in zip(
        images, ours["y"].tolist(), ours["x"].tolist(), ours["flip"], strict=True
    ):
        view = operations.crop(operations.pad(image, 4), y, x, SIDE, SIDE)
        expected.append(operations.hflip(view) if flip else view)
    assert torch.equal(
        (views.augment(images, torch.arange(100), policy, 1, 0, 0) * 255).round().byte(),
        torch.stack(expected),
    )


def test_table_and_weights_agree_for_every_window():
    grid = torch.tensor(
        [(start, length) for length in range(1, 17) for start in range(17 - length)]
    )
    for kernel in ("bicubic", "bilinear"):
        assert torch.equal(
            views.resampling(*grid.T, 16, kernel), views.weights(*grid.T, 16, kernel)
        )


# ---- randomness


def philox(counter, key):
    """Philox4x32-10 of Salmon et al. 2011, a number at a time."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ low, q & WHOLE, p >> 32 ^ d ^ high, p & WHOLE
        low, high = low + 0x9E3779B9 & WHOLE, high + 0xBB67AE85 & WHOLE
    return [a, b, c, d]


def words(uniforms):
    """The 32-bit numbers behind uniform ones."""
    return (uniforms * 2**32 - 0.5).long()


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (WHOLE, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_has_the_published_answers(monkeypatch, number, expected):
    expected = [int(word, 16) for word in expected.split()]
    assert philox([number] * 4, [number] * 2) == expected
    monkeypatch.setattr(
        torch, "arange", lambda *_, **__: torch.tensor([number])
    )  # the block number, else counted from 0
    found = views.uniforms(torch.tensor([number]), number << 32 | number, number, number, draws=4)
    assert words(found)[0].tolist() == expected


@pytest.mark.parametrize(
    "seed, epoch, view", [(0, 0, 0), (1, 1999, 1), (2**40 + 7, 3, 9), (WHOLE, WHOLE, WHOLE)]
)
def test_uniforms_are_philox(seed, epoch, view):
    index = torch.tensor([0, 1, 12_204, 10**8, WHOLE])
    found = views.uniforms(index, seed, epoch, view)
    key = [seed & WHOLE, seed >> 32]
    assert words(found).tolist() == [
        sum((philox([i, view, epoch, block], key) for block in range(9)), [])
        for i in index.tolist()
    ]
    assert found.min() > 0 and found.max() < 1


@pytest.mark.parametrize(
    "name, side", [("cifar", 32), ("digits", 16), ("cifar_classifier", 32), ("imagenet", 72)]
)
def test_a_view_does_not_depend_on_its_batch(name, side):
    images, policy = (
        photographs(330, side),
        views.POLICIES[name],
    )  # more than one chunk at 32 and at 72 pixels
    together = views.augment(images, torch.arange(330), policy, 1, 2, 0)
    assert together.dtype == torch.float32 and together.min() >= 0 and together.max() <= 1
    some = torch.tensor([329, 0, 255, 256, 7])
    assert torch.equal(views.augment(images, some, policy, 1, 2, 0), together[some])
    assert torch.equal(views.augment(images, some[1:2], policy, 1, 2, 0), together[:1])


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("name", views.POLICIES)
def test_fixed_shapes_make_the_same_views(name, rounded, monkeypatch):
    """What a compiler and a GPU compute, where no shape may depend on a value."""
    images, index, policy = photographs(100, SIDE), torch.arange(100), views.POLICIES[name]
    with pillow.in_bytes() if rounded else contextlib.nullcontext():
        picked = views.augment(images, index, policy, 1, 2, 0)
        monkeypatch.setattr(views, "traced", lambda x: True)
        fixed = views.augment(images, index, policy, 1, torch.tensor(2), 0)
    assert (picked - fixed).abs().max() <= 1e-6


def test_views_differ_by_seed_epoch_view_and_image():
    images = photographs(1, SIDE).expand(8, -1, -1, -1).contiguous()
    draws = [
        views.augment(images, torch.arange(8), CIFAR, *key)
        for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    ]
    everything = torch.cat(draws).flatten(1)
    assert len(everything.unique(dim=0)) == 32
    assert torch.equal(views.augment(images, torch.arange(8), CIFAR, 1, 0, 0), draws[0])


def test_neighbouring_views_are_uncorrelated():
    index = torch.arange(DRAWS)
    first = views.uniforms(index, 1, 0, 0)
    others = (
        views.uniforms(index, 1, 0, 1),
        views.uniforms(index, 1, 1, 0),
        views.uniforms(index, 2, 0, 0),
        first.roll(1, 0),
    )
    for other in others:
        assert np.abs(np.corrcoef(first.T, other.T)[:36, 36:]).max() < 5.5 / DRAWS**0.5


def test_images_are_not_changed_by_their_views():
    images = photographs(4, SIDE)
    before = images.clone()
    views.augment(images, torch.arange(4), CIFAR, 1, 0, 0)
    assert torch.equal(images, before)


def test_views_stay_float32_inside_the_callers_autocast():
    images, index = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    outside = views.augment(images, index, CIFAR, 1, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = views.augment(images, index, CIFAR, 1, 0, 0)
    assert torch.equal(inside, outside)


def test_images_larger_than_a_cache_have_views_too():
    large = torch.nn.functional.interpolate(
        torch.randint(0, 256, (3, 3, 8, 8)).float(), 400, mode="bilinear"
    ).byte()
    seen = views.augment(large, torch.arange(3), CIFAR, 1, 0, 0)
    one_by_one = torch.cat(
        [views.augment(large, torch.tensor([place]), CIFAR, 1, 0, 0) for place in range(3)]
    )
    highest = seen.amax((1, 2, 3))
    assert ((highest > 0.2) & (highest <= 1)).all() and torch.equal(seen, one_by_one)
