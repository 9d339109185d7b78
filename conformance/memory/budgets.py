"""`budgets.json`: what ports hold, recorded by torch version and configuration."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from conformance import spec
from conformance.case import Case
from conformance.errors import GoldenError
from conformance.memory.footprint import Footprint
from conformance.run_folder import write_whole
from conformance.training import TRAINED

PATH = Path(__file__).with_name("budgets.json")
RECORD = "sd1-conformance budget record"
REFERENCE = "diffusers"
"""The port whose peak no port may exceed."""

Records = dict[str, dict[str, Footprint]]
"""Footprints by configuration and port."""


def torch_version() -> str:
    """Return torch's version as far as budgets depend on it, `2.13`; empty without torch."""
    try:
        return ".".join(importlib.metadata.version("torch").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return ""


def network_of(component: str) -> str:
    """Return the network whose blocks are named: of a training the one that is trained."""
    return TRAINED.get(component, component)


def block_order(case: Case) -> list[str]:
    """Return the named blocks of a case's network in execution order."""
    network = network_of(case.component)
    own = spec.block_names(network)
    return [name for name in spec.probe_names(network, case.variant.size) if name in own]


@dataclass
class Budgets:
    """What budgets.json holds.

    Attributes:
        records: By torch version.
        allowances: By torch version and name of a CUDA device: bytes by which its allocator's peak
            may exceed the prediction.
    """

    records: dict[str, Records] = field(default_factory=dict)
    allowances: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = PATH) -> Budgets:
        """Read the file.

        Raises:
            GoldenError: It is missing or damaged.
        """
        try:
            found = json.loads(path.read_text("utf-8"))
            records = {
                version: {
                    key: {port: Footprint.of(facts) for port, facts in ports.items()}
                    for key, ports in own.items()
                }
                for version, own in found["records"].items()
            }
            return cls(records, found["allowances"])
        except FileNotFoundError as error:
            message = f"{path} is missing: reinstall the package, or run `{RECORD}`"
            raise GoldenError(message) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} is damaged ({error}): restore it from the repository"
            raise GoldenError(message) from error

    def write(self, path: Path = PATH) -> None:
        """Write the file: sorted, one configuration of one port a line."""
        allowances = json.dumps(self.allowances, sort_keys=True)
        lines = ["{", f' "allowances": {allowances},', ' "records": {']
        versions = sorted(self.records.items())
        for i, (version, own) in enumerate(versions):
            lines.append(f"  {json.dumps(version)}: {{")
            for j, (key, ports) in enumerate(sorted(own.items())):
                lines.append(f"   {json.dumps(key)}: {{")
                rows = [
                    f"    {json.dumps(port)}: {json.dumps(found.as_json())}"
                    for port, found in sorted(ports.items())
                ]
                lines += [*(f"{row}," for row in rows[:-1]), *rows[-1:]]
                lines.append("   }" + ("," if j < len(own) - 1 else ""))
            lines.append("  }" + ("," if i < len(versions) - 1 else ""))
        write_whole(path, ["\n".join([*lines, " }", "}", ""])])

    def of(self, key: str, port: str, version: str | None = None) -> Footprint | None:
        """Return what a port held when it was recorded; None where it was not."""
        version = torch_version() if version is None else version
        return self.records.get(version, {}).get(key, {}).get(port)

    def knows(self) -> bool:
        """Say whether anything is recorded for the torch that is installed."""
        return torch_version() in self.records


@cache
def budgets() -> Budgets:
    """Return what is recorded."""
    return Budgets.read()
