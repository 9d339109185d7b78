"""Whole oracle values for splice mode: trace packs on disk; no torch.

A golden keeps a sketch of each probe. To overwrite a port's probe with the oracle's value the value
itself is needed: from the oracle, where it is installed (`conformance.recording.live`), or from a
pack that `golden trace` wrote on a machine that has it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from conformance.cache import beside
from conformance.case import Case
from conformance.compare import relative_error
from conformance.errors import GoldenError, UnsupportedError, UsageError
from conformance.golden import Golden
from conformance.golden_files import golden_digest
from conformance.judge import TIME_PROJ, judge_outputs
from conformance.large import Large
from conformance.port import Arrays
from conformance.recipe import SEED
from conformance.requirements import ORACLE, adding
from conformance.sketch import distance, sketch
from conformance.tolerance import LIMIT, ratio
from conformance.training import scales

PACK_FORMAT = 1

_OUTPUT = "output:"


@dataclass
class Values:
    """What a reference computed in one case, whole.

    Attributes:
        probes: By name: probes, and steps of outputs; float64.
        outputs: By name.
    """

    probes: Arrays
    outputs: Arrays
    _sketches: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, repr=False)

    def sketch(self, name: str, buckets: int) -> np.ndarray:
        """Return the sketch of a probe; it is computed once."""
        key = (name, buckets)
        if key not in self._sketches:
            self._sketches[key] = sketch(self.probes[name], buckets)
        return self._sketches[key]


Traces = Callable[[Case, Golden], Values]
"""Gives what the oracle computed in a case."""


def pack_path(folder: Path, case: Case) -> Path:
    """Return where the pack of a case lies in a folder of packs."""
    return folder / f"{case.id}.safetensors"


def _facts(case: Case) -> dict[str, Any]:
    """Return what a pack says of itself: whose it is."""
    return {"format": PACK_FORMAT, "case": case.id, "golden": golden_digest(case)}


def write_pack(path: Path, case: Case, values: Values) -> None:
    """Write the oracle's values of one case, atomically.

    Args:
        path: File to write; its folder is created.
        case: The case.
        values: What the oracle computed.

    Raises:
        UsageError: The file cannot be written.
    """
    facts = _facts(case)
    temporary = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = values.probes | {_OUTPUT + name: a for name, a in values.outputs.items()}
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(whole, temporary, {"pack": json.dumps(facts)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()  # a disk that is full stays less full
        message = f"cannot write the trace pack {path}: {error}; give another folder"
        raise UsageError(message) from error


def read_pack(path: Path, case: Case, golden: Golden) -> Values:
    """Read what `write_pack` wrote.

    Args:
        path: The pack.
        case: The case that it must be of.
        golden: The case's golden.

    Returns:
        What the oracle computed.

    Raises:
        GoldenError: It is no pack of this case and golden.
    """
    again = "write it again with `golden trace`"
    try:
        with safe_open(path, "np") as file:
            facts = dict(json.loads((file.metadata() or {}).get("pack", "{}")))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        message = f"{path} is not a trace pack ({error}): {again}"
        raise GoldenError(message) from error
    for key, value in _facts(case).items():
        if facts.get(key) != value:
            message = f"trace pack {path}: {key} is {facts.get(key)!r}, not {value!r}: {again}"
            raise GoldenError(message)
    values = Values(
        {name: array for name, array in arrays.items() if not name.startswith(_OUTPUT)},
        {n.removeprefix(_OUTPUT): a for n, a in arrays.items() if n.startswith(_OUTPUT)},
    )
    problem = _not_of(case, golden, values)
    if problem:
        message = f"trace pack {path}: {problem}: {again}"
        raise GoldenError(message)
    return values


def _not_of(case: Case, golden: Golden, values: Values) -> str:
    """Say why values are not what a golden is the record of, or nothing."""
    whole = {n: shape for n, shape in golden.output_shapes.items() if n not in golden.sketched}
    for name, shape in [*zip(golden.probes, golden.shapes, strict=True), *whole.items()]:
        found = values.probes.get(name, values.outputs.get(name))
        if found is None or found.shape != shape:
            return f"{name} is missing or misshapen"
    if case.seed != SEED:
        return ""  # of another seed there is no golden
    buckets = golden.sketches.shape[1]
    for i, name in enumerate(golden.probes):
        difference = distance(values.sketch(name, buckets), golden.sketches[i])
        error = relative_error(difference, float(golden.norms[i]))
        if not ratio(error, float(golden.noise["float64"][i]), "float64") <= LIMIT:
            return f"probe {name} is not the golden's"
    unsketched = replace(golden, sketched={}, output_names=list(whole))
    kept = judge_outputs(unsketched, values.probes | values.outputs, "float64")
    wrong = next((record.name for record in kept if record.verdict == "fail"), None)
    return f"output {wrong} is not the golden's" if wrong else ""


def judged_by(golden: Golden, values: Values) -> Golden:
    """Return a golden with these values in place of the recorded ones; noise stays.

    Splice mode is judged by the very values that it puts in: the oracle's float64 rounding, which
    differs between machines, then never counts as a port's error. The same makes a mutant the
    reference, or the oracle on another seed. What there is no value of is left out.

    Args:
        golden: The case's golden.
        values: What takes the place of the truth.
    """
    kept = [i for i, name in enumerate(golden.probes) if name in values.probes]
    names = [golden.probes[i] for i in kept]
    rows = [values.probes[name] for name in names]
    buckets = golden.sketches.shape[1]
    return replace(
        golden,
        probes=names,
        shapes=[row.shape for row in rows],
        sketches=np.stack([values.sketch(n, buckets) for n in names]) if rows else golden.sketches,
        norms=scales(dict(zip(names, rows, strict=True))),
        max_abs=np.array([float(np.max(np.abs(row), initial=0)) for row in rows]),
        noise={a: noise[kept] for a, noise in golden.noise.items()},
        splice_noise={a: noise[kept] for a, noise in golden.splice_noise.items()},
        outputs={n: values.outputs[n] for n in golden.outputs if n in values.outputs},
        large={
            n: Large.of(values.outputs[n], large.edge)
            for n, large in golden.large.items()
            if n in values.outputs
        },
        tables={n: values.probes[n] for n in golden.tables if n in values.probes},
        embedding=None if golden.embedding is None else values.probes.get(TIME_PROJ),
    )


class Packs:
    """Values from a folder of packs."""

    def __init__(self, folder: Path) -> None:
        """Check that the folder is there.

        Raises:
            UsageError: It is not.
        """
        if not folder.is_dir():
            message = (
                f"--traces {folder} is no folder: `golden trace CASE.. --out {folder}` makes it"
            )
            raise UsageError(message)
        self.folder = folder

    def __call__(self, case: Case, golden: Golden) -> Values:
        """Read the values of one case.

        Raises:
            UnsupportedError: The folder has no pack of the case.
            GoldenError: The pack is broken or of another golden.
        """
        path = pack_path(self.folder, case)
        if not path.exists():
            message = (
                f"no trace pack of {case.id} in {self.folder}: "
                f"`golden trace {case.id} --out {self.folder}` writes it"
            )
            raise UnsupportedError(message)
        return read_pack(path, case, golden)


def no_splice() -> str:
    """Say what splice mode needs: both ways to get the whole values."""
    return (
        f"it needs the oracle ({adding(ORACLE)}) or trace packs that `golden trace` wrote "
        "elsewhere (--traces DIR)"
    )


def no_traces(case: Case, golden: Golden) -> Values:
    """Refuse: there are no whole values, and both ways to get them are named."""
    del golden
    message = f"splice mode needs the oracle's values of {case.id}: {no_splice()}"
    raise UnsupportedError(message)


def find_traces(folder: Path | None = None) -> Traces:
    """Return where whole values come from: packs if a folder is given, else the live oracle.

    Args:
        folder: Of `--traces`, or None.

    Returns:
        What gives the values of a case; it raises UnsupportedError where there are none.
    """
    if folder is not None:
        return Packs(folder)
    if have_oracle():
        traces: Traces = importlib.import_module("conformance.recording.live").LiveTraces()
        return traces
    return no_traces


def have_oracle() -> bool:
    """Say whether diffusers, transformers and torch are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ORACLE)
