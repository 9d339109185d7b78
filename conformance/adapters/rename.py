"""Rename tables: a port's names of parameters and modules, and the canonical ones."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conformance import spec
from conformance.adapters.axes import WHOLE, Axes, Shape, Source, Turn
from conformance.errors import PortError
from sd1_weights import names as layouts
from sd1_weights.errors import CheckpointError

Replacement = str | Callable[[re.Match[str]], str]

FEW = 3
"""So many names are shown of many."""


@dataclass(frozen=True)
class Rename:
    r"""One row of a table: what a name of the port, or a piece of it, is in canonical names.

    Attributes:
        pattern: Regular expression, searched in names of parameters and in module paths.
        canonical: What takes the place of what it matches, as in `re.sub`: `r"blocks.\1"`, or a
            function of the match. A tuple for a parameter that joins several along the first
            canonical axis (fused q, k, v). None: the parameter keeps its values, the module is no
            probe.
        axes: `i o -> o i`: the port's axes, then the canonical ones, as in einops. It holds for
            parameters of as many axes; several serve kernels of several kinds.
        part: Which of how many equal parts of the canonical parameter, along its first axis:
            `(0, 2)` is the first half.
        optional: Whether it may match nothing: rows that serve several networks or sizes.
    """

    pattern: str
    canonical: Replacement | tuple[Replacement, ...] | None
    axes: str | tuple[str, ...] = ()
    part: tuple[int, int] = WHOLE
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be read.

        Raises:
            PortError: The pattern, the axes or the part.
        """
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = f"{self}: the pattern is no regular expression: {error}"
            raise PortError(message) from error
        if not 0 <= self.part[0] < self.part[1]:
            message = f"{self}: part is (which, of how many), counted from 0"
            raise PortError(message)
        self.layouts()

    def __str__(self) -> str:
        return f"Rename({self.pattern!r}, {self.canonical!r})"

    def layouts(self) -> tuple[Axes, ...]:
        """Return the axes as they are read."""
        texts = (self.axes,) if isinstance(self.axes, str) else self.axes
        return tuple(Axes.parse(text) for text in texts)

    def lays_out(self, count: int) -> bool:
        """Say whether the row has something to say to a parameter of so many axes."""
        return not self.axes or any(len(axes.own) == count for axes in self.layouts())

    def apply(self, name: str) -> list[str] | None:
        """Return the names that take a name's place; None where the pattern is not in it.

        Raises:
            PortError: The replacement refers to a group that the pattern does not have.
        """
        if not re.search(self.pattern, name):
            return None
        if self.canonical is None:
            return []
        several = self.canonical if isinstance(self.canonical, (tuple, list)) else (self.canonical,)
        try:
            return [re.sub(self.pattern, replacement, name) for replacement in several]
        except (re.error, IndexError) as error:
            message = f"{self}: {error}"
            raise PortError(message) from error


class Place(NamedTuple):
    """Where a port has a canonical module.

    Attributes:
        path: The port's own module path.
        turn: How maps become tokens, where the reference has the one and the port the other.
    """

    path: str
    turn: Turn | None = None


