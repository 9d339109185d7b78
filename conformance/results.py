"""What a run leaves behind: results.jsonl as it goes, then summary.json, junit.xml, index.html."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from conformance import __version__, spec
from conformance.case import COMPONENTS, NETWORKS, all_cases
from conformance.errors import ExitCode, UsageError
from conformance.explain import Explanation, explain
from conformance.golden import SPLICE, TRACE
from conformance.manifest import manifest_digest
from conformance.port import Hello
from conformance.report.html import write_html
from conformance.report.junit import write_junit
from conformance.runner import Runner
from conformance.sampling import PIPELINES, SCHEDULERS, TABLES
from conformance.spec import TOKENIZER
from conformance.tolerance import LIMIT, badness

DEFAULT_OUT = Path("conformance-report")
VERDICTS = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
FILES = ("results.jsonl", "summary.json", "junit.xml", "index.html")


class Results:
    """Collects case lines, writes each at once, and closes with the verdict."""

    def __init__(
        self,
        out: Path,
        hello: Hello,
        port_spec: str,
        scope: str,
        *,
        resume: Collection[str] | None = None,
        machine: dict[str, str] | None = None,
    ) -> None:
        """Create the folder and write the header.

        Args:
            out: Folder to create; files of an earlier run are replaced.
            hello: What the port says of itself.
            port_spec: The port as the user typed it.
            scope: What is being run, in words.
            resume: Item ids of this run: those lines of an earlier, broken-off run of the same
                kind are kept.
            machine: The environment in which the port runs, where that is another process.

        Raises:
            UsageError: The folder cannot be written.
        """
        self.out = out
        self.hello = hello
        self.environment = machine or environment()
        self.port = {"name": hello.name, "version": hello.version, "spec": port_spec}
        source = Path(port_spec.rpartition(":")[0])
        if source.suffix == ".py" and source.is_file():  # an edited port is another port
            self.port["sha256"] = hashlib.sha256(source.read_bytes()).hexdigest()
        self.scope = scope
        self.started = dt.datetime.now(tz=dt.UTC)
        header = {
            "type": "header",
            "suite": __version__,
            "port": self.port,
            "scope": scope,
            "limit": LIMIT,
            "goldens": manifest_digest(),
            "environment": self.environment,
            "started": self.started.isoformat(timespec="seconds"),
        }
        earlier = [] if resume is None else self._earlier(header)
        self.lines = [line for line in earlier if line["case"] in (resume or ())]
        self._file = self._open()
        for record in [header, *self.lines]:
            self._write(record)

    def _earlier(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Read the whole case lines of the run to resume; a line cut in the middle is dropped."""
        path = self.out / FILES[0]
        if not path.exists():
            return []
        records = list(self._whole_records(path))
        if not records:
            return []
        for key in ("suite", "port", "scope", "goldens"):
            if records[0].get(key) != header[key]:
                message = (
                    f"cannot resume {self.out}: its run has another {key} than this one; "
                    "drop --resume to start anew"
                )
                raise UsageError(message)
        return [record for record in records if record["type"] == "case"]

    @staticmethod
    def _whole_records(path: Path) -> Iterator[dict[str, Any]]:
        """Yield header and case lines up to the first that was cut."""
        foreign = UsageError(f"cannot resume: {path} is not a run's results; drop --resume")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise foreign from error
        for i, text in enumerate(lines):
            try:
                record = json.loads(text)
            except ValueError:
                if i == 0 and len(lines) > 1:
                    raise foreign from None
                return
            kind = record.get("type") if isinstance(record, dict) else None
            if (kind == "header") != (i == 0) or kind not in {"header", "case", "footer"}:
                raise foreign
            yield record

    def _open(self) -> IO[str]:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (self.out / name).unlink(missing_ok=True)
            return (self.out / FILES[0]).open("w", encoding="utf-8")
        except OSError as error:
            message = f"cannot write the report to {self.out}: {error.strerror}; give another --out"
            raise UsageError(message) from error

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain(record), separators=(",", ":")) + "\n")
        self._file.flush()

    def add(self, line: dict[str, Any]) -> None:
        """Write one case line."""
        self.lines.append(line)
        self._write(line)

    def close(self, runner: Runner | None = None) -> dict[str, Any]:
        """Write footer, summary.json, junit.xml and index.html.

        Args:
            runner: Holds the port: failures are traced to their causes. None leaves them be.

        Returns:
            The summary.
        """
        found = explain(self.lines, runner) if runner is not None else Explanation()
        seconds = (dt.datetime.now(tz=dt.UTC) - self.started).total_seconds()
        summary = summarise(self.lines, self.port, self.hello, self.scope)
        summary |= {"environment": self.environment, "seconds": round(seconds, 3)}
        summary["faults"] = found.faults
        first = summary["first_divergence"]
        if first is not None:
            told = found.hints.get(first["case"].partition("[")[0].rsplit("/", 2)[0], "")
            hint = "; ".join(text for text in (told, first["hint"]) if text)
            summary["first_divergence"] = first | {"hint": hint}
        self._write({"type": "footer", "counts": summary["counts"], "seconds": seconds})
        self._file.close()
        text = json.dumps(plain(summary), indent=2) + "\n"
        (self.out / "summary.json").write_text(text, encoding="utf-8")
        write_junit(self.out)
        write_html(self.out)
        return summary


