"""What an audit found, all of it, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from conformance import __version__
from conformance.audit.measure import Output
from conformance.audit.names import finite
from conformance.audit.profile import Profile
from conformance.audit.samples import Samples
from conformance.audit.search import Found
from conformance.tolerance import LIMIT

FORMAT = 1
"""Of audit.json; it grows when a name there changes its meaning."""


@dataclass(frozen=True)
class Kept:
    """What layers in float32 gain.

    Attributes:
        case: Id of the case.
        layers: Those kept in float32.
        of: How many layers there are.
        before: The outputs without.
        after: The outputs with.
    """

    case: str
    layers: list[str]
    of: int
    before: list[Output]
    after: list[Output]


@dataclass(frozen=True)
class Swap:
    """A component with torch's attention, and with the user's own in its place.

    Attributes:
        port: `sd1_impl` or `diffusers`.
        case: Id of the case.
        before: The outputs with torch's.
        after: The outputs with the user's; none where that gave no answer.
        calls: How often the user's was called.
        verdict: By the limit.
        message: Why there is no answer.
    """

    port: str
    case: str
    before: list[Output]
    after: list[Output]
    calls: int
    verdict: str
    message: str = ""


@dataclass
class Attention:
    """What came of `--attention`.

    Attributes:
        function: Its name.
        cells: The table: one row for each regime, head size and length.
        swaps: Components with it.
    """

    function: str
    cells: list[dict[str, Any]]
    swaps: list[Swap] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it is beyond the limit anywhere, or gave no answer."""
        verdicts = [cell["verdict"] for cell in self.cells] + [s.verdict for s in self.swaps]
        return "fail" in verdicts


@dataclass
class Report:
    """What an audit found.

    Attributes:
        port: Its name.
        version: Its version.
        dtype: The arithmetic.
        device: The device.
        profiles: One for each case.
        skipped: By case, why it was not audited.
        kept: What `--keep` gained.
        targets: By case, what `--target` found.
        attention: What came of `--attention`.
        samples: What came of `--samples`.
        policy: The rules of `--policy`.
        environment: Facts of the machine and the libraries.
        switches: Torch's switches that let it round.
        kernels: By component, what one call ran.
        seconds: How long it took.
    """

    port: str
    version: str
    dtype: str
    device: str
    profiles: list[Profile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    targets: dict[str, Found] = field(default_factory=dict)
    attention: Attention | None = None
    samples: list[Samples] = field(default_factory=list)
    policy: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    switches: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def missed(self) -> bool:
        """Whether a target was missed, or the attention is beyond its limit."""
        missed = any(not found.reached for found in self.targets.values())
        return missed or (self.attention is not None and self.attention.failed)

    def components(self) -> dict[str, list[Profile]]:
        """Return the profiles by component: those of one stand side by side."""
        found: dict[str, list[Profile]] = {}
        for profile in self.profiles:
            found.setdefault(profile.component, []).append(profile)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the contents of audit.json: numbers are finite or null."""
        return {
            "format": FORMAT,
            "suite": __version__,
            "port": {"name": self.port, "version": self.version},
            "dtype": self.dtype,
            "device": self.device,
            "limit": LIMIT,
            "seconds": round(self.seconds, 1),
            "profiles": [profile.as_json() for profile in self.profiles],
            "skipped": self.skipped,
            "kept": [
                {
                    "case": kept.case,
                    "layers": kept.layers,
                    "of": kept.of,
                    "before": [output.as_json() for output in kept.before],
                    "after": [output.as_json() for output in kept.after],
                }
                for kept in self.kept
            ],
            "targets": [
                {"case": case, **_finite(asdict(found))} for case, found in self.targets.items()
            ],
            "attention": self.attention
            and {
                "function": self.attention.function,
                "failed": self.attention.failed,
                "table": [_finite(cell) for cell in self.attention.cells],
                "swaps": [
                    {
                        "port": swap.port,
                        "case": swap.case,
                        "calls": swap.calls,
                        "verdict": swap.verdict,
                        "message": swap.message,
                        "before": [output.as_json() for output in swap.before],
                        "after": [output.as_json() for output in swap.after],
                    }
                    for swap in self.attention.swaps
                ],
            },
            "samples": [samples.as_json() for samples in self.samples],
            "policy": self.policy,
            "environment": self.environment,
            "switches": self.switches,
            "kernels": self.kernels,
        }


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: finite(v) if isinstance(v, float) else v for k, v in facts.items()}
