"""Policies: a TOML file that says which layers compute in which arithmetic."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from conformance.audit.names import unmatched
from conformance.errors import UsageError

LAYERED = ("float64", "float32", "bfloat16", "float16", "tf32", "bf16-matmul")
"""Arithmetics that a single layer can have."""

EVERYTHING = "*"


@dataclass(frozen=True)
class Policy:
    """Layer globs and their arithmetics; the last one that matches a layer counts.

    Attributes:
        where: The file, or the option, for errors.
        rules: By glob, in order.
        lines: By glob, the line that it stands on; empty where there is no file.
    """

    where: str
    rules: Mapping[str, str]
    lines: Mapping[str, int]

    @property
    def base(self) -> str | None:
        """Return the arithmetic of everything, where one is given."""
        return self.rules.get(EVERYTHING)

    def of(self, layers: Iterable[str]) -> dict[str, str]:
        """Return the arithmetic of every layer that a glob matches."""
        chosen: dict[str, str] = {}
        for layer in layers:
            fitting = [a for glob, a in self.rules.items() if fnmatchcase(layer, glob)]
            if fitting:
                chosen[layer] = fitting[-1]
        return chosen

    def require_matches(self, layers: Collection[str]) -> None:
        """Check that every glob matches a layer of what is audited, and has a say in one.

        Raises:
            UsageError: One matches none, or later ones decide otherwise in all that it matches.
        """
        chosen = self.of(layers)
        for glob, arithmetic in self.rules.items():
            own = [layer for layer in layers if fnmatchcase(layer, glob)]
            if not own:
                raise UsageError(self._of_rule(glob, unmatched([glob], layers)))
            decides = glob == EVERYTHING or any(chosen[layer] == arithmetic for layer in own)
            if not decides:
                last = [later for later in self.rules if fnmatchcase(own[0], later)][-1]
                reason = (
                    f"{glob!r} decides no layer: later rules match all of its own, such as "
                    f"{last!r}; the last one counts: put {glob!r} after it"
                )
                raise UsageError(self._of_rule(glob, reason))

    def _of_rule(self, glob: str, reason: str) -> str:
        """Begin an error with the place of a rule."""
        line = f":{self.lines[glob]}" if glob in self.lines else ""
        return f"{self.where}{line}: {reason}"


def keeping(globs: Iterable[str]) -> Policy:
    """Return the policy that keeps layers in float32, as `--keep` names them."""
    return Policy("--keep", dict.fromkeys(globs, "float32"), {})


def read_policy(path: Path) -> Policy:
    """Read a policy.

    Args:
        path: A TOML file of lines such as `"*norm*" = "float32"`.

    Raises:
        UsageError: It cannot be read, is no TOML, has no rule, or names what is no arithmetic.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"--policy {path} cannot be read: {error}"
        raise UsageError(message) from error
    try:
        rules = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f'{path}: {error}; write lines such as "*norm*" = "float32"'
        raise UsageError(message) from error
    lines = {glob: _line_of(text, glob) for glob in rules}
    for glob, arithmetic in rules.items():
        if arithmetic not in LAYERED:
            shown = "a table" if isinstance(arithmetic, dict) else repr(arithmetic)
            message = (
                f"{path}:{lines[glob]}: {glob!r} is {shown}, which is no arithmetic of a layer: "
                f'choose from {", ".join(LAYERED)} (quote globs: "a.b" = ...)'
            )
            raise UsageError(message)
    if not rules:
        message = f'{path} has no rule: write lines such as "*norm*" = "float32"'
        raise UsageError(message)
    return Policy(str(path), rules, lines)


def _line_of(text: str, glob: str) -> int:
    """Return the number of the line that a rule stands on."""
    pattern = re.compile(rf"\s*\[?[\"']?{re.escape(glob)}[\"']?\s*[=.\]]")
    rows = enumerate(text.splitlines(), 1)
    return next((number for number, row in rows if pattern.match(row)), 1)
