"""Checking stored goldens against the oracle that is installed (`golden verify`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np

from conformance import oracle
from conformance.adapters.torch_module import to_numpy
from conformance.case import Case
from conformance.compare import METRICS, judge_kept, relative_error, whole_errors
from conformance.golden import SPLICE, Golden
from conformance.large import Large
from conformance.recording.live import LiveTraces
from conformance.sampling import TABLES, TIMESTEPS
from conformance.sketch import distance, sketch
from conformance.tables import judge_table
from conformance.tolerance import LIMIT, floor, ratio
from conformance.traces import Values


def disagreement(old: Golden, new: Golden) -> str | None:
    """Compare a stored golden with one derived again from the oracle.

    Args:
        old: As stored.
        new: As derived now.

    Returns:
        None where they agree: input digests, names and shapes exactly, outputs and sketches within
        the limit times float64 noise, recorded noise within a factor of 2. Otherwise what differs.
    """
    return next(_disagreements(old, new), None)


def _disagreements(old: Golden, new: Golden) -> Iterator[str]:
    if old.inputs != new.inputs:
        yield "inputs differ"
    if old.probes != new.probes or old.shapes != new.shapes:
        yield "probe names or shapes differ"
    sketches = dict(zip(new.probes, new.sketches, strict=True))
    aged = age(old, {**new.outputs, **new.large}, sketches, new.tables)
    if aged is not None:
        yield aged
    if old.kills != new.kills:
        yield f"mutants claimed were {old.kills}, are now {new.kills}"
    if bool(old.splice_noise) != bool(new.splice_noise):
        yield "one of them has noise of splice mode, the other has none"
    for was, now in _by_mode(old, new):
        if set(was.noise) != set(now.noise):
            yield f"arithmetics were {sorted(was.noise)}, are now {sorted(now.noise)}"
        for arithmetic in was.noise:
            changed = _noise_change(was, now, arithmetic)
            if changed is not None:
                yield changed


def _by_mode(old: Golden, new: Golden) -> list[tuple[Golden, Golden]]:
    """Pair two goldens in each mode that both have."""
    pairs = [(old, new)]
    if old.splice_noise:
        pairs.append((old.in_mode(SPLICE), new.in_mode(SPLICE)))
    return pairs


def _noise_change(old: Golden, new: Golden, arithmetic: str) -> str | None:
    """Say where recorded noise is no longer within a factor of 2, or None."""
    rows = list(zip(old.probes, old.noise[arithmetic], new.noise[arithmetic], strict=True))
    for name, values in old.output_noise[arithmetic].items():
        now = new.output_noise[arithmetic][name]
        rows += [(f"{name} ({m})", a, b) for m, a, b in zip(METRICS, values, now, strict=True)]
    for name, entries in old.table_noise.get(arithmetic, {}).items():
        now = new.table_noise[arithmetic][name]
        rows += [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(entries, now, strict=True))]
    least = floor(arithmetic)
    for name, was, now in rows:
        before, after = max(float(was), least), max(float(now), least)
        if before != after and not before / 2 <= after <= before * 2:
            return (
                f"{arithmetic} noise at {name} was {was:.3g}, is now {now:.3g}: more than a "
                "factor of 2"
            )
    return None


def age(
    old: Golden,
    outputs: Mapping[str, np.ndarray | Large],
    sketches: Mapping[str, np.ndarray],
    tables: Mapping[str, np.ndarray],
) -> str | None:
    """Say where a stored golden disagrees with the oracle of today, or None.

    Args:
        old: As stored.
        outputs: Outputs of the live oracle, whole or what is kept of large ones.
        sketches: Sketches of the live oracle's probes.
        tables: Tables of the live oracle.

    Returns:
        The first disagreement over the limit, in float64 noise.
    """
    problems = chain(
        _aged_tables(old, tables), _aged_probes(old, sketches), _aged_outputs(old, outputs)
    )
    return next(problems, None)


def _aged_tables(old: Golden, tables: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, truth in old.tables.items():
        yield from _aged_table(old, name, tables[name], truth)


def _aged_table(old: Golden, name: str, now: np.ndarray, truth: np.ndarray) -> Iterator[str]:
    noise = old.table_noise["float64"][name]
    found = judge_table(name, now, truth, noise, "float64").ratio
    if not found <= LIMIT:
        yield f"table {name} is {found:.3g} float64 noise away from the installed oracle"


def _aged_probes(old: Golden, sketches: Mapping[str, np.ndarray]) -> Iterator[str]:
    for i, name in enumerate(old.probes):
        error = relative_error(distance(sketches[name], old.sketches[i]), float(old.norms[i]))
        found = ratio(error, float(old.noise["float64"][i]), "float64")
        if not found <= LIMIT:
            yield f"probe {name} is {found:.3g} float64 noise away from the installed oracle"


def _aged_outputs(old: Golden, outputs: Mapping[str, np.ndarray | Large]) -> Iterator[str]:
    for name, truth in old.outputs.items():
        now = np.asarray(outputs[name])
        if truth.dtype.kind in "iu":
            if not np.array_equal(now, truth):
                yield f"{name} is not what the installed oracle gives"
            continue
        if name == TIMESTEPS:
            yield from _aged_table(old, name, now, truth)
            continue
        errors = whole_errors(now, truth)
        for metric, error, unit in zip(
            METRICS, errors, old.output_noise["float64"][name], strict=True
        ):
            found = ratio(float(error), float(unit), "float64")
            if not found <= LIMIT:
                yield f"output {name} ({metric}) is {found:.3g} float64 noise away"
    for name, kept in old.large.items():
        live = outputs[name]
        live = live if isinstance(live, Large) else Large.of(live, kept.edge)
        noise = old.output_noise["float64"][name]
        found = judge_kept(name, live, kept, noise, "float64").ratio
        if not found <= LIMIT:
            yield f"output {name} is {found:.3g} float64 noise away"


def age_of(golden: Golden, truth: oracle.Truth) -> str | None:
    """Say where a golden disagrees with what the oracle computed just now, or None."""
    outputs = {name: to_numpy(tensor) for name, tensor in truth.outputs.items()}
    probes = {name: to_numpy(tensor) for name, tensor in truth.probes.items()}
    buckets = golden.sketches.shape[1]
    sketches = {n: sketch(a, buckets) for n, a in probes.items() if n not in TABLES}
    return age(golden, outputs, sketches, probes)


def age_of_values(golden: Golden, values: Values) -> str | None:
    """Say where a golden disagrees with whole values of the installed oracle, or None."""
    buckets = golden.sketches.shape[1]
    sketches = {n: values.sketch(n, buckets) for n in values.probes if n not in TABLES}
    return age(golden, values.outputs, sketches, values.probes)


class LiveAge:
    """Tells an aged golden from a wrong port, by what the installed oracle computes."""

    def __init__(self, traces: LiveTraces | None = None) -> None:
        """Ask this source of values: that of splice mode, so that no network is built twice."""
        self._traces = traces or LiveTraces()

    def __call__(self, case: Case, golden: Golden) -> str | None:
        """Evaluate the installed oracle on a case; say where the golden disagrees, or None."""
        if case.exact:
            texts = case.inputs()["text"].tolist()
            return age(golden, {"input_ids": oracle.token_ids(texts)}, {}, {})
        return age_of_values(golden, self._traces(case, golden))
