"""Wrong choices in both halves of the VAE: each is caught, and named at the layer that is wrong."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

IN, OUT = "encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"
IN_CORE, OUT_CORE = f"{IN}.to_out.0.input", f"{OUT}.to_out.0.input"
IN_NORM, OUT_NORM = "encoder.conv_norm_out", "decoder.up_blocks.2.resnets.0.norm1"
UNSCALED = "post_quant_conv.input"
DOWN = "encoder.down_blocks.{}.downsamplers.0"
UP = "decoder.up_blocks.1.upsamplers.0"
EVERY_SIDE = (1, 1, 1, 1)


def scale(factor):
    """Return another scale of the latents."""

    def spoil(module):
        module.config = replace(module.config, scaling_factor=factor)

    return spoil


def logvar_bounds(lower, upper):
    """Return other bounds of the log-variance."""

    def spoil(module):
        module.config = replace(module.config, logvar_min=lower, logvar_max=upper)

    return spoil


def norm_eps(path):
    """Return GroupNorm eps 1e-5 for 1e-6 in one norm."""

    def spoil(module):
        module.get_submodule(path).eps = 1e-5

    return spoil


def norm_groups(path):
    """Return half as many groups in one norm."""

    def spoil(module):
        module.get_submodule(path).num_groups //= 2

    return spoil


def unbiased_variance(path):
    """Return the variance over n - 1 in one norm."""

    def spoil(module):
        norm = module.get_submodule(path)

        def forward(hidden):
            groups = hidden.unflatten(1, (norm.num_groups, -1)).flatten(2)
            variance, mean = torch.var_mean(groups, dim=-1, keepdim=True, correction=1)
            normed = (groups - mean) * torch.rsqrt(variance + norm.eps)
            shape = (-1, *[1] * (hidden.dim() - 2))
            return normed.reshape(hidden.shape) * norm.weight.view(shape) + norm.bias.view(shape)

        norm.forward = forward

    return spoil


def padded(level, sides):
    """Return other padding before the stride of one level: left, right, top, bottom."""

    def spoil(module):
        layer = module.get_submodule(DOWN.format(level))
        layer.forward = lambda hidden: layer.conv(F.pad(hidden, sides))

    return spoil


def bilinear(module):
    """Bilinear enlargement before one convolution."""
    layer = module.get_submodule(UP)
    layer.forward = lambda hidden: layer.conv(
        F.interpolate(hidden, scale_factor=2.0, mode="bilinear")
    )


def entering(path, change):
    """Return a change of what enters one layer."""

    def spoil(module):
        layer = module.get_submodule(path)
        layer.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))

    return spoil


def half(tensor):
    """Round to half precision."""
    return tensor.half().to(tensor.dtype)


def clamped(tensor):
    """Clamp to -1..1."""
    return tensor.clamp(-1, 1)


def from_0_to_1(tensor):
    """Count colours from 0 to 1."""
    return tensor / 2 + 0.5


def blue_first(tensor):
    """Take the colours in reverse."""
    return tensor.flip(1)


def attention(path, core):
    """Return another attention core, a function of query, key and value (B, N, C)."""

    def spoil(module):
        layer = module.get_submodule(path)

        def forward(hidden):
            tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
            parts = (layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
            tokens = layer.to_out[0](core(*parts))
            return tokens.transpose(1, 2).unflatten(2, hidden.shape[-2:]) + hidden

        layer.forward = forward

    return spoil


def attend(query, key, value, scale=None):
    """Attend with one head."""
    parts = (part.unsqueeze(1) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts, scale=scale).squeeze(1)


def eight_heads(query, key, value):
    """Attend with eight heads, as the UNet does."""
    parts = (part.unflatten(-1, (8, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def no_scale(query, key, value):
    """The scores are not scaled."""
    return attend(query, key, value, scale=1.0)


def query_and_key(query, key, value):
    """Queries and keys exchanged."""
    return attend(key, query, value)


def key_and_value(query, key, value):
    """Keys and values exchanged."""
    return attend(query, value, key)


def softmax_over_queries(query, key, value):
    """The softmax runs along the wrong axis."""
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-2) @ value


def attention_map(path, finish):
    """Return another way back from tokens to the map: `finish(tokens, hidden)`."""

    def spoil(module):
        layer = module.get_submodule(path)

        def forward(hidden):
            tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
            attended = attend(layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
            return finish(layer.to_out[0](attended), hidden)

        layer.forward = forward

    return spoil


def no_residual(tokens, hidden):
    """What was read is not added."""
    return tokens.transpose(1, 2).unflatten(2, hidden.shape[-2:])


def as_if_contiguous(tokens, hidden):
    """Tokens are read as if channels came first already."""
    return tokens.reshape(hidden.shape) + hidden


def sides_exchanged(tokens, hidden):
    """Height and width are exchanged on the way back."""
    height, width = hidden.shape[-2:]
    return tokens.transpose(1, 2).unflatten(2, (width, height)).mT + hidden


def moments(change):
    """Return another reading of the moments: `change(mean, logvar)`."""

    def spoil(module):
        encode = module.encode

        def wrong(image):
            posterior = encode(image)
            mean, logvar = change(posterior.mean, posterior.logvar)
            return replace(posterior, mean=mean, logvar=logvar)

        module.encode = wrong

    return spoil


def sampled(draw):
    """Return other latents, before they are scaled: `draw(mean, logvar, noise)`."""

    def spoil(module):
        module.sample_latents = lambda posterior, noise: (
            module.config.scaling_factor * draw(posterior.mean, posterior.logvar, noise)
        )

    return spoil


def scaled_mean(module):
    """The mean is scaled, the noise is not."""
    factor = module.config.scaling_factor
    module.sample_latents = lambda posterior, noise: replace(
        posterior, mean=posterior.mean * factor
    ).sample(noise)


def image_changed(change):
    """Return another last step of the decoder."""

    def spoil(module):
        decode = module.decode
        module.decode = lambda latents: change(decode(latents))

    return spoil


def no_noise(mean, *_):
    """The mean stands for a sample."""
    return mean


def variance_for_deviation(mean, logvar, noise):
    """The noise is multiplied by the variance."""
    return mean + torch.exp(logvar) * noise


def shared_noise(mean, logvar, noise):
    """Every image gets the noise of the first."""
    return mean + torch.exp(logvar / 2) * noise[:1]


def no_post_quant_conv(module):
    """The decoder is given the latents themselves."""
    module.decode = lambda latents: module.decoder(latents / module.config.scaling_factor)


ENCODER = [
    pytest.param(norm_eps(IN_NORM), "tiny-lowvar/base", IN_NORM, id="eps"),
    pytest.param(
        norm_eps(f"{IN}.group_norm"), "tiny-lowvar/base", f"{IN}.group_norm", id="eps-attention"
    ),
    pytest.param(norm_groups(IN_NORM), "tiny/base", IN_NORM, id="groups"),
    pytest.param(unbiased_variance(IN_NORM), "tiny/base", IN_NORM, id="unbiased-variance"),
    pytest.param(padded(0, EVERY_SIDE), "tiny/base", DOWN.format(0) + ".conv", id="symmetric-pad"),
    pytest.param(
        padded(2, EVERY_SIDE), "tiny/base", DOWN.format(2) + ".conv", id="symmetric-pad-last"
    ),
    pytest.param(padded(0, EVERY_SIDE), "tiny/border", DOWN.format(0), id="symmetric-pad-border"),
    pytest.param(padded(1, (1, 0, 1, 0)), "tiny/base", DOWN.format(1) + ".conv", id="pad-left-top"),
    pytest.param(entering("encoder", clamped), "tiny/loud", "encoder.conv_in", id="image-clamped"),
    pytest.param(
        entering("encoder", from_0_to_1), "tiny/base", "encoder.conv_in", id="image-from-0"
    ),
    pytest.param(entering("encoder", blue_first), "tiny/base", "encoder.conv_in", id="image-bgr"),
    pytest.param(entering("encoder", half), "tiny-dense/base", "encoder.conv_in", id="half-image"),
    pytest.param(attention(IN, eight_heads), "tiny/base", IN_CORE, id="heads"),
    pytest.param(attention(IN, no_scale), "tiny-sharp/base", IN_CORE, id="no-scale"),
    pytest.param(attention(IN, query_and_key), "tiny-sharp/base", IN_CORE, id="query-and-key"),
    pytest.param(attention_map(IN, no_residual), "tiny/base", IN, id="no-residual"),
    pytest.param(attention_map(IN, sides_exchanged), "tiny/nonsquare", IN, id="sides-exchanged"),
    pytest.param(
        moments(lambda mean, logvar: (logvar, mean)), "tiny/base", "mean", id="mean-and-logvar"
    ),
    pytest.param(
        logvar_bounds(-torch.inf, torch.inf), "tiny-outlier/base", "logvar", id="no-clamp"
    ),
    pytest.param(logvar_bounds(-20.0, 30.0), "tiny-outlier/base", "logvar", id="bounds-exchanged"),
    pytest.param(scale(1.0), "tiny/base", "latents", id="not-scaled"),
    pytest.param(scale(0.13025), "tiny/base", "latents", id="scaled-as-in-xl"),
    pytest.param(scale(1 / 0.18215), "tiny/base", "latents", id="divided"),
    pytest.param(scaled_mean, "tiny/base", "latents", id="mean-alone-scaled"),
    pytest.param(sampled(no_noise), "tiny/base", "latents", id="mean-for-sample"),
    pytest.param(
        sampled(variance_for_deviation), "tiny/base", "latents", id="variance-for-deviation"
    ),
    pytest.param(sampled(shared_noise), "tiny/batch3", "latents", id="noise-shared"),
]

DECODER = [
    pytest.param(scale(1.0), "tiny/base", UNSCALED, id="not-unscaled"),
    pytest.param(scale(0.13025), "tiny/base", UNSCALED, id="unscaled-as-in-xl"),
    pytest.param(scale(1 / 0.18215), "tiny/base", UNSCALED, id="multiplied"),
    pytest.param(entering("post_quant_conv", half), "tiny-dense/base", UNSCALED, id="half-latents"),
    pytest.param(no_post_quant_conv, "tiny/base", "decoder.conv_in", id="no-post-quant-conv"),
    pytest.param(norm_eps(OUT_NORM), "tiny-lowvar/base", OUT_NORM, id="eps"),
    pytest.param(
        norm_eps(f"{OUT}.group_norm"), "tiny-lowvar/base", f"{OUT}.group_norm", id="eps-attention"
    ),
    pytest.param(unbiased_variance(OUT_NORM), "tiny/base", OUT_NORM, id="unbiased-variance"),
    pytest.param(attention(OUT, eight_heads), "tiny/base", OUT_CORE, id="heads"),
    pytest.param(attention(OUT, no_scale), "tiny-sharp/base", OUT_CORE, id="no-scale"),
    pytest.param(attention(OUT, key_and_value), "tiny/base", OUT_CORE, id="key-and-value"),
    pytest.param(attention(OUT, softmax_over_queries), "tiny/base", OUT_CORE, id="softmax-axis"),
    pytest.param(attention_map(OUT, as_if_contiguous), "tiny/base", OUT, id="not-transposed"),
    pytest.param(attention_map(OUT, sides_exchanged), "tiny/nonsquare", OUT, id="sides-exchanged"),
    pytest.param(bilinear, "tiny/base", UP + ".conv", id="bilinear"),
    pytest.param(image_changed(clamped), "tiny/loud", "image", id="image-clamped"),
    pytest.param(image_changed(from_0_to_1), "tiny/base", "image", id="image-from-0"),
    pytest.param(image_changed(blue_first), "tiny/base", "image", id="image-bgr"),
]


def assert_named(result, probe):
    """Assert that the first divergence is the wrong layer itself."""
    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe
    assert result.first_divergence["kind"] == "fault"
    assert result.first_divergence["ratio"] >= 8, (
        "twice the limit is what a catalogued bug must reach"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spoil", "case", "probe"), ENCODER)
def test_a_wrong_choice_in_the_encoder_is_named(spoil, case, probe, dtype, run_wrong):
    """The case that hunts it fails at the wrong layer."""
    assert_named(run_wrong(spoil, f"vae_encoder/{case}", dtype), probe)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spoil", "case", "probe"), DECODER)
def test_a_wrong_choice_in_the_decoder_is_named(spoil, case, probe, dtype, run_wrong):
    """The case that hunts it fails at the wrong layer."""
    assert_named(run_wrong(spoil, f"vae_decoder/{case}", dtype), probe)
