"""The axes of the default matrix: which cases are run in which other arithmetic, backend or mode.

Every case is judged in float32 and float64, by the port's own backend. Of what else there is each
has the cases that show what it can break, and no other: an overflow needs large values, a head size
a width of its own, a memory format images, a softmax scores that are large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conformance.case import NETWORKS, Case
from conformance.execution import BACKENDS, COMPILE, SDPA, STABILITY, Execution
from conformance.golden import SPLICE, TRACE
from conformance.port import Hello
from conformance.tolerance import FLOATS, HALVES, OTHER_ARITHMETICS, POLICIES

CPU, CUDA = "cpu", "cuda"

_, FLASH, EFFICIENT, MATH, PLAIN, SLICED, CHANNELS_LAST, PACKED, _ = BACKENDS
_AUTOCAST, _FP16_NORM32, _VAE_UPCAST = POLICIES
_MIXED = (*OTHER_ARITHMETICS, _AUTOCAST, _FP16_NORM32)
_TF32, _BF16_MATMUL = OTHER_ARITHMETICS
_FLOAT64, _FLOAT32 = FLOATS
_BF16, _FP16 = HALVES

_BUT_THREADS = tuple(mode for mode in STABILITY if mode != "threads")

_BASES = tuple(f"{network}/tiny/base" for network in NETWORKS)
_EVERY_BASE = tuple(f"{network}/*/base" for network in NETWORKS)
_FULL_ATTENTION = "unet/sd1/latent64"
_RESNET = "block/down_blocks.0.resnets.0/tiny/base"


@dataclass(frozen=True)
class Axis:
    """Cases, and how they are run.

    Attributes:
        cases: Globs of case ids.
        dtypes: Arithmetics.
        backends: Backends.
        modes: Modes.
    """

    cases: tuple[str, ...]
    dtypes: tuple[str, ...] = (_FLOAT32,)
    backends: tuple[str, ...] = (SDPA,)
    modes: tuple[str, ...] = (TRACE,)

    def executions(self, device: str) -> Iterator[Execution]:
        """Yield how a case is run."""
        for dtype in self.dtypes:
            for backend in self.backends:
                for mode in self.modes:
                    yield Execution(dtype, device, backend, mode)


_HALF_TYPES = (
    Axis(("text_encoder/tiny/base", "text_encoder/odd/base", "block/*/tiny/base"), HALVES),
    Axis(("text_encoder/tiny-[!d]*/base",), HALVES),  # large scores, outliers, small variances
    Axis(("vae_decoder/tiny/base",), HALVES),
    Axis(("vae_encoder/tiny/loud", "vae_decoder/tiny/brink"), (_FP16,)),  # near the largest number
    Axis(("vae_encoder/tiny/nonsquare", "vae_??coder/tiny-outlier/base"), (_BF16,)),
    Axis(("unet/tiny/base",), (_BF16,)),
    Axis(("unet/tiny/brink",), (_FP16,)),
    Axis(("scheduler/*/-/base",), HALVES),
    Axis(("pipeline/txt2img/tiny/ddim1",), (_BF16,)),
    Axis(("text_encoder/tiny/base", "vae_decoder/tiny/base"), (_FP16,), modes=(SPLICE,)),
    Axis(("text_encoder/tiny/base",), (_BF16,), modes=(SPLICE,)),
)

_MIXTURES = (
    Axis(("text_encoder/tiny/base", "text_encoder/tiny-outlier/base"), _MIXED),
    Axis(("vae_decoder/tiny/base",), (_TF32,)),
    Axis(("vae_decoder/tiny/brink",), (_FP16_NORM32,)),
    Axis(("vae_encoder/tiny/base",), (_BF16_MATMUL, _AUTOCAST)),
    Axis(("unet/tiny/base",), (_AUTOCAST,)),
    Axis(("text_encoder/tiny/base",), OTHER_ARITHMETICS, modes=(SPLICE,)),
    Axis(("pipeline/txt2img/tiny/ddim1",), (_VAE_UPCAST,)),
)

_OTHER_BACKENDS = (
    Axis(("unet/odd/base",), backends=(MATH, CHANNELS_LAST)),  # heads of 40 and 80
    Axis(("unet/tiny-sharp/base",), backends=(PLAIN,)),  # scores of over 88
    Axis(("unet/tiny/batch1",), backends=(SLICED,)),
    Axis(("text_encoder/odd/base",), backends=(MATH,)),  # causal: a mask of its own
    Axis(("text_encoder/tiny-sharp/base",), (_FLOAT32, _BF16), backends=(PLAIN,)),
    Axis(("text_encoder/tiny/tokens77", "text_encoder/tiny/batch3"), backends=(SLICED,)),
    Axis(("text_encoder/tiny/base",), (_FLOAT64,), backends=(MATH, PLAIN)),
    Axis(("text_encoder/tiny/tokens75",), (_FP16,), backends=(MATH, SLICED)),
    Axis(("vae_decoder/odd/base",), backends=(MATH,)),  # one head as wide as the map
    Axis(("vae_encoder/odd/base", "vae_decoder/tiny/oddsize"), backends=(CHANNELS_LAST,)),
    Axis(("vae_decoder/tiny/base",), backends=(PLAIN,)),
    Axis(("vae_encoder/tiny/batch3",), backends=(SLICED,)),
    Axis((_RESNET,), backends=(CHANNELS_LAST,)),
    Axis(("text_encoder/odd/base", "unet/odd/base"), (_FLOAT32, _BF16), backends=(PACKED,)),
    Axis(("vae_??coder/odd/base",), (_FLOAT32, _BF16), backends=(PACKED,)),
    Axis(("unet/tiny/oddsize", "pipeline/txt2img/tiny/ddim1"), backends=(PACKED,)),
    Axis(("text_encoder/tiny/long",), HALVES, backends=(FLASH,)),
    Axis(("text_encoder/tiny/base",), backends=(PLAIN,), modes=(SPLICE,)),
    Axis(("vae_decoder/tiny/base",), backends=(CHANNELS_LAST,), modes=(SPLICE,)),
)

_AGAINST_ITSELF = (
    Axis(("tokenizer/-/batch-unicode",), modes=_BUT_THREADS),
    Axis(("scheduler/*/-/base", _RESNET), modes=STABILITY),
    Axis(("text_encoder/tiny/batch3",), (_FLOAT32, _BF16), modes=STABILITY),
    Axis(("unet/tiny/base", "vae_decoder/tiny/base"), modes=STABILITY),
    Axis(("vae_encoder/tiny/base",), modes=("repeat", "batch")),  # noise goes in, and is not drawn
    Axis(("pipeline/txt2img/tiny/ddim1",), modes=("repeat",)),
)

_COMPILED = (Axis((_RESNET, *_BASES), (_FLOAT32, _BF16), backends=(COMPILE,)),)

AXES = (*_HALF_TYPES, *_MIXTURES, *_OTHER_BACKENDS, *_AGAINST_ITSELF, *_COMPILED)

_ON_CUDA = (
    # There torch has kernels of its own for each of these.
    Axis(_EVERY_BASE, HALVES, backends=(FLASH, EFFICIENT, MATH)),
    Axis(_EVERY_BASE, backends=(EFFICIENT, MATH)),
    Axis(_EVERY_BASE, HALVES, modes=(SPLICE,)),
    Axis((_FULL_ATTENTION,), HALVES, backends=(FLASH, EFFICIENT, MATH, CHANNELS_LAST, COMPILE)),
    Axis((_FULL_ATTENTION,), backends=(EFFICIENT, MATH, PLAIN, SLICED, CHANNELS_LAST, COMPILE)),
)


def axis_items(
    cases: Iterable[Case], hello: Hello, device: str = CPU
) -> list[tuple[Case, Execution]]:
    """Return the items of the axes, each once.

    Args:
        cases: Those to choose from.
        hello: What the port offers: what it does not is left out.
        device: Where they are run.

    Returns:
        Cases and how they are run, those of a component and variant together.
    """
    axes = (*AXES, *_ON_CUDA) if device.startswith(CUDA) else AXES
    found: dict[tuple[Case, Execution], None] = {}
    for case in cases:
        for axis in axes:
            if any(fnmatchcase(case.id, glob) for glob in axis.cases):
                runs = (run.for_case(case) for run in axis.executions(device))
                found.update({(case, run): None for run in runs if _offered(run, hello)})
    return list(found)


def _offered(run: Execution, hello: Hello) -> bool:
    """Say whether a port offers what a run asks for, whatever the case."""
    arithmetic = run.dtype in (*hello.arithmetics, "int64")
    backend = run.backend in (*hello.backends, "")
    return arithmetic and backend and (run.mode != SPLICE or hello.replace)
