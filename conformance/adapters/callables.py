"""Plain functions as a port, in any array library: jax, mlx, tensorflow, cupy, NumPy, ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.adapters.axes import fitted
from conformance.errors import PortError
from conformance.offer import require_function
from conformance.port import Arrays, Hello
from conformance.report.text import one_line, with_article
from conformance.variants import parse_variant, variant_names
from sd1_weights.stored import widened

if TYPE_CHECKING:
    from conformance.variants import Variant, Weights

Function = Callable[..., Mapping[str, Any]]
"""Takes `(inputs)` or `(inputs, see)`, returns arrays by name."""

LOAD = "variant, weights, arithmetic, device"
Load = Callable[["Variant", "Weights", str, str], Function]
"""Takes variant, weights, arithmetic and device."""

AsArray = Callable[[np.ndarray, Any], Any]
"""Takes a NumPy array, and the array of the function's own library whose place it takes."""

OUTPUTS = {
    "tokenizer": ("input_ids",),
    "text_encoder": ("last_hidden_state", "pooler_output"),
    "unet": ("sample",),
    "vae_encoder": ("mean", "logvar", "latents"),
    "vae_decoder": ("image",),
    "block": ("out",),
    "scheduler": ("timesteps", "model_inputs", "samples"),
    "pipeline": ("latents#0", "image", "image_uint8"),
}
"""By component, or by what comes before the `/` in its name."""


def outputs_of(component: str) -> str:
    """Show what the call of a component returns, as a dict is written."""
    names = OUTPUTS.get(component.partition("/")[0], ("name",))
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"


def to_numpy(value: Any) -> np.ndarray:
    """Return an array of any library as a NumPy array; bfloat16 is widened to float32, exactly.

    Args:
        value: Has `__array__`, `__dlpack__`, or torch's `detach().cpu().numpy()`.

    Raises:
        PortError: It is no array, or its library refuses.
    """
    try:
        array = _to_numpy(value)
    except Exception as error:
        message = (
            f"{with_article(type(value).__name__)} cannot be made a NumPy array: {one_line(error)}"
        )
        raise PortError(message) from error
    if array.dtype.name == "bfloat16":
        return widened(array.view(np.uint16))
    return array


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype).endswith("bfloat16") else tensor
        return np.asarray(tensor.numpy())
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        return np.asarray(value.get())  # cupy copies from the device only if it is asked to
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise TypeError("it has neither __array__ nor __dlpack__")


def as_own(value: np.ndarray, array: Any) -> Any:
    """Return a NumPy array as one of an array's own library, dtype and, for torch, device.

    Raises:
        PortError: There is no general way in that library.
    """
    if isinstance(array, np.ndarray):
        return value.astype(array.dtype)
    if hasattr(array, "new_tensor"):
        return array.new_tensor(value)
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__().asarray(value, dtype=array.dtype)
    try:
        own = type(array)(value)
        return own if own.dtype == array.dtype else own.astype(array.dtype)
    except Exception as error:
        message = (
            f"no way is known to make {with_article(type(array).__name__)} of a NumPy array: give "
            "CallablePort(asarray=function), a function of (NumPy array, array that it replaces)"
        )
        raise PortError(message) from error


class See:
    """How a function shows its probes: `x = see("conv_in", x)`.

    What comes back is the value to go on with: the oracle's in splice mode, else the array itself.

    Attributes:
        wanted: Names that are asked for; of others nothing is read or copied.
    """

    def __init__(
        self, probes: Collection[str], replace: Mapping[str, np.ndarray], asarray: AsArray
    ) -> None:
        self.wanted = frozenset([*probes, *replace])
        self.observed: Arrays = {}
        self._replace = replace
        self._asarray = asarray

    def __call__(self, name: str, array: Any) -> Any:
        """Show a probe.

        Args:
            name: Its canonical name.
            array: What the function computed.

        Returns:
            What it goes on with.

        Raises:
            PortError: The probe was shown before.
        """
        if name not in self.wanted:
            return array
        if name in self.observed:
            message = f"probe {name} was shown more than once in one run"
            raise PortError(message)
        self.observed[name] = np.array(to_numpy(array))  # the function may reuse its memory
        value = self._replace.get(name)
        if value is None:
            return array
        return self._asarray(fitted(value, self.observed[name].shape), array)


