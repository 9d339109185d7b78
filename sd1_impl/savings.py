"""What lets a network do with less memory, for more time.

*By sample* and *tiled* are the autoencoder's, see `sd1_impl.tiling`; *recomputing* is for training,
see `sd1_impl.recomputation`. Attention in slices is in `sd1_impl.attention_kernels`.
"""

from typing import Any

from torch import nn

from sd1_impl.recomputation import recompute
from sd1_impl.tiling import Tiling

_SWITCHES: dict[str, tuple[str, Any]] = {
    "by_sample": ("by_sample", True),
    "tiled": ("tiling", Tiling()),
}
"""By name: the attribute that a module has if it can save so, and what switches it on."""

_RECOMPUTE = "recompute"

SAVINGS = (*_SWITCHES, _RECOMPUTE)
"""By name."""


def use_saving(network: nn.Module, name: str) -> int:
    """Let a network save memory.

    Args:
        network: Any of this package, or a block of one.
        name: One of `SAVINGS`. Several can be on at once.

    Returns:
        In how many places it saves so: 0 where it cannot.
    """
    if name == _RECOMPUTE:
        return recompute(network)
    attribute, value = _SWITCHES[name]
    places = [module for module in network.modules() if hasattr(module, attribute)]
    for module in places:
        setattr(module, attribute, value)
    return len(places)
