"""Judging what a port answered by the golden of the case."""

from __future__ import annotations

import math

import numpy as np

from conformance import tolerance
from conformance.case import Case
from conformance.compare import (
    METRICS,
    Record,
    judge_exact,
    judge_large,
    judge_output,
    judge_probe,
    misshapen,
)
from conformance.golden import Golden
from conformance.pixels import judge_pixels
from conformance.port import Arrays
from conformance.sampling import INTEGERS, TIMESTEPS, term_and_step
from conformance.tables import judge_table, table_arithmetic
from conformance.vocabulary import side_by_side

TIME_PROJ = "time_proj"
IMAGE = "image"
"""The floating image that a uint8 picture is the rounding of."""

ISLAND = "float32 island: computed in float32, judged by float32 noise"


def time_proj_values(case: Case, inputs: Arrays) -> np.ndarray:
    """Compute the timestep embedding of a UNet case: cosines, then sines (DDPM, appendix B).

    Args:
        case: A UNet case.
        inputs: Its inputs.

    Returns:
        float64 (batch, width of the first level).
    """
    half = case.variant.architecture("unet")["block_out_channels"][0] // 2
    own, sample = ("timesteps", "latents") if case.is_training else ("timestep", "sample")
    timestep = np.broadcast_to(inputs[own], inputs[sample].shape[:1]).astype(np.float64)
    angles = timestep[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def judge_probes(golden: Golden, probes: Arrays, arithmetic: str) -> list[Record]:
    """Judge the probes that a port handed out, in execution order."""
    records = []
    for name, truth in golden.tables.items():
        if name in probes:
            value = probes[name]
            noise = golden.table_noise[table_arithmetic(arithmetic)][name]
            right = value.shape == truth.shape
            records.append(
                judge_table(name, value, truth, noise, arithmetic)
                if right
                else misshapen(name, "probe", value, truth.shape)
            )
    for i, name in enumerate(golden.probes):
        if name not in probes:
            continue
        value = _unflattened(probes[name], golden.shapes[i])
        if value.shape != golden.shapes[i]:
            records.append(misshapen(name, "probe", value, golden.shapes[i]))
            continue
        record = _judge_row(golden, i, value, arithmetic, "probe")
        if name == TIME_PROJ:
            _judge_embedding(record, golden, value, arithmetic, float(golden.noise["float32"][i]))
        records.append(record)
    return records


def _judge_row(golden: Golden, i: int, value: np.ndarray, arithmetic: str, kind: str) -> Record:
    """Judge one row of a golden's sketches."""
    integers = _is_whole(golden, i)
    return judge_probe(
        golden.probes[i],
        value,
        golden.sketches[i],
        float(golden.norms[i]),
        float(golden.noise[arithmetic][i]),
        "float64" if integers else arithmetic,  # no half ulp of bfloat16 excuses a wrong id
        kind,
    )


def _is_whole(golden: Golden, i: int) -> bool:
    """Say whether a probe holds integers: a timestep may have a fraction."""
    term, _ = term_and_step(golden.probes[i])
    return term in INTEGERS and (term != "timestep" or float(golden.norms[i]).is_integer())


def _judge_embedding(
    record: Record, golden: Golden, value: np.ndarray, arithmetic: str, noise32: float
) -> None:
    """Judge the timestep embedding entry by entry too; in float64 a float32 one is a warning."""
    in_float32 = [tolerance.ratio(record.err, noise32, "float32")]
    if golden.embedding is not None and golden.embedding_noise is not None:
        if arithmetic in _EMBEDDED_IN_HALF:
            return
        with np.errstate(all="ignore"):
            errors = np.abs(value.astype(np.float64) - golden.embedding)
        single = np.maximum(golden.embedding_noise, tolerance.floor("float32"))
        noise = single * (tolerance.FLOAT64_FROM_FLOAT32 if arithmetic == "float64" else 1)
        worst = np.unravel_index(np.argmax(np.nan_to_num(errors / noise, nan=np.inf)), noise.shape)
        ratio = float(errors[worst] / noise[worst])
        in_float32.append(float(np.max(errors / single)))
        if not ratio <= record.ratio:
            record.err, record.noise, record.ratio = (
                float(errors[worst]),
                float(noise[worst]),
                ratio,
            )
            record.verdict, record.approximate = tolerance.verdict(ratio), False
            record.note = record.note or f"entry {worst[1]} of {noise.shape[1]}"
    if arithmetic == "float64" and record.verdict == "fail" and max(in_float32) <= tolerance.LIMIT:
        record.noise, record.ratio = noise32, max(in_float32)
        record.verdict, record.note = "warn", ISLAND


_EMBEDDED_IN_HALF = (*tolerance.HALVES, *tolerance.POLICIES[1:])
"""Arithmetics whose UNet is handed a rounded embedding; under autocast it is float32."""


def _unflattened(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the golden's shape to a map whose pixels, or heads, the port keeps in other axes."""
    pixels = 2  # axes before them: batch and channels
    same = value.shape[:pixels] == shape[:pixels] and value.size == math.prod(shape)
    return value.reshape(shape) if same and value.ndim != len(shape) else value


def judge_outputs(golden: Golden, outputs: Arrays, arithmetic: str) -> list[Record]:
    """Judge every output of a case, each as the golden holds it."""
    records = []
    for name, shape in golden.output_shapes.items():
        value = outputs[name]
        if value.shape != shape:
            records.append(misshapen(name, "output", value, shape))
        elif name in golden.sketched:
            records += _judge_steps(golden, name, value, arithmetic)
        elif name in golden.large:
            noise = golden.output_noise[arithmetic][name]
            records.append(judge_large(name, value, golden.large[name], noise, arithmetic))
        elif name in golden.pictures or golden.outputs[name].dtype == np.uint8:
            if outputs[IMAGE].shape != golden.output_shapes[IMAGE]:
                continue  # there is nothing that the pixels could be roundings of
            element = float(golden.output_noise[arithmetic][IMAGE][METRICS.index("element")])
            pixels = golden.outputs.get(name)
            records.append(judge_pixels(name, value, outputs[IMAGE], pixels, element, arithmetic))
        elif golden.outputs[name].dtype.kind == "i":
            records.append(judge_exact(name, value, golden.outputs[name]))
        elif name == TIMESTEPS:
            units = golden.table_noise[table_arithmetic(arithmetic)][name]
            truth = golden.outputs[name]
            records.append(judge_table(name, value, truth, units, arithmetic, "output"))
        else:
            noise = golden.output_noise[arithmetic][name]
            records.append(judge_output(name, value, golden.outputs[name], noise, arithmetic))
    return records


def _judge_steps(golden: Golden, name: str, value: np.ndarray, arithmetic: str) -> list[Record]:
    """Judge an output of which the golden keeps sketches, of all of it or step by step."""
    records = []
    for i, row in enumerate(golden.probes):
        if golden.sketched_output(row) != name:
            continue
        _, step = term_and_step(row)
        own = value if row == name or step is None else value[step]
        records.append(_judge_row(golden, i, own, arithmetic, "output"))
    return records


def token_lists(golden: Golden, outputs: Arrays) -> str:
    """Show the token lists of a tokenizer side by side, where they differ."""
    (name,) = golden.outputs
    return side_by_side(golden.outputs[name], outputs[name], golden.inputs["text"]["value"])


def watching(plain: Arrays, watched: Arrays, golden: Golden, arithmetic: str) -> str:
    """Say so if observing the probes, in a second call, changed the output by more than noise."""
    for name, array in plain.items():
        if name not in golden.output_noise[arithmetic]:
            continue
        if watched[name].shape != array.shape:
            return f"watching changes the shape of output {name}"
        with np.errstate(all="ignore"):
            difference = watched[name].astype(np.float64) - array.astype(np.float64)
            change = float(np.linalg.norm(difference) / golden.output_norm(name))
        noise = float(golden.output_noise[arithmetic][name][0])
        if not change <= max(noise, tolerance.floor(arithmetic)):
            return (
                f"watching, or the second call, changes output {name} by {change:.2g}, more than "
                f"noise {noise:.2g}: `--mode repeat` tells which"
            )
    return ""
