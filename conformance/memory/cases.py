"""The configurations whose memory is judged: sizes and batches, arithmetics, ways to compute.

They need no golden: a prediction looks at shapes alone, never at values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cache

import numpy as np

from conformance import spec
from conformance.case import Case
from conformance.execution import MEMORY, SAVINGS, SDPA, Execution
from conformance.recipe import SEED, TensorRecipe
from conformance.scenarios.scenario import Scenario
from conformance.scenarios.training import DenoisingScenario
from conformance.scenarios.unet import UNetScenario
from conformance.scenarios.vae import ImageScenario, LatentsScenario
from conformance.training import TRAINING
from conformance.variants import Variant, parse_variant

PLAIN, SLICED = "plain", "sliced"
BY_SAMPLE, TILED, RECOMPUTE = SAVINGS
PATHS = (SDPA, PLAIN, SLICED)
"""Ways to compute attention."""

_FLOAT32, _FLOAT16, _BFLOAT16 = "float32", "float16", "bfloat16"
_DTYPES = (_FLOAT32, _FLOAT16)
_HUNTS = "a tensor kept too long, a copy, a lost view, a wider dtype, scores written out"
_MIDDLE = 500
"""A timestep."""


@dataclass(frozen=True)
class PromptBatch(Scenario):
    """Input ids of a batch: data, not drawn.

    Attributes:
        batch: Number of prompts.
    """

    _: KW_ONLY
    batch: int

    def inputs(self, variant: Variant, seed: int = SEED) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return `input_ids`, int64 (batch, 77)."""
        rows = np.array(spec.golden_prompts()["base"]["input_ids"], np.int64)
        return {"input_ids": np.resize(rows, (self.batch, rows.shape[1]))}

    def recipes(self, variant: Variant) -> dict[str, TensorRecipe]:  # noqa: ARG002
        """Return no recipe: nothing is drawn."""
        return {}


@dataclass(frozen=True)
class Configurations:
    """Cases of one component and size, and how they are run.

    Attributes:
        component: The component.
        variant: The variant.
        sizes: Sides of the latents, or of the image in pixels; of a text 0: it has 77 tokens.
        batches: Numbers of samples.
        backends: Ways to compute.
        dtypes: Arithmetics.
        full: Whether pytest runs them under the marker `full` alone: they take seconds (many
            operations, or convolutions in float16 on a CPU) and tell no more than one like them.
    """

    component: str
    variant: str
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...] = _DTYPES
    full: bool = False

    def cases(self) -> Iterator[Case]:
        """Yield the cases, the small ones first."""
        for size in self.sizes:
            for batch in self.batches:
                scenario = _scenario(self.component, size, batch)
                yield Case(self.component, parse_variant(self.variant), scenario)

    def items(self) -> Iterator[tuple[Case, Execution]]:
        """Yield the cases, each in every way and arithmetic."""
        for case in self.cases():
            for backend in self.backends:
                for dtype in self.dtypes:
                    yield case, Execution(dtype, "cpu", backend, MEMORY)


_UNET, _TEXT, _ENCODER, _DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"
_WHOLE = (SDPA, PLAIN)

