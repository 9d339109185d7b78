"""Wrong choices in both halves of the VAE: each is caught, and named at the layer that is wrong."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

ATTENTION = "mid_block.attentions.0"
CORE = f"{ATTENTION}.to_out.0.input"


def constants(**wrong):
    """Return other constants: scale of the latents, bounds of the log-variance."""

    def spoil(module):
        module.config = replace(module.config, **wrong)

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


def padded(level, *sides):
    """Return other padding before the stride of one level: left, right, top, bottom."""

    def spoil(module):
        layer = module.get_submodule(f"encoder.down_blocks.{level}.downsamplers.0")
        layer.forward = lambda hidden: layer.conv(F.pad(hidden, sides))

    return spoil


def resized(path, **how):
    """Return another enlargement before one convolution."""

    def spoil(module):
        layer = module.get_submodule(path)
        layer.forward = lambda hidden: layer.conv(F.interpolate(hidden, scale_factor=2.0, **how))

    return spoil


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


def attention(half_of_vae, core):
    """Return another attention core, a function of query, key and value (B, N, C)."""

    def spoil(module):
        layer = module.get_submodule(f"{half_of_vae}.{ATTENTION}")

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


def attention_map(half_of_vae, finish):
    """Return another way back from tokens to the map: `finish(tokens, hidden)`."""

    def spoil(module):
        layer = module.get_submodule(f"{half_of_vae}.{ATTENTION}")

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
        module.sample_latents = lambda posterior, noise: module.config.scaling_factor * draw(
            posterior.mean, posterior.logvar, noise
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


def multiplied(module):
    """Latents are multiplied by 0.18215 before they are decoded."""
    constants(scaling_factor=1 / module.config.scaling_factor)(module)


def no_post_quant_conv(module):
    """The decoder is given the latents themselves."""
    module.decode = lambda latents: module.decoder(latents / module.config.scaling_factor)


E = "vae_encoder/"
D = "vae_decoder/"
E_NORM = "encoder.down_blocks.2.resnets.1.norm2"
D_NORM = "decoder.up_blocks.2.resnets.1.norm2"
E_DOWN = "encoder.down_blocks.{}.downsamplers.0"
D_UP = "decoder.up_blocks.1.upsamplers.0"

WRONG = [
    pytest.param(norm_eps(E_NORM), E + "tiny-lowvar/base", E_NORM, id="encoder-eps"),
    pytest.param(
        norm_eps(f"encoder.{ATTENTION}.group_norm"),
        E + "tiny-lowvar/base",
        f"encoder.{ATTENTION}.group_norm",
        id="encoder-eps-attention",
    ),
    pytest.param(norm_eps(D_NORM), D + "tiny-lowvar/base", D_NORM, id="decoder-eps"),
    pytest.param(
        norm_eps("decoder.conv_norm_out"),
        D + "tiny-lowvar/base",
        "decoder.conv_norm_out",
        id="decoder-eps-last",
    ),
    pytest.param(norm_groups(E_NORM), E + "tiny/base", E_NORM, id="encoder-groups"),
    pytest.param(unbiased_variance(E_NORM), E + "tiny/base", E_NORM, id="encoder-unbiased"),
    pytest.param(unbiased_variance(D_NORM), D + "tiny/base", D_NORM, id="decoder-unbiased"),
    pytest.param(
        padded(0, 1, 1, 1, 1), E + "tiny/base", E_DOWN.format(0) + ".conv", id="symmetric-pad"
    ),
    pytest.param(
        padded(2, 1, 1, 1, 1), E + "tiny/base", E_DOWN.format(2) + ".conv", id="symmetric-pad-last"
    ),
    pytest.param(
        padded(0, 1, 1, 1, 1), E + "tiny/border", E_DOWN.format(0), id="symmetric-pad-border"
    ),
    pytest.param(
        padded(1, 1, 0, 1, 0), E + "tiny/base", E_DOWN.format(1) + ".conv", id="pad-left-and-top"
    ),
    pytest.param(
        entering("encoder", clamped), E + "tiny/loud", "encoder.conv_in", id="image-clamped-before"
    ),
    pytest.param(
        entering("encoder", lambda image: image / 2 + 0.5),
        E + "tiny/base",
        "encoder.conv_in",
        id="image-from-0-to-1",
    ),
    pytest.param(
        entering("encoder", half), E + "tiny-dense/base", "encoder.conv_in", id="half-image"
    ),
    pytest.param(
        attention("encoder", eight_heads), E + "tiny/base", f"encoder.{CORE}", id="encoder-heads"
    ),
    pytest.param(
        attention("encoder", query_and_key),
        E + "tiny-sharp/base",
        f"encoder.{CORE}",
        id="encoder-query-and-key",
    ),
    pytest.param(
        attention("encoder", no_scale), E + "tiny-sharp/base", f"encoder.{CORE}", id="encoder-scale"
    ),
    pytest.param(
        attention_map("encoder", no_residual),
        E + "tiny/base",
        f"encoder.{ATTENTION}",
        id="encoder-no-residual",
    ),
    pytest.param(
        attention_map("encoder", sides_exchanged),
        E + "tiny/nonsquare",
        f"encoder.{ATTENTION}",
        id="encoder-sides-exchanged",
    ),
    pytest.param(
        moments(lambda mean, logvar: (logvar, mean)), E + "tiny/base", "mean", id="mean-and-logvar"
    ),
    pytest.param(
        constants(logvar_min=-torch.inf, logvar_max=torch.inf),
        E + "tiny-outlier/base",
        "logvar",
        id="logvar-not-clamped",
    ),
    pytest.param(
        constants(logvar_min=-20.0, logvar_max=30.0),
        E + "tiny-outlier/base",
        "logvar",
        id="logvar-bounds-exchanged",
    ),
    pytest.param(
        constants(scaling_factor=1.0), E + "tiny/base", "latents", id="latents-not-scaled"
    ),
    pytest.param(
        constants(scaling_factor=0.13025), E + "tiny/base", "latents", id="latents-scaled-as-in-xl"
    ),
    pytest.param(
        constants(scaling_factor=1 / 0.18215), E + "tiny/base", "latents", id="latents-divided"
    ),
    pytest.param(scaled_mean, E + "tiny/base", "latents", id="mean-alone-scaled"),
    pytest.param(
        sampled(lambda mean, _, __: mean), E + "tiny/base", "latents", id="mean-for-sample"
    ),
    pytest.param(
        sampled(lambda mean, logvar, noise: mean + torch.exp(logvar) * noise),
        E + "tiny/base",
        "latents",
        id="variance-for-deviation",
    ),
    pytest.param(
        sampled(lambda mean, logvar, noise: mean + torch.exp(logvar / 2) * noise[:1]),
        E + "tiny/batch3",
        "latents",
        id="noise-shared",
    ),
    pytest.param(
        constants(scaling_factor=1.0), D + "tiny/base", "post_quant_conv.input", id="not-unscaled"
    ),
    pytest.param(
        constants(scaling_factor=0.13025),
        D + "tiny/base",
        "post_quant_conv.input",
        id="unscaled-as-in-xl",
    ),
    pytest.param(multiplied, D + "tiny/base", "post_quant_conv.input", id="multiplied"),
    pytest.param(
        entering("post_quant_conv", half),
        D + "tiny-dense/base",
        "post_quant_conv.input",
        id="half-latents",
    ),
    pytest.param(
        no_post_quant_conv, D + "tiny/base", "decoder.conv_in", id="no-post-quant-conv"
    ),
    pytest.param(
        attention("decoder", eight_heads), D + "tiny/base", f"decoder.{CORE}", id="decoder-heads"
    ),
    pytest.param(
        attention("decoder", no_scale), D + "tiny-sharp/base", f"decoder.{CORE}", id="decoder-scale"
    ),
    pytest.param(
        attention("decoder", key_and_value),
        D + "tiny/base",
        f"decoder.{CORE}",
        id="decoder-key-and-value",
    ),
    pytest.param(
        attention("decoder", softmax_over_queries),
        D + "tiny/base",
        f"decoder.{CORE}",
        id="decoder-softmax-axis",
    ),
    pytest.param(
        attention_map("decoder", as_if_contiguous),
        D + "tiny/base",
        f"decoder.{ATTENTION}",
        id="decoder-not-transposed",
    ),
    pytest.param(
        attention_map("decoder", sides_exchanged),
        D + "tiny/nonsquare",
        f"decoder.{ATTENTION}",
        id="decoder-sides-exchanged",
    ),
    pytest.param(
        resized(D_UP, mode="bilinear"), D + "tiny/base", D_UP + ".conv", id="bilinear"
    ),
    pytest.param(
        resized(D_UP, mode="bicubic"), D + "tiny/base", D_UP + ".conv", id="bicubic"
    ),
    pytest.param(image_changed(clamped), D + "tiny/loud", "image", id="image-clamped"),
    pytest.param(
        image_changed(lambda image: image / 2 + 0.5), D + "tiny/base", "image", id="image-0-to-1"
    ),
    pytest.param(
        image_changed(lambda image: image.flip(1)), D + "tiny/base", "image", id="image-bgr"
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spoil", "case", "probe"), WRONG)
def test_a_wrong_choice_is_named(spoil, case, probe, dtype, run_wrong):
    """The case that hunts it fails, and the first divergence is the wrong layer itself."""
    result = run_wrong(spoil, case, dtype)

    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe
    assert result.first_divergence["kind"] == "fault"
    assert result.first_divergence["ratio"] >= 8, (
        "twice the limit is what a catalogued bug must reach"
    )


def test_a_map_of_another_size_is_named(run_wrong):
    """Symmetric padding of odd sides gives a map that is one too large: no ratio, a wrong shape."""
    result = run_wrong(padded(2, 1, 1, 1, 1), "vae_encoder/tiny/oddsize", "float32")

    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == E_DOWN.format(2)
    assert result.first_divergence["kind"] == "fault"
    assert "shape (2, 128, 7, 6), expected (2, 128, 6, 5)" in result.message
