"""What `python -m sd1_impl` says where torch is not installed."""

import subprocess
import sys

import pytest

WITHOUT = "import runpy, sys; sys.modules.update(dict.fromkeys({missing}))"
COMMAND = "sys.argv = ['-m', 'a cat']; runpy.run_module('sd1_impl', run_name='__main__')"


def run(missing: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has not what is missing."""
    text = f"{WITHOUT.format(missing=missing)}; {code}"
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", [["torch"], ["regex"], ["torch", "regex"]], ids="-".join)
def test_the_command_names_what_installs_it(missing: list[str]) -> None:
    """One line, no traceback, exit 2."""
    done = run(missing, COMMAND)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    told = f"sd1_impl needs {' and '.join(missing)}: python -m pip install -c constraints/cpu.txt"
    assert line == f"{told} '.[torch]' in the clone"


def test_an_import_fails_as_any_other() -> None:
    """A program that imports the package gets an error that it can catch."""
    done = run(["torch"], "import sd1_impl")
    assert (done.returncode, "ModuleNotFoundError" in done.stderr) == (1, True)


def test_python_calls_itself_so(tmp_path) -> None:
    """`python -m` really leaves "-m" in place while it imports the package."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("import sys; print(sys.argv[0])", "utf-8")
    (tmp_path / "own" / "__main__.py").touch()
    words = [sys.executable, "-m", "own"]
    assert subprocess.check_output(words, text=True, cwd=tmp_path) == "-m\n"