@dataclass(frozen=True)
class CallableComponent:
    """A function behind the port contract.

    Attributes:
        function: The function.
        component: What it computes, for messages.
        asarray: Makes an array of its own library.
    """

    function: Function
    component: str
    asarray: AsArray = as_own

    @property
    def sees(self) -> bool:
        """Whether the function shows probes: whether it takes an argument called `see`."""
        try:
            return "see" in inspect.signature(self.function).parameters
        except ValueError:  # a builtin without a signature
            return False

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        probes: Collection[str] = (),
        replace: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Call the function once; see `conformance.port.Component`."""
        see = See(probes, replace or {}, self.asarray)
        outputs = self.function(inputs, see=see) if self.sees else self.function(inputs)
        if not isinstance(outputs, Mapping):
            message = (
                f"the function of {self.component} returned {type(outputs).__name__}, "
                f"not a dict of arrays: write {outputs_of(self.component)}"
            )
            raise PortError(message)
        arrays = {name: to_numpy(array) for name, array in outputs.items()}
        return arrays, {name: see.observed[name] for name in see.observed if name in set(probes)}


@dataclass(frozen=True)
class CallablePort:
    """A port made of plain functions; docs/adapters.md shows how.

    Attributes:
        name: The port's name.
        version: The port's version.
        components: By component, what loads it: given variant, weights (a mapping of canonical
            names to float32 arrays), arithmetic and device, it returns a function of `(inputs)` or
            `(inputs, see)` that returns a dict of arrays. It raises
            `conformance.errors.UnsupportedError` for what it does not have.
        arithmetics: Arithmetics that it can be asked for.
        devices: Devices that it can be asked for (free names).
        details: Facts for the report, such as versions of libraries.
        asarray: Makes an array of the functions' library of a NumPy array and the array that it
            replaces; by default with its dtype, by its library's own means.
        probes: Whether there are any; None to look at the functions, for which the smallest
            variant is loaded once.
    """

    name: str
    version: str
    components: Mapping[str, Load]
    arithmetics: Sequence[str] = ("float32",)
    devices: Sequence[str] = ("cpu",)
    details: Mapping[str, str] = field(default_factory=dict)
    asarray: AsArray = as_own
    probes: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be called.

        Raises:
            PortError: What should load a component is no function.
        """
        for component, load in self.components.items():
            if not callable(load):
                message = (
                    f"{self.name}: {component} is {load!r}, not a function "
                    "load(variant, weights, arithmetic, device) -> function"
                )
                raise PortError(message)

    def hello(self) -> Hello:
        """Say what is offered: probes, if a function takes `see`."""
        sees = any(map(self._sees, self.components)) if self.probes is None else self.probes
        return Hello(
            self.name,
            self.version,
            tuple(self.components),
            tuple(self.arithmetics),
            tuple(self.devices),
            probes=sees,
            replace=sees,
            details=dict(self.details),
        )

    def _sees(self, component: str) -> bool:
        """Load the smallest variant to look at the function; what fails says so when it is used."""
        with suppress(Exception):
            variant = parse_variant(variant_names(component)[0])
            weights = variant.weights(component)
            return self.load(component, variant, weights, self.arithmetics[0], self.devices[0]).sees
        return False

    def load(
        self, component: str, variant: Variant, weights: Weights, arithmetic: str, device: str
    ) -> CallableComponent:
        """Load a function; see `conformance.port.Port`."""
        load = self.components[component]
        require_function(load, f"load of {component}", LOAD)
        function = load(variant, weights, arithmetic, device)
        if not callable(function):
            message = (
                f"load of {component} returned {type(function).__name__}, not a function of "
                "(inputs) or (inputs, see)"
            )
            raise PortError(message)
        loaded = CallableComponent(function, component, self.asarray)
        see = {"see": None} if loaded.sees else {}
        require_function(function, f"function of {component}", "inputs", **see)
        return loaded
