"""What a network holds while it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Footprint:
    """The memory of one call of one component: the same bytes on every machine and in every run.

    Attributes:
        peak: Most bytes of tensor storage that were alive at once: inputs, outputs and what is
            between, without the weights.
        weights: Bytes of parameters and buffers.
        at: The operation after which the peak was reached, `aten._softmax`.
        where: The canonical path of the module that ran it; empty outside of all modules.
        blocks: By named block, in execution order, the most bytes that were alive while it ran.
    """

    peak: int
    weights: int
    at: str
    where: str
    blocks: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return all bytes at the peak, weights too."""
        return self.peak + self.weights

    @property
    def place(self) -> str:
        """Return the operation and the module at the peak, in words."""
        return f"{self.at} in {self.where}" if self.where else self.at

    def as_json(self) -> dict[str, Any]:
        """Return it as budgets.json has it."""
        return {
            "peak": self.peak,
            "weights": self.weights,
            "at": self.at,
            "where": self.where,
            "blocks": self.blocks,
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Footprint:
        """Read what `as_json` made.

        Raises:
            KeyError: A key is missing.
        """
        names = ("peak", "weights", "at", "where")
        return cls(**{name: facts[name] for name in names}, blocks=dict(facts["blocks"]))
