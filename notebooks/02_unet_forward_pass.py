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
# # 2. One forward pass of the UNet
#
# The UNet is asked one question, again and again: *here are noisy latents, the time, and a prompt;
# which noise is in them?* This notebook follows a single answer from the words to the last
# convolution. Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
# Models" (LDM), 2022, section 3.3 and figure 3. The code is `sd1_impl/unet.py`, whose forward pass
# fits on a screen; the cells below run it line by line.
#
# As in the first notebook, each tensor is compared with diffusers in float64, in units of the
# *noise*, which is the worst error of diffusers' own float32; a ratio above 4 is an error.
#
# Shapes: $B$ batch, $C$ channels, $H \times W$ positions of a map, $N = HW$ of them as tokens, $L =
# 77$ tokens of the prompt, $E$ their width, $T$ width of the time embedding.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tracing import load, peak, show, watching, watching_attention
from truth import rel_l2

from conformance.oracle import token_ids
from conformance.tolerance import LIMIT
from sd1_impl import SD_V1_DDPM, DDPMScheduler, UNet, use_kernel
from sd1_impl.toy.captions import Caption
from sd1_impl.toy.drawing import draw

WEIGHTS = os.environ.get("SD1_NOTEBOOK_WEIGHTS", "toy")
SEED = 0
TIMESTEP = 400

pipe, oracle, pixels = load(WEIGHTS)
unet, vae, config = pipe.unet, pipe.vae, pipe.unet.config
size = pixels // vae.config.downsampling_factor  # of the latents
widths = config.block_out_channels

print(f"{sum(p.numel() for p in unet.parameters()):,} parameters, widths {widths}")
assert len(unet.down_blocks) == len(unet.up_blocks) == len(widths)

# %% [markdown]
# ## 2.1 Words become numbers
#
# Byte-pair encoding (Sennrich et al., 2016, algorithm 1) cuts the prompt into known pieces. The row
# always has 77 places: start, the text, end, and then the end again until the row is full. This
# padding is not hidden from what follows: Stable Diffusion was trained with it in sight.

# %%
caption = Caption("red", "circle", "large", "at the top left")
input_ids = pipe.tokenizer([caption.text])  # (B, L)

assert input_ids.shape == (1, pipe.text_encoder.config.max_position_embeddings)
assert torch.equal(input_ids, torch.from_numpy(token_ids([caption.text])))

words = pipe.tokenizer.tokens(input_ids[0].tolist())
count = words.index("<|endoftext|>") + 1  # with start and end
words = ["start", *(word.removesuffix("</w>") for word in words[1 : count - 1]), "end"]
print(*(f"{id_}:{word}" for id_, word in zip(input_ids[0].tolist(), words, strict=False)))

# %% [markdown]
# ## 2.2 The text encoder reads from left to right
#
# CLIP's transformer returns one vector per token. Its attention is causal (Radford et al., 2021,
# section 2.4): a token has read those before it and none after. So the vector of "red" knows
# nothing of "circle", the end token has read the whole text, and *so has all padding*: it is up to
# sixty more summaries of the prompt, which the UNet will look at.
#
# The check: changing the last word leaves every vector before it as it was, bit for bit.

# %%
context, _ = pipe.text_encoder(input_ids)  # (B, L, E)

told = oracle.ask("text_encoder", {"input_ids": input_ids})
assert context.shape == (1, input_ids.shape[1], config.cross_attention_dim)
assert told.ratio("last_hidden_state", context) <= LIMIT

other_ids = input_ids.clone()
other_ids[0, count - 2] = pipe.tokenizer.encode("right")[0]
other, _ = pipe.text_encoder(other_ids)
assert torch.equal(other[0, : count - 2], context[0, : count - 2])
changed = (other - context)[0].norm(dim=-1) / context[0].norm(dim=-1)
assert (changed[count - 2 :] > 0).all()

places = range(count + 10)
plt.figure(figsize=(7, 2.6), layout="constrained")
plt.bar(places, changed[: len(places)], color=["C0"] * count + ["0.6"] * 10)
plt.xticks(places, [*words, *["pad"] * 10], rotation=90, fontsize=8)
plt.ylabel("relative change")
plt.title("'left' becomes 'right': which vectors change", fontsize=9)
plt.show()

