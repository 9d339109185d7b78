"""The autoencoder against diffusers' AutoencoderKL: keys, numbers; scale, posterior, manners.

Small widths, random weights.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd1_impl import SD_V1_VAE, AutoencoderKL, DiagonalGaussian, VAEConfig
from sd1_impl.vae import Downsample

TINY = replace(SD_V1_VAE, block_out_channels=(16, 32, 48, 64), norm_num_groups=8)
ODD = replace(SD_V1_VAE, block_out_channels=(96, 160, 224, 320), layers_per_block=1)
ROUNDING = 64 * torch.finfo(torch.float64).eps
EXAMPLES = settings(max_examples=8, deadline=None)


def reference(config: VAEConfig):
    """Return diffusers' autoencoder of this shape."""
    levels = len(config.block_out_channels)
    return (
        pytest.importorskip("diffusers")
        .AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            latent_channels=config.latent_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            scaling_factor=config.scaling_factor,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
        .eval()
    )


def image(
    *size: int, batch: int = 2, dtype: torch.dtype = torch.float64, channels: int = 3
) -> Tensor:
    """Return random images in [-1, 1], or with 4 channels something like latents."""
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(batch, channels, *size, dtype=dtype, generator=generator) - 1


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance."""
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def vae(randomise) -> AutoencoderKL:
    """A small autoencoder in float64."""
    return randomise(AutoencoderKL(TINY).double())


@pytest.fixture(scope="module", params=[TINY, ODD], ids=["tiny", "odd"])
def double(request, randomise) -> tuple:
    """Our autoencoder and diffusers' in float64 with the same random weights, loaded strictly."""
    theirs = randomise(reference(request.param).double())
    ours = AutoencoderKL(request.param).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("config", [SD_V1_VAE, ODD], ids=["sd1", "odd"])
def test_keys_and_shapes_are_the_checkpoints(config: VAEConfig):
    """A diffusers state dict needs no rename table, down to the order of its keys."""
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(config), reference(config)
    shapes = [(key, value.shape) for key, value in ours.state_dict().items()]
    assert shapes == [(key, value.shape) for key, value in theirs.state_dict().items()]


def test_the_full_size_has_the_published_number_of_parameters():
    """SD v1's autoencoder: 83,653,863 parameters and no buffer."""
    with torch.device("meta"):
        model = AutoencoderKL(SD_V1_VAE)
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863
    assert not list(model.buffers())


@pytest.mark.parametrize("size", [(32, 48), (52, 44), (8, 8)], ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_float64_posterior_is_diffusers(double: tuple, size: tuple[int, int]):
    """Any image size of at least 8 by 8 gives diffusers' mean and log-variance, to rounding."""
    ours, theirs = double
    got, wanted = ours.encode(image(*size, batch=3)), theirs.encode(image(*size, batch=3))
    assert relative_error(got.mean, wanted.latent_dist.mean) < ROUNDING
    assert relative_error(got.logvar, wanted.latent_dist.logvar) < ROUNDING


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids="{0[0]}x{0[1]}".format)
@torch.no_grad()
def test_float64_decoding_is_diffusers(double: tuple, size: tuple[int, int]):
    """Any latent size gives the image of diffusers, whose caller divides by the scale."""
    ours, theirs = double
    latents = image(*size, batch=3, channels=4)
    wanted = theirs.decode(latents / theirs.config.scaling_factor).sample
    assert relative_error(ours.decode(latents), wanted) < ROUNDING


@torch.no_grad()
def test_every_module_reads_and_returns_what_diffusers_does(double: tuple, calls):
    """Same modules, called once each in the same order, on the same tensors, to rounding."""
    ours, theirs = double
    latents = image(3, 4, channels=4)
    with calls(ours) as got, calls(theirs) as wanted:
        ours.encode(image(24, 36))
        ours.decode(latents)
        theirs.encode(image(24, 36))
        theirs.decode(latents / 0.18215)
    paths = [path for path, _, _ in got]
    assert len(paths) == len(set(paths))
    assert paths == [path for path, _, _ in wanted]
    for (path, *ours_seen), (_, *theirs_seen) in zip(got, wanted, strict=True):
        for a, b in zip(ours_seen, theirs_seen, strict=True):
            assert a.shape == b.shape, path
            assert relative_error(a, b) < ROUNDING, path


@torch.no_grad()
def test_each_constant_is_diffusers_and_reaches_the_output(randomise):
    """At activations of tiny variance float64 still agrees, and no eps can change unnoticed."""
    theirs = randomise(reference(TINY).double())
    for name, parameter in theirs.named_parameters():
        if "norm" not in name:
            parameter.mul_(1 / 16)
    ours = AutoencoderKL(TINY).double()
    ours.load_state_dict(theirs.state_dict())
    wrong = AutoencoderKL(replace(TINY, norm_eps=1e-5)).double()
    wrong.load_state_dict(theirs.state_dict())
    latents = image(4, 4, channels=4)
    wanted = theirs.encode(image(32, 32)).latent_dist.mean
    assert relative_error(ours.encode(image(32, 32)).mean, wanted) < ROUNDING
    assert relative_error(wrong.encode(image(32, 32)).mean, wanted) > 1e-6
    wanted = theirs.decode(latents / 0.18215).sample
    assert relative_error(ours.decode(latents), wanted) < ROUNDING
    assert relative_error(wrong.decode(latents), wanted) > 1e-6


