"""Null mutants: lawful ways to compute the same, which every case must let live.

Most replace a function of `torch.nn.functional`, and so hold for a whole network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.mutants.mutant import Change, Mutant, NotRun, Patch, replaced, wrapped
from sd1_impl.attention import BasicTransformerBlock, CrossAttention
from sd1_impl.embeddings import Timesteps
from sd1_impl.pipeline import Text2Image
from sd1_impl.resnet import ResnetBlock
from sd1_impl.schedulers.ddim import DDIMScheduler
from sd1_impl.schedulers.noise_schedule import NoiseSchedule
from sd1_impl.schedulers.pndm import PNDMScheduler
from sd1_impl.text_encoder import MLP

UNET, TEXT, ENCODER, DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"
DDPM, DDIM, PNDM = "scheduler/ddpm", "scheduler/ddim", "scheduler/pndm"
PICTURE = "pipeline/txt2img"

_REGIMES = (*(f"tiny{r}/base" for r in ("", "-lowvar", "-dense", "-sharp", "-offset")), "odd/base")
_CASES = {
    UNET: (*_REGIMES, "tiny/t999", "tiny/oddsize"),
    TEXT: (*_REGIMES, "tiny/tokens77", "tiny/batch3"),
    ENCODER: (*_REGIMES, "tiny/oddsize", "tiny/border"),
    DECODER: (*_REGIMES, "tiny/oddsize", "tiny/border"),
    DDPM: ("-/base", "-/steps7", "-/steps999", "-/pixels", "-/large"),
    DDIM: ("-/base", "-/steps7", "-/steps999", "-/pixels", "-/eta1"),
    PNDM: ("-/base", "-/steps7", "-/steps999", "-/pixels"),
    PICTURE: ("tiny/base", "tiny/ddpm", "tiny/ddim50", "tiny/batch3"),
}

_SDPA, _CONV, _NORM = "scaled_dot_product_attention", "conv2d", "group_norm"
_LAYERS = (_CONV, "linear", _NORM, "layer_norm")

Fun = Callable[..., Any]


def _null(name: str, component: str, way: str, **change: Any) -> Mutant:
    return Mutant(
        id=f"null-{name}", component=component, wrong=f"Nothing: {way}", cases=_CASES[component],
        evidence="null", size="none", **change,
    )  # fmt: skip


def _around(*names: str, make: Callable[[Fun], Fun]) -> Change:
    """Return what replaces functions of `torch.nn.functional` by `make(the function)`."""

    def change(patch: Patch) -> None:
        for name in names:
            patch.wrap(F, name, make)

    return change


def _each(kind: Any, forward: Fun) -> Callable[[Any], None]:
    """Return what gives every layer of a kind another forward pass, a function of layer, input."""

    def spoil(module: Any) -> None:
        for layer in module.modules():
            if isinstance(layer, kind):
                layer.forward = partial(forward, layer)

    return spoil


def _embedding(angles: Fun) -> Change:
    """Return another way to the angles, a function of `(B, 1)` timesteps, k, how many, period."""

    def forward(self: Timesteps, timesteps: Tensor) -> Tensor:
        timesteps = timesteps.to(torch.promote_types(timesteps.dtype, torch.float32))
        k = torch.arange(self.dim // 2, dtype=timesteps.dtype, device=timesteps.device)
        found = angles(timesteps[:, None], k, len(k), self.max_period).to(timesteps.dtype)
        return torch.cat([found.cos(), found.sin()], dim=-1)

    return replaced(Timesteps, "forward", forward)


def _affine(normed: Tensor, like: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (like.dim() - 2))
    return normed.reshape(like.shape) * weight.view(shape) + bias.view(shape)


def _two_passes(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows = x.unflatten(1, (groups, -1)).flatten(2)
    centred = rows - rows.sum(-1, keepdim=True) / rows.shape[-1]
    variance = (centred * centred).sum(-1, keepdim=True) / rows.shape[-1]
    return _affine(centred / (variance + eps).sqrt(), x, weight, bias)


def _welford(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Merge mean and squares of chunk after chunk (Chan, Golub and LeVeque, 1979)."""
    rows = x.unflatten(1, (groups, -1)).flatten(2)
    mean = squares = torch.zeros_like(rows[..., :1])
    seen = 0
    for chunk in rows.split(16, dim=-1):
        own, count = chunk.mean(-1, keepdim=True), chunk.shape[-1]
        delta = own - mean
        mean = mean + delta * count / (seen + count)
        squares = squares + ((chunk - own) ** 2).sum(-1, keepdim=True)
        squares = squares + delta**2 * seen * count / (seen + count)
        seen += count
    return _affine((rows - mean) * (squares / seen + eps).rsqrt(), x, weight, bias)


