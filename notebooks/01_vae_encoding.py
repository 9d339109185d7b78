# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. From pixels to latents, and back
#
# Stable Diffusion never denoises pixels. An autoencoder turns a picture of $H \times W$ pixels into
# *latents* of $\frac H8 \times \frac W8$ positions with four numbers each; all diffusion happens
# there, and at the end the decoder paints the picture. This notebook follows one picture through
# both halves, layer by layer.
#
# Source of the design: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
# Models" (LDM), 2022, section 3.1 and appendix G. The code is `sd1_impl/vae.py`: open it beside
# this page.
#
# **How every cell is checked.** The truth $x^*$ is what diffusers computes in float64 from the same
# weights. Float32 cannot hit it: so diffusers itself is also run in float32 in several lawful ways
# (other orders of summation, other kernels), and the worst of their errors is the *noise*. A tensor
# $x$ of ours is judged by
#
# $$\text{ratio} = \frac{\lVert x - x^* \rVert \,/\, \lVert x^* \rVert}{\text{noise}}$$
#
# A ratio of 1 is as good as diffusers' worst float32. A wrong formula has a ratio of hundreds or
# millions. One limit, 4, holds everywhere (`docs/tolerance.md` says why).
#
# `WEIGHTS` chooses what is traced: `toy` is a trained miniature that draws shapes, `tiny` has
# random weights, and a path leads to your own files of Stable Diffusion v1, with pictures of 512
# pixels (then the oracle takes minutes and up to 16 GB of memory).

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from tracing import load, peak, show, watching, watching_attention

from conformance.tolerance import LIMIT
from sd1_impl import AutoencoderKL
from sd1_impl.resnet import Downsample
from sd1_impl.toy.captions import Caption
from sd1_impl.toy.drawing import draw

WEIGHTS = os.environ.get("SD1_NOTEBOOK_WEIGHTS", "toy")
SEED = 0

pipe, oracle, pixels = load(WEIGHTS)
vae = pipe.vae
size = pixels // vae.config.downsampling_factor  # of the latents

widths = vae.config.block_out_channels
print(f"{sum(p.numel() for p in vae.parameters()):,} parameters, widths {widths}")
assert vae.config.downsampling_factor == 2 ** (len(widths) - 1) == 8

# %% [markdown]
# ## 1.1 The picture
#
# The networks want numbers around 0. A byte $b$ becomes
#
# $$x = 2 \cdot \tfrac{b}{255} - 1 \in [-1, 1]$$
#
# (LDM's code, `scripts/img2img.py`, `load_img`), in the order batch, channel, height, width: one
# row of the first channel lies together in memory, and red is apart from green.

# %%
caption = Caption("red", "circle", "large", "at the top left")
image = F.interpolate(draw([caption]), size=(pixels, pixels))  # (1, 3, H, W)

assert image.shape == (1, vae.config.in_channels, pixels, pixels)
assert image.abs().max() <= 1
assert torch.equal(pipe.to_image(image), VaeImageProcessor().postprocess(image, output_type="pt"))

print(f"{caption.text!r}: {image.numel():,} numbers, {image.nbytes / 1024:.0f} KiB")
red, green, blue = image[0]
show({"picture": image[0], "red": red, "green": green, "blue": blue}, label="$x$")

# %% [markdown]
# ## 1.2 The oracle is asked
#
# One question for the whole way down. The answer holds, for every module that is named here, the
# float64 tensor and the noise. Unit roundoff of float32 is $2^{-24} \approx 6 \cdot 10^{-8}$, and
# no layer can do much better than that: a noise of a few $10^{-7}$ is a sum of thousands of
# roundings, most of which cancel.
#
# The posterior will want standard normal numbers: noise is data in this project. A seed fixes it,
# and both sides are given the same tensor.

# %%
generator = torch.Generator().manual_seed(SEED)
epsilon = torch.randn(1, vae.config.latent_channels, size, size, generator=generator)

down_blocks = [f"encoder.down_blocks.{level}" for level in range(len(widths))]
attention = "encoder.mid_block.attentions.0"
modules = [
    "encoder.conv_in",
    "encoder.down_blocks.0.downsamplers.0",
    *down_blocks,
    f"{attention}.to_out.0.input",
    "encoder.mid_block",
    "encoder",
    "quant_conv",
]
told = oracle.ask("vae_encoder", {"image": image, "noise": epsilon}, modules)

assert set(told.truth) == {*modules, "mean", "logvar", "latents"}
assert all(tensor.dtype is torch.float64 for tensor in told.truth.values())
assert all(2**-27 < noise < 2**-14 for noise in told.noise.values())
for name, noise in told.noise.items():
    print(f"{name:<45} {tuple(told.truth[name].shape)!s:<20} noise {noise:.1e}")

