"""What an audit asks of the oracle: every layer's truth, its noise, and its part in the error."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from conformance import oracle
from conformance.adapters.hooks import to_numpy
from conformance.adapters.torch_component import TorchComponent
from conformance.case import Case
from conformance.errors import UnsupportedError
from conformance.port import Arrays
from conformance.recording.calibration import calibrations
from conformance.recording.noise import measure, worst_of
from conformance.recording.record import Reference, values_of
from conformance.traces import Values


class LiveOracle:
    """The oracle of the component and variant that was asked for last."""

    def __init__(self) -> None:
        self._reference: Reference | None = None

    def _exact(self, case: Case) -> TorchComponent:
        """Return the reference of a case in float64."""
        kept = self._reference
        if kept is None or (kept.component, kept.variant) != (case.component, case.variant):
            self._reference = None  # the old network goes before the new one comes
            self._reference = kept = Reference(case.component, case.variant)
        component = kept.build("float64")
        if not isinstance(component, TorchComponent):
            message = f"{case.component} is no network: its error cannot be shared out"
            raise UnsupportedError(message)
        return component

    def values(self, case: Case, names: Collection[str]) -> Values:
        """Evaluate a case in float64.

        Args:
            case: Its seed draws the inputs; weights are those of the default seed.
            names: Probes to keep.

        Returns:
            The truth, whole.
        """
        return values_of(oracle.evaluate(self._exact(case), case, names))

    def noise(
        self, case: Case, arithmetic: str, values: Values
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure the reference's noise at every probe as a golden's is.

        Args:
            case: The case.
            arithmetic: Not float64, whose noise is bounded from below by that of float32.
            values: The truth of every probe.

        Returns:
            Relative errors by probe, in trace and in splice mode.
        """
        truth = oracle.Truth(
            {n: torch.from_numpy(a) for n, a in values.outputs.items()},
            {n: torch.from_numpy(a) for n, a in values.probes.items()},
        )
        component = Reference(case.component, case.variant).build(arithmetic)
        runs = calibrations(component, case, arithmetic)
        trace, splice = (
            worst_of([measure(component, case, truth, e, splice=own) for e in runs]).probes
            for own in (False, True)
        )
        return trace, splice

    def shares(
        self, case: Case, traced: Mapping[str, np.ndarray], outputs: Arrays, main: str
    ) -> tuple[dict[str, float], float]:
        """Share the error of an output out among the layers that made it.

        A layer's own error is what it handed on less what the oracle's layer makes in float64 of
        the very same inputs: the oracle is run once with every probe overwritten by the port's
        value, and each probe read before that. To first order the output's error is the sum of
        these errors, each carried on by the network behind it. So the derivative of half the
        squared error of the output, taken at the truth, times a layer's own error is that layer's
        part: parts add up to the whole. Of independent errors it is what the square of the output's
        error would lose, on average, if the layer were exact.

        Args:
            case: The case.
            traced: What the port computed at its probes, errors adding up.
            outputs: What it computed, in the same run.
            main: The output whose error is shared out.

        Returns:
            Shares by probe, and the share of what comes after the last one; of an error of 0,
            shares of 0.
        """
        exact = self._exact(case)
        inputs = case.inputs()
        wide = {name: np.asarray(array, np.float64) for name, array in traced.items()}
        right, local = exact.run(inputs, list(wide), wide)
        truth, gradients = self._gradients(case, list(wide), main, outputs[main])
        error = outputs[main].astype(np.float64) - truth
        square = float(np.sum(error**2))
        if square == 0:
            return dict.fromkeys(local, 0.0), 0.0
        shares = {
            name: float(np.sum(gradients[name] * (wide[name].reshape(own.shape) - own))) / square
            for name, own in local.items()
        }
        last = outputs[main].astype(np.float64) - right[main]
        return shares, float(np.sum(error * last)) / square

    def _gradients(
        self, case: Case, names: list[str], main: str, value: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the truth of an output, and the derivative of half its squared error by probe."""
        exact = self._exact(case)
        kept: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            if tensor.requires_grad:
                tensor.retain_grad()
                kept[name] = tensor

        tensors = {
            name: t.double().requires_grad_() if name == "timestep" or t.is_floating_point() else t
            for name, t in exact.tensors(case.inputs()).items()
        }
        exact.module.requires_grad_(requires_grad=True)
        try:
            with torch.enable_grad():
                with oracle.Float64Guard():
                    output = exact.traced(tensors, names, keep)[main]
                output.backward(torch.from_numpy(value.astype(np.float64)) - output.detach())
        finally:
            exact.module.requires_grad_(requires_grad=False)
            exact.module.zero_grad(set_to_none=True)
        gradients = {
            name: to_numpy(t.grad) if t.grad is not None else np.zeros(t.shape)
            for name, t in kept.items()
        }
        return to_numpy(output), gradients
