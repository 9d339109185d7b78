"""Attention in one kernel, plainly and in slices: the same numbers, and a switch for a network."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sd1_impl.attention import CrossAttention
from sd1_impl.attention_kernels import KERNELS, fused, plain, sliced, use_kernel
from sd1_impl.config import TextEncoderConfig, UNetConfig, VAEConfig
from sd1_impl.text_encoder import CausalSelfAttention, CLIPTextEncoder
from sd1_impl.unet import UNet
from sd1_impl.vae import AttentionBlock, AutoencoderKL


def parts(dtype=torch.float64, keys=7, size=40, scale=1.0):
    """Draw queries, keys and values: 2 samples, 3 heads."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 3, rows, size) for rows in (11, keys, keys)]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [(scale * part).to(dtype) for part in drawn]


@pytest.mark.parametrize("kernel", [plain, sliced])
@pytest.mark.parametrize(("keys", "causal"), [(7, False), (11, True)], ids=["cross", "causal"])
def test_kernels_agree(kernel, keys, causal):
    """They differ from torch's own kernel in float64's rounding only."""
    own = parts(keys=keys)
    wanted = F.scaled_dot_product_attention(*own, is_causal=causal)
    torch.testing.assert_close(kernel(*own, is_causal=causal), wanted, rtol=1e-13, atol=1e-13)
    assert torch.equal(fused(*own, is_causal=causal), wanted)


@pytest.mark.parametrize("kernel", [plain, sliced])
def test_half_scores_do_not_overflow(kernel):
    """Products beyond the largest float16 are scaled before they are rounded to it."""
    query, key, value = parts(torch.float16, scale=60.0)
    assert (query @ key.mT).isinf().any()
    attended = kernel(query, key, value)
    assert attended.dtype is torch.float16
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert (attended - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("kernel", [plain, sliced])
def test_gradients_pass(kernel):
    """A network may be trained with any of them."""
    own = [part.requires_grad_() for part in parts(keys=4, size=3)]
    assert torch.autograd.gradcheck(kernel, own)


def test_slices_hold_the_scores_of_one_head():
    """Whatever operation runs, what it returns is no larger than a slice of scores."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.itemsize)
            return out

    own = parts(keys=400, size=1)  # 2 samples, 3 heads, 11 queries
    sizes = {}
    for kernel in (plain, sliced):
        with Largest() as largest:
            kernel(*own)
        sizes[kernel] = largest.elements
    assert sizes == {plain: 2 * 3 * 11 * 400, sliced: 11 * 400}


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (lambda: UNet(UNetConfig()), CrossAttention),
        (lambda: AutoencoderKL(VAEConfig()), AttentionBlock),
        (lambda: CLIPTextEncoder(TextEncoderConfig()), CausalSelfAttention),
    ],
    ids=["unet", "vae", "text-encoder"],
)
def test_every_attention_is_switched(network, kinds):
    """Of each network all attentions take a kernel, and nothing else has one."""
    with torch.device("meta"):
        built = network()
    layers = [layer for layer in built.modules() if isinstance(layer, kinds)]
    assert {layer.attend for layer in layers} == {fused}
    for name, kernel in KERNELS.items():
        assert use_kernel(built, name) == len(layers) > 0
        assert {layer.attend for layer in layers} == {kernel}


def test_what_has_no_attention():
    """A block without attention has none to switch."""
    assert use_kernel(torch.nn.Conv2d(1, 1, 1), "plain") == 0
