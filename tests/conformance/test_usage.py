"""Mistakes on the command line and broken ports: one clear line, the right exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance.adapters.process import Limits
from conformance.requirements import adding

ROOT = Path(__file__).parents[2]
BASE = ["--component", "unet", "--variant", "tiny", "--scenario", "base"]

BAD_CHOICES = {
    "component": (
        ["--component", "vea_decoder"],
        "unknown component 'vea_decoder': the nearest is vae_decoder; choose from tokenizer, ",
    ),
    "variant": (
        ["--variant", "tinny"],
        "unknown variant 'tinny': the nearest is tiny; choose from",
    ),
    "no-variant": (["--variant", "nought"], "unknown variant 'nought': choose from odd, "),
    "scenario": (["--scenario", "bass"], "unknown scenario 'bass': one of"),
    "expression": (["-k", "base and"], "cannot read -k 'base and'"),
    "nothing": (["-k", "nowhere"], "no case is selected"),
    "dtype": (["--dtype", "float23"], "unknown dtype 'float23': the nearest is float32; choose"),
    "second-dtype": (["--dtype", "float32,int8"], "unknown dtype 'int8'"),
    "no-dtype": (["--dtype", ","], "unknown dtype ''"),
    "device": (["--device", "cuda:7"], "fake offers no device 'cuda:7' here (it says: cpu)"),
    "backend": (
        ["--backend", "flush"],
        "unknown backend 'flush': the nearest is flash; choose from",
    ),
    "mode": (["--mode", "slice"], "unknown mode 'slice': the nearest is splice; choose from"),
}


@pytest.mark.parametrize(("choice", "message"), BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_bad_choice(main, port_file, tmp_path: Path, choice: list[str], message: str) -> None:
    """An unknown name ends with exit 2 and one line that lists the choices; nothing is written."""
    code, out, err = main("run", port_file, "--out", tmp_path / "out", *choice)
    assert (code, out) == (2, "")
    assert err.startswith(f"sd1-conformance: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


BAD_PORTS = {
    "name": ("sd1_imp", "unknown port 'sd1_imp': the nearest is sd1_impl; choose from sd1_impl"),
    "empty": ("", "unknown port ''"),
    "module": ("no_such_module:make", "port 'no_such_module:make' cannot be imported: No module"),
    "attribute": ("json:make", "port 'json:make': json has no 'make'"),
    "file": ("no/such/file.py:make", "port file no/such/file.py does not exist"),
    "no-factory": (
        "examples/block/port.py",
        "port 'examples/block/port.py' names no factory: write examples/block/port.py:factory",
    ),
    "no-file": ("examples/block/prot.py", "port file examples/block/prot.py does not exist"),
    "folder": (
        "examples/block",
        "port 'examples/block' is a folder: write examples/block/port.py:factory",
    ),
    "folder-of-none": (
        "docs",
        "port 'docs' is a folder: write docs/FILE.py:NAME, NAME being a function",
    ),
    "folder-and-factory": (
        "examples/block:factory",
        "port 'examples/block:factory': examples/block is a folder; write examples/block/port.py:",
    ),
    "object": ("os:sep", "port 'os:sep' is a str: it needs hello() and load(...)"),
    "command": ("exec:no-such-program", "exec: 'no-such-program' is no program"),
    "script": (
        "exec:python examples/exec/no_such.py",
        "exec: python is to run examples/exec/no_such.py, which does not exist",
    ),
    "script-after-options": (
        "exec:python -I -X dev no_such.py",
        "exec: python is to run no_such.py, which does not exist",
    ),
    "no-command": ("exec:", "exec: names no command"),
    "no-module": pytest.param(":make", "port ':make'"),
    "relative": pytest.param(".a:make", "port '.a:make'"),
}


@pytest.mark.parametrize(("port", "message"), BAD_PORTS.values(), ids=BAD_PORTS)
def test_bad_port(main, tmp_path: Path, monkeypatch, port: str, message: str) -> None:
    """A port that does not exist ends with exit 2 and one line."""
    monkeypatch.chdir(ROOT)
    code, out, err = main("run", port, *BASE, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"sd1-conformance: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_port_file_that_does_not_parse(main, tmp_path: Path) -> None:
    """A port file with a syntax error is a broken port: exit 3, one line with file and line."""
    (tmp_path / "wrong.py").write_text("x = = 1\n", "utf-8")
    code, _, err = main("run", f"{tmp_path / 'wrong.py'}:make", *BASE)
    assert code == 3
    assert f"SyntaxError: invalid syntax ({tmp_path}/wrong.py:1)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "extra"), [("torch", "torch"), ("diffusers", "oracle"), ("transformers", "oracle")]
)
def test_port_that_needs_more(main, tmp_path, monkeypatch, package: str, extra: str) -> None:
    """Where a port's package is not installed, the message says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "needs.py").write_text(f"import {package}\n", "utf-8")
    code, _, err = main("run", f"{tmp_path / 'needs.py'}:make", *BASE)
    assert (code, err.count("\n")) == (3, 1)
    assert f"({adding([package])})" in err
    assert f"[{extra}]" in err