def _layer_norm(x: Tensor, _: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * ((centred**2).mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def _unit_as_linear(plain: Fun) -> Fun:
    """Return a convolution that takes kernels of one pixel for matrices."""

    def conv(x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
        if weight.shape[-1] > 1:
            return plain(x, weight, bias, *how)
        return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)

    return conv


def _pad_before(plain: Fun) -> Fun:
    def conv(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, *_: Any) -> Tensor:
        rows, columns = padding
        return plain(F.pad(x, (columns, columns, rows, rows)), weight, bias, stride)

    return conv


def _unfolded(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, *_: Any) -> Any:
    kernel = weight.shape[-2:]
    columns = F.unfold(x, kernel, padding=padding, stride=stride)  # (B, C k k, N)
    sides = zip(x.shape[-2:], padding, kernel, stride, strict=True)
    size = [(side + 2 * p - k) // s + 1 for side, p, k, s in sides]
    return (weight.flatten(1) @ columns + bias[:, None]).unflatten(2, size)


def _column_of_ones(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None:
        return x @ weight.T
    ones = x.new_ones((*x.shape[:-1], 1))
    return torch.cat([x, ones], dim=-1) @ torch.cat([weight, bias[:, None]], dim=1).T


def _one_by_one(plain: Fun) -> Fun:
    """Return a function that is given the samples of a batch one after the other."""
    return lambda x, *arguments: torch.cat([plain(part, *arguments) for part in x.split(1)])


def _fused(module: nn.Module) -> None:
    """Compute the products of one input as one, and split it."""

    def forward(weight: Tensor, i: int, count: int, tokens: Tensor) -> Tensor:
        return F.linear(tokens, weight).chunk(count, dim=-1)[i]

    for name, layer in module.named_modules():
        if isinstance(layer, CrossAttention):
            own = [layer.to_q] if name.endswith("attn1") else []
            parts = [*own, layer.to_k, layer.to_v]
            weight = torch.cat([part.weight for part in parts])
            for i, part in enumerate(parts):
                part.forward = partial(forward, weight, i, len(parts))


def _linear_as_convolution(layer: nn.Linear, tokens: Tensor) -> Tensor:
    kernel = layer.weight[:, :, None, None]
    return F.conv2d(tokens.mT.unsqueeze(-1), kernel, layer.bias).squeeze(-1).mT


def _attend(weights: Fun, *, lowest: bool = False) -> Change:
    """Return attention by a function from scores to weights, its mask added: -inf or the lowest."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False) -> Tensor:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if is_causal:
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            number = torch.finfo(scores.dtype).min if lowest else -torch.inf
            scores = scores + torch.zeros_like(scores).masked_fill(later, number)
        return weights(scores) @ value

    return replaced(F, _SDPA, attention)


def _softmax(scores: Tensor) -> Tensor:
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def _root_of_scale(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    root = query.shape[-1] ** -0.25
    return ((query * root) @ (key * root).mT).softmax(-1) @ value


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Read the keys block by block, with a running maximum and powers of two (Dao et al., 2022)."""
    scale = query.shape[-1] ** -0.5 * math.log2(math.e)
    highest = query.new_full((*query.shape[:-1], 1), -torch.inf)
    total, attended = torch.zeros_like(highest), torch.zeros_like(query)
    for some, own in zip(key.split(32, dim=-2), value.split(32, dim=-2), strict=True):
        scores = query @ some.mT * scale
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights, shrink = torch.exp2(scores - higher), torch.exp2(highest - higher)
        total = total * shrink + weights.sum(-1, keepdim=True)
        attended = attended * shrink + weights @ own
        highest = higher
    return attended / total


def _by_queries(plain: Fun) -> Fun:
    return lambda query, key, value: torch.cat(
        [plain(some, key, value) for some in query.split(20, dim=-2)], dim=-2
    )


def _by_heads(plain: Fun) -> Fun:
    def attention(*parts: Tensor, **how: Any) -> Tensor:
        heads = zip(*(part.split(1, dim=1) for part in parts), strict=True)
        return torch.cat([plain(*head, **how) for head in heads], dim=1)

    return attention


def _quick_gelu(self: MLP, tokens: Tensor) -> Tensor:
    hidden = self.fc1(tokens)
    return self.fc2(hidden * (1 / (1 + torch.exp(-self.coefficient * hidden))))


def _repeated(x: Tensor, *, size: Any = None, **_: Any) -> Tensor:
    """Repeat rows and columns, and cut what is too much."""
    height, width = size or (2 * side for side in x.shape[-2:])
    return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)[..., :height, :width]


def _indexed(x: Tensor, *, size: Any = None, **_: Any) -> Tensor:
    height, width = size or (2 * side for side in x.shape[-2:])
    rows = torch.arange(height, device=x.device) * x.shape[-2] // height
    return x[..., rows[:, None], torch.arange(width, device=x.device) * x.shape[-1] // width]


def _block(self: BasicTransformerBlock, tokens: Tensor, context: Tensor) -> Tensor:
    tokens = self.attn1(self.norm1(tokens)) + tokens
    tokens = self.attn2(self.norm2(tokens), context) + tokens
    return self.ff(self.norm3(tokens)) + tokens


def _resnet(self: ResnetBlock, hidden: Tensor, temb: Tensor) -> Tensor:
    time = self.time_emb_proj(F.silu(temb))[:, :, None, None]
    residual = self.conv2(F.silu(self.norm2(time + self.conv1(F.silu(self.norm1(hidden))))))
    return residual + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))


def _channels_last(module: nn.Module) -> None:
    last = torch.channels_last
    module.to(memory_format=last)
    module.register_forward_pre_hook(lambda _, args: (args[0].to(memory_format=last), *args[1:]))


def _reciprocal(module: Any) -> None:
    factor = 1 / module.config.scaling_factor
    module.decode = lambda latents: module.decoder(module.post_quant_conv(latents * factor))


def _tables(change: Fun) -> Change:
    """Return other tables of a noise schedule, each a function of the right one and the betas."""

    def make(plain: Fun) -> Fun:
        def init(self: Any, config: Any, *, set_alpha_to_one: bool) -> None:
            plain(self, config, set_alpha_to_one=set_alpha_to_one)
            self.betas, self.alphas_cumprod = change(self.betas, self.alphas_cumprod)
            self.final_alpha_cumprod = 1.0 if set_alpha_to_one else float(self.alphas_cumprod[0])

        return init

    return wrapped(NoiseSchedule, "__init__", make)


def _ddim_direct(
    self: Any, output: Tensor, t: Any, sample: Tensor, run: Any, noise: Tensor | None = None
) -> Tensor:
    """Take DDIM's step as one linear combination."""
    now, then = self.alpha_cumprod(int(t)), self.alpha_cumprod(int(t) - run.stride)
    sigma = self.config.eta * self.sigma(int(t), int(t) - run.stride)
    ours = math.sqrt(1 - then - sigma**2) - math.sqrt(then * (1 - now) / now)
    moved = math.sqrt(then / now) * sample + ours * output
    return moved if noise is None else moved + sigma * noise


def _pndm_by_original(self: Any, epsilon: Tensor, t: int, prev: int, sample: Tensor) -> Tensor:
    """Take PLMS's step by way of the clean sample, as DDIM does."""
    now, then = self.alpha_cumprod(t), self.alpha_cumprod(prev)
    original = (sample - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
    return math.sqrt(then) * original + math.sqrt(1 - then) * epsilon


def _branches_apart(self: Any, model_input: Tensor, t: Any, text: Any) -> tuple[Any, Tensor]:
    negative = text.negative_prompt_embeds
    uncond = None if negative is None else self.unet(model_input, t, negative)
    return uncond, self.unet(model_input, t, text.prompt_embeds)


MUTANTS: tuple[Mutant, ...] = (
    _null("embed-pow", UNET, "a power for the exponential",
          patch=_embedding(lambda t, k, n, period: t * period ** (-k / n))),
    _null("embed-exponent-order", UNET, "the exponent is divided before it is multiplied",
          patch=_embedding(lambda t, k, n, period: t * torch.exp(-(math.log(period) / n) * k))),
    _null("embed-float64", UNET, "the angles are computed in float64 and rounded once",
          patch=_embedding(lambda t, k, n, period: t.double() * period ** (-k.double() / n))),
    _null("group-norm-two-passes", UNET, "a norm by hand", patch=replaced(F, _NORM, _two_passes)),
    _null("group-norm-welford", UNET, "a norm by merged chunks",
          patch=replaced(F, _NORM, _welford)),
    _null("conv1x1-linear", UNET, "1x1 convolutions as matrices",
          patch=_around(_CONV, make=_unit_as_linear)),
    _null("conv-unfold", UNET, "convolutions as one product", patch=replaced(F, _CONV, _unfolded)),
    _null("conv-bias-afterwards", UNET, "the bias is added to a convolution without one",
          patch=_around(_CONV, make=lambda plain: lambda x, weight, bias, *how: (
              plain(x, weight, None, *how) + bias[:, None, None]))),
    _null("linear-column-of-ones", UNET, "the bias is one more column of the matrix",
          patch=replaced(F, "linear", _column_of_ones)),
    _null("attention-plain", UNET, "softmax of the scores, times the values",
          patch=_attend(lambda scores: scores.softmax(-1))),
    _null("attention-scaled-query", UNET, "queries are scaled before the product",
          patch=replaced(F, _SDPA, lambda query, key, value: (
              (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1) @ value))),
    _null("attention-root-of-scale", UNET, "its root scales queries and keys",
          patch=replaced(F, _SDPA, _root_of_scale)),
    _null("attention-flash", UNET, "keys in blocks, powers of two",
          patch=replaced(F, _SDPA, _flash)),
    _null("attention-by-heads", UNET, "head after head", patch=_around(_SDPA, make=_by_heads)),
    _null("attention-by-queries", UNET, "in chunks", patch=_around(_SDPA, make=_by_queries)),
    _null("qkv-fused", UNET, "one product for queries, keys and values", module=_fused),
    _null("silu-reciprocal", UNET, "SiLU as a quotient",
          patch=replaced(F, "silu", lambda x, **_: x / (1 + torch.exp(-x)))),
    _null("gelu-erf", UNET, "GELU by its definition",
          patch=replaced(F, "gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))),
    _null("upsample-repeat", UNET, "pixels repeated, then cut",
          patch=replaced(F, "interpolate", _repeated)),
    _null("upsample-index", UNET, "pixels by index", patch=replaced(F, "interpolate", _indexed)),
    _null("residual-first-tokens", UNET, "streams are added to what was computed",
          module=_each(BasicTransformerBlock, _block)),
    _null("residual-first-resnet", UNET, "maps are added to what was computed",
          module=_each(ResnetBlock, _resnet)),
    _null("channels-last", UNET, "channels lie together in memory", module=_channels_last),
    _null("one-by-one", UNET, "sample by sample", patch=_around(*_LAYERS, make=_one_by_one)),
    _null("clip-mask-infinite", TEXT, "minus infinity is added to the masked scores",
          patch=_attend(lambda scores: scores.softmax(-1))),
    _null("clip-mask-finite", TEXT, "the lowest number is added, once, to the masked scores",
          patch=_attend(_softmax, lowest=True)),
    _null("clip-quick-gelu", TEXT, "a quotient for the sigmoid", module=_each(MLP, _quick_gelu)),
    _null("clip-layer-norm", TEXT, "a norm by hand", patch=replaced(F, "layer_norm", _layer_norm)),
    _null("clip-one-hot", TEXT, "tables read by a product",
          patch=replaced(F, "embedding", lambda ids, table, *_: (
              F.one_hot(ids, len(table)).to(table.dtype) @ table))),
    _null("encoder-attention-convolutions", ENCODER, "linear layers as 1x1 convolutions",
          module=_each(nn.Linear, _linear_as_convolution)),
    _null("encoder-pad", ENCODER, "zeros are put around the map before a convolution",
          patch=_around(_CONV, make=_pad_before)),
    _null("decoder-attention-by-queries", DECODER, "in chunks",
          patch=_around(_SDPA, make=_by_queries)),
    _null("decoder-softmax", DECODER, "shifted by its maximum by hand", patch=_attend(_softmax)),
    _null("decoder-reciprocal", DECODER, "multiplied by a reciprocal", module=_reciprocal),
    *(_null(f"{name.partition('/')[2]}-float32-tables", name, "tables rounded to float32 once",
            patch=_tables(lambda *tables: [table.astype(np.float32) for table in tables]))
      for name in (DDPM, DDIM, PNDM)),
    _null("ddim-tables-by-logarithms", DDIM, "products as sums of logarithms",
          patch=_tables(lambda betas, _: (betas, np.exp(np.cumsum(np.log1p(-betas)))))),
    _null("ddim-direct", DDIM, "one linear combination",
          patch=replaced(DDIMScheduler, "step", _ddim_direct)),
    _null("pndm-by-original", PNDM, "by way of the clean sample",
          patch=replaced(PNDMScheduler, "transfer", _pndm_by_original)),
    _null("guidance-of-both", PICTURE, "(1 - s) of one prediction plus s of the other",
          patch=replaced(Text2Image, "guide", lambda _, uncond, text, s: (
              (1 - s) * uncond + s * text))),
    _null("branches-apart", PICTURE, "the UNet is asked once for each prompt",
          patch=replaced(Text2Image, "predict_noise", _branches_apart)),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
