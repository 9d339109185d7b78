"""Options that several commands share."""

from __future__ import annotations

import json

import pytest

from conformance.cli import _parser
from conformance.cli_common import Listed
from conformance.cli_parser import Parser

LISTS = {
    "run": ("component", "variant", "scenario", "dtype", "device", "backend", "mode"),
    "list": ("component", "variant", "scenario"),
    "budget": ("component", "variant", "dtype", "backend"),
    "bench": ("case",),
    "audit": ("component", "variant", "scenario", "keep"),
}
"""By command the options that take lists."""


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, own in LISTS.items() for o in own])
def test_lists_add_up(command: str, option: str) -> None:
    """A list that is given in parts is the whole list: the last part does not win."""
    words = [command, f"--{option}", "a,b", f"--{option}=c*"]
    parsed = _parser([command]).parse_args(words)
    assert getattr(parsed, option) == "a,b,c*"


@pytest.mark.parametrize("verb", ["record", "verify"])
def test_arithmetics_of_goldens_add_up(verb: str) -> None:
    """The arithmetics of a recording that are given in parts are all entered."""
    words = ["golden", verb, "--dtype", "bfloat16", "--dtype", "float16"]
    assert _parser(["golden"]).parse_args(words).dtype == "bfloat16,float16"


def test_a_list_that_is_not_given_has_its_default() -> None:
    """It is None, and one that is given once stays as it is."""
    parser = Parser()
    parser.add_argument("--mode", action=Listed)
    parser.add_argument("-k")
    assert vars(parser.parse_args([])) == {"mode": None, "k": None}
    assert vars(parser.parse_args(["--mode", "trace", "-k", "x"])) == {"mode": "trace", "k": "x"}


def test_both_modes_are_run(run_stored_with) -> None:
    """`--mode trace --mode repeat` is both, in a run."""
    modes = run_stored_with("--mode", "trace", "--mode", "repeat")
    assert modes == {"trace", "repeat"}


@pytest.fixture
def run_stored_with(main, port_file, golden_copy, tmp_path, monkeypatch):
    """Return a function that runs one case with options and returns the modes that were judged."""
    monkeypatch.setattr("conformance.runner.Runner._golden_age", lambda *_: None)
    assert golden_copy.root.exists()

    def run(*options: str) -> set[str]:
        main("run", port_file, "-k", "unet/tiny/base", "--out", tmp_path / "out", *options)
        lines = (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()
        return {line["mode"] for line in map(json.loads, lines) if line["type"] == "case"}

    return run
