"""The oracle: diffusers and transformers in real float64, the only source of truth for numbers.

`.double()` alone does not make diffusers float64: the timestep embedding and the tables of the
schedulers are float32 in the code. They are therefore taken from copies of diffusers' modules in
which float32 reads float64.
CLIP runs through scaled_dot_product_attention, since transformers' plain attention has a float32
softmax. Every evaluation runs under a guard that fails on any floating tensor of another dtype.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models import embeddings
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from transformers import AttentionInterface

from conformance import dispatch
from conformance.adapters.diffusers_networks import NETWORKS, Tokenizer
from conformance.adapters.diffusers_pipelines import pipeline_component
from conformance.adapters.diffusers_schedulers import make_scheduler, scheduler_component
from conformance.adapters.diffusers_training import training_component
from conformance.adapters.torch_module import TorchComponent, assign_weights
from conformance.adapters.torch_sampling import PipelineComponent, SchedulerComponent
from conformance.adapters.torch_training import TrainingComponent
from conformance.errors import GoldenError
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.training import TRAININGS

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


class Float64Guard(dispatch.Mode):
    """Fail on any operation that reads or makes a floating tensor that is not float64.

    Tensors made of Python floats are float64 meanwhile.
    """

    def __enter__(self) -> Self:
        """Set the default dtype."""
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """Restore the default dtype."""
        torch.set_default_dtype(self.before)
        super().__exit__(*error)

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and look at what went in and came out."""
        result = func(*args, **kwargs)
        for tensor in _tensors((args, tuple(kwargs.values()), result)):
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                message = f"oracle is not float64: {func} saw {tensor.dtype} at {_caller()}"
                raise GoldenError(message)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield what an operation reads or makes: tensors, alone or in lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _caller() -> str:
    """Return file and line of the innermost frame that belongs to neither torch nor the guard."""
    guard = (__file__, dispatch.__file__)
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename not in guard:
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
    rewritten = source.replace("float32", "float64").replace(".float()", ".double()")
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


Component = TorchComponent | SchedulerComponent | PipelineComponent | TrainingComponent


def reference(component: str, variant: Variant, weights: Weights, dtype: torch.dtype) -> Component:
    """Build the reference of a component.

    Args:
        component: Any but the tokenizer.
        variant: Architecture.
        weights: Recipe weights.
        dtype: `torch.float64` gives the oracle; any other the unmodified reference.

    Returns:
        The component, on the CPU.
    """
    exact = dtype is torch.float64
    if component in SCHEDULERS:
        make = float64_scheduler if exact else make_scheduler
        return scheduler_component(component.partition("/")[2], dtype, make=make)
    if component in PIPELINES:
        pipeline = pipeline_component(component, variant, weights, dtype)
        if exact:
            pipeline.module.make = float64_scheduler
            pipeline.module.load_module = float64_module
            pipeline.module.unet.time_proj = float64_time_proj(pipeline.module.unet.time_proj)
        return pipeline
    if component in TRAININGS:
        return _training(component, variant, weights, dtype)
    return network(component, variant, weights, dtype)


def _training(
    component: str, variant: Variant, weights: Weights, dtype: torch.dtype
) -> TrainingComponent:
    """Build the reference of a component of training; see `reference`."""
    exact = dtype is torch.float64
    make = float64_scheduler if exact else make_scheduler
    built = training_component(component, variant, weights, dtype, make=make)
    if exact and "unet" in built.module:
        unet: Any = built.module["unet"]
        unet.time_proj = float64_time_proj(unet.time_proj)
    return built


def network(
    component: str, variant: Variant, weights: Weights, dtype: torch.dtype
) -> TorchComponent:
    """Build the reference of a network or block; see `reference`."""
    build, call = NETWORKS[component]
    module = assign_weights(build(variant), weights, dtype)
    if dtype is torch.float64 and hasattr(module, "time_proj"):
        module.time_proj = float64_time_proj(module.time_proj)
    return TorchComponent(module, call, dtype)


def float64_scheduler(algorithm: str, config: Mapping[str, Any]) -> Any:
    """Build a diffusers scheduler whose tables are float64; see `make_scheduler`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of `torch.tensor(1.0)`
    try:
        return make_scheduler(algorithm, config, float64_module)
    finally:
        torch.set_default_dtype(before)


def token_ids(texts: list[str]) -> np.ndarray:
    """Return what transformers' tokenizer makes of texts: int64, rows of 77."""
    outputs, _ = _tokenizer().run({"text": np.array(texts)})
    return outputs["input_ids"]


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


_PLAIN = "sd1_plain"


@contextmanager
def plain_attention(module: Any) -> Iterator[None]:
    """Run the reference's attention as two matrix products and a softmax instead of one kernel."""
    with ExitStack() as stack:
        if hasattr(module, "make"):  # the networks of a pipeline, or of a component of training
            for part in module.children():
                stack.enter_context(plain_attention(part))
        elif hasattr(module, "text_model"):
            stack.enter_context(_plain_text_attention(module))
        else:
            stack.enter_context(_plain_image_attention(module))
        yield


@contextmanager
def _plain_text_attention(module: Any) -> Iterator[None]:
    config = module.text_model.config
    before = config._attn_implementation  # noqa: SLF001 - transformers' own switch
    config._attn_implementation = _PLAIN  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


@contextmanager
def _plain_image_attention(module: Any) -> Iterator[None]:
    # The VAE's plain attention has a float32 softmax: an island in float64.
    islands = [m for m in module.modules() if getattr(m, "upcast_softmax", False)]
    if next(module.parameters()).dtype is not torch.float64:
        islands = []
    attentions = [m for m in module.modules() if hasattr(m, "set_processor")]
    for attention in attentions:
        attention.set_processor(AttnProcessor())
    for attention in islands:
        attention.upcast_softmax = False
    try:
        yield
    finally:
        for attention in attentions:
            attention.set_processor(AttnProcessor2_0())
        for attention in islands:
            attention.upcast_softmax = True


def _plain_causal(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend to what came before, (B, heads, N, size) each; return (B, N, heads, size).

    transformers' own plain attention has a float32 softmax whatever the dtype; half types keep it.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(later, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_PLAIN, _plain_causal)


def float64_time_proj(plain: Any) -> nn.Module:
    """Return a float64 copy of the timestep embedding of a diffusers UNet."""
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


def evaluate(component: Component, case: Case, probes: Collection[str]) -> Truth:
    """Evaluate the oracle on one case under the float64 guard.

    Args:
        component: What `reference` made in float64.
        case: The case.
        probes: Canonical names to record; each must fire exactly once.

    Returns:
        Outputs and probes.

    Raises:
        GoldenError: A float32 island, or a probe that fired never or twice.
    """
    observed: dict[str, Tensor] = {}
    fired: Counter[str] = Counter()

    def keep(name: str, tensor: Tensor) -> None:
        fired[name] += 1
        observed[name] = tensor.clone(memory_format=torch.contiguous_format)

    with torch.no_grad():
        tensors = component.tensors(case.inputs())
        with Float64Guard():
            outputs = component.traced(tensors, probes, keep)
    wrong = [name for name in probes if fired[name] != 1]
    if wrong:
        message = (
            f"{case.id}: probe {wrong[0]} fired {fired[wrong[0]]} times in the oracle, not once"
        )
        raise GoldenError(message)
    return Truth(outputs, {name: observed[name] for name in probes})
