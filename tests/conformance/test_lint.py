"""`golden lint`: goldens that prove nothing, and a folder that does not fit its manifest."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from conformance.case import Case, select_cases
from conformance.compare import judge_exact
from conformance.golden import Golden
from conformance.golden_files import load_golden
from conformance.large import Large
from conformance.manifest import read_manifest
from conformance.recording import lint

CASES = ("tokenizer/-/plain", "unet/tiny/base", "unet/tiny/batch1", "unet/tiny/quiet")
EVERY_KIND = {
    "zero",
    "constant",
    "shuffled",
    "sign-flipped",
    "transposed",
    "mirrored",
    "channel-reversed",
    "batch-reversed",
}
SHARP = np.array([1e-6, 1e-6, 1e-6])


def output(golden: Golden, truth: np.ndarray, noise: np.ndarray) -> Golden:
    """Give a golden another output and noise, in float32."""
    noises = {"float32": {"sample": noise}}
    return replace(golden, outputs={"sample": truth}, output_noise=noises)


def kinds(golden: Golden) -> set[str]:
    """Return the degenerate values that a golden would let pass."""
    return {line.split(": a ")[1].split(" output ")[0] for line in lint.vacuities(golden)}


def random(*shape: int) -> np.ndarray:
    """Return a random truth."""
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize(
    "case_",
    [
        pytest.param(c, id=c.id)
        for c in select_cases(variants=["tiny*"])
        if not c.exact and not c.refused
    ],
)
def test_stored_goldens_are_not_vacuous(case_: Case) -> None:
    """No stored golden lets a degenerate output pass, in any arithmetic that it offers."""
    golden = load_golden(case_)
    assert {"float64", "float32"} <= set(lint.offered(golden))
    assert list(lint.vacuities(golden, lint.offered(golden))) == []


def test_stored_token_ids_are_not_vacuous() -> None:
    """The ids of one case pass for no other, but where the contract says that texts are alike."""
    cases = select_cases(["tokenizer"])
    ids = {c.scenario.name: load_golden(c).outputs["input_ids"] for c in cases}
    alike = {
        frozenset((first, second))
        for (first, a), (second, b) in combinations(ids.items(), 2)
        if a.shape == b.shape and judge_exact("input_ids", a, b).verdict == "pass"
    }
    assert alike == {
        frozenset(("empty", "only-spaces")),
        frozenset(("sharp-s", "capital-sharp-s")),
    }


def test_a_reference_too_noisy_is_not_offered(golden: Golden) -> None:
    """Where a zero output would come within twice the limit, the arithmetic is not judged."""
    for norm, judged in ((0.12, True), (0.13, False), (float("inf"), False)):
        noises = {**golden.output_noise, "float16": {"sample": np.array([norm, norm, norm])}}
        noisy = replace(golden, output_noise=noises)
        assert ("float16" in lint.offered(noisy)) is judged


def test_huge_noise_is_vacuous(golden: Golden) -> None:
    """Where noise is as large as the values, every degenerate output would pass, and is named."""
    noises = {a: {"sample": np.full(3, 10.0)} for a in golden.output_noise}
    lines = list(lint.vacuities(replace(golden, output_noise=noises)))
    assert kinds(replace(golden, output_noise=noises)) == EVERY_KIND
    assert len(lines) == len(EVERY_KIND) * len(golden.output_noise)
    expected = "unet/tiny/base: a zero output sample would pass in bfloat16"
    assert expected in lines


def test_noise_in_one_arithmetic(golden: Golden) -> None:
    """Only the arithmetic whose noise is too large is blamed."""
    noises = {**golden.output_noise, "float16": {"sample": np.full(3, 10.0)}}
    lines = list(lint.vacuities(replace(golden, output_noise=noises)))
    assert len(lines) == len(EVERY_KIND)
    assert all(line.endswith("in float16") for line in lines)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [(0.2, set()), (0.3, {"zero", "constant"}), (0.4, EVERY_KIND - {"sign-flipped"})],
)
def test_where_noise_becomes_vacuous(golden: Golden, noise: float, expected: set[str]) -> None:
    """A zero output has error 1, a shuffled one sqrt(2), a negated one 2: the limit decides."""
    wide = np.array([noise, 100.0, 100.0])
    assert kinds(output(golden, random(2, 4, 16, 16), wide)) == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (random(2, 4, 8, 8), set()),
        (np.zeros((2, 4, 8, 8)), EVERY_KIND),
        (np.ones((2, 4, 8, 8)), EVERY_KIND - {"zero", "sign-flipped"}),
        (np.repeat(random(1, 4, 8, 8), 2, axis=0), {"batch-reversed"}),
        (np.repeat(random(2, 1, 8, 8), 4, axis=1), {"channel-reversed"}),
        (random(2, 4, 8, 8) + random(2, 4, 8, 8).swapaxes(2, 3), {"transposed"}),
        (random(2, 4, 8, 8) + random(2, 4, 8, 8)[..., ::-1], {"mirrored"}),
        (random(1, 1, 8, 9), set()),
    ],
    ids=[
        "random",
        "zero",
        "constant",
        "one-sample-twice",
        "one-channel-four-times",
        "symmetric",
        "mirror-image",
        "nothing-to-exchange",
    ],
)  # fmt: skip
def test_truth_that_proves_nothing(golden: Golden, truth: np.ndarray, expected: set[str]) -> None:
    """However small the noise, a truth with a symmetry lets that exchange pass."""
    assert kinds(output(golden, truth, SHARP)) == expected


EVERY_LARGE_KIND = {"zero", "sign-flipped", "shuffled", "mirrored", "batch-reversed"}


@pytest.mark.parametrize(
    ("truth", "noise", "expected"),
    [
        (random(2, 40, 50), SHARP, set()),
        (random(2, 40, 50), np.full(3, 10.0), EVERY_LARGE_KIND),
        (random(1, 40, 50), np.full(3, 10.0), EVERY_LARGE_KIND - {"batch-reversed"}),
        (np.ones((2, 40, 50)), SHARP, EVERY_LARGE_KIND - {"zero", "sign-flipped"}),
        (np.repeat(random(1, 40, 50), 2, axis=0), SHARP, {"batch-reversed"}),
        (random(2, 40, 50) + random(2, 40, 50)[..., ::-1], SHARP, {"mirrored"}),
        (random(2, 40, 50), np.full(3, np.inf), set()),
    ],
    ids=["random", "noisy", "batch-of-one", "constant", "one-sample-twice", "mirror-image",
         "overflow"],
)  # fmt: skip
def test_large_truth_that_proves_nothing(
    golden: Golden, truth: np.ndarray, noise: np.ndarray, expected: set[str]
) -> None:
    """So it is where only a sketch and the edges are kept."""
    kept = replace(output(golden, truth, noise), outputs={}, large={"sample": Large.of(truth)})
    assert kinds(kept) == expected


def test_overflowing_arithmetic_is_left_out(golden: Golden) -> None:
    """An arithmetic in which the reference overflows is skipped in runs, so it proves nothing."""
    assert kinds(output(golden, random(2, 4, 8, 8), np.full(3, np.inf))) == set()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lint know the cases of the golden copy only."""
    cases = [c for c in select_cases(variants=["tiny"]) if c.id in CASES]
    monkeypatch.setattr(lint, "all_cases", lambda: cases)


