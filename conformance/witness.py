"""Running published slices, for people who have the trained weights: docs/witness.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from conformance.case import Case
from conformance.compare import Record, max_abs_of, misshapen, rms_of
from conformance.contract import call, require_unchanged
from conformance.divergence import describe, first_divergence
from conformance.errors import PortError
from conformance.execution import Execution
from conformance.layout import require_shapes
from conformance.offer import require_offer
from conformance.port import Arrays, Port
from conformance.recipe import digest
from conformance.result import Result
from conformance.runner import Runner
from conformance.scenarios import Scenario
from conformance.tolerance import LIMIT
from conformance.variants import Variant, Weights
from conformance.witness_rows import PREFIX, WITNESSES, Row, Stage, read_inputs, rows

LATENT_SCALE = 0.18215
"""Of latents at the border (docs/contract.md): the published decodings begin with unscaled ones."""

_DECODER = "vae_decoder"
_STAMPED = ("unet", _DECODER)
"""What the stamp asks for a slice of."""


@dataclass(frozen=True)
class _Published(Scenario):
    """Stands for a row where a case wants a scenario."""

    def recipes(self, variant: Variant) -> dict[str, Any]:  # noqa: ARG002 - of others it matters
        """Return no recipe: inputs come from files, not from here."""
        return {}


@dataclass(frozen=True)
class WitnessCase(Case):
    """A published slice as a case: inputs come from files, weights from the user.

    Attributes:
        row: The row.
        folder: Where the noise files are.
        weights_of: Returns the weights of a component.
    """

    _: KW_ONLY
    row: Row
    folder: Path
    weights_of: Callable[[str], Weights]

    def inputs(self) -> Arrays:
        """Read the inputs; see `read_inputs`."""
        return read_inputs(self.row, self.folder)

    def weights(self) -> Weights:
        """Return the user's weights of the case's component."""
        return self.weights_of(self.component)


class Witness(Runner):
    """Runs published slices on a port."""

    def __init__(
        self,
        port: Port,
        variant: Variant,
        weights_of: Callable[[str], Weights],
        folder: Path,
        device: str = "cpu",
    ) -> None:
        """Ask the port what it offers.

        Args:
            port: The port.
            variant: Of the user's weights.
            weights_of: Returns the weights of a component.
            folder: Where the noise files are.
            device: Device asked of the port.
        """
        super().__init__(port)
        self.variant = variant
        self.weights_of = weights_of
        self.folder = folder
        self.device = device

    def item(self, row: Row) -> tuple[WitnessCase, Execution]:
        """Return a row as a case, and how it is run."""
        scenario = _Published(row.scenario, row.hunts)
        case = WitnessCase(
            row.component,
            self.variant,
            scenario,
            row=row,
            folder=self.folder,
            weights_of=self.weights_of,
        )
        return case, Execution(row.dtype, self.device)

    def line(self, row: Row) -> dict[str, Any]:
        """Run a row and return its case line of results.jsonl; never raises."""
        return self.run(*self.item(row)).as_json()

    def _run(self, case: Case, execution: Execution) -> Result:
        own = cast("WitnessCase", case)  # `item` makes no other
        row = own.row
        parts = [replace(own, component=stage.component) for stage in row.stages]
        for part in parts:
            require_offer(self.hello, part, execution)
        inputs = own.inputs()
        for part, stage in zip(parts, row.stages, strict=True):
            if stage.component == _DECODER:
                unscaled = inputs["latents"].astype(np.float64)
                inputs = {"latents": (unscaled * LATENT_SCALE).astype(np.float32)}
            value = self._ask(part, execution, stage, inputs)
            if value.shape != stage.shape:
                wrong = misshapen(stage.output, "output", value, stage.shape)
                return _concluded(own, execution, wrong)
            inputs = {"latents": value}
        return _concluded(own, execution, judge(row, value))

    def _ask(self, part: Case, execution: Execution, stage: Stage, inputs: Arrays) -> np.ndarray:
        """Run one component and return the output that is asked for."""
        require_shapes(self.hello, stage.component, inputs)
        component = self.load(part, execution)
        before = {name: digest(array) for name, array in inputs.items()}
        outputs, _ = call(component, inputs, (), None)
        require_unchanged(part, inputs, before)
        value = outputs.get(stage.output)
        if value is None or value.dtype.name != execution.dtype:
            found = "missing" if value is None else value.dtype.name
            message = f"{part.id}: output {stage.output} is {found}, expected {execution.dtype}"
            raise PortError(message)
        return value


def judge(row: Row, value: np.ndarray) -> Record:
    """Compare an output with a published slice of it.

    Args:
        row: The row.
        value: The output, of the last stage's shape.

    Returns:
        The record of the slice: its error is the largest absolute one, its noise such that the
        published tolerance stands at the limit. Values that are not finite fail, in the slice or
        outside.
    """
    picked = value[row.where].astype(np.float64)
    errors = np.abs(picked.ravel() - np.array(row.values))
    worst = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
    error = float(errors[worst]) if np.isfinite(value).all() else float("nan")
    noise = row.atol / LIMIT
    place = np.arange(value.size).reshape(value.shape)[row.where].flat[worst]
    indices = ", ".join(str(int(i)) for i in np.unravel_index(place, value.shape))
    note = (
        f"[{indices}] is {picked.flat[worst]:.6g}, published {row.values[worst]:g}, allowed "
        f"{row.atol:g} either way; {np.count_nonzero(~(errors <= row.atol))} of {errors.size} "
        "numbers are wrong"
    )
    if others := np.count_nonzero(~np.isfinite(value)):
        note = f"{others} of {value.size} values are not finite; {note}"
    return Record(
        row.stages[-1].output,
        "output",
        list(picked.shape),
        error,
        noise,
        error / noise,
        "pass" if error <= row.atol else "fail",
        approximate=False,
        rms=rms_of(picked),
        max_abs=max_abs_of(picked),
        note=note,
    )


def _concluded(case: WitnessCase, execution: Execution, record: Record) -> Result:
    result = Result(case, execution, record.verdict, [record])
    if record.verdict == "fail":
        result.first_divergence = first_divergence(result)
        result.message = describe(result.first_divergence)
        result.detail = (
            f"published by {case.row.source}; other weights than those of {case.row.model}, or "
            "other noise files, fail too"
        )
    return result


def is_witness(line: Mapping[str, Any]) -> bool:
    """Say whether a case line of results.jsonl is that of a published slice."""
    return str(line["scenario"]).startswith(PREFIX)


def stamp(lines: Iterable[Mapping[str, Any]]) -> bool:
    """Say whether a run earns the stamp `real-weights`.

    Args:
        lines: Case lines of results.jsonl; those of no published slice do not matter.

    Returns:
        Whether all slices that were run pass, with at least one of the UNet and, where the model
        has one, of the VAE among them.
    """
    run = [line for line in lines if is_witness(line) and line["verdict"] != "skip"]
    models = [m for m in WITNESSES if any(f"{PREFIX}{m}-" in line["scenario"] for line in run)]
    wanted = {row.component for model in models for row in rows(model)} & set(_STAMPED)
    judged = {line["component"] for line in run}
    return bool(run) and wanted <= judged and all(line["verdict"] == "pass" for line in run)
