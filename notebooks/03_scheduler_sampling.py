# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version
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
# # 3. From noise to a picture
#
# The UNet guesses which noise is in the latents it is shown. A *scheduler* decides what to do with
# that guess: how noisy the latents are at each step, and how far to go. This notebook begins with
# the noise, takes one step of DDIM and one of DDPM by their equations, guides them by a prompt, and
# then draws whole pictures with eight samplers. The code is `sd1_impl/schedulers/`, one published
# algorithm per file.
#
# Every tensor is compared with diffusers in float64, in units of the *noise*, the worst error of
# diffusers' own float32; a ratio above 4 is an error. Where a cell compares something else, it says
# with what and why.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tracing import load, peak, show
from truth import rel_l2

from conformance.sampling import config_array, settings, step_name
from conformance.tolerance import LIMIT
from sd1_impl import SD_V1_DDIM, SD_V1_DDPM, DDIMScheduler, DDPMScheduler, Step
from sd1_impl.schedulers import SCHEDULERS
from sd1_impl.toy.captions import Caption
from sd1_impl.toy.drawing import draw

WEIGHTS = os.environ.get("SD1_NOTEBOOK_WEIGHTS", "toy")
SEED = 0
STEPS = 20
GUIDANCE = 2.0 if WEIGHTS == "toy" else 7.5  # what the toy knows it knows well: see 3.7

pipe, oracle, pixels = load(WEIGHTS)
unet, vae = pipe.unet, pipe.vae
size = pixels // vae.config.downsampling_factor  # of the latents
caption = Caption("red", "circle", "large", "at the top left")
assert unet.config.in_channels == vae.config.latent_channels == 4

# %% [markdown]
# ## 3.1 The noise schedule
#
# Training adds noise in $T = 1000$ steps of variance $\beta_t$:
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\big(x_t;\ \sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t\big),
# \qquad \bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$$
#
# (Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM), 2020, equation 2.) Stable Diffusion
# spaces $\sqrt{\beta_t}$ evenly, from $\sqrt{0.00085}$ to $\sqrt{0.012}$ ("scaled linear"). What is
# left of the picture at $t$ is $\bar\alpha_t$; the signal-to-noise ratio is $\bar\alpha_t / (1 -
# \bar\alpha_t)$.
#
# The surprise is at the end: $\bar\alpha_{999}$ is 0.0047, not 0. A share of $\sqrt{0.0047} \approx
# 7\,\%$ of the picture's amplitude survives the noisiest step, and with it the mean brightness.
# Sampling begins with none of it. So Stable Diffusion can hardly paint a very dark or a very bright
# picture (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, section
# 3.1).
#
# Both tables are float64: they agree to a few roundings of $2^{-53}$ for each of 1000 factors.

# %%
ddim, ddpm = DDIMScheduler(SD_V1_DDIM), DDPMScheduler(SD_V1_DDPM)
exact = oracle.scheduler("ddim", STEPS)

alpha_bar = ddim.alphas_cumprod
assert alpha_bar.shape == (1000,)
assert alpha_bar.dtype == np.float64
np.testing.assert_allclose(ddim.betas, exact.betas, rtol=1e-13)
np.testing.assert_allclose(alpha_bar, exact.alphas_cumprod, rtol=1e-12)
assert (np.diff(alpha_bar) < 0).all()
assert alpha_bar[999] > 0.004

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
left.plot(ddim.betas)
left.set(title=r"$\beta_t$, variance added", xlabel="t")
middle.plot(np.sqrt(alpha_bar), label=r"picture $\sqrt{\bar\alpha_t}$")
middle.plot(np.sqrt(1 - alpha_bar), label=r"noise $\sqrt{1-\bar\alpha_t}$")
middle.set(title="amplitudes", xlabel="t")
middle.legend(fontsize=8)
right.semilogy(alpha_bar / (1 - alpha_bar))
right.axhline(1, color="0.6", linewidth=0.8)
right.set(title="signal-to-noise ratio", xlabel="t")
plt.show()

