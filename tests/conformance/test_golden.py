"""Goldens: what is written is read back, and what is damaged is refused, by name."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conformance import cli, cli_golden, spec
from conformance.case import Case, find_case, select_cases
from conformance.errors import ExitCode, GoldenError
from conformance.golden import Golden
from conformance.golden_files import check_inputs, load_golden
from conformance.manifest import manifest, read_manifest
from conformance.recipe import digest
from conformance.recording import lint

if TYPE_CHECKING:
    from pathlib import Path

CASE = "unet/tiny/base"
DROP = object()
NETWORKS = [case for case in select_cases(variants=["tiny*"]) if case.is_network]
SAMPLING = [
    case
    for case in select_cases(["scheduler/*", "pipeline/*"], ["tiny", "odd"])
    if not case.refused
]
WHOLE_OR_WIDE = ("timestep", "input_ids")
"""Inputs that a half type does not round: whole numbers, or float32 by contract."""
START, END = 49406, 49407


def invent() -> Golden:
    """Make a golden of two probes and two outputs, with every awkward value."""
    return Golden(
        case="unet/tiny/invented",
        hunts="nothing: it is \u00e4 test",
        inputs={"sample": {"dtype": "float32", "recipe": "r", "sha256": "0" * 64, "shape": [2]}},
        outputs={
            "sample": np.array([[0.1, -0.0], [np.pi, 1e300]]),
            "grad.a.b": np.zeros((1, 2)),
            "input_ids": np.array([0, 49407]),
            "far": np.array([-1, 2**40]),
        },
        probes=["time_proj", "samples#3"],
        shapes=[(2, 32), ()],
        sketches=np.arange(128.0).reshape(2, 64),
        norms=np.array([1.0, 5e-324]),
        max_abs=np.array([2.0, 0.0]),
        noise={"float32": np.array([2.0**-20, np.inf]), "bfloat16": np.array([0.5, 0.0])},
        output_noise={"float32": {"sample": np.array([1e-7, 2e-7, 3e-7])}, "bfloat16": {}},
        provenance={"torch": "2"},
        sketched={"samples": (9, 2), "latents#0": (2, 4)},
        tables={"betas": np.array([0.25, 0.5])},
        table_noise={"float32": {"betas": np.array([2.0**-20, np.inf])}},
        coefficients={"samples#3": np.array([1.0, np.nan])},
        pictures={"image_uint8": (2, 8, 8, 3)},
    )


def flip(path: Path, position: int) -> tuple[str, str]:
    """Flip one bit of a file; return the digests before and after."""
    data = bytearray(path.read_bytes())
    before = hashlib.sha256(data).hexdigest()
    data[position] ^= 1
    path.write_bytes(data)
    return before, hashlib.sha256(data).hexdigest()


def change(manifest: dict, keys: list[str], value: object) -> None:
    """Set or drop one place of the manifest."""
    for key in keys[:-1]:
        manifest = manifest[key]
    if value is DROP:
        del manifest[keys[-1]]
    else:
        manifest[keys[-1]] = value


def test_round_trip() -> None:
    """Every field comes back, bit for bit."""
    before = invent()
    after = Golden.from_bytes(before.to_bytes(), "here")
    same = ("case", "hunts", "inputs", "probes", "shapes", "provenance", "output_names")
    for name in (*same, "sketched", "pictures"):
        assert getattr(after, name) == getattr(before, name), name
    for name in ("sketches", "norms", "max_abs"):
        assert digest(getattr(after, name)) == digest(getattr(before, name)), name
    assert [(n, digest(a)) for n, a in after.outputs.items()] == [
        (n, digest(a)) for n, a in before.outputs.items()
    ]
    for arithmetic, noise in before.noise.items():
        assert after.noise[arithmetic].dtype == np.float64
        assert np.array_equal(after.noise[arithmetic], noise)
    assert after.output_noise.keys() == before.output_noise.keys()
    assert np.array_equal(after.output_noise["float32"]["sample"], [1e-7, 2e-7, 3e-7])
    assert np.array_equal(after.tables["betas"], [0.25, 0.5])
    assert np.array_equal(after.table_noise["float32"]["betas"], [2.0**-20, np.inf])
    assert np.array_equal(after.coefficients["samples#3"], [1.0, np.nan], equal_nan=True)


def test_bytes_are_reproducible(golden: Golden) -> None:
    """The same golden is always the same bytes, also after a round trip."""
    data = golden.to_bytes()
    assert Golden.from_bytes(data, "here").to_bytes() == data


def test_noise_never_shrinks_to_zero() -> None:
    """Noise is stored as float32: within 2**-24 of what was measured."""
    golden = invent()
    golden.noise["float64"] = np.array([1e-16, 3.3e-17])
    after = Golden.from_bytes(golden.to_bytes(), "here").noise["float64"]
    assert after == pytest.approx(golden.noise["float64"], rel=2.0**-23)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 8, b"\xff" * 64, invent().to_bytes()[:-1], invent().to_bytes()[:100]],
    ids=["empty", "zeros", "ones", "one-byte-short", "header-cut"],
)
def test_no_golden(data: bytes) -> None:
    """Bytes that are no golden are refused with the file's name."""
    with pytest.raises(GoldenError, match=r"^here is not a golden: "):
        Golden.from_bytes(data, "here")


