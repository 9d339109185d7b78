"""Precision: errors that look like rounding to fewer bits than were asked for, and what made them.

A product of operands that were rounded to b fraction bits is off by about 0.2 x 2**-b of its size:
from an error the bits can be read. That alone proves nothing, since a wrong constant may happen to
cost as much. So either most of the products of a network must show the same bits, or the error of
one layer must be white.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import spec
from conformance.compare import Record
from conformance.golden import SPLICE, Golden
from conformance.sketch import sketch
from conformance.tolerance import FLOATS
from conformance.whiteness import ENOUGH, fraction_bits, is_white

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.evidence.collect import Answer
    from conformance.result import Result

PRECISION = "precision"

CONVOLUTION, LINEAR, ATTENTION = "convolution", "linear layer", "attention core"

FORMATS = {
    23: "float32",
    10: "TF32 or float16",
    8: "sums in half precision",
    7: "bfloat16",
}
"""By about how many bits are left, what leaves so many."""

_FROM = {23: 19.5, 10: 8.7, 8: 7.5, 7: 5.7}
"""Fewest implied bits of each: a second rounded operand costs half a bit, attention one, and long
sums of float32 three."""

_TO = {23: 24.5, 10: 11.3}
"""Most implied bits, where nothing lies above: a bias, or an exact operand, gives some back."""

NOISE_OF = {23: ("float32",), 10: ("tf32", "float16"), 7: ("bf16-matmul", "bfloat16")}
"""Arithmetics whose recorded noise is that of such roundings, the best first."""

_OF_ONE_OPERAND = 0.2
"""Relative error of a product of one operand rounded to no fraction bit: 1 / sqrt(12 x 2.2)."""

_ALIKE = 1.2
"""Bits by which the layers of a network may differ from their median."""

_IN_BLOCKS = 3.0
"""The same of blocks, some of which add little to a stream."""

_SPREAD = {23: 3.0}
"""The same where the sums of float32 count, and some layers have none."""

_MOST, _NEARLY_ALL = 0.5, 0.8
_FEWEST = 3
_LOOKED_AT = 8


@dataclass(frozen=True)
class Finding:
    """Roundings that were found.

    Attributes:
        bits: A key of `FORMATS`.
        where: In what, in words: `one convolution`.
        blocks: Whether no product was seen by itself: a wrong formula may err as much.
    """

    bits: int
    where: str
    blocks: bool = False


def implied_bits(error: float) -> float:
    """Return the fraction bits that operands have kept, given a product's relative error."""
    return math.log2(_OF_ONE_OPERAND / error) if error > 0 else math.inf


def format_of(implied: float, dtype: str) -> int | None:
    """Return the key of `FORMATS` that an estimate of the bits speaks for, or None.

    Args:
        implied: From `implied_bits`, of a product of right operands.
        dtype: What was asked for: only formats with fewer bits count.
    """
    for bits, lowest in _FROM.items():
        if bits == max(FORMATS) and dtype != "float64":
            continue
        if lowest <= implied:
            return bits if implied <= _TO.get(bits, math.inf) else None
    return None


@cache
def products(component: str, size: str) -> Mapping[str, str]:
    """Return the probes of a network that are products of matrices, and of which kind."""
    found = {}
    for name, shape in spec.parameter_shapes(component, size).items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and len(shape) > 1 and not layer.endswith("_embedding"):
            found[layer] = CONVOLUTION if len(shape) > 2 else LINEAR  # noqa: PLR2004
    for name in spec.probe_names(component, size):
        if name.endswith(("to_out.0.input", "out_proj.input")):
            found[name] = ATTENTION
    return found


def shows_products(names: Iterable[str], component: str, size: str) -> bool:
    """Say whether any product of a network is among some probes, not whole blocks alone."""
    kinds = products(component, size)
    return any(name in kinds for name in names)