@pytest.mark.usefixtures("known")
def test_healthy(golden_copy) -> None:
    """A sound folder has no problem, and its size is told by component and variant."""
    said: list[str] = []
    assert lint.lint(said.append) == []
    assert [text.split()[0] for text in said] == ["tokenizer/-", "unet/tiny", "golden/"]
    assert said[-1].startswith("golden/ in all ")
    assert golden_copy.root.exists()


@pytest.mark.usefixtures("known")
def test_too_large(golden_copy, monkeypatch) -> None:
    """All files of the folder count."""
    size = sum(p.stat().st_size for p in golden_copy.root.rglob("*") if p.is_file())
    monkeypatch.setattr(lint, "SIZE_LIMIT", size)
    assert lint.lint(str) == []
    monkeypatch.setattr(lint, "SIZE_LIMIT", size - 1)
    assert lint.lint(str) == [f"golden/ holds {size} bytes, more than {size - 1}"]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("lock", "problems"),
    [
        (CASES, []),
        (
            (*CASES, "unet/tiny/gone"),
            ["unet/tiny/gone is in cases.lock but no longer exists: a case must not disappear"],
        ),
        (CASES[1:], ["tokenizer/-/plain is not in cases.lock: run golden record"]),
        ((), [f"{name} is not in cases.lock: run golden record" for name in CASES]),
    ],
    ids=["complete", "disappeared", "new", "empty"],
)
def test_lock(golden_copy, lock: tuple[str, ...], problems: list[str]) -> None:
    """A case that disappears, or is not locked, is a problem."""
    (golden_copy.root / "cases.lock").write_text("\n".join(lock), "utf-8")
    assert list(lint.lock_problems(golden_copy.manifest()["goldens"])) == problems


@pytest.mark.usefixtures("known")
def test_missing_lock(golden_copy) -> None:
    """Without a lock every case is unlocked."""
    (golden_copy.root / "cases.lock").unlink()
    assert len(list(lint.lock_problems(golden_copy.manifest()["goldens"]))) == len(CASES)