BROKEN_PORTS = {
    "no-port": pytest.param("no-port", 3),
    "factory-lines": pytest.param("factory", 3),
    "factory-exits": pytest.param("factory-exits", 3),
    "hello": pytest.param("hello", 3),
}


@pytest.mark.parametrize(("fault", "code"), BROKEN_PORTS.values(), ids=BROKEN_PORTS)
def test_broken_port(run_stored, fault: str, code: int) -> None:
    """A port that breaks before its first case ends with one line and no traceback."""
    found, out, err = run_stored(fault)
    assert (found, out, err.count("\n")) == (code, "", 1)


def test_port_that_exits(run_stored) -> None:
    """A port that calls sys.exit(0) is not conformant by that."""
    assert run_stored("exits")[0] == 3


def test_port_that_raises_what_cannot_be_printed(run_stored) -> None:
    """Whatever a port raises, the run goes on."""
    assert run_stored("surrogate")[0] == 3


def test_prints_of_a_port(run_stored) -> None:
    """What a port prints does not mix with the results."""
    code, out, err = run_stored("prints")
    assert code == 0
    assert "a print of the port" not in out
    assert "a print of the port" in err


UNWRITABLE = {
    "below-a-file": "file/out",
    "far-below-a-file": "file/a/b",
    "is-a-file": "file",
    "proc": "/proc/x",
    "null": "/dev/null",
}


@pytest.mark.parametrize("out", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resume"])
def test_unwritable_report(main, port_file, tmp_path, out: str, resume: list[str]) -> None:
    """A folder that cannot be written ends with exit 2 and one line, before any case is run."""
    (tmp_path / "file").write_text("mine", "utf-8")
    code, stdout, err = main("run", port_file, *BASE, "--out", tmp_path / out, *resume)
    assert (code, stdout) == (2, "")
    assert err.startswith(f"sd1-conformance: cannot write the report to {tmp_path / out}: ")
    assert "No such file" not in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text("utf-8") == "mine"


@pytest.mark.parametrize("out", UNWRITABLE.values(), ids=UNWRITABLE)
def test_unwritable_weights(main, tmp_path: Path, out: str) -> None:
    """So it is with weights."""
    (tmp_path / "file").write_text("mine", "utf-8")
    code, stdout, err = main("weights", "export", "--variant", "tiny", "--out", tmp_path / out)
    assert (code, stdout) == (2, "")
    assert err.startswith(f"sd1-conformance: cannot write {tmp_path / out}")
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_missing_spec(main, monkeypatch, tmp_path: Path) -> None:
    """Without the goldens' folder the suite says what is missing, and how to get it."""
    monkeypatch.setenv("SD1_GOLDEN", str(tmp_path))
    code, out, err = main("list")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert str(tmp_path / "spec" / "variants.json") in err


def test_missing_manifest(main, port_file, golden_copy, tmp_path: Path) -> None:
    """A folder without a manifest is the suite's fault: exit 3 and one line."""
    (golden_copy.root / "manifest.json").unlink()
    code, _, err = main("run", port_file, *BASE, "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (
            ("--level", 1),
            {"tokenizer", "block", "text_encoder", "unet", "vae_encoder", "vae_decoder"},
        ),
        (("--level", 2, "--component", "s*,t*"), {"tokenizer", "text_encoder", "scheduler"}),
    ],
)
def test_level(main, arguments: tuple, kinds: set[str]) -> None:
    """A level is judged by what it adds and by all below it."""
    code, out, _ = main("list", *arguments)
    assert code == 0
    assert {line.partition("/")[0] for line in out.splitlines()} == kinds


