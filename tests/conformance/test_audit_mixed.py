"""Layers in other arithmetics: what is kept is computed so, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from conformance.audit.mixed_torch import Mixed
from conformance.audit.policy import keeping, read_policy
from conformance.case import find_case
from conformance.errors import UsageError
from conformance.port import resolve
from conformance.tensors import rounded

UNIFORM = ["bfloat16", "float16", "tf32", "bf16-matmul"]
CASES = ["text_encoder/tiny/base", "vae_encoder/tiny/base"]


def run(port: str, case, base: str, arithmetics):
    """Run a case with layers in their arithmetics."""
    mixed = Mixed.of(resolve(port), case, base, "cpu")
    with mixed.computing(arithmetics(mixed.layers)) as component:
        return component.run(case.inputs())[0]


def same(one, other) -> bool:
    """Say whether two sets of outputs are bit for bit the same."""
    return all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("arithmetic", UNIFORM)
@pytest.mark.parametrize("case_id", CASES, ids=["text", "vae"])
def test_uniform_is_the_port(case_id: str, arithmetic: str) -> None:
    """With every layer in the base arithmetic the network is the port in that arithmetic."""
    case, port = find_case(case_id), resolve("sd1_impl")
    own = port.load(case.component, case.variant, case.weights(), arithmetic, "cpu")
    assert same(run("sd1_impl", case, arithmetic, lambda _: {}), own.run(case.inputs())[0])


@pytest.mark.parametrize("port", ["sd1_impl", "diffusers"])
def test_everything_kept_is_float32(port: str) -> None:
    """With every layer in float32 only the outputs are rounded."""
    case = find_case("text_encoder/tiny/base")
    wide = resolve(port).load(case.component, case.variant, case.weights(), "float32", "cpu")
    wanted = rounded(wide.run(case.inputs())[0], "bfloat16")
    assert same(run(port, case, "bfloat16", lambda names: dict.fromkeys(names, "float32")), wanted)


@pytest.mark.parametrize("port", ["sd1_impl", "diffusers"])
def test_networks_take_any_mixture(port: str) -> None:
    """Half of the layers of a VAE in float32 give another result, and the module is left whole."""
    case = find_case("vae_encoder/tiny/base")
    mixed = Mixed.of(resolve(port), case, "bfloat16", "cpu")
    plain = [{}, dict.fromkeys(list(mixed.layers)[::2], "float32"), {}]
    found = []
    for arithmetics in plain:
        with mixed.computing(arithmetics) as component:
            found.append(component.run(case.inputs())[0])
    assert same(found[0], found[2])
    assert not same(found[0], found[1])


def test_the_exact_layer_is_the_named_one() -> None:
    """A layer of tf32 that is kept in float32 shows float32's error at its own probe."""
    case = find_case("text_encoder/tiny/base")
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    mixed = Mixed.of(resolve("sd1_impl"), case, "tf32", "cpu")
    port = resolve("sd1_impl")
    wide = port.load(case.component, case.variant, case.weights(), "float32", "cpu")
    _, wanted = wide.run(case.inputs(), [layer])
    for arithmetics, alike in (({}, False), ({layer: "float32"}, True)):
        with mixed.computing(arithmetics) as component:
            _, probes = component.run(case.inputs(), [layer])
        assert np.array_equal(probes[layer], wanted[layer]) is alike


def test_a_mixture_is_no_base() -> None:
    """What decides layer by layer itself cannot be mixed once more."""
    with pytest.raises(UsageError, match="is a mixture already"):
        Mixed.of(resolve("sd1_impl"), find_case(CASES[0]), "policy:autocast", "cpu")


def test_last_match_wins(tmp_path: Path) -> None:
    """A policy is read in order: the last glob that matches a layer counts."""
    path = tmp_path / "p.toml"
    path.write_text('"*" = "bfloat16"\n"*norm*" = "float32"\n"*norm2" = "float16"\n', "utf-8")
    policy = read_policy(path)
    assert policy.base == "bfloat16"
    assert policy.of(["conv", "norm1", "norm2"]) == {
        "conv": "bfloat16",
        "norm1": "float32",
        "norm2": "float16",
    }


BAD = {
    "toml": ('"*" = \n', r"p\.toml: Invalid value \(at line 1"),
    "arithmetic": ('"*" = "bfloat16"\n"x" = "fp8"\n', r"p\.toml:2: 'x' is 'fp8', which is no"),
    "table": ("[layers]\na = 1\n", r"p\.toml:1: 'layers' is a table"),
    "unquoted": ('a.b = "float32"\n', r"p\.toml:1: 'a' is a table.*quote globs"),
    "empty": ("# nothing\n", r"p\.toml has no rule"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_policy(tmp_path: Path, text: str, message: str) -> None:
    """A policy that cannot be read names file, line and fix."""
    path = tmp_path / "p.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=message):
        read_policy(path)


def test_glob_without_layer(tmp_path: Path) -> None:
    """A glob that matches no layer is an error that names its line and how layers are named."""
    path = tmp_path / "p.toml"
    path.write_text('"*" = "bfloat16"\n"nrom*" = "float32"\n', "utf-8")
    with pytest.raises(UsageError, match=r"p\.toml:2: 'nrom\*' matches no layer; .*conv"):
        read_policy(path).require_matches(["conv_in", "norm"])
    with pytest.raises(UsageError, match=r"--keep: 'x' matches no layer"):
        keeping(["x"]).require_matches(["conv_in"])


def test_rule_that_decides_nothing(tmp_path: Path) -> None:
    """A rule that later ones override in every layer is an error that names both and its line."""
    path = tmp_path / "p.toml"
    path.write_text('"*norm*" = "float32"\n"*" = "bfloat16"\n', "utf-8")
    told = r"p\.toml:1: '\*norm\*' decides no layer: .* such as '\*'; .* put '\*norm\*' after it"
    with pytest.raises(UsageError, match=told):
        read_policy(path).require_matches(["conv_in", "norm"])
    keeping(["*norm*", "*"]).require_matches(["conv_in", "norm"])
    path.write_text('"*" = "bfloat16"\n"conv" = "float16"\n"*norm*" = "float32"\n', "utf-8")
    read_policy(path).require_matches(["conv", "norm"])
