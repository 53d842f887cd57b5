"""Encoders that were trained elsewhere, kept as finished runs: one of ours, or weights of a
torchvision or timm network in any layout.
"""

import argparse
import json
import re
import sys
import zipfile
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from longtail.images.memory import in_words
from longtail.images.pixels import kind_of
from longtail.images.places import require
from longtail.learn import models, train
from longtail.store import runs

LEGACY = re.compile(
    r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"
)  # DenseNet's published files spell norm1 as norm.1
INSIDE = (
    "state_dict",
    "model_state_dict",
    "teacher",
    "model",
    "classy_state_dict",
    "base_model",
    "trunk",
    "network",
    "student",
    "state",
    "net",
    "target_encoder",
    "encoder",
    "backbone",
    "online_network_state_dict",
)
PREFIXES = {  # what stands before a network's own names, and where
    "": "",
    "module.": "DataParallel",
    "_orig_mod.": "torch.compile",
    "module._orig_mod.": "DataParallel of torch.compile",
    "_orig_mod.module.": "torch.compile of DataParallel",
    "module.encoder_q.": "MoCo's query encoder",
    "encoder_q.": "MoCo's query encoder",
    "module.base_encoder.": "MoCo v3",
    "base_encoder.": "MoCo v3",
    "module.backbone.": "DINO",
    "backbone.": "DINO, lightly or solo-learn",
    "momentum_backbone.": "solo-learn",
    "_feature_blocks.": "VISSL",
    "trunk._feature_blocks.": "VISSL",
    "module.encoder.": "SupCon or SimSiam",
    "encoder.": "SupCon or SimSiam",
    "module.online_encoder.net.": "BYOL",
    "online_encoder.net.": "BYOL",
    "model.": "Lightning",
    "model.backbone.": "Lightning",
    "net.": "Lightning",
    "resnet.": "Lightning",
    "student.backbone.": "DINO",
    "teacher.backbone.": "DINO",
    "encoder.backbone.": "Lightning",
    "convnet.": "solo-learn",
    "module.f.": "SimCLR",
    "f.": "SimCLR",
}
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"},
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
]


def own_run(folder, results):
    """The encoder in the folder of a finished run, as a run of these results."""
    require(folder / "done.json", "give the folder of a finished run, results/runs/<run>")
    ended, run = runs.read_record(folder / "done.json"), runs.read_run(folder)
    content = require(
        folder / "encoder.safetensors", "weights are not shipped; train that run again"
    ).read_bytes()
    if runs.sha256(content) != ended["files"].get("encoder.safetensors"):
        raise ValueError(
            f"{folder / 'encoder.safetensors'} is not the file that training wrote; train that run "
            "again"
        )
    given = replace(run, subset="given", images=runs.sha256(content)[:16])
    keep_run(given, results, {"trained_as": run.name, "seconds": ended["seconds"]}, content)
    return given


def foreign_run(file, encoder, planned, results):
    """The weights in ``file``, which this encoder has, as a run of these results, whose other
    fields are the planned one's.

    The projections of such an encoder are its features: the classifier is left out, and there is no
    projection head.
    """
    content = runs.sha256(file.read_bytes())
    run = replace(planned, subset="given", images=content[:16])
    if not results.is_done(run):
        keep_run(
            run,
            results,
            {"weights": file.name, "weights_sha256": content},
            train.weights_of(encoder),
        )
    return run


def keep_run(run, results, record, content):
    """Put a given encoder where a trained one would be, ``done.json`` last; nothing happens when it
    is there.
    """
    folder = results.folder(run)
    with runs.claim(folder, wait=True):
        if not results.is_done(run):
            runs.write(folder / "run.json", json.dumps(asdict(run), indent=1))
            runs.write(folder / "encoder.safetensors", content)
            runs.sync(folder)
            runs.write_record(
                folder / "done.json",
                {
                    **record,
                    **runs.machine(),
                    "files": {"encoder.safetensors": runs.sha256(content)},
                },
            )


def foreign_encoder(file, architecture, size):
    """The encoder of a torchvision or timm network with the weights in ``file``, tried on an image;
    which layer and tensors is printed.
    """
    encoder, (state, inside) = (
        models.Encoder(architecture, 0, 1).eval(),
        read_weights(file),
    )
    network = encoder.trunk.network
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    children = [name for name, _ in network.named_children()]
    fits = {
        (prefix, numbered): found(state, prefix, children if numbered else None, wanted)
        for numbered in (False, True)
        for prefix in PREFIXES
    }
    (prefix, numbered), used = next(
        ((way, used) for way, used in fits.items() if len(used) == len(wanted)),
        max(fits.items(), key=lambda one: len(one[1])),
    )
    if len(used) < len(wanted) and (renamed := renamed_by_timm(state, network)):
        state, prefix, numbered = renamed, "", False
        used, inside = found(state, "", None, wanted), f"{inside} renamed by timm".strip()
    missing = sorted(
        name for name in wanted.keys() - used.keys() if not name.endswith("num_batches_tracked")
    )
    if missing:
        shape = getattr(state.get(prefix + missing[0]), "shape", None)
        unlike = f", being {tuple(shape)} and not {tuple(wanted[missing[0]])}" if shape else ""
        raise ValueError(
            f"{file} holds no weights of {architecture} ({len(used)} of {len(wanted)} tensors "
            f"fit, {missing[0]} does not{unlike}; "
            f"it has {', '.join(list(state)[:3])}, …); name the architecture of these weights"
        )
    broken = [name for name in wanted if name in used and not state[used[name]].isfinite().all()]
    if broken:
        raise ValueError(
            f"{file}: {used[broken[0]]} holds NaN or infinity, so that training has diverged; take "
            "an earlier checkpoint"
        )
    weights = network.state_dict()  # with the versions that torch keeps beside names
    weights.update({name: state[key] for name, key in used.items()})
    network.load_state_dict(weights)
    below = f", those below {prefix} ({PREFIXES[prefix]})" if prefix else ""
    aside = Counter(
        key.removeprefix(prefix).split(".")[0]
        if prefix and key.startswith(prefix)
        else ".".join(key.split(".")[: 2 if prefix else 1])
        for key in state.keys() - set(used.values())
    )
    left = ", ".join(f"{count} of {name}" for name, count in sorted(aside.items())) or "none"
    print(
        f"{file.name}: {len(used)} tensors "
        f"used{f' of {inside}' * bool(inside)}{below}{', layers by their numbers' * numbered}; "
        f"left aside {left}; features: {encoder.trunk.features}, {encoder.trunk.layer}",
        flush=True,
    )
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{architecture} takes no images of {size} pixels ({error}); its published "
            "weights take "
            f"{models.usual_size(architecture)}"
        ) from error
    return encoder


