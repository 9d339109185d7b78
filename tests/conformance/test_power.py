"""Wrong choices that real ports have made: each is caught, and named at the layer that is wrong."""

import pytest

from conformance.summary import earliest

torch = pytest.importorskip("torch")
F = torch.nn.functional

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"


def resnet_eps(path):
    """GroupNorm eps 1e-6 for 1e-5 in one resnet."""

    def spoil(module):
        module.get_submodule(path).eps = 1e-6

    return spoil


def transformer_eps(module):
    """GroupNorm eps 1e-5 for 1e-6 in one spatial transformer."""
    module.get_submodule("up_blocks.2.attentions.1.norm").eps = 1e-5


def layer_norm_eps(module):
    """LayerNorm eps 1e-6 for 1e-5 in one transformer block."""
    module.get_submodule(f"{BLOCK}.norm2").eps = 1e-6


def half_inputs(module):
    """The latents pass through half precision."""
    module.register_forward_pre_hook(lambda _, args: (args[0].half().to(args[0].dtype), *args[1:]))


def half_context(module):
    """The text embeddings pass through half precision."""
    module.register_forward_pre_hook(
        lambda _, args: (*args[:2], args[2].half().to(args[2].dtype), *args[3:])
    )


def swapped_geglu(module):
    """Gate and value exchanged in every GEGLU."""
    for layer in module.modules():
        if type(layer).__name__ == "GEGLU":
            layer.proj.register_forward_hook(
                lambda _, __, out: torch.cat(out.chunk(2, dim=-1)[::-1], dim=-1)
            )


def sin_cos(module):
    """Sines before cosines."""
    module.time_proj.flip_sin_to_cos = False


def frequency_shift(module):
    """Frequencies over half - 1."""
    module.time_proj.freq_shift = 1


def skip_order(module):
    """The skip before the features in one concatenation."""
    width = 128  # of the features that enter this resnet of `tiny`
    module.get_submodule("up_blocks.1.resnets.0").register_forward_pre_hook(
        lambda _, args: (torch.cat([args[0][:, width:], args[0][:, :width]], dim=1), *args[1:])
    )


def tanh_gelu(module):
    """The tanh approximation of GELU in one GEGLU."""

    def spoil(layer, args, _):
        value, gate = layer.proj(args[0]).chunk(2, dim=-1)
        return value * F.gelu(gate, approximate="tanh")

    geglu = module.get_submodule(f"{BLOCK}.ff.net.0")
    geglu.forward = lambda tokens: spoil(geglu, (tokens,), None)


NORM = "down_blocks.2.resnets.1.norm2"

WRONG = [
    pytest.param(resnet_eps(NORM), "tiny-lowvar/base", NORM, id="resnet-eps"),
    pytest.param(
        transformer_eps, "tiny-lowvar/base", "up_blocks.2.attentions.1.norm", id="transformer-eps"
    ),
    pytest.param(layer_norm_eps, "tiny-lowvar/base", f"{BLOCK}.norm2", id="layer-norm-eps"),
    pytest.param(half_inputs, "tiny-dense/base", "conv_in", id="half-inputs"),
    pytest.param(
        half_context,
        "tiny-dense/base",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        id="half-context",
    ),
    pytest.param(
        swapped_geglu,
        "tiny/base",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
        id="geglu-halves",
    ),
    pytest.param(sin_cos, "tiny/t0", "time_proj", id="sin-cos"),
    pytest.param(frequency_shift, "tiny/base", "time_proj", id="frequency-shift"),
    pytest.param(skip_order, "tiny/base", "up_blocks.1.resnets.0.input", id="skip-order"),
    pytest.param(tanh_gelu, "tiny/base", f"{BLOCK}.ff.net.0", id="tanh-gelu"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spoil", "case", "probe"), WRONG)
def test_a_wrong_choice_is_named(spoil, case, probe, dtype, run_wrong):
    """The case that hunts it fails, and the first divergence is the wrong layer itself."""
    result = run_wrong(spoil, f"unet/{case}", dtype)

    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe
    assert result.first_divergence["kind"] == "fault"
    assert result.first_divergence["ratio"] >= 8, (
        "twice the limit is what a catalogued bug must reach"
    )


def test_the_earliest_probe_over_all_cases_is_named(run_wrong):
    """Cases that record blocks only do not hide the layer that a fully probed case names."""
    cases = ("unet/tiny/quiet", "unet/tiny-lowvar/base")
    lines = [run_wrong(resnet_eps(NORM), case, "float32").as_json() for case in cases]

    assert earliest(lines)["probe"] == NORM
