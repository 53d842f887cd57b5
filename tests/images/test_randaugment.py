"""BCL's RandAugment: its pixels against the authors' and Pillow's, its law against its contract."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from toy import image_set

from longtail.images import randaugment, views
from longtail.store import paths

GOLDEN = {
    name: json.loads((paths.ROOT / "tests" / "golden" / f"{name}.json").read_text())
    for name in ("bcl_randaug_ops", "bcl_randaug_values", "bcl_momentum")
}
IMAGES = image_set(40, side=32).images.float()


def done(images, operation, value, centre=(16.0, 16.0)):
    """One operation with one value, done to all images (b, 3, s, s)."""
    count = len(images)
    names, values = (
        torch.full((count,), list(randaugment.RANGES).index(operation)),
        torch.full((count,), float(value), dtype=torch.float64),
    )
    return randaugment.change(
        images, names, values, torch.tensor([centre], dtype=torch.float64).expand(count, 2)
    )


def from_rows(rows):
    return torch.tensor(rows).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("case", GOLDEN["bcl_randaug_ops"]["cases"], ids=lambda case: case["id"])
def test_operations_are_the_reference_to_the_bit(case):
    image = from_rows(case["inputs"]["image_uint8_hwc"])
    for entry in case["expected"]["ops"]:
        centre = entry.get("cutout_centre_draw_xy", (0, 0))
        for key, sign in {"output": 1, "output_plus": 1, "output_minus": -1}.items():
            if key in entry:
                assert torch.equal(
                    done(image, entry["op"], sign * entry["value"], centre), from_rows(entry[key])
                ), (entry["op"], key)


@pytest.mark.parametrize("case", GOLDEN["bcl_randaug_values"]["cases"], ids=lambda case: case["id"])
def test_values_are_the_reference(case):
    magnitude = torch.full((15,), float(case["inputs"]["magnitude"]), dtype=torch.float64)
    expected = case["expected"]["values"]
    assert [entry["op"] for entry in expected] == list(randaugment.RANGES)
    assert randaugment.values(magnitude, torch.arange(15)).tolist() == pytest.approx(
        [entry["value"] for entry in expected], abs=1e-12
    )


@pytest.mark.parametrize("case", GOLDEN["bcl_momentum"]["cases"], ids=lambda case: case["id"])
def test_magnitudes_are_the_reference(case):
    score, u = (
        torch.tensor(values, dtype=torch.float64)
        for values in (
            case["expected"]["final_epoch"]["probability"],
            case["inputs"]["uniform_draw_per_sample"],
        )
    )
    for key, draws, floor in (("k1", 1, 10), ("k2", 2, 5), ("imagenet", 2, 0)):
        expected = case["expected"]["final_epoch"][f"magnitude_{key}"]
        assert randaugment.magnitudes(score, draws, floor, u).tolist() == pytest.approx(
            expected, abs=1e-9
        )


@pytest.mark.parametrize(
    "operation, value, pillow",
    [
        ("Equalize", 0, ImageOps.equalize),
        ("AutoContrast", 0, ImageOps.autocontrast),
        ("Rotate", 17.3, lambda image: image.rotate(17.3)),
        ("Posterize", 5.9, lambda image: ImageOps.posterize(image, 5)),
        ("Solarize", 80.2, lambda image: ImageOps.solarize(image, 80.2)),
        ("Sharpness", 1.7, lambda image: ImageEnhance.Sharpness(image).enhance(1.7)),
        ("Color", 0.3, lambda image: ImageEnhance.Color(image).enhance(0.3)),
        (
            "ShearX",
            0.37,
            lambda image: image.transform(
                image.size, Image.Transform.AFFINE, (1, 0.37, 0, 0, 1, 0)
            ),
        ),
    ],
)
def test_larger_pictures_are_pillows_to_the_bit(operation, value, pillow):
    expected = [
        np.array(pillow(Image.fromarray(image.byte().permute(1, 2, 0).numpy()))) for image in IMAGES
    ]
    assert torch.equal(
        done(IMAGES, operation, value),
        torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float(),
    )


def test_a_compiler_or_a_gpu_gets_the_same_pixels(monkeypatch):
    count = len(IMAGES)
    given = (
        torch.arange(count) % 15,
        torch.linspace(0.05, 0.6, count, dtype=torch.float64),
        torch.rand(count, 2).double() * 32,
    )
    alone = randaugment.change(IMAGES, *given)
    monkeypatch.setattr(views, "traced", lambda x: True)  # every image through every operation
    assert torch.equal(randaugment.change(IMAGES, *given), alone)


def test_no_strength_changes_nothing_and_full_strength_everything():
    index, none, full = torch.arange(40), torch.zeros(40), torch.ones(40)
    assert torch.equal(randaugment.boost(IMAGES.clone(), index, none, 2, 5, 1, 0, 0), IMAGES)
    changed = randaugment.boost(IMAGES.clone(), index, full, 1, 10, 1, 0, 0)
    assert (
        (changed != IMAGES).flatten(1).any(1)
    ).float().mean() > 0.9  # Equalize or AutoContrast may find nothing to do


def test_strength_is_how_often_an_operation_is_done():
    plain = torch.full((4000, 3, 4, 4), 100.0)
    plain[:, :, 1, 2] = 30.0
    done_to = [
        (
            randaugment.boost(
                plain.clone(), torch.arange(4000), torch.full((4000,), share), 1, 30, 7, 3, 1
            )
            != plain
        )
        .flatten(1)
        .any(1)
        for share in (0.25, 0.75)
    ]
    often = [float(changed.float().mean()) for changed in done_to]
    assert often[0] * 3 == pytest.approx(often[1], rel=0.1) and often[1] > 0.5
    assert (done_to[1] | ~done_to[0]).all()  # the same numbers decide, whatever the strength


def test_boosts_are_a_function_of_seed_epoch_image_and_view():
    index, full = torch.arange(40), torch.full((40,), 0.8)
    once = randaugment.boost(IMAGES.clone(), index, full, 2, 5, 1, 2, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        randaugment.boost(IMAGES[order], index[order], full, 2, 5, 1, torch.tensor(2), 0),
        once[order],
    )
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert not torch.equal(randaugment.boost(IMAGES.clone(), index, full, 2, 5, *other), once)


def test_views_pass_through_the_boost():
    images, index, seen = IMAGES.byte(), torch.arange(40), []

    def invert(levels, chunk, epoch, view):
        seen.extend((number, epoch, view) for number in chunk.tolist())
        return 255 - levels

    plain = views.augment(images, index, views.POLICIES["cifar"], 1, 5, 1)
    torch.testing.assert_close(
        views.augment(images, index, views.POLICIES["cifar"], 1, 5, 1, boost=invert), 1 - plain
    )
    assert seen == [(number, 5, 1) for number in range(40)]
