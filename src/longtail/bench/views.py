"""Random views: ours for a whole batch, against torchvision's one image at a time and against the
authors' data set.
"""

import importlib
import math
import random
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.datasets import load_sample_images

from longtail.bench import authors, pillow, timing
from longtail.images import sources
from longtail.images import views as random_views

ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")


def views(
    rounds, count=256, side=32, policy="cifar", fused=False, goal=5.0, sdclr="", draws=20_000
):
    """Two random views of ``count`` photographs, ours compiled if ``fused``; the seconds that
    building it took have a column then.

    ``sdclr`` is a checkout of VITA-Group/SDCLR; without one the row of its data set is not run.
    ``draws`` is how many parameters the law is checked on.
    """
    images, law, case = (
        photographs(count, side),
        random_views.POLICIES[policy],
        f"views {policy}, {side} px{', compiled' * fused}",
    )
    pictures, transform = (
        images.permute(0, 2, 3, 1).contiguous().numpy(),
        reference_transform(side, law),
    )

    def ours():
        return torch.stack(
            [
                random_views.augment(images, torch.arange(count), law, 0, 0, view, fused=fused)
                for view in (0, 1)
            ],
            1,
        )

    def one_by_one():
        return torch.stack(
            [
                torch.stack([transform(Image.fromarray(picture)) for _ in range(2)])
                for picture in pictures
            ]
        )

    building = timing.seconds(ours) - timing.seconds(ours) if fused else 0
    check, others = timing.all_of(view_checks(images[:64], law, fused, draws)), {}
    others["torchvision per image"] = (one_by_one, *check, goal)
    if sdclr:
        theirs = authors_images(sdclr, pictures, transform)
        others[timing.AUTHORS] = (
            lambda: torch.stack([theirs[number] for number in range(count)]),
            *check,
            goal,
        )
    rows = timing.ratios(case, ours, others, rounds)
    rows = rows.assign(compile_seconds=building) if fused else rows
    return (
        rows
        if sdclr
        else timing.together(rows, timing.without_number(case, timing.AUTHORS, "give sdclr"))
    )


def photographs(count, side):
    """Windows of the two photographs that ship with scikit-learn, every second pixel: uint8 (count,
    3, side, side).
    """
    draw, scenes = np.random.default_rng(0), load_sample_images().images
    windows = []
    for number in range(count):
        scene = scenes[number % len(scenes)]
        y, x = (draw.integers(length - 2 * side) for length in scene.shape[:2])
        windows.append(scene[y : y + 2 * side : 2, x : x + 2 * side : 2])
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()


def torchvision(part):
    """A module of torchvision, which only this comparison needs."""
    sources.import_torchvision()
    return importlib.import_module(f"torchvision.{part}")


def reference_transform(side, law):
    """The transform list of the authors' scripts (SDCLR) from torchvision; their blur
    calls Pillow's, as here.
    """
    transforms = torchvision("transforms")
    blur = transforms.Lambda(
        lambda picture: picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
    )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                side, scale=law.area, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*law.jitter)], p=law.jitter_share),
            transforms.RandomGrayscale(p=law.grey_share),
            *([transforms.RandomApply([blur], p=law.blur_share)] if law.blur_share else []),
            transforms.ToTensor(),
        ]
    )


def authors_images(folder, pictures, transform):
    """The authors' data set over arrays (n, s, s, 3); only its files are not read."""
    images = object.__new__(authors.sdclr(folder).Images)
    images.data, images.targets, images.transform = pictures, [0] * len(pictures), transform
    return images


# ---- checks


def view_checks(images, law, fused, draws):
    """What must hold of our views: name -> (error, bound). Bytes are compared with every second
    view blurred, whatever the law.
    """
    levels = pillow_difference(images, law, fused=fused)
    with pillow.in_bytes():
        exact = pillow_difference(images, replace(law, blur_share=0.5))
    least = min(p_values(law, images.shape[-1], draws).values())
    return {
        "levels from Pillow": (float(levels.mean()), 1.5),
        "share of other bytes when rounded": (float((exact > 0.01).double().mean()), 0.005),
        f"−log10 of the smallest p of the law ({draws} draws)": (
            -math.log10(max(least, 1e-300)),
            3.0,
        ),
    }


def pillow_difference(images, law, **how):
    """Between our views and torchvision's operations on Pillow images with our parameters, in
    levels of 255: (b, 3, s, s).
    """
    operations, index = torchvision("transforms.functional"), torch.arange(len(images))
    drawn = random_views.parameters(index, law, 0, 0, 0, images.shape[-1])
    each = [{name: value[number] for name, value in drawn.items()} for number in index]
    expected = torch.stack(
        [_by_pillow(image, one, operations) for image, one in zip(images, each, strict=True)]
    )
    return (random_views.augment(images, index, law, 0, 0, 0, **how) * 255 - expected).abs()


def _by_pillow(image, drawn, operations):
    """One view (3, s, s) in levels, one torchvision call for each operation."""
    window = [int(drawn[name]) for name in ("y", "x", "height", "width")]
    view = Image.fromarray(image.permute(1, 2, 0).numpy())
    view = operations.resized_crop(
        view, *window, list(image.shape[1:]), operations.InterpolationMode.BICUBIC
    )
    view = operations.hflip(view) if drawn["flip"] else view
    adjust = [getattr(operations, f"adjust_{name}") for name in ADJUSTMENTS]
    for number in drawn["order"].tolist() if drawn["jitter"] else []:
        view = adjust[number](view, float(drawn["factor"][number]))
    view = operations.to_grayscale(view, 3) if drawn["grey"] else view
    view = view.filter(ImageFilter.GaussianBlur(float(drawn["sigma"]))) if drawn["blur"] else view
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).float()


def p_values(law, side, draws):
    """Of Kolmogorov–Smirnov tests of our parameters against torchvision's: statistic -> p, twelve
    of them.
    """
    drawn = random_views.parameters(torch.arange(draws), law, 0, 0, 0, side)
    window = (
        torch.stack([drawn[name] for name in ("y", "x", "height", "width")], 1).double().numpy()
    )
    ours = statistics_of(window, drawn["factor"].numpy(), drawn["order"].argsort(1).numpy())
    theirs = statistics_of(*torchvision_draws(law, side, draws))
    return {name: stats.ks_2samp(ours[name], theirs[name]).pvalue for name in ours}


def statistics_of(windows, factors, places):
    """Name -> (draws,) of crop windows (draws, 4), factors of the four operations and their places
    in the order (draws, 4).
    """
    top, left, height, width = windows.T
    named = {"area": height * width, "aspect": width / height, "top": top, "left": left}
    named |= dict(zip(ADJUSTMENTS, factors.T, strict=True))
    return named | {
        f"place of {name}": place for name, place in zip(ADJUSTMENTS, places.T, strict=True)
    }


def torchvision_draws(law, side, draws):
    """torchvision's windows, factors and places, (draws, 4) each."""
    transforms, blank = torchvision("transforms"), torch.empty(3, side, side)
    jitter = transforms.ColorJitter(*law.jitter)
    ranges = [getattr(jitter, name) for name in ADJUSTMENTS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        windows = [
            transforms.RandomResizedCrop.get_params(blank, list(law.area), list(law.aspect))
            for _ in range(draws)
        ]
        turns = [transforms.ColorJitter.get_params(*ranges) for _ in range(draws)]
    return (
        np.array(windows, dtype=float),
        np.array([turn[1:] for turn in turns]),
        np.array([turn[0].argsort().tolist() for turn in turns]),
    )
