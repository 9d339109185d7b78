"""Trace packs: the oracle's values, whole, for splice mode where there is no oracle."""

from __future__ import annotations

import inspect
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from conformance import traces
from conformance.case import find_case
from conformance.errors import GoldenError, UnsupportedError, UsageError
from conformance.execution import Execution
from conformance.golden import Golden
from conformance.golden_files import golden_digest, load_golden
from conformance.port import Hello
from conformance.requirements import ORACLE, adding
from conformance.runner import Runner
from conformance.sketch import sketch
from conformance.traces import Packs, Values, find_traces, judged_by, pack_path, read_pack
from conformance.traces import write_pack as write

CASE = find_case("unet/tiny/quiet")
SHAPES = {"time_proj": (2, 32), "conv_in": (2, 3, 5, 7), "mid_block": (2, 400)}
ITEM = "unet/tiny/quiet[float32-cpu-sdpa-splice]"
AGAIN = "write it again with `golden trace`"
OFFERS = Hello("fake", "1", ("unet",))


def some_values(seed: int = 0) -> Values:
    """Draw what an oracle might have computed."""
    rng = np.random.default_rng(seed)
    probes = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    shape = load_golden(CASE).outputs["sample"].shape
    return Values(probes, {"sample": rng.standard_normal(shape)})


def golden_of(values: Values) -> Golden:
    """Make the golden of such values."""
    noise = {"float64": np.full(3, 1e-15), "float32": np.full(3, 1e-7)}
    return replace(
        load_golden(CASE),
        probes=list(values.probes),
        shapes=[array.shape for array in values.probes.values()],
        sketches=np.stack([sketch(array) for array in values.probes.values()]),
        norms=np.array([np.linalg.norm(array) for array in values.probes.values()]),
        max_abs=np.array([np.abs(array).max() for array in values.probes.values()]),
        outputs=dict(values.outputs),
        noise=noise,
        splice_noise=dict(noise),
    )


@pytest.fixture
def values(golden_copy) -> Values:
    """Let the suite read a golden of few probes, whose values are known without the oracle."""
    values = some_values()
    golden_copy.write(golden_of(values))
    return values


@pytest.fixture
def packs(tmp_path: Path, values: Values) -> Path:
    """Write the pack of that case."""
    write(pack_path(tmp_path / "packs", CASE), CASE, values)
    return tmp_path / "packs"


def test_what_is_written_is_read(packs: Path, values: Values) -> None:
    """A pack holds every probe and output, bit by bit, in one file named after its case."""
    path = packs / "unet/tiny/quiet.safetensors"
    read = read_pack(path, CASE, load_golden(CASE))
    for found, wanted in ((read.probes, values.probes), (read.outputs, values.outputs)):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], array) for name, array in wanted.items())
    assert [p for p in packs.rglob("*") if p.is_file()] == [path]


def test_pack_that_cannot_be_written(tmp_path: Path, values: Values) -> None:
    """A folder that is none is the user's mistake, and is named."""
    (tmp_path / "file").write_text("")
    path = pack_path(tmp_path / "file", CASE)
    with pytest.raises(UsageError, match=f"cannot write the trace pack {path}: .*another folder"):
        write(path, CASE, values)


def without(part: str, name: str):
    """Return a change of a pack: a tensor is left out."""

    def change(path: Path, values: Values) -> None:
        del getattr(values, part)[name]
        write(path, CASE, values)

    return change


def with_value(part: str, name: str, function):
    """Return a change of a pack: a tensor is another one."""

    def change(path: Path, values: Values) -> None:
        arrays = getattr(values, part)
        arrays[name] = function(arrays[name])
        write(path, CASE, values)

    return change


def one_off(array: np.ndarray) -> np.ndarray:
    """Change the last element by a millionth."""
    array = array.copy()
    array.flat[-1] += 1e-6
    return array


def with_facts(text: str | None = None, **facts: object):
    """Return a change of a pack: what it says of itself is another thing, or nothing."""

    def change(path: Path, values: Values) -> None:
        sha256 = golden_digest(CASE)
        said = {"format": traces.PACK_FORMAT, "case": CASE.id, "golden": sha256} | facts
        metadata = {} if text == "" else {"pack": text or json.dumps(said)}
        save_file(values.probes, path, metadata)

    return change


