"""Published networks in PyTorch: names and shapes of their weights, and outputs of small ones.

`python -m tests.support.published_networks [full]` makes the files of `STORED`; `full` says instead how far
our networks at their published sizes are from the originals. It needs torch, torchvision and timm, and a
clone of DINOv2's repository in PYTHONPATH. Weights and images follow from
`torch_weights.reference_value`, so that no file holds them.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import numpy as np

from lossattn_jax import models
from lossattn_jax.models import vit
from lossattn_jax.models.position_embeddings import Resampling
from tests.support.torch_weights import reference_value

STORED = pathlib.Path(__file__).parents[1] / "stored_published"
NAMES, OUTPUTS = STORED / "names.json", STORED / "outputs.npz"

SEED = 0
# Of the small networks that outputs are stored of: width, and the images' sides. The vision transformers have
# stored position embeddings of 224x224 or 518x518 images.
SMALL = {
    "resnet18_imagenet": (1 / 8, (64, 95)),
    "resnet50_imagenet": (1 / 8, (64, 95)),
    "vit_s16": (1 / 3, (64, 80)),
    "vit_s14_dinov2": (1 / 3, (56, 70)),
    "vit_s14_dinov2_reg4": (1 / 3, (56, 70)),
}
DEPTH = 3  # of the small vision transformers
STAGE_BLOCKS = (1, 2, 1, 1)  # of the small ResNets
RESAMPLINGS = {
    "antialiased": Resampling(antialias=True),
    "plain": Resampling(antialias=False),
    "offset": Resampling(antialias=False, offset=0.1),
}
GRIDS = ((3, 4), (5, 5), (9, 7))  # that places of a square of `SIDE` are resampled to
SIDE = 5


def images(size, count=1):
    """Images `[count, height, width, 3]` float32."""
    return reference_value("images", (count, *size, 3), SEED).astype(np.float32)


def places():
    """Places `[SIDE, SIDE, 2]` float32 to resample."""
    return reference_value("places", (SIDE, SIDE, 2), SEED).astype(np.float32)


def state_dict(shapes):
    """Weights by the names and shapes of a network."""
    return {key: reference_value(key, tuple(shape), SEED) for key, shape in shapes.items()}


def make_small(name):
    """Our small network, and the shape of its images."""
    width, size = SMALL[name]
    model = models.build(name, "none", "bag_loss_attention", width=width)
    make = model.make_backbone
    if name in vit.VARIANTS:
        changes = {"variant": dataclasses.replace(vit.VARIANTS[name], depth=DEPTH)}
    else:
        changes = {"stage_blocks": STAGE_BLOCKS}
    return model.clone(make_backbone=functools.partial(make, **changes)), (*size, 3)


def make_original(name, width=None):
    """The original network in PyTorch, without pretrained weights; of a width, the small one."""
    import timm
    import torchvision
    from torch import nn

    if name.endswith("_imagenet"):
        published = name.removesuffix("_imagenet")
        if width is None:
            return getattr(torchvision.models, published)()

        class Narrow(torchvision.models.ResNet):
            def _make_layer(self, block, planes, *rest, **options):
                if planes == 64:
                    self.inplanes = int(64 * width)
                return super()._make_layer(block, int(planes * width), *rest, **options)

        blocks = torchvision.models.resnet
        block = blocks.Bottleneck if published == "resnet50" else blocks.BasicBlock
        model = Narrow(block, STAGE_BLOCKS)
        model.conv1 = nn.Conv2d(3, int(64 * width), 7, 2, 3, bias=False)
        model.bn1 = nn.BatchNorm2d(int(64 * width))
        model.fc = nn.Identity()
        return model
    channels, heads = {"s": (384, 6), "b": (768, 12)}[name[len("vit_")]]
    sizes = {"embed_dim": channels, "num_heads": heads, "depth": 12}
    if width is not None:
        embedding, of_small = round(channels * width), round(heads * width)
        sizes = {"embed_dim": embedding, "num_heads": of_small, "depth": DEPTH}
    if name.endswith("16"):
        return timm.models.VisionTransformer(patch_size=16, dynamic_img_size=True, **sizes)
    from dinov2.models.vision_transformer import DinoVisionTransformer

    registers = name.endswith("_reg4")
    return DinoVisionTransformer(
        img_size=518,
        patch_size=14,
        init_values=1.0,
        block_chunks=0,
        num_register_tokens=4 if registers else 0,
        interpolate_antialias=registers,
        interpolate_offset=0.0 if registers else 0.1,
        **sizes,
    )


def shapes_of(original):
    """Shapes by the names of a network's weights."""
    return {key: list(value.shape) for key, value in original.state_dict().items()}