@pytest.fixture(scope="module")
def shapes() -> AutoencoderKL:
    """An autoencoder that computes shapes only."""
    with torch.device("meta"):
        return AutoencoderKL(TINY)


@EXAMPLES
@given(height=st.integers(8, 700), width=st.integers(8, 700))
@torch.no_grad()
def test_sizes_are_rounded_down(shapes, height: int, width: int):
    """An image has H // 8 by W // 8 latents, and latents have an image 8 times their size."""
    mean = shapes.encode(torch.zeros(1, 3, height, width, device="meta")).mean
    assert mean.shape == (1, 4, height // 8, width // 8)
    assert shapes.decode(mean).shape == (1, 3, height // 8 * 8, width // 8 * 8)


@EXAMPLES
@given(
    height=st.integers(2, 9), width=st.integers(2, 9), row=st.integers(0, 2), col=st.integers(0, 2)
)
@torch.no_grad()
def test_downsampling_pads_below_and_right_only(height: int, width: int, row: int, col: int):
    """Output pixel (i, j) reads the inputs 2 i to 2 i + 2 and 2 j to 2 j + 2, zero beyond."""
    layer, hidden = Downsample(1).double(), image(height, width, channels=1)
    layer.conv.weight.zero_()[..., row, col] = 1
    layer.conv.bias.zero_()
    wanted = F.pad(hidden, (0, 1, 0, 1))[..., row::2, col::2]
    assert torch.equal(layer(hidden), wanted[..., : height // 2, : width // 2])


@EXAMPLES
@given(down=st.integers(0, 5), right=st.integers(0, 5))
@torch.no_grad()
def test_moving_a_picture_by_whole_latents_moves_the_latents(randomise, down: int, right: int):
    """A spot on an even ground, far from the edges, takes its latents along.

    Norms and attention see the whole image, but not where in it something is. Two levels, so that
    "far" is near: a latent is 2 pixels wide, and sees 20 pixels around.
    """
    small = replace(TINY, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1)
    with torch.random.fork_rng():  # the same weights, whatever ran before it
        torch.manual_seed(2)
        model = randomise(AutoencoderKL(small).double())
    step, reach = small.downsampling_factor, 20
    spot, room = image(4, 4, batch=1), 2 * reach
    pictures = torch.full((2, 3, 2 * room + 14, 2 * room + 14), 0.25, dtype=torch.float64)
    y, x = room + step * down, room + step * right
    pictures[0, :, room : room + 4, room : room + 4] = spot[0]
    pictures[1, :, y : y + 4, x : x + 4] = spot[0]
    still, moved = model.encode(pictures).mean
    window, size = reach // step, (2 * reach + 4) // step
    a = still[:, window : window + size, window : window + size]
    b = moved[:, window + down :, window + right :][:, :size, :size]
    assert relative_error(b, a) < ROUNDING


@torch.no_grad()
def test_images_of_a_batch_do_not_meet(vae):
    """An image alone is encoded, and decoded, as in a batch."""
    pictures, latents = image(24, 16, batch=3), image(3, 2, batch=3, channels=4)
    posterior, decoded = vae.encode(pictures), vae.decode(latents)
    for i in range(3):
        one = slice(i, i + 1)
        assert relative_error(vae.encode(pictures[one]).mean, posterior.mean[one]) < ROUNDING
        assert relative_error(vae.decode(latents[one]), decoded[one]) < ROUNDING


@torch.no_grad()
def test_log_variance_is_clamped(randomise):
    """It stays in [-30, 20], bounds included, and the mean is not touched."""
    model = randomise(AutoencoderKL(TINY).double())
    before = model.encode(image(16, 16))
    model.quant_conv.bias[4:] += torch.tensor([-1e3, 1e3, 0, 0])
    after = model.encode(image(16, 16))
    assert torch.equal(after.mean, before.mean)
    assert torch.all(after.logvar[:, 0] == -30)
    assert torch.all(after.logvar[:, 1] == 20)
    assert torch.equal(after.logvar[:, 2:], before.logvar[:, 2:])


@EXAMPLES
@given(
    mean=st.floats(-50, 50),
    logvar=st.floats(-30, 20),
    noise=st.floats(-6, 6),
)
def test_samples_are_noise_times_deviation_around_the_mean(
    mean: float, logvar: float, noise: float
):
    """No noise gives the mean; a noise of one gives the deviation, whose square is the variance."""
    mean_, logvar_, noise_ = torch.tensor([[mean], [logvar], [noise]], dtype=torch.float64)
    posterior = DiagonalGaussian(mean_, logvar_)
    assert torch.equal(posterior.sample(torch.zeros_like(mean_)), mean_)
    centred = DiagonalGaussian(torch.zeros_like(mean_), logvar_)
    deviation = centred.sample(torch.ones_like(mean_))
    assert torch.allclose(deviation.square(), logvar_.exp(), rtol=1e-14)
    assert torch.equal(posterior.sample(noise_), mean_ + deviation * noise_)


@torch.no_grad()
def test_latents_are_scaled_on_the_way_out_and_back(vae, calls):
    """`sample_latents` multiplies by 0.18215; `post_quant_conv` reads latents without it."""
    posterior = vae.encode(image(16, 16))
    noise = image(2, 2, channels=4)
    latents = vae.sample_latents(posterior, noise)
    assert torch.equal(latents, posterior.sample(noise) * 0.18215)
    with calls(vae) as record:
        vae.decode(latents)
    path, unscaled, _ = record[0]
    assert path == "post_quant_conv"
    assert relative_error(unscaled, posterior.sample(noise)) < ROUNDING


@torch.no_grad()
def test_either_half_works_alone(vae):
    """The encoder needs nothing of the decoder, nor the decoder of the encoder."""
    with torch.device("meta"):
        encoder, decoder = AutoencoderKL(TINY), AutoencoderKL(TINY)
    del encoder.decoder, encoder.post_quant_conv, decoder.encoder, decoder.quant_conv
    for half in (encoder, decoder):
        half.load_state_dict({k: vae.state_dict()[k] for k in half.state_dict()}, assign=True)
    latents = image(2, 2, channels=4)
    assert torch.equal(encoder.encode(image(16, 16)).mean, vae.encode(image(16, 16)).mean)
    assert torch.equal(decoder.decode(latents), vae.decode(latents))


@torch.no_grad()
def test_channels_last_stays_channels_last(randomise, calls):
    """The memory format of weights and input is every map's, and changes nothing but rounding."""
    model = randomise(AutoencoderKL(TINY))
    pictures = image(24, 32, dtype=torch.float32)
    latents = image(3, 4, dtype=torch.float32, channels=4)
    mean, decoded = model.encode(pictures).mean, model.decode(latents)
    model.to(memory_format=torch.channels_last)
    with calls(model) as record:
        got = model.encode(pictures.to(memory_format=torch.channels_last)).mean
        got_decoded = model.decode(latents.to(memory_format=torch.channels_last))
    for path, _, out in record:
        assert out.ndim < 4 or out.is_contiguous(memory_format=torch.channels_last), path
    assert relative_error(got, mean) < 1e-5
    assert relative_error(got_decoded, decoded) < 1e-5


def test_inputs_are_left_alone_and_gradients_reach_every_parameter(randomise):
    """Neither forward nor backward edits the caller's tensors; no parameter is dead."""
    ours = randomise(AutoencoderKL(TINY).double())
    pictures, noise = image(16, 24), image(2, 3, channels=4)
    latents = ours.sample_latents(ours.encode(pictures), noise)
    ours.decode(latents).square().mean().backward()
    assert torch.equal(pictures, image(16, 24))
    assert torch.equal(noise, image(2, 3, channels=4))
    # A bias of the keys adds the same to all scores of a query, which softmax does not see.
    grads = [p.grad for name, p in ours.named_parameters() if not name.endswith("to_k.bias")]
    assert all(grad is not None and grad.any() for grad in grads)


BAD_INPUTS = {
    "image": ("encode", (2, 4, 16, 16), r"image .*\(2, 4, 16, 16\), expected \(B, 3, H, W\)"),
    "no-batch": ("encode", (3, 16, 16), r"image has shape \(3, 16, 16\)"),
    "small": ("encode", (2, 3, 16, 7), r"image has shape \(2, 3, 16, 7\).* at least 8"),
    "latents": ("decode", (2, 8, 2, 2), r"latents .*\(2, 8, 2, 2\), expected \(B, 4, H, W\)"),
    "empty": ("decode", (0, 4, 2, 2), r"latents has shape \(0, 4, 2, 2\)"),
}


@pytest.mark.parametrize(("method", "shape", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_a_wrong_shape_is_named(method: str, shape: tuple, message: str):
    """An input that does not fit is refused with its shape and the one expected."""
    with torch.device("meta"):
        model, tensor = AutoencoderKL(TINY), torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(tensor)


def test_noise_of_another_shape_is_refused():
    """Noise is never broadcast: one draw for a batch would be the same picture's twice."""
    posterior = DiagonalGaussian(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"\(1, 4, 3, 3\), expected \(2, 4, 3, 3\)"):
        posterior.sample(torch.zeros(1, 4, 3, 3))


BAD_CONFIGS = {
    "groups": ({"norm_num_groups": 24}, "width 128 is not divisible by 24"),
    "levels": ({"block_out_channels": ()}, "block_out_channels is empty"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_wrong_config_is_refused(change: dict, message: str):
    """A config that cannot be an autoencoder says why."""
    with pytest.raises(ValueError, match=message):
        replace(SD_V1_VAE, **change)