# %% [markdown]
# ## 3.2 Forward, in one jump
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon,
# \qquad \varepsilon \sim \mathcal N(0, 1)$$
#
# (DDPM, equation 4.) No step between is needed: sums of normal numbers are normal. If $x_0$ has
# variance 1, so has every $x_t$, since the two weights are cosine and sine of an angle. That is
# what the factor 0.18215 of the first notebook is for: the UNet never meets an input of another
# scale.
#
# Against diffusers' `add_noise` in float64: within a few roundings of float32, $10^{-6}$.

# %%
generator = torch.Generator().manual_seed(SEED)
image = F.interpolate(draw([caption]), size=(pixels, pixels))
x_0 = vae.sample_latents(vae.encode(image), torch.zeros(1, 4, size, size))  # the posterior's mean
epsilon = torch.randn(x_0.shape, generator=generator)

times = [0, 100, 300, 500, 700, 999]
noisy = torch.cat([ddim.add_noise(x_0, epsilon, t) for t in times])  # (6, 4, H, W)

wide = x_0.double().expand(len(times), -1, -1, -1), epsilon.double().expand(len(times), -1, -1, -1)
assert noisy.shape == (len(times), 4, size, size)
assert rel_l2(noisy, exact.add_noise(*wide, torch.tensor(times))) < 1e-6

variances = ", ".join(f"{x.var():.2f}" for x in noisy)
print(f"variance of x_0 {x_0.var():.2f}, of the noisy ones {variances}")
show({f"t = {t}, decoded": vae.decode(x[None])[0] for t, x in zip(times, noisy, strict=True)})
show({f"t = {t}, channel 0": x[0] for t, x in zip(times, noisy, strict=True)}, label="latent")

# %% [markdown]
# ## 3.3 What a guess of the noise says about the picture
#
# Solved for the picture, the same equation gives, with the UNet's guess in the place of
# $\varepsilon$,
#
# $$\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\; \epsilon_\theta(x_t, t, c)}
# {\sqrt{\bar\alpha_t}}$$
#
# (DDPM, equation 15.) At each $t$ the network thus shows its idea of the *finished* picture. Late
# in the noise this is the average of all pictures that are still possible, hence soft; and an error
# of the guess is multiplied by $\sqrt{1 - \bar\alpha_t} / \sqrt{\bar\alpha_t}$, which is 15 at $t =
# 999$ and 0.03 at $t = 0$. So sampling takes many steps: each goes a little in the direction of
# $\hat x_0$ and asks again. Note in the printed lines that the guess is *best* where it counts
# most: in almost pure noise it is easy to say what is noise, and at $t = 0$ there is hardly any to
# be found.
#
# $\hat x_0$ is compared with `pred_original_sample` of diffusers in float64, given the same guess:
# within $10^{-5}$, as the subtraction of two nearly equal tensors leaves fewer digits.

# %%
context, _ = pipe.text_encoder(pipe.tokenizer([caption.text]))  # (1, 77, E)
inputs = {
    "sample": noisy,
    "timestep": torch.tensor(times),
    "encoder_hidden_states": context.expand(len(times), -1, -1),
}
guesses = unet(noisy, inputs["timestep"], inputs["encoder_hidden_states"])  # (6, 4, H, W)
assert oracle.ask("unet", inputs).ratio("sample", guesses) <= LIMIT

ideas = {}
for t, guess, x_t in zip(times, guesses, noisy, strict=True):
    x_0_hat = ddim.predict_original(guess, t, x_t)
    wanted = exact.step(guess.double(), t, x_t.double()).pred_original_sample
    assert rel_l2(x_0_hat, wanted) < 1e-5
    ideas[f"t = {t}, idea"] = vae.decode(x_0_hat[None])[0]
    missed = (guess - epsilon[0]).norm() / epsilon.norm()
    amplified = np.sqrt((1 - alpha_bar[t]) / alpha_bar[t])
    print(
        f"t = {t:3}: the guess misses the noise by {missed:.2f}, which counts {amplified:.2f} times"
    )