BROKEN = {
    "empty": (lambda path, _: path.write_bytes(b""), "is not a trace pack"),
    "text": (lambda path, _: path.write_text("no pack"), "is not a trace pack"),
    "cut": (lambda path, _: os.truncate(path, path.stat().st_size - 8), "is not a trace pack"),
    "facts-not-json": (with_facts("{"), "is not a trace pack"),
    "facts-no-object": (with_facts("[1]"), "trace pack"),
    "other-file": (with_facts(""), "format is None, not 1"),
    "other-format": (with_facts(format=2), "format is 2, not 1"),
    "other-case": (with_facts(case="unet/tiny/base"), "case is 'unet/tiny/base', not 'unet/tiny"),
    "other-golden": (with_facts(golden="0" * 64), "golden is '0000"),
    "probe-missing": (without("probes", "conv_in"), "conv_in is missing or misshapen"),
    "output-missing": (without("outputs", "sample"), "sample is missing or misshapen"),
    "probe-misshapen": (with_value("probes", "mid_block", np.ravel), "mid_block is missing or mis"),
    "output-misshapen": (with_value("outputs", "sample", np.ravel), "sample is missing or misshap"),
    "probe-off": (with_value("probes", "mid_block", one_off), "probe mid_block is not the golden"),
    "probe-nan": (with_value("probes", "conv_in", lambda a: a * np.nan), "conv_in is not the gold"),
    "probe-rounded": (with_value("probes", "conv_in", np.float32), "conv_in is not the golden's"),
    "output-off": (with_value("outputs", "sample", one_off), "sample is not the golden's"),
    "output-zero": (with_value("outputs", "sample", lambda a: a * 0), "sample is not the golden's"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_pack(packs: Path, values: Values, change, problem: str) -> None:
    """A pack that is damaged, or of something else, is named with the way to mend it."""
    path = pack_path(packs, CASE)
    change(path, values)
    with pytest.raises(GoldenError) as caught:
        read_pack(path, CASE, load_golden(CASE))
    message = str(caught.value)
    assert str(path) in message
    assert problem in message
    assert message.endswith(AGAIN)


def test_aged_pack(packs: Path, golden_copy) -> None:
    """A pack of an earlier golden is refused though the values were right then."""
    golden_copy.write(golden_of(some_values(seed=1)))
    with pytest.raises(GoldenError, match=f"golden is .*{AGAIN}"):
        read_pack(pack_path(packs, CASE), CASE, load_golden(CASE))


def test_no_pack(packs: Path) -> None:
    """A case without a pack is declined with the command that writes it; so is a folder."""
    other = find_case("unet/tiny/base")
    command = f"`golden trace unet/tiny/base --out {packs}` writes it"
    with pytest.raises(
        UnsupportedError, match=f"no trace pack of unet/tiny/base in {packs}: {command}"
    ):
        Packs(packs)(other, load_golden(other))
    with pytest.raises(UsageError, match=r"--traces nowhere is no folder: `golden trace CASE\.\. "):
        find_traces(Path("nowhere"))


def test_judged_by_other_values(values: Values) -> None:
    """The truth is replaced, noise row by row stays, and what there is no value of is left out."""
    golden = golden_of(values)
    golden.noise["float32"] = np.array([1e-7, 2e-7, 3e-7])
    golden.splice_noise["float32"] = np.array([4e-7, 5e-7, 6e-7])
    other = some_values(seed=1)
    del other.probes["conv_in"]
    judging = judged_by(golden, other)
    assert judging.probes == judging.asked == ["time_proj", "mid_block"]
    assert judging.shapes == [(2, 32), (2, 400)]
    assert np.array_equal(judging.sketches[1], sketch(other.probes["mid_block"]))
    assert judging.norms[0] == pytest.approx(np.linalg.norm(other.probes["time_proj"]))
    assert judging.max_abs[1] == np.abs(other.probes["mid_block"]).max()
    assert judging.noise["float32"].tolist() == [1e-7, 3e-7]
    assert judging.splice_noise["float32"].tolist() == [4e-7, 6e-7]
    assert np.array_equal(judging.outputs["sample"], other.outputs["sample"])
    assert golden.probes == list(SHAPES)
    nothing = judged_by(golden, Values({}, {}))
    assert (nothing.probes, nothing.outputs, nothing.noise["float32"].size) == ([], {}, 0)


def spliced(port, source=None):
    """Run the case in splice mode."""
    return Runner(port, source).run(CASE, Execution(mode="splice"))


def scaled(golden, given):
    """Return the golden's output, times what the values given are of the golden's own."""
    first = np.linalg.norm(given[golden.probes[0]]) if given else golden.norms[0]
    return golden.outputs["sample"].astype(np.float32) * round(float(first / golden.norms[0]), 3)


def replays(inputs, probes, given):
    """Answer with the values given, as a port that makes no error; the output is the golden's."""
    del inputs
    sample = scaled(load_golden(CASE), given)
    return {"sample": sample}, {name: given[name].astype(np.float32) for name in probes if given}


def test_a_pack_is_spliced_in(packs: Path, values: Values, fake) -> None:
    """A port is given every value of the pack and judged by them; then other values, once."""
    port = fake(replays, OFFERS)
    result = spliced(port, Packs(packs))
    assert (result.verdict, result.message) == ("pass", "")
    assert [(r.name, r.kind) for r in result.records] == [
        *((name, "probe") for name in SHAPES),
        ("sample", "output"),
    ]
    (_, probes, given), (_, _, others) = port.runs
    assert probes == tuple(SHAPES)
    single = {name: array.astype(np.float32) for name, array in values.probes.items()}
    assert all(np.array_equal(given[name], array) for name, array in single.items())
    assert not any(np.array_equal(others[name], given[name]) for name in given)


def test_no_probes_no_pack_no_remedy(packs: Path, fake) -> None:
    """What cannot be spliced is skipped, and what is broken is an error: no verdict on the port."""
    path = pack_path(packs, CASE)
    without("probes", "mid_block")(path, some_values())
    broken = spliced(fake(replays, OFFERS), Packs(packs))
    assert (broken.verdict, broken.records) == ("error", [])
    assert str(path) in broken.message
    assert broken.message.endswith(f"mid_block is missing or misshapen: {AGAIN}")
    path.unlink()
    missing = spliced(fake(replays, OFFERS), Packs(packs))
    assert (missing.verdict, missing.records) == ("skip", [])
    assert f"`golden trace {CASE.id} --out {packs}` writes it" in missing.message


@pytest.mark.parametrize("lacks", ["replace", "probes"])
def test_port_that_cannot_be_spliced(fake, lacks: str) -> None:
    """A port that overwrites nothing, or shows nothing, is skipped and never asked."""
    port = fake(replays, replace(OFFERS, **{lacks: False}))
    result = spliced(port, lambda *_: pytest.fail("the oracle was asked"))
    assert (result.verdict, result.message) == (
        "skip",
        "fake has no `replace`: splice mode needs it",
    )
    assert (port.runs, port.loads) == ([], [])


def test_neither_oracle_nor_packs(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without whole values the case is skipped, and both ways to get them are named."""
    monkeypatch.setattr(traces, "have_oracle", lambda: False)
    result = spliced(fake(replays, OFFERS))
    assert result.verdict == "skip"
    assert f"({adding(ORACLE)})" in result.message
    assert "--traces DIR" in result.message
    assert CASE.id in result.message


PORT = '''
"""Answers with the values it is given, and with the golden's output; no torch."""
import numpy as np

from conformance.case import find_case
from conformance.golden_files import golden_digest, load_golden
from conformance.port import Hello


class Port:
    def hello(self):
        return Hello("replays", "1", ("unet",))

    def load(self, *_):
        return self

    def run(self, inputs, probes=(), replace=None):
        sample = scaled(load_golden(find_case("unet/tiny/quiet")), replace)
        seen = {name: replace[name].astype("f4") for name in probes if replace}
        return {"sample": sample.astype("f4")}, seen


''' + inspect.getsource(scaled)


@pytest.fixture
def run_packs(main, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that judges that port, and returns code, stdout, stderr and its lines."""
    monkeypatch.setattr(Runner, "_golden_age", lambda *_: None)
    # nothing may ask the oracle
    monkeypatch.setitem(sys.modules, "conformance.recording.live", None)
    (tmp_path / "replays.py").write_text(PORT)

    def call(*options: object):
        chosen = options or ("--traces", packs)
        port, out = f"{tmp_path / 'replays.py'}:Port", tmp_path / "out"
        code, text, error = main("run", port, "-k", CASE.id, "--out", out, *chosen)
        lines = (out / "results.jsonl").read_text().splitlines() if out.exists() else []
        judged = {r["case"]: r for r in map(json.loads, lines) if r["type"] == "case"}
        return code, text, error, judged

    return call


def test_run_with_packs(run_packs) -> None:
    """`run --traces` splices first, then traces; neither torch nor the oracle is asked."""
    code, text, error, lines = run_packs()
    assert (code, error) == (0, "")
    assert list(lines) == [ITEM, ITEM.replace("splice", "trace")]
    assert [line["verdict"] for line in lines.values()] == ["pass", "pass"]
    assert [p["name"] for p in lines[ITEM]["probes"]] == [*SHAPES, "sample"]
    assert "splice" in text


def test_run_with_broken_packs(run_packs, packs: Path) -> None:
    """A pack from which a probe is missing breaks the run, and is named with its remedy."""
    without("probes", "conv_in")(pack_path(packs, CASE), some_values())
    code, text, _, lines = run_packs()
    assert code == 3
    assert lines[ITEM]["verdict"] == "error"
    assert f"{pack_path(packs, CASE)}: conv_in is missing or misshapen: {AGAIN}" in text
    pack_path(packs, CASE).unlink()
    code, text, _, lines = run_packs()
    assert (code, lines[ITEM]["verdict"]) == (0, "skip")
    assert f"`golden trace {CASE.id} --out {packs}` writes it" in text


def test_run_without_packs(run_packs, tmp_path: Path) -> None:
    """A folder of packs that does not exist ends with exit 2 before anything is run."""
    code, text, error, lines = run_packs("--traces", tmp_path / "nowhere")
    assert (code, text, lines) == (2, "", {})
    assert error.startswith(
        f"sd1-conformance: --traces {tmp_path / 'nowhere'} is no folder: `golden"
    )


def test_packs_from_the_oracle(main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`golden trace` writes what `run --traces` then reads: the same verdict as with the oracle."""
    pytest.importorskip("diffusers")
    out, report = tmp_path / "packs", tmp_path / "report"
    case_id = "text_encoder/tiny/base"
    code, text, error = main("golden", "trace", case_id, "text_encoder/tiny/e*", "--out", out)
    assert (code, error) == (0, "")
    written = [out / f"{name}.safetensors" for name in (case_id, "text_encoder/tiny/empty")]
    assert sorted(p for p in out.rglob("*") if p.is_file()) == written
    assert text.startswith(f"{written[0]}: 45 probes, 2.")
    code, text, error = main("golden", "trace", "scheduler/ddim/-/base", "--out", out)
    assert (code, text) == (3, "")
    assert error == "sd1-conformance: scheduler/ddim/-/base has no splice mode\n"
    code, _, error = main("golden", "trace", "nowhere/*", "--out", out)
    assert code == 2
    assert error.startswith("sd1-conformance: no case fits 'nowhere/*'")
    monkeypatch.setitem(sys.modules, "conformance.recording.live", None)
    arguments = ("sd1_impl", "-k", case_id, "--mode", "splice", "--out", report)
    code, text, _ = main("run", *arguments, "--traces", out)
    assert code == 0
    assert f"{case_id}[float32-cpu-sdpa-splice]" in text


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SD1_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a/sd1-traces")),
        ({"SD1_CACHE": "", "XDG_CACHE_HOME": "/b"}, None),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/sd1-conformance/sd1-traces")),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, Path("/c/.cache/sd1-conformance/sd1-traces")),
    ],
    ids=["chosen", "none", "xdg", "home"],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables, folder) -> None:
    """The variable decides where the oracle's values are kept, and an empty one means nowhere."""
    live = pytest.importorskip("conformance.recording.live", exc_type=ImportError)
    monkeypatch.delenv("SD1_CACHE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert live.cache_folder() == folder
