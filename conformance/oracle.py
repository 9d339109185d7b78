"""The oracle: diffusers evaluated in real float64, the only source of truth for numbers.

`.double()` alone does not make diffusers float64: the timestep embedding is float32 in the code.
The embedding is therefore taken from a copy of diffusers' module in which float32 reads float64,
and every evaluation runs under a guard that fails on any floating tensor of another dtype.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models import embeddings
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conformance.adapters.diffusers import build_unet, call_unet
from conformance.adapters.torch_module import TorchComponent, assign_weights, observe
from conformance.errors import GoldenError

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.variants import Variant, Weights


def versions() -> dict[str, str]:
    """Return the versions of everything that the truth depends on."""
    return {
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


class Float64Guard(TorchDispatchMode):
    """Fail on any operation that reads or makes a floating tensor that is not float64."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and look at what went in and came out."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if (
                isinstance(leaf, Tensor)
                and leaf.is_floating_point()
                and leaf.dtype != torch.float64
            ):
                message = f"oracle is not float64: {func} saw {leaf.dtype} at {_caller()}"
                raise GoldenError(message)
        return result


def _caller() -> str:
    """Return file and line of the innermost frame that belongs to neither torch nor this file."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{frame.filename}:{frame.lineno}"
    return "unknown"


@cache
def float64_module(name: str) -> ModuleType:
    """Import a second copy of a module in which float32 is written float64.

    Args:
        name: Module of diffusers, such as `diffusers.models.embeddings`.

    Returns:
        The rewritten copy; the original stays as it is.
    """
    original = importlib.import_module(name)
    source = inspect.getsource(original)
    rewritten = source.replace("torch.float32", "torch.float64").replace(".float()", ".double()")
    alias = f"{name}__float64"
    module_spec = importlib.util.spec_from_loader(alias, loader=None)
    if module_spec is None:
        message = f"cannot copy {name}"
        raise GoldenError(message)
    module = importlib.util.module_from_spec(module_spec)
    module.__package__ = original.__package__
    module.__file__ = original.__file__
    sys.modules[alias] = module
    exec(compile(rewritten, original.__file__ or alias, "exec"), module.__dict__)  # noqa: S102
    return module


def unet(variant: Variant, weights: Weights, dtype: torch.dtype) -> TorchComponent:
    """Build the reference UNet.

    Args:
        variant: Architecture.
        weights: Recipe weights.
        dtype: `torch.float64` gives the oracle; any other the unmodified reference.

    Returns:
        The component, on the CPU.
    """
    module = assign_weights(build_unet(variant), weights, dtype)
    if dtype is torch.float64:
        module.time_proj = float64_time_proj(module)
    return TorchComponent(module, call_unet, dtype)


BUILDERS = {"unet": unet}


@contextmanager
def plain_attention(module: Any) -> Iterator[None]:
    """Run diffusers' attention as two matrix products and a softmax instead of one kernel."""
    module.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        module.set_attn_processor(AttnProcessor2_0())


def float64_time_proj(module: nn.Module) -> nn.Module:
    """Return a float64 copy of a diffusers UNet's timestep embedding."""
    plain = module.time_proj
    return float64_module(embeddings.__name__).Timesteps(
        plain.num_channels, plain.flip_sin_to_cos, plain.downscale_freq_shift, plain.scale
    )


@dataclass
class Truth:
    """The oracle's record of one case.

    Attributes:
        outputs: float64 tensors by name.
        probes: float64 tensors by canonical name, in execution order.
    """

    outputs: dict[str, Tensor]
    probes: dict[str, Tensor]


def evaluate(component: TorchComponent, case: Case, probes: Collection[str]) -> Truth:
    """Evaluate the oracle on one case under the float64 guard.

    Args:
        component: What `BUILDERS` made in float64.
        case: The case.
        probes: Canonical names to record; each must fire exactly once.

    Returns:
        Outputs and probes.

    Raises:
        GoldenError: A float32 island, or a probe that fired never or twice.
    """
    observed: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        observed[name] = tensor.clone(memory_format=torch.contiguous_format)

    with torch.no_grad(), observe(component.module, probes, keep) as fired:
        tensors = component.tensors(case.inputs())
        with Float64Guard():
            outputs = component.call(component.module, tensors)
    wrong = [name for name in probes if fired[name] != 1]
    if wrong:
        message = (
            f"{case.id}: probe {wrong[0]} fired {fired[wrong[0]]} times in the oracle, not once"
        )
        raise GoldenError(message)
    return Truth(outputs, observed)


def discover_probes(variant: Variant) -> tuple[list[str], list[str]]:
    """Derive the canonical UNet probes from the oracle's own modules.

    Args:
        variant: Any variant: all have the same topology.

    Returns:
        Every probe in execution order, and the named blocks among them.
    """
    component = unet(variant, variant.weights("unet"), torch.float64)
    names, blocks = _probe_candidates(component.module)
    order: list[str] = []
    architecture = variant.architecture("unet")
    inputs = {
        "sample": np.zeros((1, architecture["in_channels"], 16, 16), np.float32),
        "timestep": np.array(0),
        "encoder_hidden_states": np.zeros((1, 7, architecture["cross_attention_dim"]), np.float32),
    }
    with torch.no_grad(), observe(component.module, names, lambda n, _: order.append(n)):
        component.call(component.module, component.tensors(inputs))
    return order, [name for name in order if name in blocks]


_GLUE = (
    (".to_out.0", "attention core"),
    (".norm2", "time embedding added; first residual sum of a transformer block"),
    (".norm3", "second residual sum of a transformer block"),
)


_BLOCK = re.compile(
    r"(.*\.(resnets|attentions|downsamplers|upsamplers)|(down|up)_blocks)\.\d+"
    r"|mid_block|time_proj|time_embedding|conv_in|conv_norm_out"
)
"""Named blocks: what the cases other than `base` record."""


def _probe_candidates(module: nn.Module) -> tuple[list[str], set[str]]:
    names: list[str] = []
    blocks: set[str] = set()
    for path, child in module.named_modules():
        if not path or isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        if next(child.parameters(), None) is None and path != "time_proj":
            continue
        if any(path.endswith(suffix) for suffix, _ in _GLUE) or (
            path.startswith("up_blocks") and path.rsplit(".", 1)[0].endswith("resnets")
        ):
            names.append(f"{path}.input")
        names.append(path)
        if _BLOCK.fullmatch(path):
            blocks.add(path)
    return names, blocks
