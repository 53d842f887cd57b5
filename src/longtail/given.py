"""Encoders that were trained elsewhere, kept as finished runs: one of ours, or a torchvision classification network's weights."""

import json
import re
from dataclasses import asdict, replace

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from longtail import models, runs, train
from longtail.places import require

LEGACY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")        # DenseNet's published files spell norm1 as norm.1


def own_run(folder, results):
    """The encoder in the folder of a finished run, as a run of these results."""
    record = runs.recorded(require(folder / "done.json", "give the folder of a finished run, results/<profile>/runs/<run>"))
    content = require(folder / "encoder.safetensors", "weights are not shipped; train that run again").read_bytes()
    if runs.sha256(content) != record["encoder_sha256"]:
        raise ValueError(f"{folder / 'encoder.safetensors'} is not the file that training wrote; train that run again")
    run = replace(runs.Run(**runs.recorded(folder / "run.json")), subset="given", images=runs.sha256(content)[:16])
    keep(run, results, record, lambda path: runs.write(path, content))
    return run


def torchvision_weights(file, planned, results):
    """The weights in ``file`` as a run of these results, whose other fields are the planned one's.

    The projections of such an encoder are its features: the classifier is left out, and there is no projection head.
    """
    content = runs.sha256(file.read_bytes())
    run = replace(planned, subset="given", images=content[:16])
    keep(run, results, {"weights": file.name, "weights_sha256": content, **runs.machine()},
         lambda path: train.keep_encoder(path, foreign_encoder(file, run)))
    return run


def keep(run, results, record, write):
    """Put a given encoder where a trained one would be, ``done.json`` last; nothing happens when it is there."""
    folder = results.folder(run)
    with runs.claim(folder, wait=True):
        if not results.is_done(run):
            runs.write(folder / "run.json", json.dumps(asdict(run), indent=1))
            write(folder / "encoder.safetensors")
            record = {**record, "encoder_sha256": runs.sha256((folder / "encoder.safetensors").read_bytes())}
            runs.write(folder / "done.json", json.dumps(record, indent=1))


def foreign_encoder(file, run):
    """The encoder of a torchvision network with the weights in ``file``, tried on an image of the run's size."""
    encoder, state = models.Encoder(run.architecture, run.head_layers, 1).eval(), read_weights(file)
    for key in [key for key in state if key.startswith(f"{encoder.trunk.classifier}.")]:
        del state[key]
    try:
        encoder.trunk.network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{file} holds no weights of {run.architecture} ({reason} …); name the architecture of these weights") from error
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, run.size, run.size))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{run.architecture} takes no images of {run.size} pixels ({error}); its published weights take 224") from error
    return encoder


def read_weights(file):
    """The weights in a file as one mapping: a state dict, or a checkpoint that has one as ``state_dict`` or ``model``.

    Changed in place, since torch keeps versions beside the weights.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:      # whatever torch and pickle make of foreign bytes
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise ValueError(f"{file} is no file of weights that torch reads ({reason}); save a state_dict with torch.save") from error
    state = next((state[key] for key in ("state_dict", "model") if isinstance(state, dict) and key in state), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no mapping of names to tensors; save a state_dict with torch.save")
    consume_prefix_in_state_dict_if_present(state, "module.")       # of DataParallel
    for key in [key for key in state if LEGACY.search(key)]:
        state[LEGACY.sub(r"\1\2", key)] = state.pop(key)
    return state
