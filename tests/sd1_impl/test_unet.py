"""The UNet against diffusers' UNet2DConditionModel: keys, structure, numbers; and its own manners.

Small widths, random weights. Here diffusers is the reference of a unit test; the conformance suite
judges the same model with its own oracle, recipe and limits.
"""

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from sd1_impl import SD_V1_INPAINT_UNET, SD_V1_UNET, UNet, UNetConfig

TINY = replace(
    SD_V1_UNET,
    block_out_channels=(16, 32, 48, 64),
    cross_attention_dim=48,
    norm_num_groups=8,
)
UNEQUAL = replace(TINY, num_heads=(8, 3, 5, 7))  # heads x head size: 16, 30, 45, 63
ROUNDING = 64 * torch.finfo(torch.float64).eps  # diffusers itself moves by 15 between layouts
EPS_FIELDS = [field.name for field in fields(UNetConfig) if field.name.endswith("_eps")]


def reference(config: UNetConfig) -> UNet2DConditionModel:
    """Return diffusers' UNet of this shape, with weights large enough to matter everywhere."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.has_attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.has_attention)]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        attention_head_dim=config.num_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        down_block_types=down,
        up_block_types=up,
    ).eval()


def pair(config: UNetConfig, dtype: torch.dtype) -> tuple[UNet, UNet2DConditionModel]:
    """Return our UNet and diffusers' with the same random weights, loaded strictly."""
    torch.manual_seed(0)
    theirs = reference(config).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = UNet(config).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    # diffusers computes sinusoids in float32 whatever the model's dtype: lend it ours.
    sinusoids = copy.deepcopy(ours.time_proj)
    theirs.time_proj.register_forward_hook(lambda _, args, __: sinusoids(args[0].to(dtype)))
    return ours, theirs


def inputs(config: UNetConfig, dtype: torch.dtype, size: tuple[int, int] = (8, 8)) -> list:
    """Return a sample, a timestep and a context for a batch of two."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, config.in_channels, *size, dtype=dtype, generator=generator)
    context = torch.randn(2, 5, config.cross_attention_dim, dtype=dtype, generator=generator)
    return [sample, 10, context]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance."""
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def double() -> tuple[UNet, UNet2DConditionModel]:
    """Both models in float64, with head counts that divide no width but the first."""
    return pair(UNEQUAL, torch.float64)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SD_V1_UNET, 859_520_964), (SD_V1_INPAINT_UNET, 859_535_364), (UNEQUAL, None)],
    ids=["sd1", "sd1-inpaint", "unequal"],
)
def test_keys_and_shapes_are_the_checkpoints(config: UNetConfig, parameters: int | None) -> None:
    """A diffusers state dict needs no rename table, down to the order of its keys."""
    with torch.device("meta"):
        ours, theirs = UNet(config), reference(config)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    if parameters:
        assert sum(parameter.numel() for parameter in ours.parameters()) == parameters


