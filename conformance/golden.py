"""Goldens: the oracle's frozen record of each case. Reading and writing; no torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from conformance import spec
from conformance.errors import GoldenError, UnsupportedError
from conformance.large import Large
from conformance.sampling import TABLES
from conformance.tolerance import EVERY_ARITHMETIC, LIMIT

FORMAT = 1
SOURCE = "diffusers/transformers in float64"
TRACE, SPLICE = "trace", "splice"
"""Modes: errors add up as in use, or each layer's own alone (every probe is set right)."""


@dataclass
class Golden:
    """The oracle's record of one case.

    Attributes:
        case: Case id.
        hunts: The bugs that the case is there to expose.
        inputs: By input name: recipe, shape, dtype and digest; the value itself where no recipe
            makes it.
        outputs: Arrays by name: float64; int64 where a port must match exactly; uint8 for pixels.
        probes: Canonical names in execution order; steps of sketched outputs are among them.
        shapes: Shape of each probe.
        sketches: float64 (probes, 64), of a scheduler (probes, 16).
        norms: L2 norm of each probe, float64; of a gradient that is zero by structure that of the
            query's, beside which it is judged.
        max_abs: Largest magnitude of each probe, float64.
        noise: By arithmetic, float64 (probes,): noise in trace mode; infinite where the reference
            overflows.
        output_noise: By arithmetic and output name, float64 (3,): noise of the three metrics.
        provenance: Oracle versions, machine and commit.
        large: By name, what is kept of outputs that are too large to be stored whole.
        output_names: All outputs in the order in which they are computed.
        sketched: By name, the shape of outputs of which only sketches are kept: step by step,
            those of the first, the last and some between.
        pictures: By name, the shape of 8-bit pictures that are not kept: they are judged by the
            port's own image, and PSNR and SSIM are not shown.
        tables: Probes that are judged entry by entry, float64.
        table_noise: By arithmetic and table, float32: relative noise of each entry.
        coefficients: Of a scheduler's steps by name, `samples#3`: those of `terms.TERMS`.
        splice_noise: As `noise`, where every probe is overwritten by the oracle's value once it
            was observed: noise of the layer itself. Empty where a case has no splice mode.
        splice_output_noise: As `output_noise`, in splice mode.
        kills: Ids of the mutants that the case is claimed to kill.
        embedding: The UNet's timestep embedding, float64 (batch, width), judged entry by entry too:
            beside the noise of its fastest sinusoids an error of the slow ones has no weight.
        embedding_noise: Absolute float32 noise of each of its entries.
    """

    case: str
    hunts: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, np.ndarray]
    probes: list[str]
    shapes: list[tuple[int, ...]]
    sketches: np.ndarray
    norms: np.ndarray
    max_abs: np.ndarray
    noise: dict[str, np.ndarray]
    output_noise: dict[str, dict[str, np.ndarray]]
    provenance: dict[str, str] = field(default_factory=dict)
    large: dict[str, Large] = field(default_factory=dict)
    output_names: list[str] = field(default_factory=list)
    sketched: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pictures: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    table_noise: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    coefficients: dict[str, np.ndarray] = field(default_factory=dict)
    splice_noise: dict[str, np.ndarray] = field(default_factory=dict)
    splice_output_noise: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    kills: list[str] = field(default_factory=list)
    embedding: np.ndarray | None = None
    embedding_noise: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.output_names:
            self.output_names = [*self.outputs, *self.large, *self.sketched, *self.pictures]
        self.outputs = {n: self.outputs[n] for n in self.output_names if n in self.outputs}

    @property
    def exact(self) -> bool:
        """Whether all outputs are integers, right or wrong: nothing is measured in noise."""
        whole = all(array.dtype.kind == "i" for array in self.outputs.values())
        return whole and not self.large and not self.sketched

    @property
    def asked(self) -> list[str]:
        """Return the probes that a port is asked for: tables, and those that are no outputs."""
        return [*self.tables, *(n for n in self.probes if self.sketched_output(n) is None)]

    def sketched_output(self, name: str) -> str | None:
        """Return the output that a row of `probes` belongs to, or None for a probe.

        Step 3 of the output `samples` is the row `samples#3`; a pipeline's `latents#3` is an
        output of its own.
        """
        return next((n for n in (name, name.partition("#")[0]) if n in self.sketched), None)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every output, in the order in which they are computed."""
        kept: dict[str, np.ndarray | Large] = {**self.outputs, **self.large}
        shapes = {**{n: k.shape for n, k in kept.items()}, **self.pictures, **self.sketched}
        return {name: shapes[name] for name in self.output_names if name in shapes}

    def in_mode(self, mode: str) -> Golden:
        """Return the golden that a mode is judged by: in `splice`, noise is that of splicing.

        Raises:
            UnsupportedError: The case has no such mode.
        """
        if mode != SPLICE:
            return self
        if not self.splice_noise:
            message = f"{self.case} has no splice mode"
            raise UnsupportedError(message)
        return replace(self, noise=self.splice_noise, output_noise=self.splice_output_noise)

    def narrowed(self, arithmetics: Collection[str]) -> Golden:
        """Return the golden with the noise of these arithmetics alone."""

        def kept(noise: dict[str, Any]) -> dict[str, Any]:
            return {name: units for name, units in noise.items() if name in arithmetics}

        return replace(
            self,
            noise=kept(self.noise),
            output_noise=kept(self.output_noise),
            table_noise=kept(self.table_noise),
            splice_noise=kept(self.splice_noise),
            splice_output_noise=kept(self.splice_output_noise),
        )

    def output_norm(self, name: str) -> float:
        """Return the L2 norm of an output."""
        if name in self.large:
            return self.large[name].norm
        return float(np.linalg.norm(self.outputs[name]))

    def why_not_offered(self, arithmetic: str) -> str | None:
        """Say why the case cannot judge an arithmetic, or None where it can.

        Args:
            arithmetic: One of `tolerance.EVERY_ARITHMETIC`.

        Returns:
            The reason: no noise was recorded (a half type would round its inputs, or its samples
            a thousand times), the reference is not finite, or so noisy that an
            all-zero output would come within twice the limit.
        """
        noise = self.noise.get(arithmetic)
        if noise is None:
            return f"{self.case} is not offered in {arithmetic}, only in {', '.join(self.noise)}"
        if not np.isfinite(noise).all():
            where = self.probes[int(np.argmin(np.isfinite(noise)))]
            return f"reference overflows in {arithmetic} at {where}"
        rows = {
            name: noise[[i]]
            for i, name in enumerate(self.probes)
            if self.sketched_output(name) is not None
        }
        for name, units in (self.output_noise[arithmetic] | rows).items():
            norm = float(units[0])
            if not np.isfinite(units).all():
                return f"reference overflows in {arithmetic} at output {name}"
            if norm * 2 * LIMIT > 1:
                return (
                    f"the reference itself is {norm:.2g} off in {arithmetic} at output {name}: "
                    "too noisy to judge by"
                )
        return None

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        arrays = {
            "sketches": self.sketches,
            "norms": self.norms,
            "max_abs": self.max_abs,
            **{
                f"large.{part}.{name}": getattr(kept, part)
                for name, kept in self.large.items()
                for part in _LARGE_PARTS
            },
            **{f"output.{name}": _narrowed(array) for name, array in self.outputs.items()},
            **{f"table.{name}": array for name, array in self.tables.items()},
            **self._coefficient_arrays(),
            **self._embedding_arrays(),
            **{
                f"noise.{a}.table.{name}": noise.astype(np.float32)
                for a, tables in self.table_noise.items()
                for name, noise in tables.items()
            },
            **{f"noise.{a}.trace": noise.astype(np.float32) for a, noise in self.noise.items()},
            **{
                f"noise.{a}.splice": noise.astype(np.float32)
                for a, noise in self.splice_noise.items()
            },
            **{
                f"noise.{a}.splice_output.{name}": noise
                for a, outputs in self.splice_output_noise.items()
                for name, noise in outputs.items()
            },
            **{
                f"noise.{a}.output.{name}": noise
                for a, outputs in self.output_noise.items()
                for name, noise in outputs.items()
            },
        }
        known = _gradients(self.case)  # their names alone would fill half of the file
        sketched = {n: shape for n, shape in self.sketched.items() if n not in known}
        facts = {
            "format": FORMAT,
            "source": SOURCE,
            "case": self.case,
            "hunts": self.hunts,
            "inputs": self.inputs,
            "probes": [
                [name, *shape]
                for name, shape in zip(self.probes, self.shapes, strict=True)
                if name not in known
            ],
            "outputs": [name for name in self.output_names if name not in known],
            "provenance": self.provenance,
        }
        if self.kills:
            facts["kills"] = self.kills
        if sketched:
            facts["sketched"] = sketched
        if self.pictures:
            facts["pictures"] = self.pictures
        if self.large:
            facts["large"] = {name: [k.norm, *k.shape] for name, k in self.large.items()}
        text = json.dumps(facts, separators=(",", ":"), sort_keys=True)
        return save({k: np.asarray(v, order="C") for k, v in arrays.items()}, {"golden": text})

    def _coefficient_arrays(self) -> dict[str, np.ndarray]:
        """Return the coefficients of all kept steps in one array, in the order of the probes."""
        if not self.coefficients:
            return {}
        return {"coefficients": np.stack([self.coefficients[name] for name in self._steps()])}

    def _steps(self) -> list[str]:
        return [name for name in self.probes if name.startswith("samples#")]

    def _embedding_arrays(self) -> dict[str, np.ndarray]:
        if self.embedding is None or self.embedding_noise is None:
            return {}
        noise = self.embedding_noise.astype(np.float32)
        return {"embedding.values": self.embedding, "embedding.noise": noise}

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Golden:
        """Read back what `to_bytes` wrote.

        Raises:
            GoldenError: `data` is not a golden of this format.
        """
        facts, arrays = _parsed(data, where)
        known = _gradients(facts["case"])
        golden = cls(
            case=facts["case"],
            hunts=facts["hunts"],
            inputs=facts["inputs"],
            outputs={n: _widened(a) for n, a in _with_prefix(arrays, "output.").items()},
            probes=[*(row[0] for row in facts["probes"]), *known],
            shapes=[*(tuple(row[1:]) for row in facts["probes"]), *known.values()],
            sketches=arrays["sketches"],
            norms=arrays["norms"],
            max_abs=arrays["max_abs"],
            provenance=facts["provenance"],
            large={
                name: Large(
                    tuple(shape), norm, *(arrays[f"large.{part}.{name}"] for part in _LARGE_PARTS)
                )
                for name, (norm, *shape) in facts.get("large", {}).items()
            },
            output_names=[*facts["outputs"], *known],
            sketched={n: tuple(shape) for n, shape in facts.get("sketched", {}).items()} | known,
            pictures={n: tuple(shape) for n, shape in facts.get("pictures", {}).items()},
            tables={n: arrays[f"table.{n}"] for n in TABLES if f"table.{n}" in arrays},
            kills=facts.get("kills", []),
            embedding=arrays.get("embedding.values"),
            embedding_noise=arrays.get("embedding.noise"),
            **_noises(arrays),
        )
        if "coefficients" in arrays:
            own = zip(golden._steps(), arrays["coefficients"], strict=True)
            golden.coefficients = dict(own)
        return golden


def _parsed(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts and the arrays of a golden's file."""
    try:
        size = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["golden"])
        version, arrays = facts["format"], load(data)
    except Exception as error:
        message = f"{where} is not a golden: {type(error).__name__}: {error}"
        raise GoldenError(message) from error
    if version != FORMAT:
        message = f"{where} has format {version}, this suite reads {FORMAT}"
        raise GoldenError(message)
    return facts, arrays