def test_level_without_a_case(main) -> None:
    """A level and a component that do not meet are bad usage."""
    code, _, err = main("list", "--level", 1, "--component", "scheduler/*")
    assert (code, "leaves none of the cases selected" in err) == (2, True)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--timeout", "0", "--timeout 0: give a positive number of seconds"),
        ("--memory", "lots", "--memory 'lots' is no size: write 8GiB or 512MiB"),
    ],
)
def test_limits(main, option: str, value: str, message: str) -> None:
    """A limit that limits nothing is bad usage."""
    code, _, err = main("run", "exec:true", option, value)
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize("limit", [("--timeout", 1), ("--memory", "1GiB")], ids=["time", "memory"])
@pytest.mark.parametrize("command", ["run", "smoke"])
def test_limits_of_a_port_in_this_process(main, port_file, command: str, limit) -> None:
    """Nothing can end a call in it: that is said, and not that the option was taken."""
    code, out, err = main(command, port_file, *limit)
    assert (code, out) == (2, "")
    told = f'serve this one, "exec:python serve.py {port_file}" (docs/porting.md)'
    assert f"{limit[0]} limits ports of a process of their own: {told}" in err


EMPTY = {
    "baseline": (("run", "p", "--baseline"), "--baseline is empty: name a folder"),
    "shard": (("run", "p", "--shard"), "--shard is empty: name a part, such as 1/4"),
    "control": (("run", "p", "--control"), "--control is empty: name a port"),
    "xfails": (("run", "p", "--xfails"), "--xfails is empty: name a file"),
    "own": (("run", "p", "--weights"), "--weights is empty: name a file or folder"),
    "packs": (("run", "p", "--traces"), "--traces is empty: name a folder"),
    "noise": (("run", "p", "--witness-inputs"), "--witness-inputs is empty: name a folder"),
    "out": (("run", "p", "--out"), "--out is empty: name a folder"),
    "merge": (("merge", "a", "--out"), "--out is empty: name a folder"),
    "site": (("report", "a", "--out"), "--out is empty: name a folder"),
    "report": (("report",), "DIR is empty: name the folder of a run"),
    "diff": (("diff", "a"), "B is empty: name the folder of a run, or a bench file"),
    "mutants": (("mutants", "--out"), "--out is empty: name a folder"),
    "weights": (("weights", "export", "--out"), "--out is empty: name a file or folder"),
}


@pytest.mark.parametrize(("arguments", "message"), EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("value", ["", " "])
def test_empty_value(main, arguments: tuple[str, ...], message: str, value: str) -> None:
    """A value that a script left empty is not the working folder: one line, exit 2."""
    assert main(*arguments, value) == (2, "", f"sd1-conformance: {message}\n")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_number_of_processes(main, text: str) -> None:
    """-n takes a number from 1."""
    code, _, err = main("run", "p", f"-n={text}")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"sd1-conformance: -n {text!r} is no number of processes")


def test_out_is_a_file(main, port_file, tmp_path: Path) -> None:
    """A file in the place of the folder is called one."""
    (tmp_path / "file").write_text("mine", "utf-8")
    code, _, err = main("run", port_file, *BASE, "--out", tmp_path / "file")
    assert (code, "it is a file, not a folder" in err) == (2, True)


@pytest.mark.parametrize("name", ["index.html", "summary.json", "badge.svg"])
def test_files_of_others(main, port_file, tmp_path: Path, name: str) -> None:
    """A file of one of a run's names that no run has written is not overwritten."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine", "utf-8")
    code, out, err = main("run", port_file, *BASE, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'out'} holds {name}, but no results.jsonl" in err
    assert [path.read_text("utf-8") for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resume"])
def test_folder_of_others(main, port_file, tmp_path: Path, resume: list[str]) -> None:
    """Among the files of a folder that no run has written nothing is written: exit 2, one line."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("mine", "utf-8")
    code, out, err = main("run", port_file, *BASE, "--out", tmp_path / "docs", *resume)
    assert (code, out) == (2, "")
    told = f"{tmp_path / 'docs'} is not empty (it holds guide.md) and no run wrote it"
    assert err == f"sd1-conformance: {told}: give another --out, or an empty folder\n"
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["guide.md"]


