"""Networks of timm with weights from a file: the features that timm itself gives, whatever names
the file has for them.
"""

import re
from importlib.util import find_spec

import pytest
import torch
from safetensors import torch as safetensors

from longtail.learn import models
from longtail.own import encoders, request

timm = (
    models.import_timm()
    if find_spec("timm")
    else pytest.skip("timm is not installed", allow_module_level=True)
)


def network(name, **options):
    """A network of timm whose weights are random but for none that begins at zero."""
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, **options).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    return net


def ours(file, name, size):
    """Three images and their features by the weights in a file."""
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, encoders.foreign_encoder(file, f"timm/{name}", size)(images)


def theirs(net, name, images):
    """Features as timm gives them for images that are normalised by its own settings."""
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return net.forward_head(net.forward_features((images - mean) / std), pre_logits=True)


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_tiny_patch16_224", 64),
        ("convnext_atto.d2_in1k", 64),
        ("resnet10t.c3_in1k", 64),
        ("mobilenetv3_small_050.lamb_in1k", 64),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_features_are_those_of_timm_and_the_layer_is_told(tmp_path, capsys, name, size, ending):
    net, file = (
        network(name, **({"dynamic_img_size": True} if name.startswith("vit") else {})),
        tmp_path / f"weights.{ending}",
    )
    (torch.save if ending == "pth" else safetensors.save_file)(net.state_dict(), file)
    images, found = ours(file, name, size)
    torch.testing.assert_close(found, theirs(net, name, images), atol=1e-4, rtol=1e-4)
    assert re.search(
        rf"tensors used.*; features: {found.shape[1]}, the pooled features before the classifier",
        capsys.readouterr().out,
    )


def openai(state):
    """The names of CLIP's own files for the weights of timm's vision transformer."""
    names = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.weight": "conv1.weight",
        "norm_pre.": "ln_pre.",
        "norm.": "ln_post.",
        "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attn.qkv.weight": ".attn.in_proj_weight",
        ".attn.qkv.bias": ".attn.in_proj_bias",
        ".attn.proj.": ".attn.out_proj.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
    }
    found = {}
    for name, value in state.items():
        for ours, clip in names.items():
            name = (
                clip + name[len(ours) :]
                if not ours.startswith(".") and name.startswith(ours)
                else name.replace(ours, clip)
            )
        shape = {
            "class_embedding": (-1,),
            "positional_embedding": (value.shape[1] if value.ndim == 3 else 0, -1),
        }.get(name)
        found[f"visual.{name}"] = value.reshape(shape) if shape else value
    return found | {"text_projection": torch.zeros(3, 3), "logit_scale": torch.zeros(())}


def test_weights_of_clip_as_published_are_renamed(tmp_path, capsys):
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    net = network(name, num_classes=0)
    torch.save(openai(net.state_dict()), tmp_path / "clip.pt")
    images, found = ours(tmp_path / "clip.pt", name, 224)
    torch.testing.assert_close(found, theirs(net, name, images), atol=1e-4, rtol=1e-4)
    assert "renamed by timm" in capsys.readouterr().out


def test_weights_of_dinov2_as_published_are_read_at_other_sizes(tmp_path):
    name = "vit_small_patch14_dinov2.lvd142m"
    net = network(name, num_classes=0, dynamic_img_size=True)
    torch.save(
        dict(net.state_dict()) | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth"
    )
    images, found = ours(tmp_path / "dinov2.pth", name, 56)
    torch.testing.assert_close(found, theirs(net, name, images), atol=1e-4, rtol=1e-4)


def test_sizes_are_those_of_timm_unless_said(tmp_path):
    for name in ("seed", "pool"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"1")
    (tmp_path / "w.pth").write_bytes(b"1")
    named = {
        "seed_images": "seed",
        "pool_images": "pool",
        "encoder": "w.pth",
        "architecture": "timm/vit_small_patch14_dinov2.lvd142m",
    }
    assert (
        request.ask("mine", named, tmp_path).size == 518
        and request.ask("mine", named | {"size": 224}, tmp_path).size == 224
    )
    assert models.usual_size("torchvision/resnet18") == 224
    with pytest.raises(request.Refused, match="timm has no 'vit_smal_patch14'; near it are vit_"):
        request.ask("mine", named | {"architecture": "timm/vit_smal_patch14"}, tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(network("resnet10t.c3_in1k").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no weights of timm/vit_tiny_patch16_224"):
        ours(tmp_path / "w.pth", "vit_tiny_patch16_224", 64)