show(ideas)

# %% [markdown]
# ## 3.4 One step of DDIM
#
# $$x_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\; \hat x_0
# + \sqrt{1 - \bar\alpha_{\text{prev}} - \sigma^2}\; \epsilon_\theta + \sigma\, \varepsilon$$
#
# (Song et al., "Denoising Diffusion Implicit Models" (DDIM), 2020, equation 12; their $\alpha$ is
# $\bar\alpha$ here.) With $\sigma = 0$, Stable Diffusion's default, nothing is drawn: take the idea
# of the picture, put *the same* noise back, but less of it. The whole run is then a function of the
# first noise, and two runs from the same seed are the same picture.
#
# Here the step in the middle of a run of 20, from $t = 501$ to 451.

# %%
middle = STEPS // 2 - 1
run = ddim.start(STEPS, begin_index=middle)
t = int(run.timesteps[0])
x_t = ddim.add_noise(x_0, epsilon, t)
guess = unet(x_t, t, context)

x_prev = ddim.step(guess, t, x_t, run)

config = settings("ddim", STEPS, begin_index=middle)
inputs = {"config": config_array(config), "sample": x_t, "model_outputs": guess[None]}
told = oracle.ask("scheduler/ddim", inputs, ["samples#0"])
assert x_prev.shape == x_t.shape
assert told.ratio("samples#0", x_prev) <= LIMIT

to = run.following(t)
print(
    f"t = {t} to {to}: amplitude of the noise {np.sqrt(1 - alpha_bar[t]):.3f} "
    f"to {np.sqrt(1 - alpha_bar[to]):.3f}"
)
show(
    {
        f"at {t}": x_t[0, 0],
        "guess of the noise": guess[0, 0],
        f"at {to}": x_prev[0, 0],
        "10 times the change": 10 * (x_prev - x_t)[0, 0],
    },
    label="channel 0",
)

# %% [markdown]
# ## 3.5 One step of DDPM
#
# DDPM reverses the training's diffusion: it draws $x_{\text{prev}}$ from the posterior
#
# $$q(x_{\text{prev}} \mid x_t, x_0) = \mathcal N\!\left(
# \frac{\sqrt{\bar\alpha_{\text{prev}}}\, \beta}{1 - \bar\alpha_t}\, x_0
# + \frac{\sqrt{\alpha}\, (1 - \bar\alpha_{\text{prev}})}{1 - \bar\alpha_t}\, x_t,\;
# \frac{1 - \bar\alpha_{\text{prev}}}{1 - \bar\alpha_t}\, \beta \right)$$
#
# with $\hat x_0$ for $x_0$ (DDPM, equation 7; over a stride, $\alpha = \bar\alpha_t /
# \bar\alpha_{\text{prev}}$ and $\beta = 1 - \alpha$: Nichol and Dhariwal, 2021, section 4). It
# takes out more noise than DDIM and puts fresh noise in. Noise is an argument here, so that both
# sides use the same.

# %%
fresh = torch.randn(x_t.shape, generator=generator)
ancestral_run = ddpm.start(STEPS, begin_index=middle)
assert ancestral_run.timesteps[0] == t

drawn = ddpm.step(guess, t, x_t, ancestral_run, fresh)

config = settings("ddpm", STEPS, begin_index=middle)
inputs = {
    "config": config_array(config),
    "sample": x_t,
    "model_outputs": guess[None],
    "noise": fresh[None],
}
told = oracle.ask("scheduler/ddpm", inputs, ["samples#0"])
assert drawn.shape == x_t.shape
assert told.ratio("samples#0", drawn) <= LIMIT

