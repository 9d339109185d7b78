"""Backends of torch ports: the same network, evaluated in other ways, or declined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import Tensor, nn

from conformance.adapters import sd1_impl
from conformance.adapters.attention_modes import AttentionCalls, plain, sliced
from conformance.adapters.backends import CHANNELS_LAST, FLASH, MATH, PLAIN, SLICED
from conformance.adapters.torch_module import TorchPort
from conformance.case import find_case
from conformance.errors import UnsupportedError
from conformance.execution import BACKENDS, COMPILE, SDPA, Execution
from conformance.runner import Runner

TEXT, DECODER, RESNET = (
    find_case(f"{name}/tiny/base")
    for name in ("text_encoder", "vae_decoder", "block/down_blocks.0.resnets.0")
)
SWITCHED = sd1_impl.port()
OUTSIDE = replace(SWITCHED, attention=None)
"""sd1_impl without its own switch: as a port whose author knows of no backends."""


def judged(port: TorchPort, case: Any, backend: str, mode: str = "trace", dtype: str = "float32"):
    """Judge a case by a backend."""
    runner = Runner(port)
    runner.asks_for_age = False
    return runner.run(case, Execution(dtype, "cpu", backend, mode))


def loaded(case: Any, backend: str, port: TorchPort = SWITCHED) -> Any:
    """Load a component by a backend."""
    own = (case.component, case.variant, case.weights(), "float32", "cpu")
    return port.load(*own, backend=backend)


def heads(*rows: int, size: int = 8) -> list[Tensor]:
    """Draw queries, keys and values: 2 samples, 3 heads."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, n, size, generator=generator, dtype=torch.float64) for n in rows]


@pytest.mark.parametrize("stand_in", [plain, sliced])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.arange(5)[None] < 3},
        {"attn_mask": torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(2, 3, 5, 1)},
        {"attn_mask": (torch.arange(10) % 3 > 0).reshape(2, 1, 1, 5)},
    ],
    ids=["plain", "causal", "scale", "row", "added", "per-sample"],
)
def test_stand_ins_are_the_same_attention(stand_in, how: dict[str, Any]) -> None:
    """Whatever torch's attention is asked for, what stands in for it gives the same numbers."""
    own = heads(5, 5, 5)
    wanted = F.scaled_dot_product_attention(*own, **how)
    with AttentionCalls(stand_in) as calls:
        found = F.scaled_dot_product_attention(*own, **how)
    assert calls.calls == 1
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_nothing_stands_in_for() -> None:
    """Dropout draws numbers: the port declines."""
    with pytest.raises(UnsupportedError, match="dropout or shared keys"), AttentionCalls(plain):
        F.scaled_dot_product_attention(*heads(5, 5, 5), dropout_p=0.5)


@pytest.mark.parametrize("backend", [FLASH, MATH, PLAIN, SLICED])
@pytest.mark.parametrize("port", [SWITCHED, OUTSIDE], ids=["switched", "outside"])
def test_attention_backends_pass(port: TorchPort, backend: str) -> None:
    """A right port is right by every backend, by its own switch and without one."""
    result = judged(port, TEXT, backend)
    assert result.verdict == "pass", result.message
    assert result.item_id == f"{TEXT.id}[float32-cpu-{backend}-trace]"


@pytest.mark.parametrize("backend", [PLAIN, SLICED])
@pytest.mark.parametrize("port", [SWITCHED, OUTSIDE], ids=["switched", "outside"])
def test_the_backend_takes_effect(port: TorchPort, backend: str) -> None:
    """Torch's fused kernel is not called any more."""
    component, called = loaded(TEXT, backend, port), []
    real = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
            called.append(func is real)
            return func(*args, **(kwargs or {}))

    with Spy():
        component.run(TEXT.inputs())
    assert called
    assert not any(called)


@pytest.mark.parametrize(
    ("port", "case", "backend", "told"),
    [
        (SWITCHED, RESNET, PLAIN, "there is no attention that could be plain"),
        (OUTSIDE, RESNET, PLAIN, "it never calls torch's scaled_dot_product_attention"),
        (SWITCHED, RESNET, MATH, "it never calls torch's scaled_dot_product_attention"),
        (SWITCHED, TEXT, CHANNELS_LAST, "there is no convolution"),
    ],
    ids=["no-attention", "never-called", "no-kernel-called", "no-images"],
)
def test_what_changes_nothing_is_declined(port, case, backend: str, told: str) -> None:
    """A backend that is no other way to compute a case is a skip, not a pass."""
    result = judged(port, case, backend)
    assert (result.verdict, told in result.message) == ("skip", True), result.message


def test_a_kernel_that_torch_lacks(monkeypatch) -> None:
    """On a CPU there is no efficient kernel: it is not offered, and where it is, declined."""
    assert "efficient" not in SWITCHED.hello().backends
    monkeypatch.setattr("conformance.adapters.torch_module.backends_here", lambda: BACKENDS)
    result = judged(SWITCHED, TEXT, "efficient")
    assert result.verdict == "skip"
    assert result.message.startswith("torch has no efficient attention for this device, dtype")


