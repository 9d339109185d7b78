"""The workflows that this repository runs and recommends name only what exists."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from conformance import cli

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
GUIDE = ROOT / "docs" / "ci.md"
USES = re.compile(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+")
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def texts() -> dict[str, str]:
    """Return the workflow, and the one to copy."""
    (copied,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    return {"ci.yml": WORKFLOW.read_text("utf-8"), "ci.md": copied}


def jobs() -> dict[str, dict[str, Any]]:
    """Return the jobs of both."""
    return {
        f"{name}:{job}": facts
        for name, text in texts().items()
        for job, facts in yaml.safe_load(text)["jobs"].items()
    }


def commands() -> list[str]:
    """Return every command of every step, for each value of its matrix."""
    found = []
    for job in jobs().values():
        matrix = job.get("strategy", {}).get("matrix", {})
        rows = matrix.get("include") or [
            {name: value}
            for name, values in matrix.items()
            for value in (values if isinstance(values, list) else ["any"])
        ]
        for row in rows or [{}]:
            known = {f"matrix.{name}": str(value) for name, value in row.items()}
            known["strategy.job-total"] = "4"
            for step in job["steps"]:
                text = EXPRESSION.sub(lambda m, known=known: known[m[1]], step.get("run", ""))
                found += [part.strip() for part in text.split("&&") if part.strip()]
    return found


def known_environments() -> set[str]:
    """Return the environments of tox.ini."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", "utf-8")
    names = {name.removeprefix("testenv:") for name in tox.sections()}
    names |= {"py311", *(n.replace("{2,3}", digit) for n in names for digit in "23")}
    return names | {name.strip() for name in tox["tox"]["env_list"].split(",")}


def test_every_environment_exists() -> None:
    """`tox run -e` names environments of tox.ini."""
    asked = [words for text in commands() if "tox run" in text for words in [shlex.split(text)]]
    named = {name for words in asked for name in words[words.index("-e") + 1].split(",")}
    assert {"lint", "types", "py311", "conformance", "mutants", "ray", "gpu"} <= named
    assert named <= known_environments()


def test_every_command_exists() -> None:
    """`sd1-conformance` is called with commands and options that it has."""
    parser = cli._parser()
    asked = {text for text in commands() if text.startswith("sd1-conformance ")}
    guide = GUIDE.read_text("utf-8")
    asked |= set(re.findall(r"^sd1-conformance .*$", guide, re.MULTILINE))
    assert {text.split()[1] for text in asked} == {"smoke", "run", "merge"}
    for text in asked:
        parser.parse_args(shlex.split(text)[1:])


def test_options_of_pytest_exist(pytestconfig) -> None:
    """What is handed on to pytest are options of the plugin."""
    known = {name for name in vars(pytestconfig.option) if name.startswith("sd1_")}
    asked = {name for text in commands() for name in re.findall(r"--(sd1-[\w-]+)", text)}
    assert {"sd1-shard", "sd1-out"} <= asked
    assert {name.replace("-", "_") for name in asked} <= known


def test_actions_are_pinned() -> None:
    """Every action is named with its full version."""
    uses = [step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step]
    assert len(uses) > 10
    assert all(USES.fullmatch(name) for name in uses)


def test_least_rights() -> None:
    """No secret, nothing may be written, and every job ends by itself."""
    for text in texts().values():
        assert "secrets" not in text
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 180 for job in jobs().values())


def test_scarce_machines_are_not_for_everyone() -> None:
    """What runs long or on own machines runs by the week or by hand, never on a pull request."""
    named = jobs()
    for name in ("ci.yml:weekly", "ci.yml:gpu"):
        condition = named[name]["if"]
        assert "schedule" in condition
        assert "workflow_dispatch" in condition
        assert "pull_request" not in condition
    own = {name for name, job in named.items() if "self-hosted" in job["runs-on"]}
    assert own == {"ci.yml:gpu"}


def test_a_failed_shard_is_reported() -> None:
    """The report is made whatever became of the shards, and shown whatever it says."""
    for name in ("ci.yml:merge", "ci.md:report"):
        job = jobs()[name]
        assert job["if"] == "${{ !cancelled() }}"
        merge = next(i for i, step in enumerate(job["steps"]) if "merge" in step.get("run", ""))
        after = job["steps"][merge + 1 :]
        assert len(after) == 2
        assert {step["if"] for step in after} == {"${{ !cancelled() }}"}
        assert "GITHUB_STEP_SUMMARY" in after[0]["run"]


def test_exit_codes_of_the_guide() -> None:
    """The table of exit codes is that of the program."""
    rows = re.findall(r"^\| (\d) \| (\w+)", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert rows == [("0", "conformant"), ("1", "not"), ("2", "bad"), ("3", "incomplete")]
