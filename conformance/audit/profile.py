"""The profile of one case over depth: what each layer adds to the error, and what becomes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from conformance import spec
from conformance.audit.measure import Output
from conformance.audit.names import finite
from conformance.tolerance import badness


@dataclass
class Layer:
    """One probe of a profile.

    Attributes:
        name: Canonical name.
        kind: What work it shows.
        stage: The part of the network that it is in.
        err: Relative L2 error with all that it inherits (trace).
        local: That which it shows when everything before it is right (splice); None without.
        inherited: Share of `err` that it did not make itself, in quadrature.
        gain: How much it multiplies the error that reaches it, measured on the reference.
        noise: The reference's own error here in this arithmetic, in trace.
        local_noise: The same in splice.
        ratio: `err` in units of `noise`.
        bits: Bits that are right here.
        share: Share of the squared error of the main output that is this layer's own rounding.
        max_abs: Largest magnitude of the port's values.
        rms: Their root mean square.
    """

    name: str
    kind: str
    stage: str
    err: float | None = None
    local: float | None = None
    inherited: float | None = None
    gain: float | None = None
    noise: float | None = None
    local_noise: float | None = None
    ratio: float | None = None
    bits: float | None = None
    share: float | None = None
    max_abs: float | None = None
    rms: float | None = None


@dataclass
class Profile:
    """What an audit found in one case.

    Attributes:
        case: Its id.
        component: Its component.
        variant: Its variant.
        regime: The regime of its weights.
        dtype: The arithmetic.
        outputs: Errors of the outputs.
        main: The output whose error is shared out.
        layers: In the order of execution; none of a port without probes.
        rest: Share of the error that is made after the last probe.
        noise: Where the noise comes from.
        notes: What a reader should know.
    """

    case: str
    component: str
    variant: str
    regime: str
    dtype: str
    outputs: list[Output]
    main: str
    layers: list[Layer] = field(default_factory=list)
    rest: float | None = None
    noise: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def output(self) -> Output:
        """Return the errors of the main output."""
        return next(output for output in self.outputs if output.name == self.main)

    @property
    def explained(self) -> float | None:
        """Return the sum of all shares: 1 where errors are small enough to add up linearly."""
        shares = [layer.share for layer in self.layers if layer.share is not None]
        return sum(shares) + (self.rest or 0.0) if shares else None

    def by(self, attribute: str) -> dict[str, float]:
        """Return the sums of shares by `kind` or `stage`, largest first.

        What is made after the last probe counts as a stage, and as a sum or gate. Nothing where
        the error was not shared out.
        """
        sums: dict[str, float] = {}
        if self.explained is None:
            return sums
        for layer in self.layers:
            key = getattr(layer, attribute)
            sums[key] = sums.get(key, 0.0) + (layer.share or 0.0)
        if self.rest:
            last = "output" if attribute == "stage" else "sum or gate"
            sums[last] = sums.get(last, 0.0) + self.rest
        return dict(sorted(sums.items(), key=lambda row: -row[1]))

    def block_of(self, name: str) -> str:
        """Return the named block that a layer is in; the layer itself where it is in none."""
        return spec.block_around(self.component, name) or name

    def by_cost(self, layers: list[str]) -> list[list[str]]:
        """Group layers by the block that they are in, those blocks first that cost most."""
        cost: dict[str, float] = {}
        for probe in self.layers:
            block = self.block_of(probe.name)
            cost[block] = cost.get(block, 0.0) + (probe.share or 0.0)
        blocks: dict[str, list[str]] = {}
        for layer in layers:
            blocks.setdefault(self.block_of(layer), []).append(layer)
        return [blocks[name] for name in sorted(blocks, key=lambda name: -cost.get(name, 0.0))]

    def worst(self, count: int = 10) -> list[Layer]:
        """Return the layers that cost most: by share, or where none is known by local error."""
        rows = [layer for layer in self.layers if layer.share is not None]
        if rows:
            return sorted(rows, key=lambda layer: -(layer.share or 0.0))[:count]
        return sorted(self.layers, key=lambda layer: -badness(layer.local or layer.err or 0.0))[
            :count
        ]

    def stages(self) -> dict[str, list[Layer]]:
        """Return the layers by stage, in the order of execution."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.stage, []).append(layer)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the profile as it stands in audit.json."""
        own = {k: v for k, v in asdict(self).items() if k not in {"outputs", "layers"}}
        layers = [
            {k: finite(v) if isinstance(v, float) else v for k, v in asdict(layer).items()}
            for layer in self.layers
        ]
        return {
            **own,
            "rest": finite(self.rest),
            "explained": finite(self.explained),
            "outputs": [output.as_json() for output in self.outputs],
            "kinds": {k: finite(v) for k, v in self.by("kind").items()},
            "stages": {k: finite(v) for k, v in self.by("stage").items()},
            "worst": [layer.name for layer in self.worst()],
            "layers": layers,
        }
