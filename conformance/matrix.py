"""The axes of the default matrix: which cases are run in which other arithmetic, backend or mode.

Every case is judged in float32 and float64, by the port's own backend. Of what else there is each
has the cases that show what it can break, and no other: an overflow needs large values, a head size
a width of its own, a memory format images, a softmax scores that are large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conformance.case import Case
from conformance.execution import BACKENDS, COMPILE, SDPA, STABILITY, Execution
from conformance.golden import SPLICE, TRACE
from conformance.port import Hello
from conformance.shards import Item
from conformance.tolerance import FLOATS, HALVES, OTHER_ARITHMETICS, POLICIES

CPU, CUDA = "cpu", "cuda"

_, FLASH, EFFICIENT, MATH, PLAIN, SLICED, CHANNELS_LAST, _ = BACKENDS
_AUTOCAST, _FP16_NORM32, _VAE_UPCAST = POLICIES
_MIXED = (*OTHER_ARITHMETICS, _AUTOCAST, _FP16_NORM32)
_TF32, _ = OTHER_ARITHMETICS
_FLOAT64, _FLOAT32 = FLOATS
_BF16, _FP16 = HALVES

_BUT_THREADS = tuple(mode for mode in STABILITY if mode != "threads")
_BUT_BATCH = tuple(mode for mode in STABILITY if mode != "batch")

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
    Axis(("vae_??coder/tiny/base", "vae_??coder/tiny-outlier/base"), HALVES),
    Axis(("vae_??coder/tiny/nonsquare", "vae_decoder/tiny/beyond"), (_BF16,)),
    Axis(("vae_encoder/tiny/loud", "vae_decoder/tiny/brink"), (_FP16,)),  # near the largest number
    Axis(("vae_??coder/tiny-sharp/base", "vae_??coder/odd/base"), (_FP16,)),
    Axis(("unet/tiny/base",), HALVES),
    Axis(("unet/tiny/beyond",), (_BF16,)),
    Axis(("unet/tiny-sharp/base", "unet/tiny/brink"), (_FP16,)),
    Axis(("scheduler/*/-/base",), HALVES),
    Axis(("pipeline/txt2img/tiny/ddim2",), (_BF16,)),
    Axis(("pipeline/txt2img/tiny/ddim1",), (_FP16,)),
    Axis(("text_encoder/tiny/base", "vae_decoder/tiny/base"), HALVES, modes=(SPLICE,)),
    Axis(("vae_encoder/tiny/base",), (_BF16,), modes=(SPLICE,)),
)

_MIXTURES = (
    Axis(("text_encoder/tiny/base", "text_encoder/tiny-outlier/base"), _MIXED),
    Axis(("vae_??coder/tiny/base",), _MIXED),
    Axis(("unet/tiny/base",), (_TF32, _AUTOCAST, _FP16_NORM32)),
    Axis(("vae_decoder/tiny/brink",), (_FP16_NORM32,)),
    Axis(("text_encoder/tiny/base", "vae_encoder/tiny/base"), OTHER_ARITHMETICS, modes=(SPLICE,)),
    Axis(("pipeline/txt2img/tiny/base",), (_VAE_UPCAST,)),
)

_OTHER_BACKENDS = (
    Axis(("unet/odd/base",), backends=(MATH, PLAIN, SLICED, CHANNELS_LAST)),  # heads of 40 and 80
    Axis(("text_encoder/odd/base",), backends=(MATH,)),  # causal: a mask of its own
    Axis(("text_encoder/tiny-sharp/base",), (_FLOAT32, _BF16), backends=(PLAIN,)),
    Axis(("text_encoder/tiny/tokens77", "text_encoder/tiny/batch3"), backends=(SLICED,)),
    Axis(("text_encoder/tiny/base",), (_FLOAT64,), backends=(MATH, PLAIN)),
    Axis(("text_encoder/tiny/several-eos",), (_FLOAT64, *HALVES), backends=(SLICED,)),
    Axis(("text_encoder/tiny/tokens75",), HALVES, backends=(MATH,)),
    Axis(("text_encoder/odd/base",), (_FP16,), backends=(PLAIN,)),
    Axis(("vae_??coder/odd/base",), backends=(MATH, CHANNELS_LAST)),  # one head as wide as the map
    Axis(("vae_??coder/tiny/base",), backends=(PLAIN,)),
    Axis(("vae_??coder/tiny/batch3",), backends=(SLICED,)),
    Axis(("vae_??coder/tiny/oddsize",), (_FLOAT64, *HALVES), backends=(CHANNELS_LAST,)),
    Axis((_RESNET,), backends=(CHANNELS_LAST,)),
    Axis(("pipeline/txt2img/tiny/ddim1",), backends=(PLAIN, CHANNELS_LAST)),
    Axis(("unet/tiny/small", "vae_??coder/tiny/border"), (_BF16,), backends=(FLASH,)),
    Axis(("text_encoder/tiny/long",), HALVES, backends=(FLASH,)),
    Axis(("text_encoder/tiny/base",), backends=(PLAIN,), modes=(SPLICE,)),
    Axis(("vae_decoder/tiny/base",), backends=(CHANNELS_LAST,), modes=(SPLICE,)),
)

_AGAINST_ITSELF = (
    Axis(("tokenizer/-/batch-unicode",), modes=_BUT_THREADS),
    Axis(("scheduler/*/-/base", _RESNET), modes=STABILITY),
    Axis(("text_encoder/tiny/batch3",), (*FLOATS, *HALVES), modes=STABILITY),
    Axis(("unet/tiny/base", "vae_??coder/tiny/base"), modes=STABILITY),
    Axis(("pipeline/txt2img/tiny/ddim1",), modes=_BUT_BATCH),  # of one picture
)

_COMPILED = (
    Axis((_RESNET, "*coder/tiny/base", "unet/tiny/base"), (_FLOAT32, _BF16), backends=(COMPILE,)),
)

AXES = (*_HALF_TYPES, *_MIXTURES, *_OTHER_BACKENDS, *_AGAINST_ITSELF, *_COMPILED)

_ON_CUDA = (
    # There torch has kernels of its own for each of these.
    Axis(("unet/*/base", "*coder/*/base"), HALVES, backends=(FLASH, EFFICIENT, MATH)),
    Axis(("unet/*/base", "*coder/*/base"), backends=(EFFICIENT, MATH)),
    Axis(("unet/*/base", "*coder/*/base"), HALVES, modes=(SPLICE,)),
)


def axis_items(cases: Iterable[Case], hello: Hello, device: str = CPU) -> list[Item]:
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


def what_it_computes(case: Case, run: Execution) -> tuple[str, ...]:
    """Name the numbers that an item checks: two items that name the same are one too many.

    On a CPU torch's own attention is its flash kernel; splice mode judges all blocks of a case in
    one run.
    """
    backend = SDPA if run.backend == FLASH and run.device == CPU else run.backend
    return (case.id, run.dtype, run.device, backend, run.mode)