def found(state, prefix, children, wanted):
    """Which tensors of a state dict below ``prefix`` a network wants: its names -> theirs, where
    shapes agree.

    ``children``: the names of its layers, where the state dict of a Sequential numbers them.
    """
    used = {}
    for key, value in state.items():
        if key.startswith(prefix):
            name = LEGACY.sub(r"\1\2", key.removeprefix(prefix))
            first, dot, rest = name.partition(".")
            if children is not None:
                name = (
                    children[int(first)] + dot + rest
                    if first.isdecimal() and int(first) < len(children)
                    else ""
                )
            if name in wanted and wanted[name] == value.shape:
                used[name] = key
    return used


def renamed_by_timm(state, network):
    """A state dict as published (DINOv2's, CLIP's, ConvNeXt's …) in timm's names, by timm's own
    rule for the network; None without one.
    """
    rule = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return {name: value for name, value in rule(dict(state), network).items()} if rule else None
    except (
        KeyError,
        RuntimeError,
        AttributeError,
        ValueError,
        AssertionError,
    ):  # the file is of another network
        return None


def read_weights(file):
    """The weights in a file, names -> tensors, and where they lay in it: a state dict, or what a
    checkpoint holds in one of ``INSIDE``.
    """
    state, inside = unpickled(file) if file.suffix != ".safetensors" else safetensors_of(file), []
    while (
        isinstance(state, dict)
        and len(inside) < len(INSIDE)  # one that holds itself has no end
        and (key := next((key for key in INSIDE if isinstance(state.get(key), dict)), None))
    ):
        state, inside = state[key], [*inside, key]
    tensors = {
        name: value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(value, torch.Tensor) and plain(value)
    }
    whole = [
        value
        for value in (state, *(state.values() if isinstance(state, dict) else ()))
        if isinstance(value, StandIn)
    ]
    if not tensors and whole:
        raise ValueError(
            f"{file} is a pickled {whole[0].stands_for}, whose code would have to be run to read "
            "it; load it where it was made and save its state_dict with torch.save"
        )
    if not tensors:
        raise ValueError(f"{file} holds no mapping of names to tensors; save a state_dict")
    return tensors, ".".join(inside)


def plain(tensor):
    """Whether a tensor holds its numbers as weights do: not sparse, complex or without content."""
    return tensor.layout is torch.strided and not tensor.is_complex() and not tensor.is_meta


def unpickled(file):
    """What torch saved in a file, without running code of it: tensors, and NumPy scalars and
    argparse settings beside them.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as packed:
                size = sum(member.file_size for member in packed.infolist())
            if size > file.stat().st_size:  # torch.save packs nothing
                raise ValueError(f"{in_words(size)} packed into {in_words(file.stat().st_size)}")
        with torch.serialization.safe_globals([*HARMLESS, *stand_ins(file)]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch and pickle make of foreign bytes
        with open(file, "rb") as start:
            kind = kind_of(start.read(256))
        if kind and not kind.startswith("a zip"):  # as torch's own files are
            raise ValueError(f"{file} is {kind}, and no file of weights") from error
        if whole := re.search(
            r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)|GLOBAL (\S+) was not an allowed",
            str(error),
        ):
            raise ValueError(
                f"{file} is a pickled {(whole[1] or whole[2]).rstrip('.')}, whose code would have "
                "to be run to read it; "
                f"load it where it was made and save its state_dict with torch.save"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise ValueError(
            f"{file} is no file of weights that torch reads ({reason}); save a state_dict with "
            "torch.save"
        ) from error


class StandIn:
    """What stands for an object of a class that is not loaded, so that no code of it runs."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass


def stand_ins(file):
    """For each class in a checkpoint that torch would not load, one that does nothing: settings,
    callbacks and paths lie beside the weights.
    """
    if not zipfile.is_zipfile(file):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    known = {
        f"{kind.__module__}.{kind.__qualname__}" for kind in HARMLESS if isinstance(kind, type)
    }
    return [(type("StandIn", (StandIn,), {"stands_for": n}), n) for n in names if n not in known]


def safetensors_of(file):
    """The tensors in a file of safetensors."""
    try:
        return safetensors.load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no whole file of safetensors ({error}); fetch it again"
        ) from error