class Table:
    """Rows, applied one after another, each to what those before it made of a name.

    Args:
        rows: The rows; a name that none matches is canonical already.
    """

    def __init__(self, rows: Sequence[Rename] = ()) -> None:
        self.rows = tuple(rows)

    def translate(self, name: str, matched: set[int] | None = None) -> Source:
        """Return what a parameter or module path of the port stands for.

        Args:
            name: The port's name.
            matched: Gets the places of the rows that match.
        """
        names, part = [name], WHOLE
        axes: list[Axes] = []
        for i, row in enumerate(self.rows):
            made = [row.apply(old) for old in names]
            if all(new is None for new in made):
                continue
            names = [n for old, new in zip(names, made, strict=True) for n in _or(new, [old])]
            axes += row.layouts()
            part = part if row.part == WHOLE else row.part
            if matched is not None:
                matched.add(i)
        return Source(tuple(names), tuple(axes), part)

    def sources(
        self,
        parameters: Mapping[str, Shape],
        weights: Collection[str],
        modules: Collection[str] = (),
    ) -> dict[str, Source]:
        """Find where every parameter has its values from.

        Args:
            parameters: The port's names, and their shapes.
            weights: The canonical names.
            modules: The port's module paths, for which rows may be as well.

        Returns:
            Parameter to source.

        Raises:
            PortError: A parameter without a weight, a weight without a parameter or with two, a
                row that matches nothing: all of them, counted, the first few named.
        """
        used: set[int] = set()
        sources = {}
        for name, shape in parameters.items():
            matched: set[int] = set()
            sources[name] = self.translate(name, matched).of(len(shape))
            used |= {i for i in matched if self.rows[i].lays_out(len(shape))}
        for path in modules:
            matched = set()
            self.translate(path, matched)
            used |= {i for i in matched if not self.rows[i].axes}
        takers: dict[str, list[str]] = defaultdict(list)
        for name, source in sources.items():
            for weight in source.names:
                takers[weight].append(name)
        known = set(weights)
        empty = {n: s.names for n, s in sources.items() if not known.issuperset(s.names)}
        unused = [weight for weight in weights if weight not in takers]
        shared = [w for w in weights if w in takers and not _complete(takers[w], sources)]
        idle = [str(r) for i, r in enumerate(self.rows) if i not in used and not r.optional]
        problems = [
            some(list(map(_renamed, empty.items())), len(sources), "parameters have no weight"),
            some(unused, len(known), "weights have no parameter"),
            some(
                [f"{w} for {' and '.join(takers[w])}" for w in shared],
                len(known),
                "weights are not taken once, or in all their parts",
            ),
            some(idle, len(self.rows), "rows match nothing, or nothing of as many axes"),
        ]
        if any(problems):
            hint = _hint([n for names in empty.values() for n in names], unused, parameters, known)
            message = "; ".join(text for text in (*problems, hint) if text)
            raise PortError(f"names do not fit: {message}")
        return sources

    def places(
        self, modules: Collection[str], sources: Mapping[str, Source], probes: Collection[str]
    ) -> dict[str, Place]:
        """Find the modules that are canonical ones.

        A module is one if the rows, or the parameters that it holds itself, make a canonical path
        of its own, and if it holds exactly the parameters of the canonical module: a block that
        lacks a layer computes something else.

        Args:
            modules: The port's module paths.
            sources: From `sources`.
            probes: Canonical probe names.

        Returns:
            Canonical module path to place; what has none is left out.
        """
        held: dict[str, set[tuple[str, int]]] = defaultdict(set)
        wanted: dict[str, set[tuple[str, int]]] = defaultdict(set)
        own: dict[str, list[Source]] = defaultdict(list)
        for name, source in sources.items():
            own[name.rpartition(".")[0]].append(source)
            for weight in source.names:
                for groups, whole in ((held, name), (wanted, weight)):
                    for dot in _dots(whole):
                        groups[whole[: dot - 1]].add((weight, source.part[0]))
        paths = {probe.removesuffix(".input") for probe in probes}
        found: dict[str, Place] = {}
        for path in sorted(modules, key=lambda path: path.count(".")):  # the innermost wins
            for canonical in self._canonical_paths(path, own[path]):
                if canonical in paths and held.get(path) == wanted.get(canonical):
                    turns = (source.turn for source in own[path])
                    found[canonical] = Place(path, next(filter(None, turns), None))
                    break
        return found

    def _canonical_paths(self, path: str, own: Collection[Source]) -> list[str]:
        """Return what a module that holds these parameters itself may be, the likeliest first."""
        whole = self.translate(path).names
        if len(whole) != 1:
            return []
        below = self.translate(f"{path}.").names  # for rows whose pattern ends in a dot
        holders = {weight.rpartition(".")[0] for source in own for weight in source.names}
        return [*(name.rstrip(".") for name in below if len(below) == 1), *whole, *holders]


def _or(made: list[str] | None, otherwise: list[str]) -> list[str]:
    return otherwise if made is None else made


def _complete(takers: list[str], sources: Mapping[str, Source]) -> bool:
    """Say whether every part of a weight is taken once."""
    parts = [sources[name].part for name in takers]
    of = parts[0][1]
    return sorted(parts) == [(i, of) for i in range(of)]


def _renamed(pair: tuple[str, tuple[str, ...]]) -> str:
    name, names = pair
    return name if names == (name,) else f"{name} as {', '.join(names)}"


def some(names: Sequence[str], total: int, what: str) -> str:
    """Say how many there are of something, and the first few; nothing where there are none."""
    few = ", ".join([*names[:FEW], *(["..."] if len(names) > FEW else [])])
    return f"{len(names)} of {total} {what} ({few})" if names else ""