mean = ddpm.step(guess, t, x_t, ancestral_run, torch.zeros_like(x_t))
print(
    f"deviation of what is added {ddpm.variance(t, to) ** 0.5:.3f}, of x at {to} {drawn.std():.3f}"
)
show(
    {
        "mean": mean[0, 0],
        "noise added": (drawn - mean)[0, 0],
        f"DDPM at {to}": drawn[0, 0],
        f"DDIM at {to}": x_prev[0, 0],
    },
    label="channel 0",
)

# %% [markdown]
# ## 3.6 The two are one
#
# DDIM's $\sigma$ is $\eta$ times DDPM's deviation,
#
# $$\sigma = \eta\, \sqrt{\frac{1 - \bar\alpha_{\text{prev}}}{1 - \bar\alpha_t}}\,
# \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_{\text{prev}}}}$$
#
# (DDIM, equation 16). At $\eta = 1$ the step *is* DDPM's, though the formulas look nothing alike:
# one mixes $\hat x_0$ with the guess, the other with $x_t$, and $x_t$ is made of just these two.
# The same numbers come out but for rounding, $10^{-6}$.

# %%
stochastic = DDIMScheduler(replace(SD_V1_DDIM, eta=1.0))
same = stochastic.step(guess, t, x_t, stochastic.start(STEPS, begin_index=middle), fresh)

config = settings("ddim", STEPS, begin_index=middle, eta=1.0)
told = oracle.ask("scheduler/ddim", inputs | {"config": config_array(config)}, ["samples#0"])
assert told.ratio("samples#0", same) <= LIMIT
assert rel_l2(same, drawn) < 1e-6

for eta in (0.0, 0.5, 1.0):
    sigma = eta * stochastic.sigma(t, to)
    kept = np.sqrt(1 - alpha_bar[to] - sigma**2)
    print(f"eta {eta}: picture {alpha_bar[to] ** 0.5:.3f}, old noise {kept:.3f}, new {sigma:.3f}")

# %% [markdown]
# ## 3.7 Guidance: beyond the prompt
#
# The UNet is asked twice, for the prompt $c$ and for the empty text $\varnothing$, and the two
# answers are *extrapolated*:
#
# $$\hat\epsilon = \epsilon_\theta(x_t, \varnothing) +
# s\, \big(\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t, \varnothing)\big)$$
#
# (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021, equation 6, with $w = s - 1$.) At $s
# = 0$ the prompt is ignored, at $s = 1$ it is followed, and at the usual 7.5 the answer lies far
# outside of the segment between the two: it exaggerates whatever the prompt changes. The result is
# no longer a likely noise; its deviation grows. How much is too much depends on the network: the
# toy, which knows its small world well, is asked with 2, and drowns its colours from 3 on. Both
# questions are one batch of two, which is why guidance doubles the time and the memory of the UNet.

# %%
latents = torch.randn(1, 4, size, size, generator=generator)
pipe.scheduler = ddim
texts = pipe.encode_prompts([caption.text], [""])
start = ddim.start(STEPS)
first = int(start.timesteps[0])
uncond, conditional = pipe.predict_noise(latents, first, texts)
guided = pipe.guide(uncond, conditional, GUIDANCE)

picture = {
    "prompt": np.array([caption.text]),
    "negative_prompt": np.array([""]),
    "latents": latents,
    "guidance_scale": GUIDANCE,
}
run_config = {"scheduler": "ddim", **settings("ddim", STEPS)}
terms = [step_name(term, 0) for term in ("noise_pred_uncond", "noise_pred_text", "noise_pred")]
terms += [step_name("latents", k) for k in range(STEPS)]
told = oracle.ask("pipeline/txt2img", {**picture, "config": config_array(run_config)}, terms)

assert told.ratio("noise_pred_uncond#0", uncond) <= LIMIT
assert told.ratio("noise_pred_text#0", conditional) <= LIMIT
assert told.ratio("noise_pred#0", guided) <= LIMIT

