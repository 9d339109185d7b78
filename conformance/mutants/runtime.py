"""Ports that are right once: they depend on what ran before, or on where and how they run.

Each passes the trace of the case that hunts it, and dies in one stability mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.execution import STABILITY
from conformance.mutants.mutant import Mutant, NotRun, Patch, replaced
from conformance.mutants.unet_tools import convolution_in, each, other_attention, through
from conformance.mutants.unet_tools import replaced as layers_replaced
from sd1_impl import tokenizer
from sd1_impl.attention import BasicTransformerBlock, CrossAttention, FeedForward
from sd1_impl.embeddings import Timesteps
from sd1_impl.schedulers.pndm import PNDMScheduler
from sd1_impl.tokenizer import CLIPTokenizer

REPEAT, FRESH, STATE, THREADS, BATCH = STABILITY

_PAIR = 2
"""Samples of one picture under guidance: all that some ports were tried with."""


def apart(layer: nn.Conv2d, hidden: Tensor, at: int) -> Tensor:
    """Convolve a map's channels before and from a given one apart, and add both."""
    how = (layer.stride, layer.padding)
    first = F.conv2d(hidden[:, :at], layer.weight[:, :at], None, *how)
    return first + F.conv2d(hidden[:, at:], layer.weight[:, at:], layer.bias, *how)


def _another_order_each_call(layer: Any) -> None:
    """Add the channels of a convolution up in an order that every call changes."""
    calls = count()

    def forward(hidden: Tensor) -> Tensor:
        return apart(layer, hidden, 1 + next(calls) % (layer.in_channels - 1))

    layer.forward = forward


