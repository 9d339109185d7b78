"""The command line: exit codes, what each command prints, and no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import conformance
from conformance.case import all_cases, select_cases
from conformance.choice import default_modes, executions
from conformance.errors import UsageError
from conformance.memory.cases import memory_cases
from conformance.port import Hello
from conformance.requirements import ORACLE, adding
from conformance.runner import Runner
from conformance.tolerance import EVERY_ARITHMETIC

ROOT = Path(__file__).parents[2]
BASE = ["--component", "unet", "--variant", "tiny", "--scenario", "base"]


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_import_without_torch() -> None:
    """Importing the engine and its command line never imports torch (acceptance 6)."""
    code = "import sys, conformance, conformance.cli; assert 'torch' not in sys.modules"
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_core_module_without_torch() -> None:
    """No module of the core needs torch: they all import where there is none."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    core = next(c for c in contracts if c["forbidden_modules"] == ["torch"])["source_modules"]
    assert len(core) > 10
    code = f"import sys; sys.modules['torch'] = None; import {', '.join(core)}"
    assert run_python("-c", code).stderr == ""


def test_judging_without_torch(port_file, tmp_path, golden_copy) -> None:
    """A NumPy port is judged from end to end without torch, diffusers or transformers."""
    blocked = "for name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None"
    code = f"import sys\n{blocked}\nfrom conformance.cli import main\nsys.exit(main())"
    arguments = ["run", port_file, *BASE, "--out", str(tmp_path / "out")]
    done = run_python("-c", code, *arguments, SD1_GOLDEN=str(golden_copy.root))
    assert (done.returncode, done.stderr) == (0, "")
    assert "CONFORMANT" in done.stdout