# %% [markdown]
# ## 2.3 The latents, made noisy
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon,
# \qquad \varepsilon \sim \mathcal N(0, 1)$$
#
# (Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM), 2020, equation 4; the third
# notebook is about $\bar\alpha$.) The question below is thus one whose answer is known:
# $\varepsilon$. The check is against diffusers' own `add_noise` with float64 tables, within a few
# roundings of float32: $10^{-6}$.

# %%
generator = torch.Generator().manual_seed(SEED)
image = F.interpolate(draw([caption]), size=(pixels, pixels))
x_0 = vae.sample_latents(vae.encode(image), torch.zeros(1, 4, size, size))  # the posterior's mean
epsilon = torch.randn(x_0.shape, generator=generator)

scheduler = DDPMScheduler(SD_V1_DDPM)
sample = scheduler.add_noise(x_0, epsilon, TIMESTEP)  # (B, 4, H, W)

exact = oracle.scheduler("ddpm").add_noise(x_0.double(), epsilon.double(), torch.tensor([TIMESTEP]))
assert sample.shape == (1, config.in_channels, size, size)
assert rel_l2(sample, exact) < 1e-6

show(
    {
        "picture": image[0],
        **{f"clean, channel {c}": x_0[0, c] for c in range(2)},
        **{f"t = {TIMESTEP}, channel {c}": sample[0, c] for c in range(2)},
    },
    label="latent",
)

# %% [markdown]
# ## 2.4 The oracle is asked
#
# One question for the whole pass: every named block, the inside of one residual block and of one
# transformer, and the last layers.

# %%
resnet, transformer = "down_blocks.0.resnets.0", "down_blocks.0.attentions.0"
block = f"{transformer}.transformer_blocks.0"
names = {
    "resnet": [
        f"{resnet}.{part}" for part in ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
    ],
    "transformer": [
        f"{block}.{part}" for part in ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
    ],
    "attention": [f"{block}.{part}.to_out.0.input" for part in ("attn1", "attn2")],
    "levels": [f"{way}_blocks.{level}" for way in ("down", "up") for level in range(len(widths))],
    "rest": ["time_proj", "time_embedding", "conv_in", "mid_block", "conv_norm_out", resnet],
}
told = oracle.ask(
    "unet",
    {"sample": sample, "timestep": TIMESTEP, "encoder_hidden_states": context},
    [transformer, *(name for group in names.values() for name in group)],
)

assert all(tensor.dtype is torch.float64 for tensor in told.truth.values())
print(
    f"{len(told.truth)} tensors, noise {min(told.noise.values()):.1e} to "
    f"{max(told.noise.values()):.1e}"
)

# %% [markdown]
# ## 2.5 The time, as waves
#
# $$e_k(t) = \cos(\omega_k t),\quad e_{d/2+k}(t) = \sin(\omega_k t),\qquad
# \omega_k = 10000^{-k/(d/2)},\quad k = 0 \dots d/2 - 1$$
#
# (Vaswani et al., 2017, section 3.5, by way of DDPM, appendix B.) Fast waves tell neighbours apart,
# slow ones the beginning from the end. Two published numbers differ between code bases: cosines
# come first here, and the exponent is divided by $d/2$, not by $d/2 - 1$.
#
# Why the noise of this layer is so large: float32 holds $\omega_k t$ to a relative $2^{-24}$, which
# at $t = 999$ is an absolute error of up to $6 \cdot 10^{-5}$ radians. The later the time, the less
# exactly it is known; in half precision neighbouring timesteps would be the same.

# %%
t = torch.tensor([float(TIMESTEP)])
waves = unet.time_proj(t)  # (B, d)

assert waves.shape == (1, widths[0])
assert told.ratio("time_proj", waves) <= LIMIT

every = torch.arange(1000.0)
table, exact = unet.time_proj(every), unet.time_proj(every.double())
error = (table - exact).abs().amax(dim=1)
assert error[900:].mean() > 10 * error[:50].mean()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
drawn = left.imshow(table.T.numpy(), aspect="auto", cmap="RdBu_r", interpolation="nearest")
left.axhline(widths[0] / 2 - 0.5, color="black", linewidth=0.8)
left.set(xlabel="t", ylabel="entry: cosines, sines", title="the embedding of every t")
figure.colorbar(drawn, ax=left)
right.semilogy(every, error.clamp(min=1e-9), linewidth=0.8)
right.set(xlabel="t", title="largest error in float32")
plt.show()