def _first_context_kept(block: Any) -> None:
    """Let a block read the first prompt that it was given with every later one."""
    plain = block.forward
    kept: dict[torch.Size, Tensor] = {}

    def forward(tokens: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = plain(tokens, kept.setdefault(context.shape, context))
        return answer

    block.forward = forward


_past: list[Tensor] = []
"""The predictions of the run before, which `rt-scheduler-history` never forgets."""


def _history_kept(patch: Patch) -> None:
    def start(plain: Callable[..., Any]) -> Callable[..., Any]:
        def with_past(self: PNDMScheduler, *args: Any, **kwargs: Any) -> Any:
            run = plain(self, *args, **kwargs)
            run.outputs = list(_past)
            return run

        return with_past

    def step(plain: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(self: PNDMScheduler, output: Tensor, t: Any, x: Tensor, run: Any) -> Tensor:
            answer: Tensor = plain(self, output, t, x, run)
            _past[:] = run.outputs
            return answer

        return remembered

    patch.wrap(PNDMScheduler, "start", start)
    patch.wrap(PNDMScheduler, "step", step)


def _cache_extended(self: CLIPTokenizer, text: str) -> list[int]:
    """Gather the ids of a text in the list of its first word, which the cache keeps."""
    ids: list[int] | None = None
    for word in tokenizer._split(tokenizer._normalise(text)):
        if word not in self._cache:
            self._cache[word] = [self.vocabulary[token] for token in self._bpe(word)]
        if ids is None:
            ids = self._cache[word]
        else:
            ids += self._cache[word]
    return ids or []


def _frequencies_in_default_dtype(self: Timesteps, timesteps: Tensor) -> Tensor:
    """Compute the embedding in torch's default dtype, and not in one of its own."""
    half = self.dim // 2
    exponent = torch.arange(half, dtype=torch.get_default_dtype()) / (half - self.freq_shift)
    angles = timesteps[:, None] * torch.tensor(float(self.max_period)).pow(-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(timesteps.dtype)


def _dropout_with_gradients(layer: Any) -> None:
    """Drop a tenth of the hidden units whenever gradients could be recorded."""
    layer.net[1].forward = lambda hidden: F.dropout(hidden, 0.1, training=torch.is_grad_enabled())


def _taps_in_set_order(module: Any) -> None:
    """Add the nine taps of the first convolution up in the order of a set of their names."""
    layer = module.conv_in
    taps = {f"row {i} column {j}": (i, j) for i in range(3) for j in range(3)}
    order = [taps[name] for name in set(taps)]

    def forward(hidden: Tensor) -> Tensor:
        padded = F.pad(hidden, (1, 1, 1, 1))
        rows, columns = hidden.shape[-2:]
        total = layer.bias[:, None, None]
        for i, j in order:
            seen = padded[..., i : i + rows, j : j + columns]
            total = total + F.conv2d(seen, layer.weight[:, :, i : i + 1, j : j + 1])
        return total

    layer.forward = forward


def _rows_shared_among_threads(attention: Any) -> None:
    """Give every thread as many rows of a text as go into it evenly, and nobody the rest."""

    def forward(layer: nn.Linear, tokens: Tensor) -> Tensor:
        rows = tokens.shape[1]
        done = rows - rows % torch.get_num_threads()
        return F.pad(F.linear(tokens[:, :done], layer.weight), (0, 0, 0, rows - done))

    for layer in (attention.to_k, attention.to_v):
        layer.forward = partial(forward, layer)


_in_bfloat16 = convolution_in(lambda tensor: through(tensor, torch.bfloat16))


def _one_sample_in_bfloat16(layer: nn.Conv2d, hidden: Tensor) -> Tensor:
    if len(hidden) == 1:
        return _in_bfloat16(layer, hidden)
    return nn.Conv2d.forward(layer, hidden)


def _keys_of_a_pair(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let a batch of more than a guided pair read the keys of the sample before."""
    if len(query) > _PAIR:
        key, value = key.roll(1, dims=0), value.roll(1, dims=0)
    return F.scaled_dot_product_attention(query, key, value)


_UNET, _PNDM = "unet", "scheduler/pndm"
_BASE = ("tiny/base",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="rt-nondeterministic-kernel",
        component=_UNET,
        wrong="Convolutions add their channels up in another order in every call",
        seen="pytorch: torch.use_deterministic_algorithms lists such operations",
        evidence="R",
        size="subtle",
        cases=_BASE,
        module=each(nn.Conv2d, _another_order_each_call),
        modes=(REPEAT,),
    ),
    Mutant(
        id="rt-first-prompt-kept",
        component=_UNET,
        wrong="The text embeddings of the first call are kept and read by all later ones",
        evidence="I",
        size="catastrophic",
        cases=_BASE,
        module=each(BasicTransformerBlock, _first_context_kept),
        modes=(REPEAT,),
    ),
    Mutant(
        id="rt-scheduler-history",
        component=_PNDM,
        wrong="A run begins with the predictions of the run before it",
        evidence="I",
        size="visible",
        cases=("-/base",),
        patch=_history_kept,
        modes=(REPEAT,),
    ),
    Mutant(
        id="rt-tokenizer-cache",
        component="tokenizer",
        wrong="The cached ids of a word grow by those of the words after it",
        evidence="I",
        size="catastrophic",
        cases=("-/jekyll",),
        patch=replaced(CLIPTokenizer, "encode", _cache_extended),
        dtype="int64",
        modes=(REPEAT,),
    ),
    Mutant(
        id="rt-hash-order",
        component=_UNET,
        wrong="The taps of a convolution are added up in the order of a set of strings",
        evidence="I",
        size="subtle",
        cases=("tiny-dense/base",),  # elsewhere what enters that layer adds up exactly
        module=_taps_in_set_order,
        modes=(FRESH,),
    ),
    Mutant(
        id="rt-default-dtype",
        component=_UNET,
        wrong="The timestep embedding is computed in torch's default dtype",
        evidence="I",
        size="subtle",
        cases=_BASE,
        patch=replaced(Timesteps, "forward", _frequencies_in_default_dtype),
        modes=(STATE,),
    ),
    Mutant(
        id="rt-dropout-with-gradients",
        component=_UNET,
        wrong="Dropout is active unless gradients are turned off",
        evidence="I",
        size="visible",
        cases=_BASE,
        module=each(FeedForward, _dropout_with_gradients),
        modes=(STATE,),
    ),
    Mutant(
        id="rt-thread-tail",
        component=_UNET,
        wrong="The rows of a text are shared evenly among threads, and what is left is zero",
        evidence="I",
        size="visible",
        cases=_BASE,
        module=each(CrossAttention, _rows_shared_among_threads),
        modes=(THREADS,),
    ),
    Mutant(
        id="rt-one-sample-kernel",
        component="vae_decoder",
        wrong="A batch of one takes a kernel that rounds its operands to bfloat16",
        evidence="I",
        size="visible",
        cases=_BASE,
        module=layers_replaced(nn.Conv2d, _one_sample_in_bfloat16),
        modes=(BATCH,),
    ),
    Mutant(
        id="rt-batch-beyond-a-pair",
        component=_UNET,
        wrong="Of more than two samples each attends to the keys of the one before",
        evidence="I",
        size="catastrophic",
        cases=_BASE,
        module=other_attention(_keys_of_a_pair),
        modes=(BATCH,),
    ),
)
"""Right in one run: what is wrong shows in another."""

NOT_RUN: tuple[NotRun, ...] = ()
