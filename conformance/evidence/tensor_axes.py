"""What the axes of a probe or output mean: names, heads of an attention, groups of a norm."""

from __future__ import annotations

from conformance import spec
from conformance.case import Case
from conformance.layout import FLATTENED, PIXELS
from conformance.sampling import term_and_step

_BY_AXES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("step",),
    2: ("batch", "feature"),
    3: ("batch", "token", "feature"),
    4: ("batch", "channel", "row", "column"),
}
_TRAINING_TABLES = ("betas", "alphas_cumprod")
"""Tables of all timesteps of the training; the others hold the steps of a run."""

_OF_HEADS = {
    "unet": (".to_q", ".to_k", ".to_v", ".to_out.0.input"),
    "text_encoder": (".q_proj", ".k_proj", ".v_proj", ".out_proj.input"),
}
"""Probes whose features are those of one head after another."""


def axes_of(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the axes of a tensor.

    Args:
        name: Probe or output.
        shape: Its shape.

    Returns:
        One name for each axis: `batch`, `channel`, `row`, `column`, `token`, `feature`, `step`,
        `timestep`. Tokens of a feature map are its pixels, row after row.
    """
    if name == PIXELS:
        return ("batch", "row", "column", "channel")
    if name.endswith(FLATTENED) and len(shape) == len(("batch", "channel", "token")):
        return ("batch", "channel", "token")
    term, _ = term_and_step(name)
    if len(shape) == 1 and term in _TRAINING_TABLES:
        return ("timestep",)
    known = _BY_AXES.get(len(shape))
    return tuple(f"axis {i}" for i in range(len(shape))) if known is None else known


def heads_of(case: Case, name: str, width: int) -> int:
    """Return how many heads share the features of a probe.

    Args:
        case: Gives the architecture.
        name: The probe.
        width: Number of its features.

    Returns:
        The number; 1 where the features are not those of heads.
    """
    folder = spec.CHECKPOINT_FOLDERS.get(case.component, "")
    if not name.endswith(_OF_HEADS.get(folder, ())):
        return 1
    heads = case.variant.architecture(case.component)["num_heads"]
    if isinstance(heads, list):
        heads = heads[_level(f"{spec.name_start(case.component)}{name}", len(heads))]
    return int(heads) if width % heads == 0 else 1


def _level(path: str, levels: int) -> int:
    """Return which level of the UNet a module belongs to; the bottom has the last one's width."""
    way, number, *_ = path.split(".")
    if way == "mid_block":
        return levels - 1
    return int(number) if way == "down_blocks" else levels - 1 - int(number)


def groups_of(case: Case, name: str, axes: tuple[str, ...]) -> int:
    """Return into how many groups a norm divides the channels of a probe; 1 where it does not.

    Args:
        case: Gives the architecture.
        name: The probe.
        axes: From `axes_of`.
    """
    is_norm = "norm" in name.rpartition(".")[2] and "channel" in axes
    if not (is_norm and case.is_network):
        return 1
    return int(case.variant.architecture(case.component)["norm_num_groups"])