def look(result: Result, answer: Answer) -> Finding | None:
    """Look for roundings behind a failure of a network in float32 or float64.

    Args:
        result: With at least one failing record.
        answer: What the port answered, and what it was judged by.

    Returns:
        What was found; None where the error is anything else, or where nobody can tell.
    """
    case, dtype = result.case, result.execution.dtype
    failing = [r for r in result.records if r.verdict == "fail"]
    if not case.is_network or dtype not in FLOATS or not _measured(failing):
        return None
    if result.execution.mode == SPLICE:
        return _of_layers(case, dtype, result.records, answer)
    return _of_trace(case, dtype, failing, answer)


def _measured(failing: list[Record]) -> bool:
    return bool(failing) and all(math.isfinite(record.err) for record in failing)


def _of_layers(case: Case, dtype: str, records: list[Record], answer: Answer) -> Finding | None:
    """Look at layers, each of which was given right inputs."""
    kinds = products(case.component, case.variant.size)
    probes = [r for r in records if r.kind == "probe"]
    failing = [r for r in probes if r.verdict == "fail"]
    implied = np.array([implied_bits(r.err) for r in failing])
    bits = format_of(float(np.median(implied)), dtype) if failing else None
    if bits is None:
        return None
    # Whole blocks, where no product is seen by itself.
    most = len(failing) >= max(_FEWEST, _MOST * len(probes))
    spread = _SPREAD.get(bits, _IN_BLOCKS if most else _ALIKE)
    near = np.abs(implied - np.median(implied)) <= spread
    if np.mean(near) < _NEARLY_ALL:
        return None
    alike = [r for r, own in zip(failing, near, strict=True) if own]
    looks = [
        _looks_rounded(name, name in kinds or most, bits, answer)
        for name in dict.fromkeys(r.name for r in (failing[0], *alike[:: _step(alike)]))
    ]
    told = [own for own in looks if own is not None]
    if not told or looks[0] is False or sum(told) < _NEARLY_ALL * len(told):
        return None
    where = _where([r.name for r in alike], [r.name for r in records], kinds)
    return Finding(bits, where, not any(r.name in kinds for r in probes))


