"""What is right: diffusers and transformers, evaluated in float64; and how exact float32 can be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance import oracle
from conformance.checkpoints import FileVariant
from conformance.recording import noise
from conformance.recording.honest import CALIBRATION, HELD_OUT, half_ulp_evaluation, time_proj_of
from conformance.recording.honest_sampling import SAMPLING_CALIBRATION
from conformance.sampling import SCHEDULERS, settings
from conformance.tolerance import ratio

LAWFUL = ("one thread", "plain attention", "oneDNN off")
"""Ways to run diffusers' networks whose errors are the noise, besides the time moved by half ulps.

The suite itself has more, which are slow, and "channels last", whose GroupNorm loses 40 times as
much on a flat picture: without them the noise is smaller, and the comparison stricter.
"""
HALF_ULPS = 2
"""How often the embedding of the time is moved, where a network has one."""


@dataclass(frozen=True)
class Told:
    """What the oracle said of one call.

    Attributes:
        truth: Its float64 tensors, by the name of an output or the path of a module.
        noise: How far lawful float32 evaluations of diffusers are from them: the worst relative L2.
    """

    truth: dict[str, Tensor]
    noise: dict[str, float]

    def ratio(self, name: str, value: Tensor) -> float:
        """Print how far a tensor is from the truth, and return that in units of the noise."""
        error = rel_l2(value, self.truth[name])
        found = ratio(error, self.noise[name], "float32")
        print(f"{name:<45} off by {error:.1e}, noise {self.noise[name]:.1e}: ratio {found:.3g}")
        return found


@dataclass(frozen=True)
class Oracle:
    """diffusers and transformers on the weights of a file."""

    variant: FileVariant

    def reference(self, component: str, dtype: torch.dtype = torch.float32) -> Any:
        """Build "unet", "scheduler/ddim", ...; its `module` is what diffusers made."""
        weights: Any = {} if component in SCHEDULERS else self.variant.weights(component)
        return oracle.reference(component, self.variant, weights, dtype)

    def scheduler(self, algorithm: str, steps: int = 50, **changes: Any) -> Any:
        """Build diffusers' own scheduler with float64 tables: SD v1's settings, with changes."""
        return oracle.float64_scheduler(algorithm, settings(algorithm, steps, **changes))

    def ask(self, component: str, inputs: Mapping[str, Any], names: Collection[str] = ()) -> Told:
        """Evaluate a component once in float64, and in several lawful ways in float32.

        Args:
            component: One of docs/contract.md.
            inputs: By the names that stand there: tensors, numbers, strings.
            names: Of what to be told besides the outputs: paths of modules, or terms of a run.
        """
        call: Any = _Call(component, {name: np.asarray(value) for name, value in inputs.items()})
        truth = oracle.evaluate(self.reference(component, torch.float64), call, names)
        single, kind = self.reference(component), component.partition("/")[0]
        lawful = [way for way in (*CALIBRATION, *HELD_OUT) if way.name in LAWFUL]
        if component in SCHEDULERS:
            lawful = [way for way in SAMPLING_CALIBRATION if "float32" in way.arithmetics]
        ways = [way for way in lawful if kind in way.components]
        if time_proj_of(single.module) is not None:
            ways += [half_ulp_evaluation(seed) for seed in range(HALF_ULPS)]
        errors = noise.worst_of([noise.measure(single, call, truth, way) for way in ways])
        outputs = {name: float(metrics[0]) for name, metrics in errors.outputs.items()}
        return Told(truth.probes | truth.outputs, errors.probes | outputs)


@dataclass(frozen=True)
class _Call:
    """One call of a component, where `conformance` expects a case."""

    id: str
    given: dict[str, np.ndarray]
    is_training = False

    def inputs(self) -> dict[str, np.ndarray]:
        return dict(self.given)


def rel_l2(value: Tensor, exact: Tensor) -> float:
    """Return the relative L2 distance of a tensor from another of the same shape."""
    if value.shape != exact.shape:
        raise ValueError(f"shape {tuple(value.shape)}, expected {tuple(exact.shape)}")
    return float((value.double() - exact.double()).norm() / exact.double().norm())