# %% [markdown]
# ## 2.6 What every residual block is told of the time
#
# $$\text{temb} = W_2\, \text{SiLU}(W_1\, e(t) + b_1) + b_2$$
#
# (DDPM, appendix B). One vector for the whole pass, four times as wide as the finest level. Nothing
# else in the UNet knows how noisy its input is.

# %%
temb = unet.time_embedding(waves)  # (B, T)

assert temb.shape == (1, config.time_embed_dim)
assert told.ratio("time_embedding", temb) <= LIMIT

table = unet.time_embedding(unet.time_proj(every))
cosine = F.cosine_similarity(table[::10, None], table[None, ::10], dim=-1)
assert torch.allclose(cosine.diagonal(), torch.ones(100), atol=1e-5)
plt.figure(figsize=(4.2, 3.2), layout="constrained")
plt.imshow(cosine.numpy(), extent=(0, 1000, 1000, 0), cmap="magma")
plt.colorbar(label="cosine")
plt.title("how alike two times are", fontsize=9)
plt.xlabel("t")
plt.show()

# %% [markdown]
# ## 2.7 `conv_in`
#
# A $3 \times 3$ convolution from the 4 channels of the latents to the width of the finest level.
# Its output is also the first *skip connection*: the very last block will be handed it again.

# %%
hidden = unet.conv_in(sample)
skips = [hidden]

assert hidden.shape == (1, widths[0], size, size)
assert told.ratio("conv_in", hidden) <= LIMIT

show({f"channel {c}": hidden[0, c] for c in range(6)}, label="activation")

# %% [markdown]
# ## 2.8 Inside a residual block: the time enters as a bias
#
# $$h \leftarrow h + F(h, \text{temb}), \qquad
# F = \text{conv}_2\big(\text{SiLU}(\text{GN}_2(
# \text{conv}_1(\text{SiLU}(\text{GN}_1(h))) + W\,\text{SiLU}(\text{temb})))\big)$$
#
# (He et al., 2015, equation 1; the place of the time: DDPM, appendix B.) The time is one number per
# channel, the same at every position. It works because a norm follows: a shift of a channel against
# its group changes what the norm, and the SiLU after it, let through.
#
# The last check says it: what $\text{GN}_2$ is given differs between two times by a constant per
# channel.

# %%
first, parts = unet.down_blocks[0].resnets[0], ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"]
with watching(first, [*parts, "norm2.input"]) as now:
    refined = first(hidden, temb)
for part in parts:
    assert told.ratio(f"{resnet}.{part}", now[part]) <= LIMIT
assert told.ratio(resnet, refined) <= LIMIT

assert first.conv_shortcut is None
assert torch.equal(refined, hidden + now["conv2"])

with watching(first, ["norm2.input"]) as later:
    first(hidden, unet.time_embedding(unet.time_proj(t + 500)))
shift = later["norm2.input"] - now["norm2.input"]
assert shift.std(dim=(2, 3)).max() < 1e-5 * now["norm2.input"].std()

show(
    {
        "given": hidden[0].mean(0),
        "added, t = 400": now["conv2"][0].mean(0),
        "together": refined[0].mean(0),
    },
    label="mean over channels",
)

# %% [markdown]
# ## 2.9 Inside a transformer block: three residual branches
#
# $$z \leftarrow z + \text{SelfAttn}(\text{LN}_1 z), \quad
# z \leftarrow z + \text{CrossAttn}(\text{LN}_2 z, c), \quad
# z \leftarrow z + \text{FF}(\text{LN}_3 z)$$
#
# (LDM, appendix E.2.1.) Positions become tokens; the first branch lets them read each other, the
# second the prompt $c$, the third is a gated perceptron, $\text{FF}(z) = W_2\,(a \odot
# \text{GELU}(b)),\ [a, b] = W_1 z$ (GEGLU: Shazeer, 2020, equation 6). Here, and only here, does
# the prompt enter.

# %%
spatial = unet.down_blocks[0].attentions[0]
branches = ["norm1", "attn1", "norm2", "attn2", "norm3", "ff"]
paths = [f"transformer_blocks.0.{branch}" for branch in branches]
with watching(spatial, paths) as seen:
    transformed = spatial(refined, context)

