"""Packed weights: the same numbers, for the kernels of a CPU."""

import pytest
import torch
from torch import nn

from sd1_impl import resnet, vae
from sd1_impl.config import VAEConfig
from sd1_impl.packed import PackedUpsample, pack
from sd1_impl.vae import AutoencoderKL

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


def distance(found, wanted):
    """Relative L2 distance, computed in float64."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


def frozen(module, seed=0):
    """A module in eval mode with weights of a seed, without gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = max(1, parameter[0].numel())
        values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        parameter.data.copy_(values)
    return module.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.Linear(24, 40), (2, 7, 24), id="linear"),
        pytest.param(nn.Linear(24, 40, bias=False), (5, 24), id="linear-no-bias"),
        pytest.param(nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 6), id="conv"),
        pytest.param(nn.Conv2d(4, 24, 3, padding=1), (1, 4, 8, 8), id="conv-of-latents"),
        pytest.param(nn.Conv2d(16, 16, 3, stride=2), (2, 16, 9, 9), id="strided"),
        pytest.param(nn.Conv2d(16, 24, 1), (2, 16, 5, 7), id="pointwise"),
        pytest.param(resnet.Upsample(16), (2, 16, 5, 3), id="upsample-unet"),
        pytest.param(vae.Upsample(16), (2, 16, 5, 3), id="upsample-vae"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_layer_computes_what_the_layer_does(layer, shape, dtype):
    """But for rounding: compared with float64, at most four times the layer's own error."""
    layer = frozen(layer).to(dtype)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    size = [(2 * shape[2], 2 * shape[3])] if isinstance(layer, resnet.Upsample) else []
    own = layer(inputs, *size)
    truth = layer.double()(inputs.double(), *size)
    container = nn.ModuleDict({"layer": layer.to(dtype)})
    assert pack(container) == 1
    found = container["layer"](inputs, *size)
    assert (found.shape, found.dtype) == (own.shape, own.dtype)
    floor = torch.finfo(dtype).eps
    assert distance(found, truth) <= 4 * max(distance(own, truth), floor)


@pytest.mark.parametrize("size", [(10, 6), (9, 6), (10, 5), (9, 5)], ids=str)
def test_upsampling_meets_the_border_of_an_odd_map_as_ever(size):
    """A row less than twice the size has zeros beyond it, where twice the size has a twin."""
    layer = frozen(resnet.Upsample(16))
    inputs = torch.randn(1, 16, 5, 3)
    found = PackedUpsample(layer)(inputs, size)
    assert distance(found, layer(inputs, size)) < 1e-6


def test_a_network_keeps_its_paths_and_every_weight_is_packed():
    """Probes find what they found, but within an upsampling, which is one step now."""
    network = frozen(AutoencoderKL(VAEConfig(block_out_channels=(32, 64), norm_num_groups=8)))
    latents = torch.randn(1, 4, 6, 5)
    wanted = network.decode(latents)
    paths = dict(network.named_modules())
    layers = [m for m in paths.values() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert pack(network) == len(layers)
    packed = dict(network.named_modules())
    assert set(paths) - set(packed) == {"decoder.up_blocks.0.upsamplers.0.conv"}
    assert all(p.dim() == 1 for n, p in network.named_parameters() if ".upsample." not in n)
    assert distance(network.decode(latents), wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_a_dtype_without_packed_kernels_is_refused(dtype):
    """The message names the weight and what would do; nothing has changed."""
    network = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3)}).to(dtype)
    with pytest.raises(ValueError, match=r"conv\.weight is torch\.float.* float32 or bfloat16"):
        pack(network)
    assert isinstance(network["conv"], nn.Conv2d)