# %% [markdown]
# ## 1.3 The first convolution
#
# $$y_{c} = b_c + \sum_{c'=1}^{3} W_{c,c'} * x_{c'} \qquad (3 \times 3,\ \text{padded by } 1)$$
#
# It sees three pixels in each direction of colour and space, and decides nothing: it only offers
# the levels below more channels to work with than there are colours. The picture needs *more*
# memory now, not less.

# %%
hidden = vae.encoder.conv_in(image)

assert hidden.shape == (1, widths[0], pixels, pixels)
assert hidden.nbytes == image.nbytes * widths[0] // 3
assert told.ratio("encoder.conv_in", hidden) <= LIMIT

show({f"channel {c}": hidden[0, c] for c in range(6)}, label="activation")

# %% [markdown]
# ## 1.4 Half the size, with the padding on two sides only
#
# A level ends with a $3 \times 3$ convolution of stride 2. The UNet pads one pixel on every side;
# the autoencoder pads **at the right and at the bottom only** (`Downsample` of
# `ldm/modules/diffusionmodules/model.py`):
#
# $$y_{i,j} = \sum_{k,l=0}^{2} W_{k,l}\; x_{2i+k,\; 2j+l}
# \quad\text{instead of}\quad \sum_{k,l=0}^{2} W_{k,l}\; x_{2i+k-1,\; 2j+l-1}$$
#
# Shapes agree either way, and so do pictures at a glance: everything is moved by a pixel. Ports
# have shipped with this. Below, the UNet's class is given the autoencoder's weights.

# %%
level = vae.encoder.down_blocks[0]
with watching(level, ["downsamplers.0", "downsamplers.0.input"]) as seen:
    level(hidden)
right = seen["downsamplers.0"]

every_side = Downsample(widths[0])
every_side.load_state_dict(level.downsamplers[0].state_dict())
with torch.no_grad():
    wrong = every_side(seen["downsamplers.0.input"])

assert wrong.shape == right.shape
assert told.ratio("encoder.down_blocks.0.downsamplers.0", right) <= LIMIT
assert told.ratio("encoder.down_blocks.0.downsamplers.0", wrong) > 1000 * LIMIT

show(
    {
        "right and bottom": right[0].mean(0),
        "every side": wrong[0].mean(0),
        "difference": (wrong - right)[0].mean(0),
    },
    label="mean over channels",
)

# %% [markdown]
# ## 1.5 The way down
#
# Each level is two residual blocks, $h \leftarrow h + F(h)$ (He et al., "Deep Residual Learning",
# 2015, equation 1), and then half the size, but for the last. Inside $F$, twice: GroupNorm, SiLU,
# convolution.
#
# Watch the bytes. Each level has a quarter of the pixels and about twice the channels of the one
# above: it is the *first* that costs memory and time, not the widest. And see the frame around
# every map: convolutions are padded with zeros, which no picture contains, so the network knows
# where the edge is.

# %%
coarse = {}
for level, block in enumerate(vae.encoder.down_blocks):
    hidden = block(hidden)
    coarse[f"level {level}: {hidden.shape[2]} x {hidden.shape[3]}"] = hidden[0].square().mean(0)
    print(f"{tuple(hidden.shape)!s:<20} {hidden.nbytes / 1024:8,.0f} KiB")
    assert hidden.shape[1] == widths[level]
    assert told.ratio(down_blocks[level], hidden) <= LIMIT
assert hidden.shape[-2:] == (size, size)

show({name: (energy / energy.max()) for name, energy in coarse.items()}, label="energy / largest")

# %% [markdown]
# ## 1.6 Why $\epsilon$ matters
#
# GroupNorm (Wu and He, 2018, equations 1, 2 and 7) divides each group $G$ of channels by its own
# deviation:
#
# $$\hat x = \frac{x - \mu_G}{\sqrt{\sigma_G^2 + \epsilon}}$$
#
# In the autoencoder $\epsilon = 10^{-6}$; PyTorch's default, and the UNet's residual blocks, have
# $10^{-5}$. Where $\sigma_G^2$ is about 1, the output changes by $(10^{-5} - 10^{-6}) / 2 \approx
# 4.5 \cdot 10^{-6}$: no eye and no tolerance of $10^{-3}$ will see it, and several published ports
# have it wrong. Rounding noise is smaller still, so the ratio does see it; and quiet groups, as on
# a flat background, multiply it.

# %%
careless = AutoencoderKL(replace(vae.config, norm_eps=1e-5))
careless.load_state_dict(vae.state_dict())
with torch.no_grad():
    wrong, right = careless.encode(image).mean, vae.encode(image).mean

assert vae.config.norm_eps == 1e-6
assert told.ratio("mean", right) <= LIMIT
assert told.ratio("mean", wrong) > LIMIT