SPELLINGS = {"kernel": "weight", "scale": "weight", "gamma": "weight", "beta": "bias"}
"""What other frameworks call the parameters of a layer."""


def _hint(
    unknown: Collection[str], unused: Collection[str], parameters: Collection[str], known: set[str]
) -> str:
    """Find a prefix, a preset or a spelling that would make names fit.

    Args:
        unknown: Names that are not canonical, as the table makes them.
        unused: Canonical names that are missing.
        parameters: The port's names.
        known: All canonical names.
    """
    free, fits = set(unused), Counter[str]()
    tails: dict[str, list[str]] = defaultdict(list)
    for name in free:
        for dot in _dots(name):
            tails[name[dot:]].append(name[:dot])
    for name in unknown:
        stem, _, last = name.rpartition(".")
        if f"{stem}.{SPELLINGS.get(last)}" in free:
            fits[f"the row Rename(r'\\.{last}$', '.{SPELLINGS[last]}')"] += 1
        for dot in _dots(name):
            if name[dot:] in free:
                fits[f"the row Rename(r'^{re.escape(name[:dot])}', '')"] += 1
        for start in tails[name]:
            fits[f"the row Rename('^', '{start}')"] += 1
    for preset in PRESETS:
        for component in spec.FOLDER_COMPONENTS.values():
            table = table_of(preset, component)
            names = [n for p in parameters for n in table.translate(p).names]
            more = sum(n in known for n in names) - (len(known) - len(free))
            fits[f"the preset {preset!r}"] = max(fits[f"the preset {preset!r}"], more)
    (best, count), *_ = fits.most_common(1)
    return f"{count} more would fit with {best}" if count > 0 else ""


def _dots(name: str) -> list[int]:
    """Return where the pieces of a name begin, the first left out."""
    return [i + 1 for i, letter in enumerate(name) if letter == "."]


PRESETS = ("diffusers", "compvis")

Rules = str | Sequence[str | Rename]
"""The name of a preset, or rows, among which a name stands for the rows of the preset."""


def table_of(rules: Rules, component: str) -> Table:
    """Return the table of a network.

    Args:
        rules: Rows and presets.
        component: A network, or a block of one.

    Raises:
        PortError: There is neither a row nor a preset where one should be.
    """
    rows: list[Rename] = []
    for rule in rules if isinstance(rules, (list, tuple)) else [rules]:
        if isinstance(rule, Rename):
            rows.append(rule)
        elif rule in PRESETS:
            rows += _diffusers() if rule == "diffusers" else _compvis(component)
        else:
            presets = " or ".join(map(repr, PRESETS))
            message = f"rename of {component}: {rule!r} is neither a Rename nor {presets}"
            raise PortError(message)
    return Table(rows)


OLDER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What older files of diffusers call the layers of the VAE's attention."""


def _diffusers() -> list[Rename]:
    """Return the rows of the names of older versions; newer ones are canonical."""
    position_ids = r"^text_model\.embeddings\.position_ids$"  # numbers that older files hold
    return [
        Rename(position_ids, None, optional=True),
        *(
            Rename(rf"(mid_block\.attentions\.0)\.{old}\b", rf"\1.{new}", optional=True)
            for old, new in OLDER_NAMES.items()
        ),
    ]


def _compvis(component: str) -> list[Rename]:
    """Return the rows of the CompVis names; those of a block are relative to it."""
    folder, start = spec.CHECKPOINT_FOLDERS[component], spec.name_start(component)
    outside = layouts.compvis_key(folder, start) if start else ""

    def canonical(match: re.Match[str]) -> str:
        try:
            return layouts.canonical_key(folder, outside + match[0]).removeprefix(start)
        except CheckpointError:
            return match[0]

    prefix = layouts.prefix(folder)
    starts = "|".join(re.escape(prefix[dot:]) for dot in (0, *_dots(prefix)[:-1]))
    rows = [
        Rename(f"^(?:{starts})", "", optional=True),
        *(Rename(f"^{re.escape(n)}$", None, optional=True) for n in layouts.unweighted(folder)),
        Rename("^.+$", canonical, optional=True),
    ]
    for axes, paths in layouts.layouts(folder).items():
        modules = "|".join(map(re.escape, paths))
        rows.append(Rename(rf"^(?:{modules})\.", r"\g<0>", axes, optional=True))
    return rows