def _step(records: list[Record]) -> int:
    """Return the step at which not more than some are looked at."""
    return max(1, len(records) // _LOOKED_AT)


def _looks_rounded(name: str, product: bool, bits: int, answer: Answer) -> bool | None:  # noqa: FBT001
    """Say whether the error of one layer is that of rounding its values, or its operands.

    Returns:
        None where there are too few values to tell.
    """
    got, truth = answer.got(name), answer.truth(name)
    if got is None or truth is None or got.size != truth.size:
        return None
    wide = got.astype(np.float64).reshape(truth.shape)
    if fraction_bits(wide) <= bits < fraction_bits(truth):
        return True
    if not product:
        return False
    return is_white(wide - truth, truth) if truth.size >= ENOUGH else None


def _where(alike: list[str], judged: list[str], kinds: Mapping[str, str]) -> str:
    """Say in words in what roundings were found: in most layers of some kinds, or in a few."""
    texts = []
    for kind in (CONVOLUTION, LINEAR, ATTENTION):
        total = sum(kinds.get(name) == kind for name in judged)
        count = sum(kinds.get(name) == kind for name in alike)
        if count >= _FEWEST and count > _MOST * total:
            texts.append(f"{count} of {total} {kind}s")
    if texts:
        return ", ".join(texts)
    if len(alike) == 1:
        return f"one {kinds.get(alike[0], 'layer')}"
    return f"{len(alike)} layers"


def _of_trace(case: Case, dtype: str, failing: list[Record], answer: Answer) -> Finding | None:
    """Look at a trace, where errors are inherited: is it as far off as the narrower format?

    One layer may be wrong by chance as much as that format is, and what follows inherits it: so
    the first layer must show the bits that the others are off by, and be a product.
    """
    golden = answer.golden
    rows = {name: i for i, name in enumerate(golden.probes)}
    probes = [r for r in failing if r.name in rows]
    if len(probes) < _FEWEST:
        return None
    kinds = products(case.component, case.variant.size)
    whole = any(name in kinds for name in golden.probes)
    first = _first_bits(probes[0], dtype, kinds, answer)
    if whole and first is None:
        return None
    errors = np.array([r.err for r in probes])
    for bits, names in NOISE_OF.items():
        noise = next((golden.noise[n] for n in names if n in golden.noise), None)
        if noise is None or (bits == max(FORMATS) and dtype != "float64"):
            continue
        own = np.maximum(noise[[rows[r.name] for r in probes]], np.finfo(np.float64).tiny)
        farther = np.log2(errors / own)
        fits = abs(np.median(farther)) <= 1 and np.mean(np.abs(farther) <= 2) >= _NEARLY_ALL  # noqa: PLR2004
        if not fits or (first is not None and abs(first - bits) > _SPREAD.get(bits, _ALIKE)):
            continue
        seen = probes[:: _step(probes)]
        related = [_relation(r, rows[r.name], golden, answer) for r in seen]
        if np.mean(np.array(related) <= _UNRELATED) >= _NEARLY_ALL:
            return Finding(bits, f"{len(probes)} of {len(golden.probes)} probes", not whole)
    return None


def _first_bits(
    record: Record, dtype: str, kinds: Mapping[str, str], answer: Answer
) -> float | None:
    """Return the bits that the first wrong probe speaks for: by its error, or by its values."""
    if record.name in kinds:
        return implied_bits(record.err)
    got = answer.got(record.name)
    stored = None if got is None else fraction_bits(got)
    return stored if stored is not None and stored < _FRACTION[dtype] else None


_FRACTION = {"float32": 23, "float64": 52}

_UNRELATED = 0.4
"""Largest correlation with the truth that sketches of 64 numbers cannot tell from none."""


def _relation(record: Record, row: int, golden: Golden, answer: Answer) -> float:
    """Estimate how an error is correlated with the truth, from sketches."""
    got = answer.got(record.name)
    if got is None:
        return 0.0
    truth = golden.sketches[row]
    error = sketch(got.reshape(record.shape), len(truth)) - truth
    scale = float(np.linalg.norm(error)) * float(np.linalg.norm(truth))
    return abs(float(error @ truth)) / scale if scale else 0.0


def explained(finding: Finding, dtype: str, settings: list[str]) -> str:
    """Say what was found, and which settings of the environment are on.

    Args:
        finding: What was found.
        dtype: What was asked for.
        settings: From `settings_on`.
    """
    name = FORMATS[finding.bits]
    if settings and finding.bits == 10:  # noqa: PLR2004 - those of TF32
        name = "TF32"
    on = f" ({', '.join(settings)})" if settings else ""
    doubt = "; a wrong formula within these blocks may look so" if finding.blocks else ""
    return f"about {finding.bits} bits: {name} in {finding.where}, not {dtype}{on}{doubt}"


_EXACT = {
    "float32 matmul precision": ("highest",),
    "fp32 precision": ("none", "ieee"),
    "onednn matmul precision": ("none", "ieee"),
    "onednn conv precision": ("none", "ieee"),
    "ONEDNN_DEFAULT_FPMATH_MODE": ("STRICT", "strict"),
    "tf32 cudnn": ("False",),
    "tf32 matmul": ("False",),
    "NVIDIA_TF32_OVERRIDE": ("0",),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("0",),
}
"""By name of a fact of the environment, the values with which float32 means float32."""

_OF_CUDA = ("tf32 ", "NVIDIA_", "TORCH_ALLOW_TF32")


def settings_on(facts: Mapping[str, Any], device: str) -> list[str]:
    """Return the settings by which float32 is not float32, `tf32 cudnn is True`.

    Args:
        facts: An `environment()`.
        device: Where the port ran: what concerns CUDA is left out elsewhere.
    """
    return [
        f"{name} is {facts[name]}"
        for name, exact in _EXACT.items()
        if facts.get(name) and str(facts[name]) not in exact
        if device.startswith("cuda") or not name.startswith(_OF_CUDA)
    ]