def run_original(name, original, pixels):
    """The map `[B, H', W', C]` that a network with the weights of `state_dict` makes of images."""
    import torch

    weights = {k: torch.tensor(v) for k, v in state_dict(shapes_of(original)).items()}
    original.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    original.eval()
    x = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        if name.endswith("_imagenet"):
            x = original.maxpool(original.relu(original.bn1(original.conv1(x))))
            for stage in (original.layer1, original.layer2, original.layer3, original.layer4):
                x = stage(x)
            return x.permute(0, 2, 3, 1).numpy()
        features = original.forward_features(x)
        tokens = features["x_norm_patchtokens"] if isinstance(features, dict) else features[:, 1:]
        patch = original.patch_embed.patch_size[0]
        height, width = (side // patch for side in pixels.shape[1:3])
        return tokens.reshape(len(pixels), height, width, -1).numpy()


def resample_in_torch(grid, resampling):
    """`places` on another grid, as PyTorch interpolates them."""
    import torch

    scale = tuple((side + resampling.offset) / SIDE for side in grid)
    sizes = {"scale_factor": scale} if resampling.offset else {"size": grid}
    x = torch.tensor(places()).permute(2, 0, 1)[None]
    options = {"mode": "bicubic", "antialias": resampling.antialias}
    return torch.nn.functional.interpolate(x, **sizes, **options)[0].permute(1, 2, 0).numpy()


def write_files():
    """Makes the files of `STORED`."""
    STORED.mkdir(exist_ok=True)
    shapes = {name: shapes_of(make_original(name)) for name in SMALL}
    NAMES.write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    outputs = {}
    for name, (width, size) in SMALL.items():
        original = make_original(name, width)
        outputs[name] = run_original(name, original, images(size))
        outputs[f"{name}.shapes"] = np.array(json.dumps(shapes_of(original)))
    for kind, resampling in RESAMPLINGS.items():
        for grid in GRIDS:
            key = "resampled.{}.{}x{}".format(kind, *grid)
            outputs[key] = resample_in_torch(grid, resampling)
    np.savez_compressed(OUTPUTS, **outputs)


def compare_full(name, folder):
    """The largest difference of the map at 224x224, and the map's largest value."""
    import jax
    import safetensors.numpy

    from lossattn_jax.checkpoint import pretrained

    original = make_original(name)
    pixels = images((224, 224))
    expected = run_original(name, original, pixels)
    path = pathlib.Path(folder) / f"{name}.safetensors"
    weights = state_dict(shapes_of(original)).items()
    arrays = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in weights}
    safetensors.numpy.save_file(arrays, path)
    model = models.build(name, "none", "bag_loss_attention")
    variables = pretrained.read(path, model, (224, 224, 3)).variables
    backbone = model.make_backbone()
    actual = jax.jit(lambda v, x: backbone.apply(v, x, False))(variables, pixels)
    return np.abs(actual - expected).max(), np.abs(expected).max()


def main():
    """The command."""
    if sys.argv[1:] == ["full"]:
        import tempfile

        from lossattn_jax.models import resnet

        with tempfile.TemporaryDirectory() as folder:
            for name in (*resnet.IMAGENET_NAMES.values(), *vit.VARIANTS):
                difference, largest = compare_full(name, folder)
                print(f"{name}: {difference:.2g} of {largest:.3g}", flush=True)
    else:
        write_files()


if __name__ == "__main__":
    main()
