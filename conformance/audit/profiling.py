"""Taking the profile of one case: a trace, a splice, and the oracle's account of the error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from conformance import spec, tolerance
from conformance.audit.measure import check, measured_outputs
from conformance.audit.names import bits, finite, kind, main_output, stage
from conformance.audit.profile import Layer, Profile
from conformance.audit.yardstick import Yardstick
from conformance.compare import Record, max_abs_of, relative_error, rms_of
from conformance.contract import call
from conformance.divergence import Local, gains, inherited
from conformance.errors import PortError
from conformance.judge import TIME_PROJ
from conformance.offer import supplied_embedding
from conformance.report.text import counted
from conformance.tensors import rounded

if TYPE_CHECKING:
    from conformance.audit.oracle_torch import LiveOracle
    from conformance.case import Case
    from conformance.execution import Execution
    from conformance.port import Arrays, Component
    from conformance.runner import Runner


def take_profile(
    runner: Runner,
    component: Component,
    case: Case,
    execution: Execution,
    yardstick: Yardstick,
    oracle: LiveOracle | None,
) -> Profile:
    """Run a case in trace and in splice mode and profile it.

    Args:
        runner: Of the port.
        component: What is run: the port's component, perhaps with layers in other arithmetics.
        case: A case of a network.
        execution: Arithmetic and device.
        yardstick: Truth and noise of the case.
        oracle: Shares the error out; None where it is not installed.

    Returns:
        The profile; of a port without probes its outputs alone.
    """
    golden, dtype = yardstick.golden, execution.dtype
    asked = golden.asked if runner.hello.probes and execution.shows_probes else []
    inputs = case.inputs()
    supplied = supplied_embedding(runner.hello, case, golden, execution, inputs)
    outputs, traced = call(component, inputs, asked, supplied)
    check(golden, outputs, traced, dtype)
    names = list(golden.output_shapes)
    profile = Profile(
        case.id,
        case.component,
        case.variant.name,
        case.variant.regime,
        dtype,
        measured_outputs(golden, yardstick.values, outputs, dtype),
        main_output(case.component, names),
        noise=yardstick.source,
    )
    if not traced:
        profile.notes.append(f"{runner.hello.name} has no probes: only its outputs are shown")
        return profile
    records = _records(yardstick, traced, dtype)
    local: list[Record] = []
    if runner.hello.replace:
        given = rounded(yardstick.values.probes, dtype)
        _, spliced = call(component, inputs, asked, given)
        local = _records(yardstick, spliced, dtype)
    else:
        profile.notes.append(f"{runner.hello.name} has no `replace`: no local errors")
    profile.layers = _layers(case, yardstick, records, local, dtype)
    if oracle is None:
        profile.notes.append("no oracle here: the error is not shared out among the layers")
    else:
        _share_out(profile, oracle, case, traced, outputs, supplied)
    return profile


def _records(yardstick: Yardstick, probes: Arrays, dtype: str) -> list[Record]:
    """Measure probes against the whole truth, in the order of execution."""
    golden, records = yardstick.golden, []
    for i, name in enumerate(golden.probes):
        if name not in probes:
            continue
        truth, value = yardstick.values.probes[name], probes[name]
        if value.size != truth.size:
            message = f"{golden.case}: probe {name} has shape {value.shape}, not {truth.shape}"
            raise PortError(message)
        with np.errstate(all="ignore"):
            difference = np.linalg.norm(value.reshape(truth.shape).astype(np.float64) - truth)
        err = relative_error(float(difference), float(np.linalg.norm(truth)))
        noise = float(golden.noise[dtype][i])
        units = tolerance.ratio(err, noise, dtype)
        judged = tolerance.verdict(units)
        own = (name, "probe", list(truth.shape), err, noise, units, judged)
        peaks = (rms_of(value), max_abs_of(value))
        records.append(Record(*own, False, *peaks))  # noqa: FBT003 - not estimated
    return records


def _layers(
    case: Case, yardstick: Yardstick, records: list[Record], local: list[Record], dtype: str
) -> list[Layer]:
    golden = yardstick.golden
    own = Local.of(local)
    rows = dict(zip(golden.probes, range(len(golden.probes)), strict=True))
    gain = gains(golden, dtype) if dtype in golden.splice_noise else None
    least = tolerance.floor(dtype)
    layers = []
    for record in records:
        i = rows[record.name]
        noise = finite(golden.noise[dtype][i])
        layers.append(
            Layer(
                record.name,
                kind(case.component, case.variant.size, record.name),
                stage(record.name),
                err=record.err,
                local=own.errors.get(record.name),
                inherited=inherited(record, own),
                gain=None if gain is None else finite(gain[i]),
                noise=noise,
                local_noise=_at(golden.splice_noise, dtype, i),
                ratio=None if noise is None else record.err / max(noise, least),
                bits=bits(record.err),
                max_abs=record.max_abs,
                rms=record.rms,
            )
        )
    return layers


def _at(noise: Mapping[str, np.ndarray], dtype: str, i: int) -> float | None:
    return finite(noise[dtype][i]) if dtype in noise else None


def _share_out(
    profile: Profile,
    oracle: LiveOracle,
    case: Case,
    traced: Arrays,
    outputs: Arrays,
    supplied: Arrays | None,
) -> None:
    """Enter each layer's share of the main output's error."""
    if not all(np.isfinite(a).all() for a in (*traced.values(), outputs[profile.main])):
        first = next((n for n, a in traced.items() if not np.isfinite(a).all()), "the output")
        profile.notes.append(f"not finite from {first} on: the error cannot be shared out")
        return
    if profile.output.err == 0:
        profile.notes.append("the output is exact: there is no error to share out")
        return
    if supplied:  # what was put in is right; the port's own was observed before that
        traced = {**traced, TIME_PROJ: supplied[TIME_PROJ]}
    shares, profile.rest = oracle.shares(case, traced, outputs, profile.main)
    for layer in profile.layers:
        layer.share = shares.get(layer.name)
    lost = [n for n in spec.probe_names(case.component, case.variant.size) if n not in traced]
    if lost:
        text = f"not handed out: {counted(len(lost), 'probe')}; the next ones carry their share"
        profile.notes.append(text)
