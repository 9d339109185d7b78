"""Mixed arithmetics: rounded operands, torch's switches, policies."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

from conformance.adapters import arithmetics, sd1_impl
from conformance.adapters.arithmetics import built_in, computing_in
from conformance.case import find_case
from conformance.errors import PortError, UnsupportedError
from conformance.execution import Execution
from conformance.operands import RoundedOperands, rounded_to
from conformance.port import resolve
from conformance.recorded import arithmetics as recorded_arithmetics
from conformance.recorded import mixed_arithmetics
from conformance.runner import Runner
from conformance.tolerance import ARITHMETICS, EVERY_ARITHMETIC, LIMIT

AUTOCAST, NORM32, UPCAST = arithmetics.POLICIES


def drawn(*shape, seed=1):
    """Draw normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_is_to_nearest_ties_to_even():
    """Ten bits as float16 has them, seven as bfloat16; ties go to the even neighbour."""
    values = drawn(4096)
    values = values[values.abs() > 1e-3]  # below, float16 is subnormal
    assert torch.equal(rounded_to(values, 10), values.half().float())
    assert torch.equal(rounded_to(values, 7), values.bfloat16().float())
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11])
    assert rounded_to(ties, 10).tolist() == [1, 1 + 2**-9, -1]


def test_rounding_keeps_what_is_not_finite_and_other_dtypes():
    """NaN and infinities stay; float64 is not touched; a value may round up to the next power."""
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 2 - 2**-20])
    kept = rounded_to(odd, 10)
    assert kept[0].isnan()
    assert kept[1:].tolist() == [torch.inf, -torch.inf, 2]
    wide = drawn(3).double()
    assert rounded_to(wide, 10) is wide


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_taken_apart_rightly(causal, masked):
    """With nearly all bits kept it is the fused kernel's, causal and masked too."""
    if causal and masked:
        pytest.skip("torch takes one of both")
    query, key, value = (drawn(2, 3, 5, 8, seed=i) for i in range(3))
    mask = torch.tril(torch.ones(5, 5)).bool() if masked else None
    wanted = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    with torch.no_grad(), RoundedOperands(22):
        found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), RoundedOperands(10):
        coarse = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    assert 1e-5 < float((coarse - wanted).norm() / wanted.norm()) < 2e-3


def test_products_round_both_operands():
    """A linear layer and a convolution are those of rounded inputs and weights."""
    linear, conv = nn.Linear(8, 4), nn.Conv2d(3, 4, 3)
    tokens, image = drawn(5, 8), drawn(2, 3, 6, 6)
    with torch.no_grad():
        with RoundedOperands(10):
            found = linear(tokens), conv(image)
        tokens, image = tokens.half().float(), image.half().float()
        linear.weight.copy_(linear.weight.half())
        conv.weight.copy_(conv.weight.half())
        torch.testing.assert_close(found[0], linear(tokens), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], conv(image), rtol=1e-6, atol=1e-6)


def component(module, **parts):
    """Return what an adapter hands over, calling its module."""
    return SimpleNamespace(
        module=module, call=lambda m, x: m(x), device="cpu", dtype=torch.float32, **parts
    )


def test_norms_stay_float32():
    """Under fp16-norm32 a norm has float32 weights, sums in float32, and returns float16."""
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.LayerNorm(6))
    made = computing_in(NORM32, component(network.requires_grad_(requires_grad=False)))
    assert made.dtype is torch.float16
    assert [p.dtype for p in network.parameters()] == [torch.float16] * 2 + [torch.float32] * 4
    huge = torch.full((1, 8, 6, 6), 300.0).half()
    huge[0, 0] = -300  # its squares do not fit half precision
    out = made.call(network[1], huge)
    assert out.dtype is torch.float16
    assert bool(out.isfinite().all())


def test_autocast_computes_products_in_bfloat16():
    """The weights stay float32; supplied probes take the dtype of what they replace."""
    made = computing_in(AUTOCAST, component(nn.Linear(4, 4)))
    assert made.call(made.module, drawn(2, 4)).dtype is torch.bfloat16
    assert made.module.weight.dtype is torch.float32
    assert made.own_dtypes


def test_only_pipelines_can_upcast_a_vae():
    """A network alone has no VAE to keep in float32."""
    with pytest.raises(UnsupportedError, match="text_encoder, unet and vae"):
        computing_in(UPCAST, component(nn.Linear(2, 2)))


def test_plain_arithmetics_change_nothing():
    """They are the dtype in which a component is built."""
    own = component(nn.Linear(2, 2))
    call = own.call
    assert all(computing_in(a, own).call is call for a in ARITHMETICS)
    assert [built_in(a) for a in ARITHMETICS] == list(ARITHMETICS)
    assert {built_in(a) for a in set(EVERY_ARITHMETIC) - set(ARITHMETICS)} == {"float32"}


@pytest.mark.parametrize(("arithmetic", "precision"), [("tf32", "high"), ("bf16-matmul", "medium")])
def test_on_cuda_the_switches_are_torchs_own(arithmetic, precision):
    """They are on while the component runs, and back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []
    made = component(nn.Linear(2, 2))
    made.device = "cuda:0"
    made.call = lambda *_: seen.append(
        (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    )
    computing_in(arithmetic, made).call(None, None)
    assert seen == [(precision, True)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("arithmetic", mixed_arithmetics(find_case("text_encoder/tiny/base")))
@pytest.mark.parametrize("name", ["sd1_impl", "diffusers"])
def test_ports_are_honest_in_mixed_arithmetics(name, arithmetic):
    """Held out of the noise, they stay below half the limit, and are no float32 there."""
    if name == "diffusers":
        pytest.importorskip("diffusers")
    case = find_case("text_encoder/tiny/base")
    result = Runner(resolve(name)).run(case, Execution(dtype=arithmetic))
    assert result.verdict == "pass", result.message
    assert 0.3 < result.worst.ratio < LIMIT / 2


def test_the_vae_is_upcast():
    """Text encoder and UNet compute in float16, the VAE in float32."""
    case = find_case("pipeline/txt2img/tiny/base")
    made = sd1_impl.port().load(case.component, case.variant, case.weights(), UPCAST, "cpu")
    dtypes = {name: next(part.parameters()).dtype for name, part in made.module.named_children()}
    assert dtypes == {
        "text_encoder": torch.float16,
        "unet": torch.float16,
        "vae": torch.float32,
    }


def test_mixed_arithmetics_are_recorded_where_they_say():
    """Networks have four, the one pipeline two; dense inputs and other scenarios none."""
    assert len(mixed_arithmetics(find_case("unet/odd/base"))) == 4
    assert mixed_arithmetics(find_case("pipeline/txt2img/tiny/base")) == (AUTOCAST, UPCAST)
    for other in ("unet/tiny-dense/base", "unet/tiny/t999", "block/time_embedding/tiny/base"):
        assert mixed_arithmetics(find_case(other)) == ()
    assert "tf32" in recorded_arithmetics(find_case("vae_decoder/tiny/brink"))


def test_a_policy_may_return_any_float():
    """Elsewhere the dtype of outputs is part of the contract."""
    from conformance.contract import check_contract
    from conformance.golden_files import load_golden

    golden = load_golden(find_case("text_encoder/tiny/base"))
    halves = {n: np.zeros(s, np.float16) for n, s in golden.output_shapes.items()}
    check_contract(golden, halves, {}, AUTOCAST)
    with pytest.raises(PortError, match="is float16, expected float32"):
        check_contract(golden, halves, {}, "tf32")
