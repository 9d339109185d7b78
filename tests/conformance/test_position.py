"""Which of many failures a reader is shown first."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.position import position


def line(case: str, ratio: float, probe: str = "conv_in") -> dict[str, Any]:
    """Build the line of a failing trace."""
    return {
        "case": f"{case}[float32-cpu-sdpa-trace]",
        "component": case.rpartition("/")[0].removesuffix("/-").removesuffix("/tiny"),
        "mode": "trace",
        "probes": [],
        "first_divergence": {"probe": probe, "ratio": ratio},
    }


PAIRS = {
    "earlier in the network": (
        line("unet/tiny/quiet", 5.0), line("unet/tiny/base", 9e4, "conv_out"),
    ),
    "clearer": (line("unet/tiny/quiet", 90.0), line("unet/tiny/base", 5.0)),
    "plain is plain": (line("unet/tiny/base", 200.0), line("unet/tiny/quiet", 9e6)),
    "a batch last": (
        line("tokenizer/-/greek-final-sigma", float("inf"), "input_ids"),
        line("tokenizer/-/batch-unicode", float("inf"), "input_ids"),
    ),
    "what SD v1 has": (
        line("scheduler/ddim/-/base", 200.0, "samples#0"),
        line("scheduler/ddim/-/velocity", 9e6, "samples#0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_what_comes_first(name: str) -> None:
    """The earliest place, then what fails more plainly, then the more ordinary case."""
    first, second = PAIRS[name]
    assert position(first) < position(second)