def _noises(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the noise that a file holds, by field of `Golden`, the widest arithmetic first."""
    names = ("noise", "output_noise", "table_noise", "splice_noise", "splice_output_noise")
    found: dict[str, Any] = {name: {} for name in names}
    for key in sorted((k for k in arrays if k.startswith("noise.")), key=_arithmetic_first):
        _, arithmetic, what, *rest = key.split(".", 3)
        array = arrays[key]
        found["output_noise"].setdefault(arithmetic, {})
        if what == "trace":
            found["noise"][arithmetic] = array.astype(np.float64)
        elif what == "splice":
            found["splice_noise"][arithmetic] = array.astype(np.float64)
            found["splice_output_noise"].setdefault(arithmetic, {})
        elif what == "table":
            found["table_noise"].setdefault(arithmetic, {})[rest[0]] = array.astype(np.float64)
        else:
            found[f"{what}_noise"].setdefault(arithmetic, {})[rest[0]] = array
    return found


def _gradients(case_id: str) -> dict[str, tuple[int, ...]]:
    """Return the gradients of a case, which come last: its id says which they are."""
    component, variant, _ = case_id.rsplit("/", 2)
    return spec.gradient_shapes(component, variant.partition("-")[0])


_LARGE_PARTS = ("buckets", "rows", "columns")


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Return integers in 16 bits, if they have the room: ids and timesteps do."""
    if array.dtype == np.int64 and array.size and 0 <= array.min() <= array.max() < 2**16:
        return array.astype(np.uint16)
    return array


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int64) if array.dtype == np.uint16 else array


def _with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _arithmetic_first(key: str) -> tuple[int, str]:
    """Order noise by arithmetic, widest first."""
    arithmetic = next((i for i, a in enumerate(EVERY_ARITHMETIC) if f".{a}." in key), -1)
    return arithmetic, key