for path in paths:
    assert told.ratio(f"{transformer}.{path}", seen[path]) <= LIMIT
assert told.ratio(transformer, transformed) <= LIMIT

for branch in ("attn1", "attn2", "ff"):
    tokens = seen[f"transformer_blocks.0.{branch}"]
    assert tokens.shape == (1, size**2, widths[0])
    print(f"{branch:<6} adds tokens of RMS {tokens.square().mean().sqrt():.2f}")

# %% [markdown]
# ## 2.10 Self-attention: which positions belong together
#
# $$A = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right),\qquad
# Q = W_Q z,\ K = W_K z,\ V = W_V z$$
#
# (Vaswani et al., 2017, equation 1), in several heads side by side. $A$ has $N \times N$ entries
# per head: of the whole UNet, the finest self-attention is what grows with the fourth power of a
# picture's side. Each map below is one row of $A$: where one position (the cross) reads.

# %%
layer = spatial.transformer_blocks[0].attn1
with watching_attention(layer) as attended:
    spatial(refined, context)
((weights, values),) = attended  # (B, heads, N, N), (B, heads, N, d)

heads = config.num_heads[0]
assert weights.shape == (1, heads, size**2, size**2)
assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
merged = (weights @ values).transpose(1, 2).flatten(2)
assert told.ratio(f"{block}.attn1.to_out.0.input", merged) <= LIMIT