def test_folder_of_a_run_takes_guests(main, golden_copy, port_file, tmp_path: Path) -> None:
    """What `mutants` left and hidden files keep no run out, nor do notes in the folder of a run."""
    assert golden_copy.root.exists()
    out = tmp_path / "out"
    out.mkdir()
    for name in ("mutants.json", ".gitkeep", ".results.jsonl.part"):
        (out / name).write_text("mine", "utf-8")
    assert main("run", port_file, *BASE, "--out", out)[0] == 0
    (out / "notes.txt").write_text("mine", "utf-8")
    assert main("run", port_file, *BASE, "--out", out)[0] == 0
    assert (out / "notes.txt").read_text("utf-8") == "mine"


FOLDERS = {
    "weights": (("weights", "export", "--variant", "tiny"), "no `weights` wrote it"),
    "repro": (("repro", "unet/tiny/base", "conv_in"), "no `repro` wrote it"),
    "trace": (("golden", "trace", "unet/tiny/base"), "no `golden trace` wrote it"),
    "audit": (("audit", "--component", "text_encoder"), "no audit wrote it"),
}


@pytest.mark.parametrize(("words", "told"), FOLDERS.values(), ids=FOLDERS)
def test_every_folder_of_others(main, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    """So it is with every command that writes a folder."""
    if words[0] != "weights":
        pytest.importorskip("diffusers")
    (tmp_path / "guide.md").write_text("mine", "utf-8")
    code, out, err = main(*words, "--out", tmp_path)
    assert (code, out, told in err) == (2, "", True), err
    assert [path.name for path in tmp_path.iterdir()] == ["guide.md"]


def test_packs_replace_no_goldens(main, golden_copy) -> None:
    """The folder of the goldens has the names of packs."""
    pytest.importorskip("diffusers")
    code, _, err = main("golden", "trace", "unet/tiny/base", "--out", golden_copy.root)
    assert (code, "holds goldens, which packs would replace" in err) == (2, True), err


@pytest.mark.parametrize("words", [v[0] for k, v in FOLDERS.items() if k != "weights"])
def test_folder_that_cannot_be_created(main, monkeypatch, words: tuple[str, ...]) -> None:
    """It is told before anything is computed, in words that say which folder is in the way."""
    pytest.importorskip("diffusers")
    for name in ("recording.live.LiveTraces.__call__", "audit.auditor.Auditor.run"):
        monkeypatch.setattr(f"conformance.{name}", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr("conformance.repro.write_repro", lambda *_: pytest.fail("it was computed"))
    code, out, err = main(*words, "--out", "/proc/x")
    assert (code, out) == (2, "")
    assert "to /proc/x: it cannot be created in /proc; give another --out\n" in err


def test_children_share_the_memory() -> None:
    """Where no limit is given, several children divide the machine's memory."""
    assert Limits(children=4).most * 4 == pytest.approx(Limits().most, rel=1e-6)
    assert Limits(memory=7, children=4).most == 7


def test_installed_port(main, port_file, tmp_path: Path, monkeypatch) -> None:
    """A package announces its port in the group `sd1_conformance.ports`: it is listed and runs."""
    facts = tmp_path / "site" / "my_package-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[sd1_conformance.ports]\nmine = stored_port:make\n")
    monkeypatch.syspath_prepend(str(facts.parent))
    monkeypatch.syspath_prepend(str(Path(port_file).parent))
    assert port_file.endswith("stored_port.py:make")
    code, out, _ = main("ports")
    assert code == 0
    assert "mine         1.0        tokenizer, unet" in out
    code, out, _ = main("run", "mine", "-k", "tokenizer/-/plain", "--out", tmp_path / "out")
    assert (code, "CONFORMANT: fake 1.0" in out) == (0, True), out
