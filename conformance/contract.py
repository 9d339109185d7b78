"""Level 0: a port answers with the names, shapes and dtypes that were agreed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from conformance.adapters.serve import no_answer
from conformance.case import Case
from conformance.errors import PortError, nearest_text
from conformance.golden import Golden
from conformance.port import Arrays, Component
from conformance.recipe import digest
from conformance.sampling import TIMESTEPS
from conformance.tensors import carried_in
from conformance.tolerance import HALVES, POLICIES


def call(
    component: Component,
    inputs: Mapping[str, np.ndarray],
    probes: Collection[str],
    supplied: Arrays | None,
) -> tuple[Arrays, Arrays]:
    """Run a component and check that two dicts of arrays come back."""
    answer = component.run(inputs, probes, supplied)
    if wrong := no_answer(answer):
        message = f"the port's {wrong}"
        raise PortError(message)
    for arrays in answer:
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                message = (
                    f"run() of the port returned {name} as {type(array).__name__}, not NumPy: "
                    f"{_converted(array)}"
                )
                raise PortError(message)
    return answer


def _converted(value: object) -> str:
    """Write what makes a NumPy array of a value."""
    if type(value).__module__.partition(".")[0] == "torch":
        return "x.detach().cpu().numpy()"
    return "np.array(x, np.float32)" if isinstance(value, list | tuple) else "np.asarray(x)"


def require_unchanged(case: Case, inputs: Arrays, digests: Mapping[str, str]) -> None:
    """Check that a port has left its inputs alone.

    Args:
        case: The case.
        inputs: What the port was given.
        digests: What they were, by name.

    Raises:
        PortError: One of them is another now; says which.
    """
    now = {name: digest(array) for name, array in inputs.items()}
    changed = [name for name in {**digests, **now} if now.get(name) != digests.get(name)]
    if changed:
        message = (
            f"{case.id}: the port changed its input {_few(changed)} in place: compute in a copy"
        )
        raise PortError(message)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004


def check_contract(golden: Golden, outputs: Arrays, probes: Arrays, arithmetic: str) -> None:
    """Level 0: names and dtypes are exact.

    Raises:
        PortError: One is another; says which, and what was expected.
    """
    _check_names(golden, outputs, probes)
    for name, array in outputs.items():
        _check_dtype(golden, name, array, arithmetic)


def _check_names(golden: Golden, outputs: Arrays, probes: Arrays) -> None:
    missing = [name for name in golden.output_shapes if name not in outputs]
    others = [name for name in outputs if name not in golden.output_shapes]
    if missing or others:
        texts = [
            f"output {_few(names)} {what}"
            for names, what in ((missing, "is missing"), (others, "is none of this component"))
            if names
        ]
        own = _few(list(golden.output_shapes))
        message = f"{golden.case}: {'; '.join(texts)}: its outputs: {own} (docs/contract.md)"
        raise PortError(message)
    asked = set(golden.asked)
    unknown = [name for name in probes if name not in asked]
    if unknown:
        message = (
            f"{golden.case}: the port returned probe {unknown[0]!r}, which was not asked for: "
            "hand out those alone that `probes` names"
        )
        near = nearest_text(unknown[0], asked)
        raise PortError(f"{message}; {near}" if near else message)


def _check_dtype(golden: Golden, name: str, array: np.ndarray, arithmetic: str) -> None:
    if name == TIMESTEPS and array.dtype.kind in "iuf":
        return  # 981 is 981 in any type
    integer = _integer_of(golden, name)
    if not integer and arithmetic in POLICIES and array.dtype.kind == "f":
        return  # where dtypes are mixed, any of them may be the last
    widened = not integer and arithmetic == "bfloat16"
    wanted = integer or carried_in(arithmetic)
    if array.dtype.name != wanted:
        fix = _fix(array.dtype, np.dtype(wanted), arithmetic)
        wanted = "bfloat16 widened to float32" if widened else wanted
        message = f"{golden.case}: output {name} is {array.dtype.name}, expected {wanted}: {fix}"
        raise PortError(message)
    if widened and np.any(array.view(np.uint32) & 0xFFFF):
        message = (
            f"{golden.case}: output {name} has values that are not bfloat16: round it to bfloat16, "
            "then widen it"
        )
        raise PortError(message)


def _fix(own: np.dtype[Any], wanted: np.dtype[Any], arithmetic: str) -> str:
    """Say how an output gets its dtype; a cast makes no arithmetic of another."""
    other = own.itemsize < wanted.itemsize or arithmetic in HALVES
    if own.kind == "f" and wanted.kind == "f" and other:
        return f"compute in {arithmetic}, or leave {arithmetic} out of hello()'s arithmetics"
    if own.kind == "f" and wanted == np.uint8:
        return "round it to pixels (docs/contract.md)"
    if own.kind != "f" and wanted.kind == "f":
        return "floating numbers are expected: find where they are lost, a cast would hide it"
    return f"return it as {wanted}: .astype(np.{wanted}), in torch .to(torch.{wanted})"


def _integer_of(golden: Golden, name: str) -> str:
    """Return the integer dtype that an output has to have; empty for a floating one."""
    if name in golden.pictures:
        return "uint8"
    kept = golden.outputs.get(name)
    return kept.dtype.name if kept is not None and kept.dtype.kind in "iu" else ""