@pytest.mark.parametrize("size", [(8, 16), (15, 17), (9, 2), (1, 1)], ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_float64_output_is_diffusers(double: tuple, size: tuple[int, int]) -> None:
    """Any latent size gives diffusers' float64 output, to rounding."""
    ours, theirs = double
    arguments = inputs(UNEQUAL, torch.float64, size)
    assert relative_error(ours(*arguments), theirs(*arguments).sample) < ROUNDING


@torch.no_grad()
def test_every_module_reads_and_returns_what_diffusers_does(double: tuple, calls: Callable) -> None:
    """Same modules, called once each in the same order, on the same tensors, to rounding."""
    ours, theirs = double
    with calls(ours) as got, calls(theirs) as wanted:
        ours(*inputs(UNEQUAL, torch.float64))
        theirs(*inputs(UNEQUAL, torch.float64))
    paths = [path for path, _, _ in got]
    assert len(paths) == len(set(paths))
    assert paths == [path for path, _, _ in wanted]
    for (path, *ours_seen), (_, *theirs_seen) in zip(got, wanted, strict=True):
        for a, b in zip(ours_seen, theirs_seen, strict=True):
            assert a.shape == b.shape, path
            assert relative_error(a, b.to(a)) < ROUNDING, path


@torch.no_grad()
def test_each_eps_is_diffusers_and_reaches_the_output() -> None:
    """At activations of tiny variance, float64 still agrees, and no eps can change unnoticed."""
    ours, theirs = pair(TINY, torch.float64)
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(1 / 16)
    arguments = inputs(TINY, torch.float64, (16, 16))
    wanted = theirs(*arguments).sample
    assert relative_error(ours(*arguments), wanted) < ROUNDING
    for name in EPS_FIELDS:
        wrong = UNet(replace(TINY, **{name: getattr(TINY, name) * 10})).double()
        wrong.load_state_dict(ours.state_dict())
        assert relative_error(wrong(*arguments), wanted) > 1e-6, name


@torch.no_grad()
def test_timestep_forms_agree() -> None:
    """An int, a float, a 0-d and a per-sample tensor of any dtype mean the same time."""
    ours, _ = pair(TINY, torch.float32)
    sample, _, context = inputs(TINY, torch.float32)
    wanted = ours(sample, 10, context)
    whole = torch.tensor(10)
    for timestep in (10.0, whole, whole.double(), whole[None], whole.expand(2), whole.half()):
        assert torch.equal(ours(sample, timestep, context), wanted), timestep
    mixed = ours(sample, torch.tensor([10.0, 976.8889]), context)
    assert torch.equal(mixed[0], wanted[0])
    assert not torch.equal(mixed[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_sinusoids_are_float32_in_every_narrower_model(dtype: torch.dtype, calls: Callable) -> None:
    """A half-precision model still computes its angles in float32, bit for bit diffusers'."""
    theirs = reference(TINY).time_proj(torch.tensor([0.55, 999.0]))
    ours = UNet(TINY).to(dtype).eval()
    with calls(ours) as record:
        sample, _, context = inputs(TINY, dtype, (8, 8))
        output = ours(sample, torch.tensor([0.55, 999.0]), context)
    assert output.dtype == dtype
    assert torch.equal(next(out for path, _, out in record if path == "time_proj"), theirs)


@torch.no_grad()
def test_float64_has_no_float32_island(double: tuple, calls: Callable) -> None:
    """A Python float keeps its 53 bits: 976.8889 is not rounded to float32 on its way in."""
    ours, _ = double
    sample, _, context = inputs(UNEQUAL, torch.float64, (8, 8))
    with calls(ours) as record:
        ours(sample, 976.8889, context)
    assert {out.dtype for _, _, out in record} == {torch.float64}
    embedding = next(out for path, _, out in record if path == "time_proj")
    assert embedding[0, 0] == torch.tensor(976.8889, dtype=torch.float64).cos()


@torch.no_grad()
def test_channels_last_stays_channels_last(calls: Callable) -> None:
    """The memory format of the input is the output's, and changes nothing but rounding."""
    ours, _ = pair(TINY, torch.float32)
    sample, timestep, context = inputs(TINY, torch.float32)
    wanted = ours(sample, timestep, context)
    ours.to(memory_format=torch.channels_last)
    with calls(ours) as record:
        got = ours(sample.to(memory_format=torch.channels_last), timestep, context)
    maps = [(path, out) for path, _, out in record if out.ndim == sample.ndim]
    for path, out in maps:
        assert out.is_contiguous(memory_format=torch.channels_last), path
    assert relative_error(got, wanted) < 1e-5
    assert wanted.is_contiguous()


def test_inputs_are_left_alone_and_gradients_reach_every_parameter() -> None:
    """Neither forward nor backward edits the caller's tensors; no parameter is dead."""
    ours, _ = pair(TINY, torch.float32)
    # At 8 x 8 the mid block would have one token, whose attention no query or key can move.
    arguments = inputs(TINY, torch.float32, size=(16, 16))
    copies = [torch.as_tensor(argument).clone() for argument in arguments]
    ours(*arguments).square().mean().backward()
    for argument, before in zip(arguments, copies, strict=True):
        assert torch.equal(torch.as_tensor(argument), before)
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters())


BAD_INPUTS = {
    "channels": ((2, 3, 8, 8), (2,), (2, 5, 48), r"sample .*\(2, 3, 8, 8\).*\(B, 4, H, W\)"),
    "no-batch": ((4, 8, 8), (), (2, 5, 48), r"sample .*\(4, 8, 8\).*\(B, 4, H, W\)"),
    "empty": ((2, 4, 8, 0), (2,), (2, 5, 48), r"sample .*\(2, 4, 8, 0\)"),
    "context-width": ((2, 4, 8, 8), (2,), (2, 5, 47), r"hidden_states .*47\).*\(B, L, 48\)"),
    "context-batch": ((2, 4, 8, 8), (2,), (1, 5, 48), r"hidden_states .* 1, sample has 2"),
    "timesteps": ((2, 4, 8, 8), (3,), (2, 5, 48), r"timestep .*\(3,\), expected \(\) or \(2,\)"),
}


@pytest.mark.parametrize(
    ("sample", "timestep", "context", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys()
)
def test_a_wrong_shape_is_named(
    sample: tuple, timestep: tuple, context: tuple, message: str
) -> None:
    """An input that does not fit is refused with its shape and the one expected."""
    with torch.device("meta"):
        model, tensors = UNet(TINY), [torch.zeros(s) for s in (sample, timestep, context)]
    with pytest.raises(ValueError, match=message):
        model(*tensors)


BAD_CONFIGS = {
    "levels": ({"num_heads": (8, 8)}, "num_heads has 2 entries for 4 levels"),
    "groups": ({"norm_num_groups": 24}, "width 320 is not divisible by 24"),
    "odd-width": ({"block_out_channels": (5, 10, 20, 20), "norm_num_groups": 5}, "width 5 "),
}


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_wrong_config_is_refused(change: dict, message: str) -> None:
    """A config that cannot be a UNet says why."""
    with pytest.raises(ValueError, match=message):
        replace(SD_V1_UNET, **change)