both = torch.cat([texts.negative_prompt_embeds, texts.prompt_embeds])
single, double = (
    peak(unet, lambda n=n: unet(latents.expand(n, -1, -1, -1), first, both[:n])).peak
    for n in (1, 2)
)
assert single < double <= 2 * single
print(f"peak of the UNet {single / 2**20:.2f} MiB, of both questions {double / 2**20:.2f} MiB")

scales = (0.0, 1.0, 3.0, 7.5, 15.0)
at = {s: pipe.guide(uncond, conditional, s) for s in scales}
for s in scales:
    print(f"s = {s:4}: deviation of the noise {at[s].std():.3f}")
show(
    {
        f"idea at s = {s}": pipe.decode(ddim.predict_original(at[s], first, latents))[0]
        for s in scales
    }
)

# %% [markdown]
# ## 3.8 A whole trajectory, beside the oracle's
#
# The loop, which is `Text2Image.denoise`: ask, guide, step, twenty times. The strip shows $x_t$
# decoded, as it is; below it diffusers' from the same noise; below that their difference, amplified
# until it can be seen. Two programs, 40 calls of a network, and they differ by rounding alone.

# %%
walked: list[Step] = []
drawn = pipe(
    caption.text,
    latents=latents,
    num_inference_steps=STEPS,
    guidance_scale=GUIDANCE,
    height=pixels,
    width=pixels,
    callback=walked.append,
)

assert [step.timestep for step in walked] == start.timesteps.tolist()
ratios = [told.ratio(step_name("latents", step.index), step.latents) for step in walked]
assert max(ratios) <= LIMIT
assert told.ratio("image", drawn.image) <= LIMIT

