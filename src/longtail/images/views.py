"""Two random views of a batch, made on the device; each image has its own parameters.

The law is torchvision's and the resampling is Pillow's; randomness is a function of (seed, epoch,
image, view), the same on every device and for any batch.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from longtail.store import gpu

UNIFORMS = 36  # uniform numbers behind one view
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's luma weights


@dataclass(frozen=True)
class Policy:
    """The law of one kind of random view; probabilities and ranges as torchvision names them."""

    area: tuple = (
        1.0,
        1.0,
    )  # share of the image that the resized crop covers; (1, 1) with padding: no resizing
    aspect: tuple = (3 / 4, 4 / 3)
    kernel: str = "bicubic"  # or bilinear
    padding: int = 0  # plain random crop of the zero-padded image instead of the resized crop
    flip: float = 0.5
    jitter: tuple = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_share: float = 0.8
    grey_share: float = 0.0
    blur_share: float = 0.0  # Pillow's Gaussian, σ uniform in [0.1, 2] pixels


POLICIES = {
    "cifar": Policy(area=(0.1, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey_share=0.2),
    "simsiam": Policy(
        area=(0.2, 1.0), kernel="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), grey_share=0.2
    ),
    "imagenet": Policy(
        area=(0.08, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey_share=0.2, blur_share=0.5
    ),
    "digits": Policy(
        area=(0.4, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.0, 0.0)
    ),  # a mirrored digit is another sign, and has no hue
    "halves": Policy(
        area=(0.64, 1.0), aspect=(0.9, 1.1), flip=0.0, jitter=(0.4, 0.4, 0.0, 0.0)
    ),  # neither half is cropped away
    "cifar_classifier": Policy(padding=4),
    "imagenet_classifier": Policy(area=(0.08, 1.0), kernel="bilinear"),
    "digits_classifier": Policy(padding=1, flip=0.0),
}


def augment(images, index, policy, seed, epoch, view, fused=False, boost=None):
    """Random views of ``images[index]``.

    ``images`` uint8 (n, 3, s, s), ``index`` int64 (b,); ``epoch`` is an integer, or an int64 scalar
    on the images' device. Returns float32 (b, 3, s, s) in [0, 1]. ``fused`` compiles the operations
    on pixels (torch.compile): the same views to 1e-5. ``boost`` is what a method does to views
    beyond their policy: (levels, index, epoch, view) -> levels.
    """
    side = images.shape[-1]
    result = torch.empty(len(index), 3, side, side, device=images.device)
    held = 2 ** (16 if fused else 17) // side**2  # images, about what a CPU core's cache holds
    size = max(1, len(index) if gpu.computes(images) else held)
    change = _compiled() if fused else apply
    with torch.autocast(
        images.device.type, enabled=False
    ):  # a caller's bfloat16 is for its network, not for pixels
        drawn = parameters(
            index, policy, seed, epoch, view, side
        )  # never compiled: torch 2.13 errs in Philox's products
        for start in range(0, len(index), size):  # a process may have no image of a batch
            some = slice(start, start + size)
            mine = {name: values[some] for name, values in drawn.items()}
            levels = change(images[index[some]], mine, policy)
            torch.mul(
                boost(levels, index[some], epoch, view) if boost else levels,
                1 / 255,
                out=result[some],
            )
    return result


@functools.cache
def _compiled():
    """``apply`` as few kernels, built anew for every size of a chunk."""
    torch.compiler.assume_constant_result(
        constant_tables
    )  # here, not where it is defined: the compiler takes seconds to import
    return gpu.compiled(apply)


def apply(images, drawn, policy):
    """The views that ``drawn`` describes, levels 0 … 255, by torchvision's operations in its
    order.
    """
    x = (shift if policy.padding else resized_crop)(images.float(), drawn, policy)
    if any(policy.jitter):
        x = jitter(x, drawn, policy)
    if policy.grey_share:
        x = where(drawn["grey"], x, lambda rows: luma(rows).expand(-1, 3, -1, -1))
    if policy.blur_share:
        x = where(drawn["blur"], x, blur, drawn["sigma"])
    return x


def traced(x):
    """Whether a compiler or a GPU computes x: then no shape may depend on a value, and every image
    goes through every operation.
    """
    return torch.compiler.is_compiling() or gpu.computes(x)


def where(chosen, x, operation, *parameters):
    """x (b, …) with ``operation(images, *parameters)`` done to the chosen images (bool, b)."""
    if traced(x):
        return chosen_of(chosen, operation(x, *parameters), x)
    rows = chosen.nonzero()[:, 0]
    return (
        x.index_copy_(0, rows, operation(x[rows], *(values[rows] for values in parameters)))
        if len(rows)
        else x
    )


# ---- randomness


def uniforms(index, seed, epoch, view, draws=UNIFORMS):
    """Uniform numbers in (0, 1), float64 (b, draws): Philox4x32-10 keyed by the seed, counted by
    (image, view, epoch, draw).
    """
    mask = 0xFFFFFFFF
    block = torch.arange(draws // 4, device=index.device)
    a, b, c, d = (
        word + torch.zeros(len(index), len(block), dtype=torch.int64, device=index.device)
        for word in (index[:, None], view, epoch, block)
    )
    key1, key2 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32 & mask) ^ b ^ key1, q & mask, (p >> 32 & mask) ^ d ^ key2, p & mask
        key1, key2 = (key1 + 0x9E3779B9) & mask, (key2 + 0xBB67AE85) & mask
    return (torch.stack([a, b, c, d], -1).flatten(1).double() + 0.5) / 2**32


def parameters(index, policy, seed, epoch, view, side):
    """What happens to each image: dict of tensors (b, …); the law of torchvision's
    RandomResizedCrop, ColorJitter, …
    """
    u = uniforms(index, seed, epoch, view)
    drawn = {
        "flip": u[:, 22] < policy.flip,
        "grey": u[:, 32] < policy.grey_share,
        "blur": u[:, 33] < policy.blur_share,
        "sigma": 0.1 + 1.9 * u[:, 34],
        "jitter": u[:, 31] < policy.jitter_share,
        "order": u[:, 27:31].argsort(1),
    }
    drawn["factor"] = torch.stack(
        [
            centre + reach * (2 * u[:, 23 + k] - 1)
            for k, (centre, reach) in enumerate(zip((1, 1, 1, 0), policy.jitter, strict=True))
        ],
        1,
    )
    if policy.padding:
        return drawn | {
            "y": (u[:, 20] * (2 * policy.padding + 1)).long(),
            "x": (u[:, 21] * (2 * policy.padding + 1)).long(),
        }
    low, high = policy.area
    area = (low + (high - low) * u[:, :10]) * side**2
    aspect = torch.exp(
        math.log(policy.aspect[0]) + math.log(policy.aspect[1] / policy.aspect[0]) * u[:, 10:20]
    )
    width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first, whole = (
        fits.int().argmax(1, keepdim=True),
        ~fits.any(1),
    )  # ten trials, then the whole (square) image
    width, height = (
        size.gather(1, first)[:, 0].masked_fill(whole, side) for size in (width, height)
    )
    return drawn | {
        "width": width,
        "height": height,
        "y": (u[:, 20] * (side - height + 1)).long(),
        "x": (u[:, 21] * (side - width + 1)).long(),
    }


# ---- geometry


def shift(x, drawn, policy):
    """Random crop of the zero-padded image, then the flip."""
    side, reach = x.shape[-1], torch.arange(x.shape[-1], device=x.device)
    x = functional.pad(x, [policy.padding] * 4)
    columns = torch.where(drawn["flip"][:, None], reach.flip(0), reach) + drawn["x"][:, None]
    rows = drawn["y"][:, None] + reach
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return (
        x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
        .permute(0, 3, 1, 2)
        .reshape(-1, 3, side, side)
    )


def resized_crop(x, drawn, policy):
    """Crop and resize as two products with Pillow's kernel, clipped after each as Pillow clips; the
    flip reverses columns.
    """
    n, _, side, _ = x.shape
    starts, lengths = (
        torch.stack([drawn["y"], drawn["x"]]),
        torch.stack([drawn["height"], drawn["width"]]),
    )
    rows, columns = resampling(starts, lengths, side, policy.kernel)
    columns = torch.where(drawn["flip"][:, None, None], columns.flip(1), columns)
    x = clip(torch.bmm(x.reshape(n, 3 * side, side), columns.mT))
    return clip(torch.matmul(rows[:, None], x.view(n, 3, side, side)))


def clip(x):
    """Levels clipped to [0, 255]."""
    return x.clamp_(0, 255)


def resampling(start, length, side, kernel):
    """Matrices (…, side, side) that resize the windows [start, start + length) to ``side`` pixels;
    start, length int64 (…).
    """
    if side <= 64:
        return constant_tables(side, kernel, start.device)[start * (side + 1) + length]
    return weights(start, length, side, kernel)


def constant_tables(side, kernel, device):
    """What ``tables`` holds, as a constant to a compiler."""
    return tables(side, kernel, device)


@functools.cache  # never dropped: a recorded update reads them by their address
def tables(side, kernel, device):
    """All resampling matrices of a small square, row start · (side + 1) + length: 4 MB at 32
    pixels, 68 MB at 64.
    """
    start, length = (
        grid.flatten()
        for grid in torch.meshgrid(torch.arange(side), torch.arange(side + 1), indexing="ij")
    )
    length = torch.minimum(length, side - start).clamp(min=1)
    parts = [
        weights(s, n, side, kernel)
        for s, n in zip(start.split(512), length.split(512), strict=True)
    ]
    return torch.cat(parts).to(device)


def weights(start, length, side, kernel):
    """Pillow's antialiased kernel (bicubic a = −0.5, or bilinear), normalised inside the window:
    float32 (…, side, side).
    """
    start, length = start.double()[..., None, None], length.double()[..., None, None]
    scale = length / side
    stretch = scale.clamp(min=1)
    centre = (torch.arange(side, device=start.device, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(side, device=start.device, dtype=torch.float64) - start
    reach = (2 if kernel == "bicubic" else 1) * stretch
    inside = (pixel >= (centre - reach + 0.5).floor().clamp(min=0)) & (
        pixel < torch.minimum((centre + reach + 0.5).floor(), length)
    )
    d = ((pixel - centre + 0.5) / stretch).abs()
    if kernel == "bicubic":
        value = torch.where(
            d < 1,
            (1.5 * d - 2.5) * d * d + 1,
            torch.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0.0),
        )
    else:
        value = (1 - d).clamp(min=0)
    value = value * inside
    return (value / value.sum(-1, keepdim=True)).float()


def blur(x, sigma):
    """Pillow's GaussianBlur: three box blurs in each direction whose fractional radius matches
    ``sigma`` (b,).
    """
    variance = sigma / 3 * sigma
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    radius = whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (
        6 * (variance - (whole + 1) ** 2)
    )
    side, reach = (
        x.shape[-1],
        2 if traced(x) else int(radius.max()) + 1,
    )  # σ up to 2 has a radius below 2
    offset = torch.arange(-reach, reach + 1, device=x.device)
    weight = ((radius[:, None] - offset.abs() + 1).clamp(0, 1) / (2 * radius[:, None] + 1)).float()
    pixel = torch.arange(side, device=x.device)
    taken = (
        (pixel[:, None] + offset).clamp(0, side - 1)[..., None] == pixel
    ).float()  # edges repeat
    box = torch.einsum("bo,ios->bis", weight, taken)
    for _ in range(3):
        x = clip(torch.matmul(x, box[:, None].mT))
    for _ in range(3):
        x = clip(torch.matmul(box[:, None], x))
    return x


# ---- colour, in levels 0 … 255


def luma(x):
    """Grey value (b, 1, h, w) as Pillow's convert("L")."""
    if traced(x):  # one fused pass instead of a product of its own
        return sum(weight * x[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
    return torch.matmul(x.new_tensor([LUMA]), x.flatten(2)).unflatten(-1, x.shape[2:])


def blend(x, other, factor):
    """other + factor · (x − other), clipped."""
    return torch.lerp(other.expand_as(x), x, factor.view(-1, 1, 1, 1).to(x.dtype)).clamp_(0, 255)


def jitter(x, drawn, policy):
    """Brightness, contrast, saturation and hue in each image's own order.

    Hue costs most, so it is made once, if the policy has it: the turns before it, hue, the turns
    after it.
    """
    order, factor = drawn["order"], drawn["factor"]
    hue = (order == 3).int().argmax(1)
    for place in (0, 1, 2):
        x = where(drawn["jitter"] & (place < hue), x, blend_by, order[:, place], factor)
    if policy.jitter[3]:
        x = where(drawn["jitter"], x, rotate_hue, factor[:, 3])
    for place in (1, 2, 3):
        x = where(drawn["jitter"] & (place > hue), x, blend_by, order[:, place], factor)
    return x


def chosen_of(chosen, new, old):
    """The new images where chosen (b,), else the old."""
    return torch.where(chosen.view(-1, 1, 1, 1), new, old)


def blend_by(x, operation, factor):
    """Brightness, contrast or saturation (0, 1, 2) of each image, as its ``operation`` (b,) says;
    others are not to be used.
    """
    grey = luma(x)
    mean = grey.mean((1, 2, 3), keepdim=True)
    other = chosen_of(operation == 2, grey, chosen_of(operation == 1, mean, torch.zeros_like(mean)))
    return blend(x, other, factor.gather(1, operation[:, None]))


def rotate_hue(x, factor):
    """Rotate the hue of each image by ``factor`` (b,) of a full circle, without leaving RGB."""
    turn = factor.to(x.dtype).view(-1, 1, 1)
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    unit = 1 / torch.where(chroma > 0, chroma, 1)
    hue = (
        torch.where(
            value == r,
            (g - b) * unit,
            torch.where(value == g, 2 + (b - r) * unit, 4 + (r - g) * unit),
        )
        + 6 * turn
    )
    k = hue[:, None] + torch.arange(5, 0, -2, device=x.device).view(3, 1, 1)
    k.sub_((k / 6).floor_(), alpha=6)
    return torch.addcmul(
        value[:, None], chroma[:, None], k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1), value=-1
    )