def test_other_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A golden of another format is refused with both numbers."""
    data = invent().to_bytes()
    monkeypatch.setattr("conformance.golden.FORMAT", 2)
    with pytest.raises(GoldenError, match="here has format 1, this suite reads 2"):
        Golden.from_bytes(data, "here")


def stored(case_: Case) -> Golden:
    """Load the golden of a case, which holds what the case is given."""
    golden = load_golden(case_)
    inputs = case_.inputs()
    check_inputs(golden, {name: digest(array) for name, array in inputs.items()})
    assert golden.case == case_.id
    assert golden.inputs.keys() == inputs.keys()
    return golden


@pytest.mark.parametrize("case_", NETWORKS, ids=lambda c: c.id)
def test_stored_golden(case_: Case) -> None:
    """A stored golden is whole, and its inputs are exact in every arithmetic that it offers."""
    golden = stored(case_)
    assert not golden.exact
    assert {n: a.shape for n, a in golden.outputs.items()} == golden.output_shapes
    names = spec.probe_names(case_.component, "tiny")
    blocks = [n for n in names if n in spec.block_names(case_.component) or n[:5] == "time_"]
    assert golden.probes == (list(names) if case_.every_probe else blocks)
    assert len(golden.probes) == len(golden.shapes)
    assert golden.sketches.shape == (len(golden.probes), 64 if case_.every_probe else 32)
    assert {"float32", "float64"} <= set(golden.noise) == set(golden.output_noise)
    assert all(np.isfinite(v).all() for v in (golden.sketches, golden.norms, golden.max_abs))
    floats = [a.reshape(-1) for n, a in case_.inputs().items() if n not in WHOLE_OR_WIDE]
    half = np.concatenate([*floats, np.zeros(0, np.float32)])
    assert half.dtype == np.float32
    if "float16" in golden.noise:
        assert np.array_equal(half.astype(np.float16).astype(np.float32), half)
    if "bfloat16" in golden.noise:
        assert not np.any(half.view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize("case_", SAMPLING, ids=lambda c: c.id)
def test_stored_steps(case_: Case) -> None:
    """A golden of a scheduler or pipeline holds the first, the last and some steps, as sketches."""
    golden = stored(case_)
    calls = case_.scenario.calls
    assert not golden.exact
    assert [*golden.tables, *golden.probes] == case_.terms
    assert golden.sketches.shape == (len(golden.probes), 16 if case_.is_scheduler else 64)
    assert {"float32", "float64"} <= set(golden.noise) == set(golden.output_noise)
    outputs = golden.output_shapes
    if case_.is_scheduler:
        assert outputs["timesteps"] == (calls,)
        assert outputs["samples"] == outputs["model_inputs"] == (calls, 2, 4, 6, 7)
        assert golden.asked == list(golden.tables)
        assert golden.coefficients.keys() == {n for n in golden.probes if n[:7] == "samples"}
    else:
        latents = case_.inputs()["latents"].shape
        assert [n for n in outputs if n[:7] == "latents"] == [f"latents#{k}" for k in range(calls)]
        batch, _, height, width = latents
        assert outputs["image_uint8"] == (batch, 8 * height, 8 * width, 3)
        assert (
            golden.outputs["image_uint8"].dtype == np.uint8
            if case_.scenario.keeps_pixels
            else "image_uint8" in golden.pictures
        )
        assert not any(name.startswith("latents") for name in golden.asked)


@pytest.mark.parametrize("case_", select_cases(["tokenizer"]), ids=lambda c: c.scenario.name)
def test_stored_token_ids(case_: Case) -> None:
    """A golden of the tokenizer holds its texts, rows of 77 ids between start and end, no noise."""
    golden = stored(case_)
    texts = golden.inputs["text"]["value"]
    assert texts == list(case_.scenario.texts)
    ids = golden.outputs["input_ids"]
    assert (golden.exact, ids.dtype, ids.shape) == (True, np.int64, (len(texts), 77))
    assert np.all(ids[:, 0] == START)
    assert np.all((ids == END).any(axis=1))
    assert np.all((ids >= 0) & (ids <= END))
    assert (golden.probes, golden.noise, golden.output_noise, golden.large) == ([], {}, {}, {})


@pytest.mark.parametrize("case_", select_cases(["text_encoder"], ["tiny"]), ids=lambda c: c.id)
def test_stored_prompts(case_: Case) -> None:
    """A golden of the text encoder holds its ids themselves: no recipe draws them."""
    facts = stored(case_).inputs["input_ids"]
    ids = np.array(facts["value"])
    assert (facts["recipe"], facts["dtype"]) == ("literal", "int64")
    assert ids.shape == tuple(facts["shape"]) == (case_.inputs()["input_ids"].shape[0], 77)
    assert np.array_equal(ids, case_.inputs()["input_ids"])


@pytest.mark.parametrize("position", [0, 20, 100_000, -1], ids=["size", "header", "data", "last"])
def test_flipped_bit_in_run(golden_copy, port_file, tmp_path, capsys, position: int) -> None:
    """A golden with one flipped bit ends a run with exit 3, naming file and both digests."""
    expected, found = flip(golden_copy.path(), position)
    out = tmp_path / "out"
    code = cli.main(["run", port_file, "-k", CASE, "--variant", "tiny", "--out", str(out)])
    assert code == ExitCode.BROKEN
    printed = capsys.readouterr().out
    wanted = f"{golden_copy.path()} is damaged: sha256 expected {expected}, found {found}"
    assert wanted in printed
    line = json.loads((out / "results.jsonl").read_text("utf-8").splitlines()[1])
    assert (line["verdict"], line["case"]) == ("error", f"{CASE}[float32-cpu-sdpa-trace]")
    assert wanted in line["message"]
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["verdict"], summary["level"]) == ("incomplete", None)


def test_damage_costs_no_other_case(golden_copy, port_file, tmp_path, capsys) -> None:
    """The other cases of the run are still judged."""
    flip(golden_copy.path(), 9)
    expression = f"{CASE} or unet/tiny/quiet"
    argv = ["run", port_file, "-k", expression, "--variant", "tiny", "--out", str(tmp_path / "o")]
    assert cli.main(argv) == ExitCode.BROKEN
    assert "1 pass" in capsys.readouterr().out


def test_flipped_bit_in_lint(golden_copy, monkeypatch, capsys, case: Case) -> None:
    """`golden lint` finds the same, with exit 3; without the damage it is content."""
    monkeypatch.setattr(lint, "all_cases", lambda: [case])
    monkeypatch.setattr(cli_golden, "all_cases", list)
    monkeypatch.setitem(sys.modules, "conformance.recording.liveness", None)  # as without torch
    manifest = golden_copy.manifest()
    manifest["goldens"] = {case.id: manifest["goldens"][case.id]}
    golden_copy.write_manifest(manifest)
    (golden_copy.root / "cases.lock").write_text(case.id, "utf-8")
    for other in ("tokenizer/-/plain", "unet/tiny/quiet", "unet/tiny/batch1"):
        golden_copy.path(other).unlink()
    assert cli.main(["golden", "lint"]) == ExitCode.CONFORMANT
    assert "0 problems" in capsys.readouterr().out
    expected, found = flip(golden_copy.path(), 5000)
    assert cli.main(["golden", "lint"]) == ExitCode.BROKEN
    message = f"lint: {golden_copy.path()} is damaged: sha256 expected {expected}, found {found}"
    assert message in capsys.readouterr().out


def test_missing_golden_file(golden_copy, case: Case) -> None:
    """A missing file is named with its case."""
    golden_copy.path().unlink()
    with pytest.raises(GoldenError, match=f"golden of {case.id}: cannot read .*base.safetensors"):
        load_golden(case)


def test_unrecorded_case(golden_copy, case: Case) -> None:
    """A case that the manifest does not list says how to record it."""
    manifest = golden_copy.manifest()
    del manifest["goldens"][case.id]
    golden_copy.write_manifest(manifest)
    with pytest.raises(GoldenError, match=f"{case.id} has no golden in .*: record it with"):
        load_golden(case)


@pytest.mark.parametrize(
    ("keys", "value", "path"),
    [
        (["format"], 2, "$.format"),
        (["format"], DROP, "$: 'format' is a required property"),
        (["source"], "sd1_impl", "$.source"),
        (["seed"], "1", "$.seed"),
        (["extra"], 1, "$: Additional properties"),
        (["goldens", CASE, "sha256"], "A" * 64, "sha256: "),
        (["goldens", CASE, "sha256"], DROP, "'sha256' is a required property"),
        (["goldens", CASE, "bytes"], 0, "bytes: "),
        (["goldens", CASE, "file"], "base.npz", "file: "),
        (["goldens", CASE, "hunts"], "", "hunts: "),
        (["goldens", CASE, "inputs"], {}, "inputs: "),
        (["goldens", CASE, "inputs", "sample"], "abc", "sample: "),
        (["goldens", CASE, "provenance", "torch"], DROP, "'torch' is a required property"),
        (["goldens", CASE, "provenance", "torch"], 2, "torch: "),
    ],
    ids=[
        "format",
        "no-format",
        "source",
        "seed",
        "extra",
        "digest",
        "no-digest",
        "bytes",
        "file",
        "hunts",
        "no-inputs",
        "input-digest",
        "no-torch",
        "torch-number",
    ],
)
def test_manifest_schema(golden_copy, keys: list[str], value: object, path: str) -> None:
    """A manifest that breaks its schema is refused with the file and the place in it."""
    broken = golden_copy.manifest()
    change(broken, keys, value)
    golden_copy.write_manifest(broken)
    with pytest.raises(GoldenError, match=r"manifest\.json: \$") as caught:
        read_manifest()
    assert path in str(caught.value)
    assert (CASE in str(caught.value)) == (CASE in keys)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufeff{}"], ids=["empty", "cut", "list", "bom"])
def test_manifest_is_no_json(golden_copy, text: str) -> None:
    """A manifest that is no JSON object is refused with the file's name."""
    (golden_copy.root / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(GoldenError, match=re.escape(str(golden_copy.root / "manifest.json"))):
        read_manifest()


def test_manifest_is_read_again(golden_copy) -> None:
    """A manifest that changes on disk is not served from memory."""
    assert CASE in manifest()["goldens"]
    golden_copy.write_manifest(golden_copy.manifest() | {"goldens": {}})
    assert manifest()["goldens"] == {}


@pytest.mark.parametrize("name", ["sample", "timestep", "encoder_hidden_states"])
def test_changed_input(golden: Golden, case: Case, name: str) -> None:
    """A recipe that changed is told from a wrong port, with both digests."""
    digests = {n: digest(array) for n, array in case.inputs().items()}
    recorded = digests[name]
    check_inputs(golden, digests)
    digests[name] = "f" * 64
    message = f"input {name} is not the one recorded: sha256 expected {recorded}, found {'f' * 64}"
    with pytest.raises(GoldenError, match=message):
        check_inputs(golden, digests)
    del digests[name]
    with pytest.raises(GoldenError, match=f"input {name}"):
        check_inputs(golden, digests)


def test_additional_input(golden: Golden, case: Case) -> None:
    """An input that the oracle was never given is refused."""
    digests = {n: digest(array) for n, array in case.inputs().items()}
    with pytest.raises(GoldenError, match="added"):
        check_inputs(golden, digests | {"added": "f" * 64})


def test_golden_of_another_case(golden_copy, case: Case) -> None:
    """A golden under the wrong name is refused although its digest fits."""
    golden = Golden.from_bytes(golden_copy.path("unet/tiny/quiet").read_bytes(), "quiet")
    data = golden.to_bytes()
    golden_copy.path().write_bytes(data)
    manifest = golden_copy.manifest()
    manifest["goldens"][CASE]["sha256"] = hashlib.sha256(data).hexdigest()
    golden_copy.write_manifest(manifest)
    with pytest.raises(GoldenError):
        load_golden(case)


def test_narrowed() -> None:
    """A golden narrowed to some arithmetics has the noise of no other, in any mode."""
    golden = stored(find_case("unet/tiny/base"))
    narrow = golden.narrowed({"float64", "tf32"})
    parts = ("noise", "output_noise", "splice_noise", "splice_output_noise")
    assert [set(getattr(narrow, part)) for part in parts] == [{"float64", "tf32"}] * len(parts)
    assert set(golden.noise) > {"float64", "tf32"}
    assert narrow.sketches is golden.sketches