shown = [k for k in range(STEPS) if k % (STEPS // 5) == 0 or k == STEPS - 1]
ours = {k: pipe.decode(walked[k].latents)[0] for k in shown}
theirs = {k: pipe.decode(told.truth[step_name("latents", k)].float())[0] for k in shown}
largest = max(float((ours[k] - theirs[k]).abs().max()) for k in shown)
factor = 1 / max(largest, 1e-9)
show(
    {f"t = {walked[k].timestep}": ours[k] for k in shown}
    | {f"oracle, {k + 1} steps": theirs[k] for k in shown}
    | {f"difference, {k + 1}": factor * (ours[k] - theirs[k]) for k in shown},
    columns=len(shown),
)
print(f"the difference is amplified {factor:.0e} times (grey is none)")

# %% [markdown]
# ## 3.9 Does rounding grow along the way?
#
# Each step reads the last one's result, and guidance multiplies the difference of two guesses by
# 7.5: an unstable loop would multiply rounding from step to step. Here it grows by a factor of a
# few over twenty steps; and every honest evaluation goes the same way, so that the ratio stays
# where it was.

# %%
steps = np.arange(1, STEPS + 1)
names = [step_name("latents", k) for k in range(STEPS)]
errors = [rel_l2(step.latents, told.truth[name]) for step, name in zip(walked, names, strict=True)]
noise = [told.noise[name] for name in names]
assert all(error <= LIMIT * unit for error, unit in zip(errors, noise, strict=True))

plt.figure(figsize=(7, 2.8), layout="constrained")
plt.fill_between(steps, 1e-9, [LIMIT * unit for unit in noise], color="0.9", label="allowed")
plt.semilogy(steps, noise, color="0.5", label="noise of diffusers")
plt.semilogy(steps, errors, "o-", markersize=3, label="sd1_impl")
plt.ylim(min(errors) / 3, LIMIT * max(noise) * 2)
plt.xticks(steps[::2])
plt.tick_params(axis="y", which="minor", labelleft=False)
plt.xlabel("step")
plt.ylabel("relative error of the latents")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 3.10 Eight ways from the same noise
#
# Six of them solve the same ordinary differential equation,
#
# $$\frac{\mathrm d x}{\mathrm d \sigma} = \epsilon_\theta, \qquad
# \sigma = \sqrt{(1 - \bar\alpha) / \bar\alpha}$$
#
# (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
# equation 3, at $\sigma(t) = t$): DDIM and Euler by straight lines, PNDM and LMS by what they
# remember of earlier slopes, Heun and DPM-Solver++ 2M to second order. From one noise they arrive
# at about the same picture. DDPM and Euler-ancestral solve a *stochastic* equation: they add noise
# on the way and arrive at another picture of the same prompt. Ten steps are few, and show who can
# afford them: PNDM's extrapolation of fourth order overshoots on so coarse a grid, and may leave a
# picture half drawn that 20 steps finish.

# %%
FEW = STEPS // 2
pictures = {}
for name, (make_config, make) in SCHEDULERS.items():
    pipe.scheduler = make(make_config())
    run = pipe.scheduler.start(FEW)
    extra = torch.randn(
        len(run.timesteps), 1, 4, size, size, generator=torch.Generator().manual_seed(SEED)
    )
    adds = any(pipe.scheduler.adds_noise(t) for t in run.timesteps)
    run_config = {"scheduler": name, **settings(name, FEW)}
    given = {**picture, "config": config_array(run_config), **({"noise": extra} if adds else {})}
    drawn = pipe(
        caption.text,
        latents=latents,
        noise=extra,
        num_inference_steps=FEW,
        guidance_scale=GUIDANCE,
        height=pixels,
        width=pixels,
    )
    print(f"{name:<16}", end="")
    assert oracle.ask("pipeline/txt2img", given).ratio("image", drawn.image) <= LIMIT
    pictures[f"{name}, {len(run.timesteps)} calls"] = drawn.decoded[0]

show(pictures, columns=4)

# %% [markdown]
# ## 3.11 What order buys
#
# The distance of a solver's latents from where its own long run arrives. A method of first order,
# DDIM or Euler, about halves its error when the steps are doubled; one of second order, Heun,
# divides it by up to four, for twice the calls. DPM-Solver++ 2M is of second order too, for the
# calls of a first: but its first and its last step are of first order (Lu et al., 2022, algorithm
# 2), and where these dominate, so is its slope. This, and nothing about the network, is why people
# draw in 20 steps instead of 1000.
#
# The assertion claims less: more steps bring each solver nearer. That these are the right 5 steps,
# the oracle says of DPM-Solver++, whose two ends are easily wrong.


# %%
def arrive(name: str, steps: int) -> torch.Tensor:
    """Return the last latents of a run from the notebook's noise."""
    make_config, make = SCHEDULERS[name]
    pipe.scheduler = make(make_config())
    run = pipe.scheduler.start(steps)
    return pipe.denoise(pipe.initial_latents(latents, run), texts, run, guidance_scale=GUIDANCE)


counts = [5, 10, 20, 40]
goals = {name: arrive(name, 160) for name in ("ddim", "euler", "heun", "dpmpp_2m")}
distances = {
    name: [rel_l2(arrive(name, count), goal) for count in counts] for name, goal in goals.items()
}
assert all(row[-1] < row[0] for row in distances.values())

run_config = {"scheduler": "dpmpp_2m", **settings("dpmpp_2m", counts[0])}
last = step_name("latents", counts[0] - 1)
told = oracle.ask("pipeline/txt2img", {**picture, "config": config_array(run_config)}, [last])
assert told.ratio(last, arrive("dpmpp_2m", counts[0])) <= LIMIT

plt.figure(figsize=(6, 3), layout="constrained")
for name, row in distances.items():
    plt.loglog(counts, row, "o-", label=name)
plt.xticks(counts, counts)
plt.minorticks_off()
plt.xlabel("steps")
plt.ylabel("distance from its own 160 steps")
plt.legend(fontsize=8)
plt.show()
