"""Published slices of the trained models as rows, and their inputs: docs/witness.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conformance import spec
from conformance.errors import UnsupportedError, UsageError, unknown_name
from conformance.port import Arrays
from conformance.report.text import one_line
from conformance.sampling import config_array, settings

WITNESSES = ("v1-4", "v1-5")
"""Models of which slices are published."""

PREFIX = "witness-"
"""Of their scenarios."""

PUBLISHED_SIZE = "sd1"
_FLOATING = ("float32", "float64")


class Stage(NamedTuple):
    """One call of the port.

    Attributes:
        component: What is called.
        output: The output that goes on to the next stage, or is judged.
        shape: Its shape.
    """

    component: str
    output: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One published slice.

    Attributes:
        model: One of `WITNESSES`.
        name: Distinguishes the rows of a model: `s33-t4`.
        dtype: Arithmetic in which it was published.
        atol: Largest absolute error that the published test allows.
        source: The test that publishes it.
        hunts: The bugs that it may show, in one line.
        stages: Calls of the port, in order.
        seed: In the names of the noise files; of NumPy's legacy generator for what is drawn.
        where: Indices and slices, one for each axis of the last stage's output.
        values: The published numbers, in the order of the flattened slice.
        files: Shapes of the inputs that are read from noise files, by input.
        drawn: Shapes of the inputs that NumPy's legacy generator draws.
        zeros: Shapes of the inputs that are zero.
        given: Other inputs, as JSON has them.
        config: Arguments of `sampling.settings`; empty where there is no scheduler.
    """

    model: str
    name: str
    dtype: str
    atol: float
    source: str
    hunts: str
    stages: tuple[Stage, ...]
    seed: int
    where: tuple[int | slice, ...] = field(hash=False)
    values: tuple[float, ...]
    files: Mapping[str, tuple[int, ...]] = field(hash=False)
    drawn: Mapping[str, tuple[int, ...]] = field(hash=False)
    zeros: Mapping[str, tuple[int, ...]] = field(hash=False)
    given: Mapping[str, Any] = field(hash=False)
    config: Mapping[str, Any] = field(hash=False)

    @property
    def component(self) -> str:
        """Return the component whose output is judged."""
        return self.stages[-1].component

    @property
    def scenario(self) -> str:
        """Return the last segment of the case id."""
        return f"{PREFIX}{self.model}-{self.name}"

    @property
    def id(self) -> str:
        """Return `component/sd1/scenario`."""
        return f"{self.component}/{PUBLISHED_SIZE}/{self.scenario}"

    @property
    def file_names(self) -> dict[str, str]:
        """Return the names of the noise files, by input, as the published tests form them."""
        return {
            name: f"gaussian_noise_s={self.seed}_shape={'_'.join(map(str, shape))}.npy"
            for name, shape in self.files.items()
        }


def rows(model: str) -> list[Row]:
    """Return the published slices of a model; those of one component and dtype come together.

    Args:
        model: One of `WITNESSES`.

    Raises:
        UsageError: No such model.
    """
    if model not in WITNESSES:
        raise unknown_name("witness", model, list(WITNESSES))
    return [
        _row(group | row, facts["source"])
        for facts in (spec.published_slices(),)
        for group in facts["groups"]
        if group["model"] == model
        for row in group["rows"]
    ]


def _row(facts: Mapping[str, Any], origin: str) -> Row:
    """Read a row of the JSON, what it shares with its group included."""
    shapes = {
        kind: {name: tuple(shape) for name, shape in facts.get(kind, {}).items()}
        for kind in ("files", "drawn", "zeros")
    }
    return Row(
        model=facts["model"],
        name=facts["name"],
        dtype=facts["dtype"],
        atol=facts["atol"],
        source=f"{facts['source']} of {origin}",
        hunts=facts["hunts"],
        stages=tuple(Stage(name, output, tuple(shape)) for name, output, shape in facts["stages"]),
        seed=facts["seed"],
        where=tuple(i if isinstance(i, int) else slice(*i) for i in facts["slice"]),
        values=tuple(facts["values"]),
        given=facts.get("given", {}),
        config=facts.get("config", {}),
        **shapes,
    )


def check_folder(model: str, folder: Path) -> None:
    """Refuse a folder in which no noise file of a model is.

    Args:
        model: One of `WITNESSES`.
        folder: As the user gave it.

    Raises:
        UsageError: It is no folder, or holds none of the files.
    """
    if not folder.is_dir():
        message = f"--witness-inputs {folder} is no folder"
        raise UsageError(message)
    needed = [name for row in rows(model) for name in row.file_names.values()]
    if not any((folder / name).is_file() for name in needed):
        message = (
            f"--witness-inputs {folder} holds none of the {len(set(needed))} noise files of "
            f"{model}, such as {needed[0]}: docs/witness.md lists them"
        )
        raise UsageError(message)


def read_inputs(row: Row, folder: Path) -> Arrays:
    """Read and draw the inputs of a row.

    Args:
        row: The row.
        folder: Where the noise files are.

    Returns:
        Arrays by input name, as docs/contract.md has them, but for the latents of the VAE decoder,
        which are not scaled yet.

    Raises:
        UnsupportedError: Files are missing.
        UsageError: A file does not hold what its name says.
    """
    paths = {name: folder / file_name for name, file_name in row.file_names.items()}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        message = f"{' and '.join(missing)} not in {folder}"
        raise UnsupportedError(message)
    arrays = {name: read_noise(path, row.files[name]) for name, path in paths.items()}
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in row.zeros.items()}
    for name, shape in row.drawn.items():
        legacy = np.random.RandomState(row.seed)  # as the published tests draw them
        arrays[name] = legacy.standard_normal(shape).astype(np.float32)
    arrays |= {name: np.array(value) for name, value in row.given.items()}
    if row.config:
        config = {"scheduler": row.config["algorithm"]} | settings(**row.config)
        arrays["config"] = config_array(config)
    return arrays


def read_noise(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a noise file; nothing in it is ever unpickled.

    Args:
        path: A `.npy` file.
        shape: What it has to hold.

    Returns:
        float32.

    Raises:
        UsageError: It holds something else; names the file.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        message = f"{path} is no .npy file of numbers: {one_line(error)}"
        raise UsageError(message) from error
    if array.shape != shape or array.dtype.name not in _FLOATING:
        message = (
            f"{path} holds {array.dtype.name} of shape {array.shape}, not float32 of shape {shape}"
        )
        raise UsageError(message)
    if not np.isfinite(array).all():
        message = f"{path} holds values that are not finite"
        raise UsageError(message)
    return np.array(array, np.float32)