@pytest.mark.usefixtures("no_causes")
@pytest.mark.parametrize(
    ("fault", "code", "verdict"),
    [("", 0, "conformant"), ("negates", 1, "nonconformant"), ("raises", 3, "incomplete")],
    ids=["right", "wrong", "broken"],
)
def test_exit_codes(run_stored, tmp_path: Path, fault: str, code: int, verdict: str) -> None:
    """0 conformant, 1 not conformant, 3 the port broke; summary.json says the same."""
    found, out, err = run_stored(fault)
    assert (found, err) == (code, "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["verdict"] == verdict
    assert "Traceback" not in out
    assert f"report {tmp_path / 'out' / 'index.html'}" in out


@pytest.mark.usefixtures("no_causes")
def test_failure_is_printed(run_stored) -> None:
    """A failing case says what is wrong first, and where."""
    _, out, _ = run_stored("negates")
    assert "[1/1] fail" in out
    assert "first wrong at sample, ratio " in out
    assert "NOT CONFORMANT" in out.upper()


@pytest.mark.parametrize("by", ["ctrl-c", "sigterm"])
def test_interrupted(run_stored, monkeypatch, tmp_path: Path, by: str) -> None:
    """A run that is broken off says what it left, and how to go on."""

    def stop(*_: object) -> None:
        if by == "ctrl-c":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(Runner, "run", stop)
    before, out = signal.getsignal(signal.SIGTERM), tmp_path / "out"
    code, _, err = run_stored()
    assert code == 3
    assert f"interrupted: 0 of 1 item is in {out}: go on with --resume" in err
    assert f"`sd1-conformance report {out}` makes their page" in err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_device_that_the_port_lacks() -> None:
    """The error names the port and the devices that it says it has."""
    hello = Hello("mine", "1", ("unet",), devices=("cpu",))
    with pytest.raises(UsageError, match=r"mine offers no device 'cuda' here \(it says: cpu\)"):
        executions("float32", "cuda", "sdpa", "trace", hello)


def test_token_lists_are_printed(run_stored) -> None:
    """A wrong tokenizer's ids stand beside the right ones below the message."""
    _, out, _ = run_stored("negates", "tokenizer/-/plain")
    assert "[1/1] fail      inf tokenizer/-/plain[int64-cpu]\n" in out
    rows = [row.split() for row in out.splitlines() if row.lstrip().startswith("> ")]
    assert rows[:2] == [
        [">", "0", "49406", "<|startoftext|>", "-49406", "?"],
        [">", "1", "320", "a</w>", "-320", "?"],
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64,float32,bfloat16"])
def test_exact_cases_run_once(main, port_file, tmp_path, golden_copy, dtype: str) -> None:
    """The tokenizer runs once whatever arithmetics are asked for; the scope names int64 too."""
    assert golden_copy.root.exists()
    argv = ["run", port_file, "-k", "tokenizer/-/plain or unet/tiny/base", "--dtype", dtype]
    _, out, _ = main(*argv, "--out", tmp_path / "out")
    dtypes = dtype.split(",")
    names = [row.split()[-1] for row in out.splitlines() if row.startswith("[")]
    assert names == [
        "tokenizer/-/plain[int64-cpu]",
        *(f"unet/tiny/base[{name}-cpu-sdpa-trace]" for name in dtypes),
    ]
    scope = f"tokenizer, unet; tiny; int64, {', '.join(dtypes)}; cpu; trace; sd1 was not run"
    assert scope in out


@pytest.mark.usefixtures("golden_copy")
@pytest.mark.parametrize("mode", [[], ["--mode", "trace"]], ids=["default", "chosen"])
def test_without_the_oracle(main, port_file, tmp_path, monkeypatch, mode: list[str]) -> None:
    """A run that leaves out splice mode says so, what adds it, and so does its summary."""
    monkeypatch.setattr("conformance.choice.have_oracle", lambda: False)
    port = Path(port_file.removesuffix(":make"))
    text = port.read_text("utf-8").replace("probes=False, replace=False", "")
    port.write_text(text, "utf-8")
    _, out, _ = main("run", port_file, *BASE, *mode, "--out", tmp_path / "out")
    told = "splice mode was not run: it needs the oracle"
    assert (f"\n  {told}; install it with {adding(ORACLE)}\n" in f"\n{out}") is (not mode)
    scope = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["scope"]
    assert (told in scope) is (not mode)


def test_message_is_one_line(run_stored) -> None:
    """What a port raises is printed on one line."""
    _, out, _ = run_stored("raises")
    assert "the port raised RuntimeError: first line second line (" in out


def test_list(main) -> None:
    """`list` prints one case a line with what it hunts: the default run's, or all."""
    code, out, err = main("list")
    assert (code, err) == (0, "")
    rows = [row.split(maxsplit=1) for row in out.splitlines()]
    assert rows == [[case.id, case.scenario.hunts] for case in select_cases()]
    _, out, _ = main("list", "--all")
    every = [*all_cases(), *memory_cases()]
    assert [row.split()[0] for row in out.splitlines()] == [case.id for case in every]


def test_show_memory(main) -> None:
    """`show` of a case of mode memory prints its items: it has no golden."""
    code, out, err = main("show", "vae_decoder/tiny/latent96-batch1")
    assert (code, err) == (0, "")
    items = [row.split()[1] for row in out.splitlines() if row.startswith("item ")]
    runs = ("float32-cpu-sdpa-memory", "float32-cpu-tiled-memory")
    assert items == [f"vae_decoder/tiny/latent96-batch1[{run}]" for run in runs]


def test_show(main, golden) -> None:
    """`show` prints what a golden holds: inputs, output, probes, noise of each arithmetic."""
    code, out, err = main("show", "unet/tiny/base")
    assert (code, err) == (0, "")
    for text in ("input   sample float32 (2, 4, 16, 16) from inputs/unet/base/sample", "limit   4",
                 "output  sample (2, 4, 16, 16), RMS", golden.hunts, golden.provenance["torch"],
                 f"probes  {len(golden.probes)}, time_proj to conv_out"):  # fmt: skip
        assert text in out
    assert out.count("noise   ") == len(golden.noise)
    assert f"\nkills   {golden.kills[0]}, " in out


def test_show_tokenizer(main) -> None:
    """`show` of a tokenizer case prints texts and tokens, and neither probes nor noise."""
    code, out, err = main("show", "tokenizer/-/batch-with-empty")
    assert (code, err) == (0, "")
    text = "['', 'a portrait of an old fisherman']"
    assert f"\ninput   text str (2,) from literal {text}\n" in out
    assert "\noutput  input_ids (2, 77), <|startoftext|> <|endoftext|> " in out
    assert "; <|startoftext|> a</w> portrait</w> of</w> an</w> old</w> fisherman</w> <|end" in out
    assert "probes" not in out
    assert "noise" not in out


def test_show_large_output(main) -> None:
    """`show` says of which outputs only a part is kept; outputs come as they are computed."""
    _, out, _ = main("show", "text_encoder/sd1/base")
    first, second = [row for row in out.splitlines() if row.startswith("output")]
    assert first.startswith("output  last_hidden_state (1, 77, 768), RMS ")
    assert first.endswith(", kept as a sketch and its first and last rows and columns")
    assert second.startswith("output  pooler_output (1, 768), RMS ")
    assert "kept" not in second


def test_show_is_the_same_each_time(main) -> None:
    """`show` prints arithmetics in one order, whatever the case; most lack the mixtures."""
    cases = [c for c in select_cases(variants=["tiny"]) if not c.exact and not c.refused]
    shown = [main("show", case.id)[1].splitlines() for case in cases]
    orders = {tuple(r.split()[1] for r in rows if r.startswith("noise")) for rows in shown}
    every = [f"{name}:" for name in EVERY_ARITHMETIC]
    assert all(list(order) == [name for name in every if name in order] for order in orders)
    assert orders > {tuple(every[:4]), ("float64:", "float32:")}
    assert set().union(*orders) == set(every)


@pytest.mark.parametrize("case_id", ["unet/tiny/bass", "base"])
def test_show_unknown(main, case_id: str) -> None:
    """`show` of an unknown case is bad usage."""
    code, out, err = main("show", case_id)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"unknown case {case_id!r}" in err


def test_ports(main, monkeypatch) -> None:
    """`ports` prints what can be named; one that cannot be imported does not hide the others."""
    ports = {"json": "json:loads", "gone": "no_such_module:port"}
    monkeypatch.setattr("conformance.port.BUILTIN", ports)
    code, out, err = main("ports")
    assert (code, err) == (0, "")
    assert [row.split()[0] for row in out.splitlines()[:2]] == list(ports)
    assert out.count("not available") == 2


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["list"], ["show"], ["ports"], ["weights"], ["weights", "export"], ["golden"],
     ["golden", "record"], ["golden", "verify"], ["golden", "lint"]],
    ids=lambda words: "-".join(words) or "none",
)  # fmt: skip
def test_help(main, capsys, command: list[str]) -> None:
    """Every command explains itself."""
    with pytest.raises(SystemExit) as ended:
        main(*command, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['sd1-conformance', *command])} ")


