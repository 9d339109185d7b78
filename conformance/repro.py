"""One layer to take away: weights, inputs and expected output, and a script of a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor, nn

from conformance.adapters.torch_module import INPUT_SUFFIX, first_tensor, to_numpy
from conformance.case import Case
from conformance.errors import UsageError, unknown_name
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.recording.record import Reference, values_of
from conformance.spec import BLOCKS, probe_names
from conformance.tolerance import LIMIT, floor

SCRIPT = '''"""{what}. Write `layer` with your own code, then run this file."""
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file

here = Path(__file__).parent
weights, inputs, expected = (load_file(here / name) for name in ("{files}"))
noise, limit = {noise:.3e}, {limit:g}  # noise: of the reference's own float32 evaluations

def layer(weights, inputs):
    # the reference: {module}
    # weights, float32: {weights}
    # inputs, float64 (cast them to your dtype): {inputs}
    raise NotImplementedError("return a dict of arrays: {outputs}")

mine = layer(weights, inputs)
for name, wanted in expected.items():
    assert mine[name].shape == wanted.shape, f"{{name}}: {{mine[name].shape}}, not {{wanted.shape}}"
    error = np.linalg.norm(mine[name] - wanted) / np.linalg.norm(wanted)
    ratio = error / noise
    verdict = "right" if ratio <= limit else "WRONG"
    print(f"{{name}}: {{verdict}}, error {{error:.3g}}, ratio {{ratio:.3g}}, limit {{limit:g}}")
'''

_FILES = ("weights.safetensors", "inputs.safetensors", "expected.safetensors")


def write_repro(case: Case, probe: str | None, folder: Path) -> list[Path]:
    """Write what reproduces one layer of a case, or the whole component.

    Args:
        case: A case of a network.
        probe: A canonical probe: a module, or `path.input`, for which the module around it is
            written, with what enters `path` as the expected value. None for the whole network or
            block.
        folder: Folder to create.

    Returns:
        The files: `weights.safetensors` (float32, exact), `inputs.safetensors` and
        `expected.safetensors` (float64, the oracle's), `repro.py`.

    Raises:
        UsageError: The case is of no network, there is no such probe, or the folder cannot be
            written.
    """
    if not case.is_network:
        message = f"repro needs a case of a network, and {case.id} is of {case.component}"
        raise UsageError(message)
    names = probe_names(case.component, case.variant.size)
    if probe is not None and probe not in names:
        raise unknown_name("probe", probe, list(names))
    golden, reference = load_golden(case), Reference(case.component, case.variant, case.seed)
    facts: dict[str, Any] = {}
    if probe is None:
        inputs, expected = case.inputs(), values_of(reference.truth(case)).outputs
        weights = dict(reference.weights)
        noise = max(float(values[0]) for values in golden.output_noise["float32"].values())
        if case.component in BLOCKS:
            facts = _facts(case, reference, "")
    else:
        path = _module_path(probe)
        inputs, value, facts = _captured(reference, case, path, probe)
        expected = {probe: value}
        start = f"{path}." if path else ""
        weights = {
            n.removeprefix(start): reference.weights[n]
            for n in reference.weights
            if n.startswith(start)
        }
        noise = _noise(golden, case, probe, path)
    what = f"{case.id}, {probe or ('the whole block' if facts else 'the whole network')}"
    script = SCRIPT.format(
        what=f"{what} ({facts['module']})" if facts else what,
        module=_described(reference, facts),
        noise=max(noise, floor("float32")),
        limit=LIMIT,
        weights=_shapes(weights) or "none",
        inputs=_shapes(inputs),
        outputs=_shapes(expected),
        files='", "'.join(_FILES),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in zip(_FILES, (weights, inputs, expected), strict=True):
            whole = {n: np.asarray(a, order="C") for n, a in arrays.items()}
            save_file(whole, folder / name, {"repro": json.dumps(facts)})
        (folder / "repro.py").write_text(script, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        message = f"cannot write {folder}: {error}; give another --out"
        raise UsageError(message) from error
    return [folder / name for name in (*_FILES, "repro.py")]


_MOST_NAMES = 12
_TOLD = ("heads", "num_heads", "head_dim", "scale")
"""Numbers of a module that its weights do not show."""


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    """List names and shapes of arrays; of many, the first."""
    shown = [f"{n} {tuple(a.shape)}" for n, a in list(arrays.items())[:_MOST_NAMES]]
    return ", ".join(shown) + (
        f" and {len(arrays) - _MOST_NAMES} more" * (len(arrays) > _MOST_NAMES)
    )


def _described(reference: Reference, facts: Mapping[str, Any]) -> str:
    """Describe a module of the reference in one line: its settings, heads and groups."""
    if not facts:
        return "the whole network, as in docs/contract.md"
    component: Any = reference.build("float64")
    module: nn.Module = component.module.get_submodule(facts["path"])
    leaf = next(module.children(), None) is None
    text = str(module) if leaf else type(module).__name__
    told = [f"{n} {v}" for n, v in vars(module).items() if n in _TOLD and v is not None]
    if type(module).__name__ == "CLIPAttention":
        told.append("causal")
    norms = [str(m) for m in module.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm))]
    inside = "" if leaf or not norms else f"; norms: {', '.join(dict.fromkeys(norms))}"
    settings = f" ({', '.join(told)})" if told else ""
    return " ".join(f"{text}{settings}{inside}".split())


def _module_path(probe: str) -> str:
    """Return the module that computes a probe: itself, or what is around an input."""
    if not probe.endswith(INPUT_SUFFIX):
        return probe
    path = probe.removesuffix(INPUT_SUFFIX).rpartition(".")[0]
    while path.rpartition(".")[2] in _CONTAINERS:
        path = path.rpartition(".")[0]
    return path


_CONTAINERS = ("to_out", "resnets", "attentions", "net", "transformer_blocks", "layers")


def _facts(case: Case, reference: Reference, path: str) -> dict[str, Any]:
    """Say which module of the reference is written; of a block alone the path is empty."""
    component: Any = reference.build("float64")
    module = component.module.get_submodule(path)
    return {"case": case.id, "module": type(module).__name__, "path": path}


def _captured(
    reference: Reference, case: Case, path: str, probe: str
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Evaluate the oracle and keep what one module was given, and the value of a probe."""
    component: Any = reference.build("float64")
    module = component.module.get_submodule(path)
    arrays: dict[str, np.ndarray] = {}
    facts = _facts(case, reference, path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**{str(i): a for i, a in enumerate(args)}, **kwargs}
        for name, tensor in _tensors(given):
            arrays[name] = to_numpy(tensor)
        plain = {n: v for n, v in given.items() if isinstance(v, (int, float, str, bool))}
        facts["arguments"] = plain

    seen: dict[str, np.ndarray] = {}
    with _hook(module, before), torch.no_grad():
        component.traced(
            component.tensors(case.inputs()),
            [probe],
            lambda name, tensor: seen.__setitem__(name, to_numpy(tensor)),
        )
    inputs = arrays or case.inputs()  # of a network whose forward is bypassed
    return inputs, seen[probe], facts


@contextmanager
def _hook(module: nn.Module, before: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among arguments, those of a tuple one by one: `1.0`, `1.1`."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors({f"{name}.{i}": part for i, part in enumerate(value)})
        elif first_tensor(value) is not None:
            yield name, value


def _noise(golden: Golden, case: Case, probe: str, path: str) -> float:
    """Return the float32 noise of a module that is given exact inputs.

    That of splice mode for a layer without probes inside; what a larger module adds up to is at
    most the noise of the trace. A probe that the case does not record has that of the block around.
    """
    parts = probe_names(case.component, case.variant.size)
    start = f"{path}." if path else ""
    inside = any(name.startswith(start) and name != probe for name in parts)
    if probe in golden.probes and not inside and golden.splice_noise:
        return float(golden.splice_noise["float32"][golden.probes.index(probe)])
    around = probe
    while around and around not in golden.probes:
        around = around.rpartition(".")[0]
    if around:
        return float(golden.noise["float32"][golden.probes.index(around)])
    return max(float(values[0]) for values in golden.output_noise["float32"].values())