@pytest.mark.usefixtures("known")
def test_missing_golden(golden_copy) -> None:
    """A case without a golden is a problem; so is a golden without a case."""
    goldens = golden_copy.manifest()["goldens"]
    goldens["unet/tiny/other"] = goldens.pop("unet/tiny/base")
    assert list(lint.lock_problems(goldens)) == [
        "unet/tiny/base has no golden: run golden record",
        "unet/tiny/other is in the manifest but is no case",
    ]


def test_orphan(golden_copy) -> None:
    """A file that the manifest does not list is an orphan."""
    orphan = golden_copy.root / "vae_decoder" / "tiny" / "base.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"")
    problems = list(lint.file_problems(golden_copy.manifest()["goldens"]))
    assert problems == [f"{orphan} is an orphan: the manifest does not list it"]


def test_missing_file(golden_copy) -> None:
    """A file that the manifest lists is there."""
    golden_copy.path().unlink()
    problems = list(lint.file_problems(golden_copy.manifest()["goldens"]))
    assert problems == [f"{golden_copy.path()} is missing"]


def test_file_is_where_its_case_says(golden_copy) -> None:
    """A manifest that names another file leaves the right one an orphan."""
    goldens = golden_copy.manifest()["goldens"]
    goldens["unet/tiny/base"]["file"] = "unet/tiny/elsewhere.safetensors"
    problems = list(lint.file_problems(goldens))
    assert problems == [f"{golden_copy.path()} is an orphan: the manifest does not list it"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"provenance": {"torch": "2", "source": "sd1_impl 0.1"}}, "was made from sd1_impl"),
        ({"noise": {"float32": [1.0, np.nan]}}, "noise in float32 is not a number"),
        ({"noise": {"float32": [1.0, -1.0]}}, "noise in float32 is not a number"),
        ({"noise": {"float32": [1.0, np.inf]}}, "reference overflows in float32"),
        ({"norms": [1.0, 0.0]}, "probe time_embedding.linear_1 is all zero"),
        ({"outputs": {"sample": np.ones((2, 4, 16, 16))}}, "a constant output sample would pass"),
        ({"hunts": "something else"}, "hunts is no longer the scenario's"),
        ({}, "its probes are not those of golden/spec/probes.json"),
    ],
    ids=["sd1-impl", "nan", "negative", "overflow", "zero-probe", "vacuous", "hunts", "probes"],
)
def test_golden_contents(golden_copy, golden, case: Case, changes: dict, problem: str) -> None:
    """A golden whose digest fits is still refused for what it holds."""
    golden = replace(golden, probes=golden.probes[:2], shapes=golden.shapes[:2])
    golden = replace(golden, noise={"float32": [1.0, 1.0]}, norms=[1.0, 1.0])
    golden = replace(golden, **changes)
    arrays = {a: np.array(n) for a, n in golden.noise.items()}
    golden_copy.write(replace(golden, noise=arrays, norms=np.array(golden.norms)))
    assert any(
        problem in line for line in lint._golden_problems(case, read_manifest()["goldens"][case.id])
    )


def test_changed_recipe(golden_copy, golden, case: Case) -> None:
    """A golden whose inputs the recipe no longer gives is a problem."""
    golden.inputs["sample"]["sha256"] = "0" * 64
    golden_copy.write(golden)
    (problem,) = lint._golden_problems(case, read_manifest()["goldens"][case.id])
    assert "input sample is not the one recorded" in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", 1),
        ("hunts", "something else entirely"),
        ("inputs", {"sample": "0" * 64}),
        (
            "provenance",
            dict.fromkeys(("diffusers", "transformers", "torch", "numpy", "commit", "cpu"), "?"),
        ),
    ],
    ids=["bytes", "hunts", "inputs", "provenance"],
)
@pytest.mark.usefixtures("known")
def test_manifest_agrees_with_goldens(golden_copy, key: str, value: object) -> None:
    """Size, purpose, inputs and origin stand in manifest and golden alike."""
    manifest = golden_copy.manifest()
    manifest["goldens"]["unet/tiny/base"][key] = value
    golden_copy.write_manifest(manifest)
    assert lint.lint(str) != []


@pytest.mark.parametrize(
    "ids",
    [None, [], [[49406, 320, 2368, *[49407] * 74]] * 2, [[49406, 320, 1929, *[49407] * 74]]],
    ids=["missing", "no-row", "two-rows", "another-word"],
)
def test_ids_of_a_prompt(monkeypatch: pytest.MonkeyPatch, ids: list | None) -> None:
    """Ids that do not spell their text are told; those in use do, cut or padded."""
    assert not list(lint.prompt_problems())
    entry = {"text": ["a cat"]} | ({} if ids is None else {"input_ids": ids})
    monkeypatch.setattr(lint, "golden_prompts", lambda: {"new": entry})
    told = ["prompts.json: the ids of new are not its text's: run golden record --spec"]
    assert list(lint.prompt_problems()) == told