@pytest.mark.parametrize(
    "command",
    [["-m", "conformance"], [str(Path(sys.executable).with_name("sd1-conformance"))]],
    ids=["module", "script"],
)
def test_entry_points(command: list[str], tmp_path: Path) -> None:
    """Module and console script are the same; a mistake is one line, without a traceback."""
    if not command[-1].startswith("conf") and not Path(command[-1]).exists():
        pytest.skip("the console script is not beside this Python")
    done = run_python(*command, "run", "no_such_port", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sd1-conformance: unknown port 'no_such_port': choose from ")
    assert done.stderr.count("\n") == 1
    assert run_python(*command, "--version").stdout == f"{conformance.__version__}\n"


CRASH = """
import ctypes, types
def run(inputs, probes, replace):
    ctypes.string_at(0)
hello = {"name": "c", "version": "1", "components": ["tokenizer"], "variants": ["*"],
         "arithmetics": ["float32"], "devices": ["cpu"]}
port = types.SimpleNamespace(hello=lambda: hello, load=lambda *_: types.SimpleNamespace(run=run))
"""


def test_a_crash_names_the_line(tmp_path: Path) -> None:
    """Native code of a port ends the process: the signal and the port's line are told."""
    (tmp_path / "crash.py").write_text(CRASH, "utf-8")
    where = ("--component", "tokenizer", "--out", str(tmp_path / "out"))
    done = run_python("-m", "conformance", "run", f"{tmp_path / 'crash.py'}:port", *where)
    assert done.returncode < 0
    assert done.stderr.startswith("Fatal Python error: Segmentation fault\n")
    assert f'File "{tmp_path / "crash.py"}", line 4 in run' in done.stderr


def test_list_into_a_closed_pipe() -> None:
    """`list | head` ends quietly."""
    command = f"{sys.executable} -m conformance list --all | head -1"
    shell = ["sh", "-c", command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("tokenizer/-/empty ")
    assert done.stderr == ""


OFFERS = Hello("fake", "1", ("unet",))


@pytest.mark.parametrize(
    ("oracle", "packed", "hello", "modes"),
    [
        (True, False, OFFERS, "splice,trace"),
        (False, True, OFFERS, "splice,trace"),
        (False, False, OFFERS, "trace"),
        (True, True, replace(OFFERS, replace=False), "trace"),
        (True, True, replace(OFFERS, probes=False), "trace"),
    ],
    ids=["oracle", "packs", "neither", "no-replace", "no-probes"],
)
def test_modes_of_a_run(monkeypatch, oracle, packed, hello, modes) -> None:
    """Both modes are run where splicing is possible."""
    monkeypatch.setattr("conformance.choice.have_oracle", lambda: oracle)
    assert default_modes(hello, Path("packs") if packed else None) == modes
