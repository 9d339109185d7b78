"""The table of `budget`: what a port holds in every configuration, beside the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conformance.bench.record import Row
from conformance.bench.table import aligned
from conformance.case import Case
from conformance.errors import PortError, SuiteError, UnsupportedError
from conformance.execution import Execution
from conformance.memory.budgets import REFERENCE, budgets
from conformance.memory.cases import config_id
from conformance.memory.footprint import Footprint
from conformance.memory.judge import exceeded, reference
from conformance.memory.sizes import MIB, mib
from conformance.raised import where_raised
from conformance.report.text import one_line


@dataclass(frozen=True)
class Line:
    """One configuration of a port.

    Attributes:
        case: The case.
        execution: How it is computed.
        found: What the port holds.
        ceiling: What the reference holds; None where it has no such way to compute.
        wrong: Where the port holds what it should not, and how much; empty where it does not.
        tensors: Peak of its tensors as it ran, in bytes; None where it did not.
        allocator: Peak of the CUDA allocator, in bytes; None where there was none.
    """

    case: Case
    execution: Execution
    found: Footprint
    ceiling: Footprint | None
    wrong: str = ""
    tensors: int | None = None
    allocator: int | None = None

    @property
    def key(self) -> str:
        """Return the name of the configuration."""
        return config_id(self.case, self.execution)

    @property
    def needs(self) -> int:
        """Return the bytes that a card needs to have: the most that is known of."""
        return self.found.weights + max(self.found.peak, self.allocator or 0)


def lines_of(
    predictor: Any, pairs: Iterable[tuple[Case, Execution]]
) -> Iterator[Line | tuple[str, str]]:
    """Predict configurations one by one.

    Args:
        predictor: A `conformance.adapters.memory.Predictor`.
        pairs: The configurations.

    Yields:
        A line; of what the port declines, the configuration's name and the reason.

    Raises:
        PortError: The port raised something else.
    """
    for case, execution in pairs:
        try:
            found: Footprint = predictor.predict(case, execution)
        except UnsupportedError as error:
            yield config_id(case, execution), str(error)
            continue
        except SuiteError:
            raise
        except Exception as error:
            message = (
                f"{config_id(case, execution)}: the port raised {type(error).__name__}: "
                f"{one_line(error)} ({where_raised(error)})"
            )
            raise PortError(message) from error
        ceiling = reference(case, execution)
        budget = budgets().of(config_id(case, execution), predictor.port.name)
        wrong = exceeded(found, budget, ceiling)
        yield Line(
            case, execution, found, ceiling, f"{wrong['probe']}: {wrong['hint']}" if wrong else ""
        )


_HEAD = ("configuration", "dtype", "path", "weights MiB", "peak MiB", REFERENCE, "ratio")
_PLACE = "at the peak"


def table(lines: Sequence[Line], largest: int | None = None) -> list[str]:
    """Write lines as a table, its columns aligned.

    Args:
        lines: At least one.
        largest: Bytes of a card: a column says what fits.

    Returns:
        Text lines; a last column names the operation and the module at the peak.
    """
    measured = [
        (name, [getattr(line, name) for line in lines])
        for name in ("tensors", "allocator")
        if any(getattr(line, name) is not None for line in lines)
    ]
    head = (*_HEAD, *(name for name, _ in measured), *(["fits"] if largest else []), _PLACE)
    rows = [head]
    for i, line in enumerate(lines):
        own, other = line.found.peak, line.ceiling
        rows.append(
            (
                line.case.id,
                line.execution.dtype,
                line.execution.backend,
                _figure(line.found.weights),
                _figure(own),
                _figure(other.peak) if other else "-",
                f"{own / other.peak:.3f}" if other else "-",
                *("-" if v[i] is None else _figure(v[i]) for _, v in measured),
                *([] if largest is None else ["yes" if line.needs <= largest else "no"]),
                line.found.place + (" !" if line.wrong else ""),
            )
        )
    return aligned(rows, left=(0, 1, 2, len(head) - 1))


def _figure(size: int) -> str:
    return f"{size / MIB:,.3f}"


def bench_rows(lines: Iterable[Line], port: str) -> list[Row]:
    """Return the rows of a bench file: exact figures, less of which is better.

    They have the same names whatever the port, so that two ports can be compared.
    """
    return [
        Row.counted(
            line.key,
            "bytes",
            line.found.peak,
            facts={
                "port": port,
                "weights": line.found.weights,
                "at": line.found.at,
                "where": line.found.where,
                "ceiling": line.ceiling.peak if line.ceiling else None,
            },
        )
        for line in lines
    ]


_PICTURES = {256: 32, 512: 64}
"""Side of a picture, and that of its latents."""
_ONE = "one network after another"


def pictures(lines: Iterable[Line], largest: int) -> list[str]:
    """Say which pictures a card can draw from text, guided, one at a time.

    Args:
        lines: Of any configurations; pictures whose networks are not among them are left out.
        largest: Bytes of the card.

    Returns:
        Text lines.
    """
    known = {line.key: line for line in lines}
    told = []
    for side, latent in _PICTURES.items():
        for dtype in ("float32", "float16"):
            names = (
                f"text_encoder/sd1/batch2[{dtype}-sdpa]",
                f"unet/sd1/latent{latent}-batch2[{dtype}-sdpa]",
                f"vae_decoder/sd1/latent{latent}-batch1[{dtype}-sdpa]",
            )
            own = [known[name] for name in names if name in known]
            if len(own) < len(names):
                continue
            apart = max(line.needs for line in own)
            weights = sum(line.found.weights for line in own)
            together = weights + max(line.needs - line.found.weights for line in own)
            fits = (
                "fits, all networks loaded"
                if together <= largest
                else f"fits, {_ONE}"
                if apart <= largest
                else "does not fit"
            )
            told.append(
                f"txt2img {side}x{side} in {dtype}: {fits} ({mib(apart)} {_ONE}, "
                f"{mib(together)} with all loaded)"
            )
    return told