_TABLE = (
    Configurations(_TEXT, "tiny", (0,), (2,), _WHOLE, (*_DTYPES, _BFLOAT16)),
    Configurations(_TEXT, "sd1", (0,), (1, 2), _WHOLE),
    Configurations(_UNET, "tiny", (16,), (2,), _WHOLE, (*_DTYPES, _BFLOAT16)),
    Configurations(_UNET, "tiny", (16,), (2,), (SLICED,), (_FLOAT32,), full=True),
    Configurations(_UNET, "sd1", (32,), (1, 2), _WHOLE),
    Configurations(_UNET, "sd1", (64,), (1, 2), _WHOLE),
    Configurations(_UNET, "sd1", (64,), (1,), (SLICED,), (_FLOAT16,)),
    Configurations(_UNET, "sd1", (64,), (1,), (SLICED,), (_FLOAT32,), full=True),
    Configurations(_UNET, "sd1", (64,), (2,), (SLICED,), full=True),
    Configurations(_UNET, "sd1", (64,), (2,), (SDPA,), (_BFLOAT16,)),
    Configurations(_UNET, "sd1", (96,), (1, 2), (SDPA,)),
    Configurations(_UNET, "sd1", (96,), (1,), (PLAIN,), (_FLOAT16,)),
    Configurations(_UNET, "sd1", (96,), (1,), (SLICED,), (_FLOAT16,), full=True),
    Configurations(_ENCODER, "tiny", (64,), (2,), (SDPA,)),
    Configurations(_ENCODER, "tiny", (64,), (2,), (PLAIN, BY_SAMPLE), (_FLOAT32,)),
    Configurations(_ENCODER, "tiny", (64,), (2,), (PLAIN, BY_SAMPLE), (_FLOAT16,), full=True),
    Configurations(_ENCODER, "sd1", (256, 512), (1,), _WHOLE),
    Configurations(_ENCODER, "sd1", (256, 512), (2,), (*_WHOLE, BY_SAMPLE)),
    Configurations(_ENCODER, "sd1", (1024,), (1,), (SDPA, TILED)),
    Configurations(_DECODER, "tiny", (8,), (2,), (SDPA,)),
    Configurations(_DECODER, "tiny", (8,), (2,), (PLAIN, BY_SAMPLE), (_FLOAT32,)),
    Configurations(_DECODER, "tiny", (8,), (2,), (PLAIN, BY_SAMPLE), (_FLOAT16,), full=True),
    Configurations(_DECODER, "tiny", (96,), (1,), (TILED,), (_FLOAT32,)),
    Configurations(_DECODER, "tiny", (96,), (1,), (SDPA,), (_FLOAT32,), full=True),
    Configurations(_DECODER, "sd1", (32, 64), (1,), _WHOLE),
    Configurations(_DECODER, "sd1", (32, 64), (2,), (*_WHOLE, BY_SAMPLE)),
    Configurations(_DECODER, "sd1", (128,), (1,), (SDPA, TILED)),
    Configurations(TRAINING, "tiny", (16,), (2,), (SDPA, RECOMPUTE), (_FLOAT32,)),
    Configurations(TRAINING, "sd1", (32,), (1,), (SDPA, RECOMPUTE), full=True),
    Configurations(TRAINING, "sd1", (64,), (1,), (SDPA, RECOMPUTE), (_FLOAT16,)),
    Configurations(TRAINING, "sd1", (64,), (1,), (SDPA, RECOMPUTE), (_FLOAT32,), full=True),
)


def _scenario(component: str, size: int, batch: int) -> Scenario:
    """Return the inputs of a size and batch, square."""
    name = f"image{size}-batch{batch}" if component == _ENCODER else f"latent{size}-batch{batch}"
    if component == _TEXT:
        return PromptBatch(f"batch{batch}", _HUNTS, batch=batch)
    if component == _UNET:
        return UNetScenario(name, _HUNTS, (_MIDDLE,), batch, size, size)
    if component == _ENCODER:
        return ImageScenario(name, _HUNTS, size, size, batch)
    if component == _DECODER:
        return LatentsScenario(name, _HUNTS, size, size, batch)
    return DenoisingScenario(name, _HUNTS, timesteps=(_MIDDLE,) * batch, height=size, width=size)


@cache
def configurations() -> tuple[tuple[Case, Execution], ...]:
    """Return every configuration, grouped so that each network is built once."""
    found: dict[tuple[str, str], list[tuple[Case, Execution]]] = {}
    for group in _TABLE:
        found.setdefault((group.component, group.variant), []).extend(group.items())
    orders = (
        sorted(own, key=lambda pair: (pair[1].backend, pair[1].dtype)) for own in found.values()
    )
    return tuple(pair for own in orders for pair in own)


def memory_cases() -> list[Case]:
    """Return the cases of all configurations, each once."""
    return list({case.id: case for case, _ in configurations()}.values())


@cache
def _in_full() -> frozenset[str]:
    return frozenset(config_id(*item) for group in _TABLE if group.full for item in group.items())


def is_in_full(case: Case, execution: Execution) -> bool:
    """Say whether pytest runs a configuration under the marker `full` alone."""
    return config_id(case, execution) in _in_full()


def config_id(case: Case, execution: Execution) -> str:
    """Name a configuration whatever the device: `unet/sd1/latent64-batch2[float16-sdpa]`."""
    return f"{case.id}[{execution.dtype}-{execution.backend}]"