position = (size // 4) * size + size // 4
rows = weights[0, :, position].unflatten(-1, (size, size))
print(f"weights of one layer: {weights.nbytes / 1024:,.0f} KiB")
show({f"head {h}": rows[h] for h in range(min(heads, 4))}, label="weight")

# %% [markdown]
# ## 2.11 Cross-attention: which words a position reads
#
# $$Q = W_Q\, \varphi(z_t), \qquad K = W_K\, \tau(y),\quad V = W_V\, \tau(y)$$
#
# (LDM, section 3.3, where $\varphi$ are the UNet's tokens and $\tau(y)$ is the encoded prompt.) Now
# each of the $N$ positions spreads its attention over 77 tokens, and each token has a map of who
# reads it. These maps are the closest thing to an answer to "which word made this".
#
# The surprise: most of the weight goes to places that hold no word. In Stable Diffusion it is the
# start token: softmax must sum to 1, and a position that wants nothing from the text has to look
# somewhere. In the toy it is the padding, which has read the whole sentence (2.2) and says all of
# it at once. So each word's map below has its own scale.

# %%
finest = unet.up_blocks[-1].attentions[-1].transformer_blocks[0].attn2
with watching_attention(finest) as attended:
    unet(sample, TIMESTEP, context)
((weights, values),) = attended  # (B, heads, N, L)

assert weights.shape == (1, heads, size**2, context.shape[1])
assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
merged = (weights @ values).transpose(1, 2).flatten(2)
name = f"up_blocks.{len(widths) - 1}.attentions.2.transformer_blocks.0.attn2.to_out.0.input"
inputs = {"sample": sample, "timestep": TIMESTEP, "encoder_hidden_states": context}
assert oracle.ask("unet", inputs, [name]).ratio(name, merged) <= LIMIT

maps = weights[0].mean(0).unflatten(0, (size, size))  # (H, W, L), mean of the heads
share = maps.mean(dim=(0, 1))
text = float(share[1 : count - 1].sum())
print(f"start {share[0]:.1%}, words {text:.1%}, end and padding {share[count - 1 :].sum():.1%}")

own = {f"{word}, {share[i]:.1%}": maps[..., i] / maps[..., i].max() for i, word in enumerate(words)}
padding = maps[..., count:].sum(-1)
own[f"padding, {share[count:].sum():.1%}"] = padding / padding.max()
show(own, columns=6, label="weight / largest of the map")

# %% [markdown]
# ## 2.12 The way down
#
# At each level: two residual blocks, each followed by a transformer (but on the coarsest level),
# then a convolution of stride 2. Every one of their outputs is kept as a skip connection: twelve
# with `conv_in`'s. They are what a UNet costs in memory while the lower levels work.

# %%
hidden = skips[0]
for level, down in enumerate(unet.down_blocks):
    hidden, kept = down(hidden, temb, context)
    skips += kept
    assert told.ratio(f"down_blocks.{level}", hidden) <= LIMIT

assert len(skips) == 1 + len(widths) * (config.layers_per_block + 1) - 1
for skip in skips:
    print(f"{tuple(skip.shape)!s:<20} {skip.nbytes / 1024:8,.1f} KiB")
print(f"all skips {sum(skip.nbytes for skip in skips) / 1024:,.0f} KiB")

of_each_size = {skip.shape[-2:]: skip for skip in skips}.values()  # the last ones
energies = [skip[0].square().mean(0).sqrt() for skip in of_each_size]
show(
    {f"{tuple(energy.shape)}": energy / energy.max() for energy in energies},
    label="RMS over channels / largest",
)

# %% [markdown]
# ## 2.13 What the middle sees
#
# An eighth of the latents' side, a 64th of the picture's. For a picture of 512 pixels these are $8
# \times 8$ tokens; for the toy's 64 pixels **a single one**. Softmax over one token is 1 whatever
# the scores are: there the middle's self-attention is a linear layer, $W_O W_V z$, and its queries
# and keys do nothing. A test on such latents cannot see a bug in them; that is why this project's
# own cases are larger.

# %%
attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
with watching_attention(attention) as attended:
    hidden = unet.mid_block(hidden, temb, context)
((weights, values),) = attended

tokens = hidden.shape[-2] * hidden.shape[-1]
assert hidden.shape[1] == widths[-1]
assert weights.shape[-2:] == (tokens, tokens)
assert told.ratio("mid_block", hidden) <= LIMIT
if tokens == 1:
    assert torch.equal(weights, torch.ones_like(weights))
print(
    f"{tokens} token{'s' * (tokens > 1)} of {widths[-1]} channels, {hidden.nbytes / 1024:.1f} KiB"
)

# %% [markdown]
# ## 2.14 The way up
#
# Each layer reads the map from below and, beside it in the channels, the skip connection that was
# kept last: last in, first out.
#
# $$h \leftarrow \text{ResBlock}\big([\,h,\ \text{skip}\,],\ \text{temb}\big)$$
#
# (Ronneberger et al., "U-Net", 2015, figure 1; LDM's code, `openaimodel.py`.) The way down blurred
# away *where* things are to find out *what* they are; the skips bring the *where* back. Swap two of
# them with the same shape and every shape still fits: only numbers tell.

# %%
for level, up in enumerate(unet.up_blocks):
    read = [skips.pop() for _ in range(config.layers_per_block + 1)]
    target = skips[-1].shape[-2:] if skips else sample.shape[-2:]
    before = hidden.shape[1]
    hidden = up(hidden, temb, context, read, target)
    joined = " ".join(
        f"{before if not i else hidden.shape[1]}+{s.shape[1]}" for i, s in enumerate(read)
    )
    print(f"channels read: {joined:<22} written: {tuple(hidden.shape)}")
    assert told.ratio(f"up_blocks.{level}", hidden) <= LIMIT
assert not skips

# %% [markdown]
# ## 2.15 The answer
#
# $$\epsilon_\theta(x_t, t, c) = \text{conv}_{\text{out}}(\text{SiLU}(\text{GN}(h)))$$
#
# and it was trained to be near $\varepsilon$: $\mathcal L = \mathbb E\,\lVert \varepsilon -
# \epsilon_\theta(x_t, t, c) \rVert_2^2$ (LDM, equation 3). The pass that was walked through by hand
# and `unet(...)` agree to the last bit: nothing has been left out.

# %%
predicted = unet.conv_out(F.silu(unet.conv_norm_out(hidden)))

assert told.ratio("conv_norm_out", unet.conv_norm_out(hidden)) <= LIMIT
assert predicted.shape == sample.shape
assert torch.equal(predicted, unet(sample, TIMESTEP, context))
assert told.ratio("sample", predicted) <= LIMIT

explained = 1 - (predicted - epsilon).square().mean() / epsilon.square().mean()
print(f"{explained:.1%} of the noise's variance is found")
show(
    {
        "the noise": epsilon[0, 0],
        "predicted": predicted[0, 0],
        "missed": (predicted - epsilon)[0, 0],
    },
    label="channel 0",
)

# %% [markdown]
# ## 2.16 Two epsilons in one network
#
# GroupNorm's $\epsilon$ is $10^{-5}$ in the residual blocks and $10^{-6}$ at the entrance of the
# transformers (`Normalize` of `ldm/modules/attention.py`). Whoever writes one constant for both is
# off by about $5 \cdot 10^{-6}$ wherever a group's variance is 1: invisible in a picture, but far
# outside of rounding. The layer at which the ratio first leaves the limit is where to look.
#
# The question is put at $t = 10$. At 400 the embedding's own noise, which cell 2.5 measured, would
# hide the mistake: *when* a network is asked decides what a test can see.

# %%
EARLY = 10
early = {
    "sample": scheduler.add_noise(x_0, epsilon, EARLY),
    "timestep": EARLY,
    "encoder_hidden_states": context,
}
order = [resnet, transformer, *names["levels"][: len(widths)], "mid_block"]
order += names["levels"][len(widths) :]
told_early = oracle.ask("unet", early, ["conv_in", *order])

one_epsilon = UNet(replace(config, transformer_norm_eps=1e-5))
one_epsilon.load_state_dict(unet.state_dict())
one_epsilon.requires_grad_(requires_grad=False)
with watching(one_epsilon, ["conv_in", *order]) as careless:
    answer = one_epsilon(*early.values())

assert (config.resnet_norm_eps, config.transformer_norm_eps) == (1e-5, 1e-6)
assert told_early.ratio(resnet, careless[resnet]) <= LIMIT  # still right
assert told_early.ratio(transformer, careless[transformer]) > LIMIT  # the first that is wrong
assert told_early.ratio("sample", answer) > LIMIT

# %% [markdown]
# ## 2.17 Error over depth
#
# Rounding errors add up on the way through the network: a fixed tolerance is too strict at the end
# or too loose at the beginning. Relative to the noise, which grows in the same way, ours stays near
# 1 from the first layer to the last; the careless network of the last cell jumps where its constant
# is first used.

# %%
with watching(unet, ["conv_in", *order]) as careful:
    unet(*early.values())
depth = ["conv_in", *order]
errors = [rel_l2(careful[name], told_early.truth[name]) for name in depth]
wrong = [rel_l2(careless[name], told_early.truth[name]) for name in depth]
noise = [told_early.noise[name] for name in depth]
allowed = [LIMIT * unit for unit in noise]
assert all(error <= limit for error, limit in zip(errors, allowed, strict=True))
assert all(error > limit for error, limit in zip(wrong[2:], allowed[2:], strict=True))

plt.figure(figsize=(9, 3.4), layout="constrained")
plt.fill_between(depth, 1e-9, allowed, color="0.9", label="allowed")
plt.semilogy(depth, noise, color="0.5", label="noise of diffusers")
plt.semilogy(depth, errors, "o-", label="sd1_impl")
plt.semilogy(depth, wrong, "x-", label="one epsilon for both norms")
plt.ylim(min(errors) / 2, max(wrong) * 2)
plt.xticks(rotation=40, ha="right", fontsize=8)
plt.ylabel("relative error")
plt.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 2.18 Memory, and three ways to attend
#
# Written as in the paper, attention holds its scores twice: before and after the softmax, $2 \cdot
# \text{heads} \cdot N^2$ numbers. Fused kernels never write them (Rabe and Staats, 2021; Dao et
# al., "FlashAttention", 2022); slicing computes one head after the other. All three give the same
# numbers up to rounding.

# %%
peaks = {}
for kernel in ("fused", "sliced", "plain"):
    use_kernel(unet, kernel)
    footprint = peak(unet, lambda: unet(sample, TIMESTEP, context))
    peaks[kernel] = footprint.peak
    print(f"{kernel:<7} {footprint.peak / 2**10:10,.0f} KiB at {footprint.place}")
    assert told.ratio("sample", unet(sample, TIMESTEP, context)) <= LIMIT
use_kernel(unet, "fused")

other = oracle.reference("unet").module
reference = peak(other, lambda: other(sample, TIMESTEP, context))
assert peaks["fused"] <= peaks["sliced"] <= peaks["plain"]
assert peaks["fused"] <= reference.peak
print(f"diffusers, fused: {reference.peak / 2**10:,.0f} KiB")
