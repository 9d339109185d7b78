"""A machine for pickles that can run nothing.

Python's own unpickler imports what a file names and calls it. This one has no import, no
attribute and no call: a name becomes a record of the name, and the caller says of a few known
names what they mean. Any other is refused, by name, before the next byte is read.

Source: the opcodes' descriptions in `pickletools`.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sd1_weights.errors import CheckpointError

T = TypeVar("T")
_MOST_SIZE = 2**63
_MOST_TEXT = 100
_PROTOCOLS = range(2, 6)


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names: the name and nothing else.

    Attributes:
        name: Module and name, joined by a dot.
    """

    name: str


@dataclass(frozen=True)
class Placeholder:
    """What calling an inert name would have made, without its contents.

    Attributes:
        of: The name.
    """

    of: Global


@dataclass(frozen=True)
class Names:
    """The names that a pickle may use, and what they mean.

    Attributes:
        makers: Names to be called: each gives, from the arguments, what they mean here.
        values: Names to be passed on only.
        inert: Names of which nothing is wanted: calling one gives a placeholder.
        persistent: Gives what the pickle refers to outside itself.
    """

    makers: Mapping[str, Callable[[tuple[Any, ...]], Any]]
    values: frozenset[str]
    inert: frozenset[str]
    persistent: Callable[[Any], Any]


def unpickled(data: bytes, names: Names, what: str) -> Any:
    """Run a pickle on the machine.

    Args:
        data: The pickle. The work and the memory that it can ask for are bounded by its length.
        names: What it may name.
        what: File and entry, for messages.

    Returns:
        Numbers, texts, bytes, lists (sets too), tuples, dicts, records of this module, and what
        `names` made. They may be deep, share parts or contain themselves: do not print, hash or
        compare them.

    Raises:
        CheckpointError: It is broken, or wants what it may not.
    """
    machine = _Machine(names)
    try:
        with warnings.catch_warnings():
            # A name with a backslash is decoded as in a program's text, with a program's warnings.
            warnings.simplefilter("error")
            return machine.run(data)
    except CheckpointError as fault:
        raise CheckpointError(f"{what}: byte {machine.place}: the pickle {fault}") from None
    except (ValueError, Warning) as error:
        raise CheckpointError(
            f"{what}: the pickle is cut off or broken after byte {machine.place}: "
            f"{shown(str(error))}"
        ) from None


def shown(text: str) -> str:
    """Return a text from a file such that it fits into a one-line message."""
    short = text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "..."
    return short if short.isprintable() else ascii(short)[1:-1]


def described(value: Any) -> str:
    """Say what a value of the machine is, without looking into it."""
    if isinstance(value, Global):
        return shown(value.name)
    if isinstance(value, Placeholder):
        return f"a {shown(value.of.name)}"
    if type(value) is int and -_MOST_SIZE <= value < _MOST_SIZE:
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {shown(value)!r}"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def of_kind(value: Any, kind: type[T], role: str) -> T:
    """Check a value's type: a bool is no int here.

    Raises:
        CheckpointError: It has another type.
    """
    if type(value) is not kind:
        raise CheckpointError(
            f"gives {described(value)} for {role}, expected the type {kind.__name__}"
        )
    return value


def size(value: Any, role: str) -> int:
    """Check a number that counts something.

    Raises:
        CheckpointError: It is none, or not in 0 to 2**63 - 1.
    """
    number = of_kind(value, int, role)
    if not 0 <= number < _MOST_SIZE:
        raise CheckpointError(f"gives {described(value)} for {role}, expected 0 to 2**63 - 1")
    return number


class _Machine:
    """A stack, the stacks below the marks, what was put aside by number, and the place."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.known = names.makers.keys() | names.values | names.inert
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.place = 0

    def run(self, data: bytes) -> Any:
        """Run all opcodes and return the one value that they leave."""
        for opcode, argument, place in pickletools.genops(data):
            self.place = place or 0
            if opcode.name not in _HANDLERS:
                of = f" ({shown(argument)})" if isinstance(argument, str) else ""
                raise CheckpointError(
                    f"has opcode {opcode.name}{of}, which torch.save does not write: refused, "
                    "nothing was run"
                )
            _HANDLERS[opcode.name](self, argument)
        if self.place + 1 != len(data):
            raise CheckpointError(f"stops {len(data) - self.place - 1} bytes before its end")
        value = self.pop()
        if self.stack or self.below:
            raise CheckpointError("leaves more than one value")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack:
            raise CheckpointError("takes a value where there is none")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def last(self, count: int) -> tuple[Any, ...]:
        values = [self.pop() for _ in range(count)]
        return tuple(reversed(values))

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Return the values above the last mark, and remove it."""
        if not self.below:
            raise CheckpointError("looks for a mark where there is none")
        values, self.stack = self.stack, self.below.pop()
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(f"recalls value {index}, which it did not remember")
        self.push(self.memo[index])

    def append(self, values: Sequence[Any]) -> None:
        target = self.top()
        if not isinstance(target, Placeholder):
            of_kind(target, list, "what is appended to").extend(values)

    def set_items(self, pairs: Sequence[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            return
        entries = of_kind(target, dict, "what gets entries")
        if len(pairs) % 2:
            raise CheckpointError("sets an entry without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not _is_key(key):
                raise CheckpointError(f"has {described(key)} as a key")
            if key in entries:
                raise CheckpointError(f"sets the entry of {described(key)} twice")
            entries[key] = value

    def name(self, name: str) -> None:
        if name not in self.known:
            raise CheckpointError(f"asks to call {shown(name)}: refused, nothing was run")
        self.push(Global(name))

    def name_from_stack(self) -> None:
        module, name = self.last(2)
        self.name(f"{of_kind(module, str, 'a module')}.{of_kind(name, str, 'a name')}")

    def call(self) -> None:
        of, arguments = self.last(2)
        name = of_kind(of, Global, "what is called").name
        fields = of_kind(arguments, tuple, "arguments")
        if name in self.names.values:
            raise CheckpointError(f"asks to call {name}, which is no function")
        maker = self.names.makers.get(name)
        self.push(maker(fields) if maker else Placeholder(of))

    def build(self) -> None:
        """Drop the attributes of a placeholder, or of a dict (a state dict's versions)."""
        target, _ = self.last(2)
        if not isinstance(target, dict | Placeholder):
            raise CheckpointError(f"sets attributes of {described(target)}")
        self.push(target)


def _is_key(value: Any) -> bool:
    """Whether hashing it takes bounded time: not so for tuples and long numbers."""
    number = type(value) is int and -_MOST_SIZE <= value < _MOST_SIZE
    return number or isinstance(value, str | Global)


def _protocol(version: int) -> None:
    if version not in _PROTOCOLS:
        raise CheckpointError(f"is of protocol {version}, expected 2 to 5")


_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
"""Opcodes that `pickletools` reads a number, a text or bytes for."""

_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda _, version: _protocol(version),
    "FRAME": lambda *_: None,
    "STOP": lambda *_: None,
    **dict.fromkeys(_LITERALS, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(value=True),
    "NEWFALSE": lambda machine, _: machine.push(value=False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),  # its members would have to be hashed
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "APPEND": lambda machine, _: machine.append(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda machine, name: machine.name(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.name_from_stack(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.push(machine.names.persistent(machine.pop())),
}
"""What each opcode does: those that Python writes for torch.save in protocols 2 to 5."""
