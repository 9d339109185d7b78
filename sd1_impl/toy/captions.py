"""The world of the toy: a shape of a colour, a size and a place, and the sentence that says so.

All 240 sentences are listed; 32 of them, drawn once, are never trained on. Whether the trained
model draws those right shows that it has learnt words, not sentences.
"""

import itertools
import random
from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
PLACES = (
    "in the middle",
    "at the top left",
    "at the top right",
    "at the bottom left",
    "at the bottom right",
)

_HELD_OUT = 32
_SEED = 798
"""Of 3,000 seeds the one whose draw has all words, and pairs of colour and shape, most evenly."""


@dataclass(frozen=True)
class Caption:
    """What a picture shows.

    Attributes:
        colour: One of `COLOURS`.
        shape: One of `SHAPES`.
        size: One of `SIZES`.
        place: One of `PLACES`.
    """

    colour: str
    shape: str
    size: str
    place: str

    @property
    def text(self) -> str:
        """Return the prompt, such as "a small red circle at the top left"."""
        return f"a {self.size} {self.colour} {self.shape} {self.place}"


CAPTIONS = tuple(
    Caption(colour, shape, size, place)
    for colour, shape, size, place in itertools.product(COLOURS, SHAPES, SIZES, PLACES)
)
"""All there are, in order."""

HELD_OUT = tuple(random.Random(_SEED).sample(CAPTIONS, _HELD_OUT))  # noqa: S311 - no secret
"""Those that are not trained on."""

TRAINED = tuple(caption for caption in CAPTIONS if caption not in HELD_OUT)
"""The other 208."""