def summarise(
    lines: list[dict[str, Any]],
    port: dict[str, str],
    hello: Hello,
    scope: str,
) -> dict[str, Any]:
    """Draw the verdict of a run.

    Args:
        lines: Case lines.
        port: Name, version and spec of the port.
        hello: What the port offers.
        scope: What was run.

    Returns:
        The contents of summary.json but for environment and seconds.
    """
    counted = Counter(line["verdict"] for line in lines)
    counts = {verdict: counted[verdict] for verdict in VERDICTS}
    if counts["fail"] or counts["xpass"]:
        verdict = "nonconformant"
    elif counts["error"] or not counts["pass"] + counts["warn"] + counts["xfail"]:
        verdict = "incomplete"
    else:
        verdict = "conformant"
    ratios = [float(line["ratio"]) for line in lines if line["ratio"] is not None]
    missing = [name for name in COMPONENTS if name not in hello.components]
    return {
        "suite": __version__,
        "port": port,
        "verdict": verdict,
        "scope": scope + (f"; not offered: {', '.join(missing)}" if missing else ""),
        "level": level(lines),
        "depth": depth(lines),
        "stamps": [],
        "counts": counts,
        "limit": LIMIT,
        "worst_ratio": max(ratios, key=badness) if ratios else None,
        "first_divergence": earliest(lines),
        "faults": [],
    }


def level(lines: list[dict[str, Any]]) -> int | None:
    """Return the level reached: the highest that was judged and, like all below it, has no failure.

    The contract, level 0, is broken by an `error`, by a tensor of the wrong shape, by a wrong
    token id or timestep, and by a wrong table.
    """
    judged = [line for line in lines if line["verdict"] != "skip"]
    if not judged or any(_breaks_contract(line) for line in judged):
        return None
    reached = 0
    for rung, components in enumerate(LADDER, start=1):
        own = [line for line in judged if line["component"] in components]
        if any(line["verdict"] == "fail" for line in own):
            break
        reached = rung if own else reached
    return reached


LADDER = ((TOKENIZER, *NETWORKS), SCHEDULERS, PIPELINES)
"""What levels 1, 2 and 3 are judged by."""


def _breaks_contract(line: dict[str, Any]) -> bool:
    if line["verdict"] != "fail":
        return bool(line["verdict"] == "error")
    exact = {*TABLES, "input_ids", "timesteps"}
    return line["component"] == TOKENIZER or any(
        p["note"].startswith("shape ") or (p["name"] in exact and p["verdict"] == "fail")
        for p in line["probes"]
    )


def depth(lines: list[dict[str, Any]]) -> str | None:
    """Return how deep the port could be looked into: `outputs`, `trace`, `splice`, or None."""
    kinds = {(probe["kind"], line["mode"]) for line in lines for probe in line["probes"]}
    if not kinds:
        return None
    if ("probe", SPLICE) in kinds:
        return SPLICE
    return TRACE if any(kind == "probe" for kind, _ in kinds) else "outputs"


def earliest(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first divergence earliest in execution order; of equals, the clearest.

    Of a component, what splice mode found comes first. Settings of SD v1 come before others: a
    port that ignores those is told so last.
    """
    found = [line for line in lines if line["first_divergence"]]
    beyond_sd1 = {case.id for case in all_cases() if case.scenario.asks} if found else set()

    def position(line: dict[str, Any]) -> tuple[int, bool, bool, tuple[int, ...], int, float]:
        component, first = line["component"], line["first_divergence"]
        outputs = [p["name"] for p in line["probes"] if p["kind"] == "output"]
        return (
            COMPONENTS.index(component),
            line["case"].partition("[")[0] in beyond_sd1,
            line["mode"] != SPLICE,
            spec.place(component, first["probe"]),
            outputs.index(first["probe"]) if first["probe"] in outputs else -1,
            -badness(float(first["ratio"])),
        )

    return min(found, key=position)["first_divergence"] if found else None


def exit_code(summary: dict[str, Any]) -> ExitCode:
    """Translate a verdict to an exit code."""
    return {
        "conformant": ExitCode.CONFORMANT,
        "nonconformant": ExitCode.NONCONFORMANT,
        "incomplete": ExitCode.BROKEN,
    }[summary["verdict"]]


def environment() -> dict[str, str]:
    """Describe the machine; torch is asked only where a port has already imported it."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
        "numpy": sys.modules["numpy"].__version__ if "numpy" in sys.modules else "",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch"] = torch.__version__
        facts["torch threads"] = str(torch.get_num_threads())
        facts["cpu capability"] = torch.backends.cpu.get_cpu_capability()
        facts["onednn"] = str(torch.backends.mkldnn.enabled)
        facts["float32 matmul precision"] = torch.get_float32_matmul_precision()
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            facts[name] = getattr(sys.modules[name], "__version__", "?")
    return facts


def plain(value: Any) -> Any:
    """Make a value strict JSON: NaN and infinities become strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