@pytest.mark.parametrize("name", ["vae_decoder", "unet"])
def test_channels_last_is_kept(name: str) -> None:
    """Weights and maps are laid out so, and the network's own output still is."""
    case, formats = find_case(f"{name}/tiny/base"), []
    component = loaded(case, CHANNELS_LAST)
    last = {"memory_format": torch.channels_last}
    assert all(w.is_contiguous(**last) for w in component.module.parameters() if w.dim() == 4)
    handles = [
        layer.register_forward_hook(lambda *seen: formats.append(seen[2].is_contiguous(**last)))
        for layer in component.module.modules()
        if isinstance(layer, nn.Conv2d | nn.GroupNorm) and layer.weight.shape[0] > 1
    ]
    component.run(case.inputs())
    for handle in handles:
        handle.remove()
    assert formats[-1]  # conv_out's
    assert np.mean(formats) > 0.8  # the VAE's norm in front of its attention is of tokens


def test_channels_last_in_splice_mode() -> None:
    """What is put into a probe keeps the layout that the port gave it."""
    pytest.importorskip("diffusers")
    assert judged(SWITCHED, DECODER, CHANNELS_LAST, "splice").verdict == "pass"


def test_a_compiled_network_shows_no_probes() -> None:
    """Its outputs are judged; it cannot be spliced, nor imitate an arithmetic by operations."""
    skipped = judged(SWITCHED, RESNET, COMPILE, "splice")
    assert (skipped.verdict, "shows no probes" in skipped.message) == ("skip", True)
    with pytest.raises(UnsupportedError, match="tf32 is imitated on a CPU"):
        SWITCHED.load(TEXT.component, TEXT.variant, TEXT.weights(), "tf32", "cpu", COMPILE)


@pytest.mark.compile
def test_a_compiled_network_passes() -> None:
    """torch.compile is judged by outputs alone, and nothing is said to be missing."""
    result = judged(SWITCHED, RESNET, COMPILE)
    assert (result.verdict, result.missing) == ("pass", [])
    assert {record.kind for record in result.records} == {"output"}


def test_without_a_compiler(monkeypatch) -> None:
    """Where there is no C++ compiler, `compile` is declined."""
    component = loaded(RESNET, COMPILE)

    class InvalidCxxCompiler(Exception):  # noqa: N818 - torch's name
        pass

    def fail(*_: Any) -> None:
        raise RuntimeError("inductor failed") from InvalidCxxCompiler()

    monkeypatch.setattr(component.component, "run", fail)
    with pytest.raises(UnsupportedError, match="needs a C\\+\\+ compiler"):
        component.run({})


def test_a_wrong_kernel_is_found() -> None:
    """A port whose plain attention forgets the scale is right by its own kernel only."""

    def unscaled(network: nn.Module, _: str) -> int:
        for layer in network.modules():
            if hasattr(layer, "attend"):
                layer.attend = lambda q, k, v, **_: (q @ k.mT).softmax(-1) @ v
        return 1

    port = replace(SWITCHED, attention=unscaled)
    assert judged(port, DECODER, SDPA).verdict == "pass"
    wrong = judged(port, DECODER, PLAIN)
    assert wrong.verdict == "fail"
    assert wrong.first_divergence["probe"].startswith("decoder.mid_block.attentions.0.to_out.0")


def test_a_scheduler_has_one_way() -> None:
    """Asked for a backend outright, what is no network declines."""
    case = find_case("scheduler/ddim/-/base")
    with pytest.raises(UnsupportedError, match="evaluated in one way"):
        loaded(case, PLAIN)


class Deaf:
    """A port that offers backends and cannot be told one."""

    def hello(self) -> Any:
        """Say what sd1_impl says."""
        return SWITCHED.hello()

    def load(self, component: Any, variant: Any, weights: Any, arithmetic: str, device: str) -> Any:
        """Load what sd1_impl loads."""
        return SWITCHED.load(component, variant, weights, arithmetic, device)


class Listening(Deaf):
    """One that takes whatever it is told."""

    def load(self, *own: Any, **how: Any) -> Any:
        """Load what sd1_impl loads."""
        return SWITCHED.load(*own, **how)


def test_load_without_a_backend() -> None:
    """It is one clear line, where the port offers another backend than its own."""
    result = judged(Deaf(), TEXT, PLAIN)
    assert result.verdict == "error"
    own = "self, component, variant, weights, arithmetic, device"
    assert result.message.startswith(
        "the port's hello() offers backend plain, but "
        f"load({own}) has to be load({own}, backend='sdpa') ({__file__}:"
    )
    assert judged(Deaf(), TEXT, SDPA).verdict == "pass"
    assert judged(Listening(), TEXT, PLAIN).verdict == "pass"
