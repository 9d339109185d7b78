"""LMS: along the polynomial through the last four slopes.

Source: `sample_lms` of k-diffusion (Crowson, 2022): the method of Adams and Bashforth on a grid
whose sigmas are not evenly spaced.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.polynomial import Polynomial

from sd1_numpy.layers import Array
from sd1_numpy.schedulers.base import EITHER, Settings
from sd1_numpy.schedulers.sigmas import SigmaScheduler

ORDER = 4


class LMS(SigmaScheduler):
    """The linear multistep method of fourth order."""

    settings: ClassVar[Settings] = {"use_karras_sigmas": EITHER}

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin a run; no slope is known yet."""
        super().__init__(config)
        self.slopes: list[Array] = []

    def step(self, k: int, said: Array, x: Array, noise: Array | None) -> Array:  # noqa: ARG002
        """Add the polynomial's integral to the sample.

        A run that begins late has the polynomials of the whole grid, through slopes that were never
        asked for and count as 0: so diffusers has it.
        """
        self.slopes = [self.slope(k, said, x), *self.slopes[: ORDER - 1]]
        place = self.late + k
        nodes = self.sigmas[max(0, place + 1 - ORDER) : place + 1][::-1]
        return x + sum(
            integral(nodes, j, self.sigma(k + 1)) * slope for j, slope in enumerate(self.slopes)
        )


def integral(nodes: list[float], j: int, end: float) -> float:
    """Integrate, from the first node to the end, the polynomial that is 1 at node j, 0 at others.

    Measured from the first node in steps to the end, the nodes lie at 0 and below. So the factors
    are polynomials with no negative coefficient, and nothing cancels.
    """
    step = end - nodes[0]
    places = [(node - nodes[0]) / step for node in nodes]
    others = [place for i, place in enumerate(places) if i != j]
    polynomial = Polynomial.fromroots(others) if others else Polynomial([1])
    return step * float(polynomial.integ()(1) / polynomial(places[j]))