show({f"channel {c}": (wrong - right)[0, c] for c in range(4)}, label="error of the latents")

# %% [markdown]
# ## 1.7 The middle: every position reads every other
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V$$
#
# (Vaswani et al., 2017, equation 1). Here there is a single head, as wide as the map, and $N =
# \frac H8 \cdot \frac W8$ tokens: $N^2$ weights, the only place in the autoencoder where the cost
# is not proportional to the pixels. Convolutions see a neighbourhood; after this layer every latent
# depends on the whole picture.
#
# The weights are made visible by a trick that needs no second implementation: an attention whose
# values are the unit vectors returns its weights.

# %%
middle = vae.encoder.mid_block
with watching_attention(middle.attentions[0]) as attended:
    hidden = middle(hidden)
((weights, values),) = attended

assert weights.shape == (1, 1, size**2, size**2)
assert torch.allclose(weights.sum(-1), torch.ones(1, 1, size**2), atol=1e-5)
assert told.ratio(f"{attention}.to_out.0.input", (weights @ values).squeeze(1)) <= LIMIT
assert told.ratio("encoder.mid_block", hidden) <= LIMIT

places = {"the shape": (size // 4, size // 4), "the ground": (3 * size // 4, 3 * size // 4)}
maps = weights[0, 0].unflatten(0, (size, size)).unflatten(2, (size, size))
show(
    {"picture": image[0]} | {f"read from {name}": maps[place] for name, place in places.items()},
    label="attention weight",
)

# %% [markdown]
# ## 1.8 The posterior: not latents, but what is known of them
#
# The last convolution has twice as many channels as there are latents: a mean and the logarithm of
# a variance for each of them,
#
# $$q(z \mid x) = \mathcal N\!\left(z;\ \mu(x),\ \sigma^2(x)\right)$$
#
# (Kingma and Welling, "Auto-Encoding Variational Bayes", 2013, equation 9). The logarithm is
# clamped to $[-30, 20]$. In training, a penalty pulls this towards $\mathcal N(0, 1)$, but with a
# weight of only $10^{-6}$ (LDM, appendix G): the encoder may put $\mu$ far from 0 and be as certain
# as it likes. It is certain where exact numbers matter, and vague where they do not: compare the
# deviation at the shape with that on the ground, which any latents would paint as well.

# %%
assert told.ratio("encoder", vae.encoder(image)) <= LIMIT
assert told.ratio("quant_conv", vae.quant_conv(vae.encoder(image))) <= LIMIT

posterior = vae.encode(image)
sigma = posterior.logvar.mul(0.5).exp()
assert posterior.mean.shape == posterior.logvar.shape == epsilon.shape
assert told.ratio("mean", posterior.mean) <= LIMIT
assert told.ratio("logvar", posterior.logvar) <= LIMIT

print(f"spread of the means {posterior.mean.std():.3g}, median deviation {sigma.median():.3g}")
show({f"mean {c}": posterior.mean[0, c] for c in range(4)}, label=r"$\mu$")
show({f"deviation {c}": sigma[0, c] for c in range(4)}, label=r"$\sigma$")

# %% [markdown]
# ## 1.9 A sample, and 0.18215
#
# $$z = \mu + \sigma \odot \varepsilon, \quad \varepsilon \sim \mathcal N(0, 1)
# \qquad\text{and}\qquad x_0 = s\, z, \quad s = 0.18215$$
#
# The first is the reparameterisation of Kingma and Welling (2013, section 2.4). The second is LDM's
# (appendix G): $s$ is one over the deviation of latents of real pictures. Diffusion adds noise of
# deviation 1 in fixed steps; latents five times as large would still shine through where the
# schedule supposes nothing but noise. The number belongs to the weights: it was measured once and
# never changes. A port that forgets it draws washed-out pictures; one that applies it twice, grey
# ones.

# %%
latents = vae.sample_latents(posterior, epsilon)

assert latents.shape == epsilon.shape
assert told.ratio("latents", latents) <= LIMIT
assert torch.equal(latents, vae.config.scaling_factor * posterior.sample(epsilon))

for name, tensor in (("means", posterior.mean), ("latents", latents)):
    deviations = ", ".join(f"{channel.std():.2f}" for channel in tensor[0])
    print(f"{name:<8} deviation by channel: {deviations}; of all {tensor.std():.2f}")
print(f"{image.numel() / latents.numel():.0f} times fewer numbers than the picture")

# %% [markdown]
# ## 1.10 Decoding: the same steps upwards
#
# $$\tilde x = D(z / s)$$
#
# (LDM, section 3.1). The decoder begins in the middle, where everything may still read everything,
# and doubles the size three times: each pixel is repeated, then a convolution smooths the
# repetition away. It has one residual block more per level than the encoder: painting is more work
# than looking.

# %%
up_blocks = [f"decoder.up_blocks.{level}" for level in range(len(widths))]
painted = oracle.ask(
    "vae_decoder",
    {"latents": latents},
    ["post_quant_conv", "decoder.conv_in", "decoder.mid_block", *up_blocks],
)

hidden = vae.post_quant_conv(latents / vae.config.scaling_factor)
assert painted.ratio("post_quant_conv", hidden) <= LIMIT
hidden = vae.decoder.conv_in(hidden)
assert painted.ratio("decoder.conv_in", hidden) <= LIMIT
hidden = vae.decoder.mid_block(hidden)
assert painted.ratio("decoder.mid_block", hidden) <= LIMIT

fine = {}
for name, block in zip(up_blocks, vae.decoder.up_blocks, strict=True):
    hidden = block(hidden)
    fine[f"{hidden.shape[1]} maps of {hidden.shape[2]} x {hidden.shape[3]}"] = hidden[0].mean(0)
    assert painted.ratio(name, hidden) <= LIMIT

show({name: mean / mean.abs().max() for name, mean in fine.items()}, label="mean / largest")

# %% [markdown]
# ## 1.11 The picture again
#
# Two differences, which must not be confused. Between the picture and its reconstruction lies what
# the autoencoder *loses*: edges and fine texture, since 48 numbers went in where one came out.
# Between our reconstruction and the oracle's lies only rounding, here amplified until it can be
# seen at all.

# %%
decoded = vae.decode(latents)
exact = painted.truth["image"].float()

assert decoded.shape == image.shape
assert painted.ratio("image", decoded) <= LIMIT
rounding = (decoded - exact)[0]
factor = 1 / rounding.abs().max()

psnr = 10 * torch.log10(4 / (decoded - image).square().mean())
print(f"reconstruction: {psnr:.1f} dB; ours and the oracle's: at most {1 / factor:.1e} apart")
show(
    {
        "picture": image[0],
        "encoded, decoded": decoded[0],
        "the oracle's": exact[0],
        "lost, 4 times": 4 * (decoded - image)[0],
        f"rounding, {factor:.0e} times": factor * rounding,
    }
)

# %% [markdown]
# ## 1.12 What one latent paints
#
# Is a latent a block of $8 \times 8$ pixels in another form? Move one of them by one deviation,
# decode, subtract. Convolutions alone would reach over a few dozen pixels; the attention in the
# middle, and every GroupNorm, whose mean and deviation are taken over the whole map, carry a trace
# of it everywhere. This is why tiles of a large picture, decoded apart, do not fit at their seams
# (`sd1_impl/tiling.py` blends them).

# %%
moved = latents.clone()
moved[0, 0, size // 4, size // 4] += latents.std()
change = (vae.decode(moved) - decoded)[0].square().mean(0).sqrt()

told_moved = oracle.ask("vae_decoder", {"latents": moved})
assert told_moved.ratio("image", vae.decode(moved)) <= LIMIT
exact_change = (told_moved.truth["image"] - painted.truth["image"])[0].square().mean(0).sqrt()
assert (exact_change > 0).all()

far = change[pixels // 2 :, pixels // 2 :]
print(f"largest change {change.max():.2g}; in the opposite quarter still {far.mean():.1g}")
show({"before": decoded[0], "after": vae.decode(moved)[0]})
plt.figure(figsize=(3.6, 2.6), layout="constrained")
plt.imshow(change.numpy(), norm="log", cmap="magma", interpolation="nearest")
plt.colorbar(label="change, RMS of the colours")
plt.axis("off")
plt.show()

# %% [markdown]
# ## 1.13 Memory
#
# Bytes of all tensors that are alive at once, without weights, counted operation by operation. The
# peak of either half is at full resolution, where a picture is widest: so a decoder of 84 million
# parameters can need more memory than a UNet of 860 million, whose maps are 64 times smaller. A
# port is held to the oracle's peak (`docs/memory.md`); SiLU in place on what a norm returns, which
# nobody else reads, keeps `sd1_impl` below it.

# %%
theirs = {half: oracle.reference(half).module for half in ("vae_encoder", "vae_decoder")}
calls = {
    "encode": (lambda: vae.encode(image), lambda: theirs["vae_encoder"].encode(image)),
    "decode": (
        lambda: vae.decode(latents),
        lambda: theirs["vae_decoder"].decode(latents / vae.config.scaling_factor),
    ),
}
for (name, (own, other)), network in zip(calls.items(), theirs.values(), strict=True):
    ours, reference = peak(vae, own), peak(network, other)
    assert ours.peak <= reference.peak
    print(
        f"{name}: {ours.peak / 2**20:.2f} MiB at {ours.place}; "
        f"diffusers {reference.peak / 2**20:.2f} MiB at {reference.place}"
    )
