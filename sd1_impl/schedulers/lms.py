"""The linear multistep method: along a polynomial through the last four slopes.

Source: Katherine Crowson's ``sample_lms`` of k-diffusion; the method is that of Bashforth and
Adams, 1883, on a grid that is not evenly spaced. The polynomial is Lagrange's, and its integral
from one sigma to the next a sum of the slopes, whose coefficients depend on the grid alone.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sd1_impl.scheduler_config import LMSConfig
from sd1_impl.schedulers.sigma_schedule import SigmaRun, SigmaSchedule

ORDER = 4
"""How many slopes there are at most (``order=4`` in ``sample_lms``, and in diffusers)."""


@dataclass
class LMSRun(SigmaRun):
    """A run and what it remembers.

    Attributes:
        slopes: The last of them, at most four, newest first.
    """

    slopes: list[Tensor] = field(default_factory=list)


class LMSDiscreteScheduler(SigmaSchedule):
    """The linear multistep method of fourth order.

    Args:
        config: Its numbers.
    """

    config: LMSConfig
    run_type: ClassVar[type[SigmaRun]] = LMSRun

    def solve(
        self,
        model_output: Tensor,
        x: Tensor,
        i: int,
        run: LMSRun,
        noise: Tensor | None,  # noqa: ARG002 - deterministic
    ) -> Tensor:
        """Return x at the next sigma.

        The order rises to 4 with the place in the grid, as in diffusers: in a run that begins late
        the coefficients of slopes that were never asked for have nothing to multiply.
        """
        sigma = float(run.sigmas[i])
        d = (x - self.denoised(model_output, x, sigma)) / sigma
        run.slopes = [d, *run.slopes[: ORDER - 1]]
        nodes = run.sigmas[max(0, i + 1 - ORDER) : i + 1][::-1].tolist()
        coefficients = lms_coefficients(nodes, float(run.sigmas[i + 1]))
        return x + sum(c * d for c, d in zip(coefficients, run.slopes, strict=False))


def lms_coefficients(nodes: list[float], end: float) -> list[float]:
    """Return the integrals, from the first node to the end, of Lagrange's polynomials.

    The k-th is 1 at node k and 0 at the others. Gauss' rule of two points is exact up to the third
    degree, which four nodes have.

    Args:
        nodes: One to four sigmas, newest first.
        end: The sigma to come.

    Returns:
        As many coefficients; they sum to ``end - nodes[0]``.
    """
    half = (end - nodes[0]) / 2
    points = [nodes[0] + half * (1 + sign / math.sqrt(3)) for sign in (-1, 1)]
    return [
        half
        * sum(
            math.prod((tau - other) / (node - other) for j, other in enumerate(nodes) if j != k)
            for tau in points
        )
        for k, node in enumerate(nodes)
    ]
