"""What a run leaves behind: results.jsonl as it goes, then summary.json, junit.xml, index.html."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from conformance import __version__, spec
from conformance.case import COMPONENTS, Case, all_cases
from conformance.errors import ExitCode, UsageError
from conformance.explain import Explanation, explain
from conformance.golden import SPLICE
from conformance.levels import depth, level, missing_probes, next_level
from conformance.manifest import manifest_digest
from conformance.port import EXEC, Hello
from conformance.report.html import write_html
from conformance.report.junit import write_junit
from conformance.runner import Runner
from conformance.sampling import PIPELINES, SCHEDULERS
from conformance.spec import BLOCKS
from conformance.tolerance import LIMIT, badness
from conformance.witness import is_witness, stamp
from conformance.xfails import Xfails, unexcused

DEFAULT_OUT = Path("conformance-report")
VERDICTS = ("pass", "warn", "fail", "error", "skip", "xfail", "xpass")
REAL_WEIGHTS = "real-weights"
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
        xfails: Xfails | None = None,
        options: Sequence[str] = (),
        weights: dict[str, Any] | None = None,
    ) -> None:
        """Create the folder and write the header.

        Args:
            out: Folder to create; files of an earlier run are replaced.
            hello: What the port says of itself.
            port_spec: The port as the user typed it.
            scope: What is being run, in words.
            resume: Item ids of this run: those lines of an earlier, broken-off run of the same
                kind are kept, and judged anew by `xfails`.
            machine: The environment in which the port runs, where that is another process.
            xfails: The failures that are expected of the port.
            options: What a command that runs one of these cases again must repeat and no id says,
                such as `--traces DIR`.
            weights: What is to be said of the user's own weights; None for the recipe's.

        Raises:
            UsageError: The folder cannot be written.
        """
        self.out = out
        self.hello = hello
        self.environment = machine or environment()
        self.environment |= {f"port: {name}": text for name, text in hello.details.items()}
        self.port = {"name": hello.name, "version": hello.version, "spec": port_spec}
        if digest := source_digest(port_spec):  # an edited port is another port
            self.port["sha256"] = digest
        self.scope = scope
        self.xfails = xfails
        self.options = list(options)
        self.weights = weights
        self.started = dt.datetime.now(tz=dt.UTC)
        self._header = {
            "type": "header",
            "suite": __version__,
            "port": self.port,
            "scope": scope,
            "limit": LIMIT,
            "goldens": manifest_digest(),
            "weights": weights and weights["sha256"],
            "environment": self.environment,
            "options": self.options,
            "started": self.started.isoformat(timespec="seconds"),
        }
        earlier = [] if resume is None else self._earlier()
        self.lines = [self._excused(line) for line in earlier if line["case"] in (resume or ())]
        self._file = self._open()
        for record in [self._header, *self.lines]:
            self._write(record)

    def _excused(self, line: dict[str, Any]) -> dict[str, Any]:
        """Judge a line by the failures expected in this run, whatever an earlier run did."""
        return unexcused(line) if self.xfails is None else self.xfails.excuse(line)

    def _earlier(self) -> list[dict[str, Any]]:
        """Read the whole case lines of the run to resume; a line cut in the middle is dropped."""
        path = self.out / FILES[0]
        if not path.exists():
            return []
        records = list(self._whole_records(path))
        if not records:
            return []
        for key in ("suite", "port", "scope", "goldens", "weights"):
            if records[0].get(key) != self._header[key]:
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
        self._file.write(_row(record))
        self._file.flush()

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write one case line and return it as written: a failure may be an expected one."""
        line = self._excused(line)
        self.lines.append(line)
        self._write(line)
        return line

    def _write_anew(self) -> None:
        """Write header and lines once more, all or none of them."""
        self._file.close()
        path = self.out / FILES[0]
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(map(_row, [self._header, *self.lines])), encoding="utf-8")
        draft.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def _conclude_xfails(self) -> dict[str, Any] | None:
        """Check the list of expected failures, and return what summary.json says of it."""
        if self.xfails is None:
            return None
        problems = self.xfails.conclude(self.lines)
        if any(line["verdict"] == "xpass" for line in self.lines):
            self._write_anew()
        return {
            "file": str(self.xfails.path),
            "entries": len(self.xfails.entries),
            "used": self.xfails.used(self.lines),
            "problems": problems,
        }

    def close(
        self, runner: Runner | None = None, cases: Mapping[str, Case] | None = None
    ) -> dict[str, Any]:
        """Write footer, summary.json, junit.xml and index.html.

        Args:
            runner: Holds the port: failures are traced to their causes. None leaves them be.
            cases: By id, those with other weights than the recipe's.

        Returns:
            The summary.
        """
        expected = self._conclude_xfails()
        unexpected = [
            line for line in self.lines if line["verdict"] != "xfail" and not is_witness(line)
        ]
        found = explain(unexpected, runner, cases) if runner is not None else Explanation()
        seconds = (dt.datetime.now(tz=dt.UTC) - self.started).total_seconds()
        summary = summarise(self.lines, self.port, self.hello, self.scope, expected)
        summary |= {"environment": self.environment, "seconds": round(seconds, 3)}
        summary["options"] = self.options
        summary["weights"] = self.weights
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


def _missing(offered: Collection[str]) -> list[str]:
    """Return the components that a port lacks; `scheduler/*` where it has no scheduler at all."""
    missing = [name for name in COMPONENTS if name not in {*BLOCKS, *offered}]
    for family in (SCHEDULERS, PIPELINES):
        if set(family) <= set(missing):
            place = missing.index(family[0])
            missing[place : place + len(family)] = [f"{family[0].partition('/')[0]}/*"]
    return missing


def summarise(
    lines: list[dict[str, Any]],
    port: dict[str, str],
    hello: Hello,
    scope: str,
    xfails: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw the verdict of a run.

    Args:
        lines: Case lines.
        port: Name, version and spec of the port.
        hello: What the port offers.
        scope: What was run.
        xfails: What is to be said of the list of expected failures, if there is one.

    Returns:
        The contents of summary.json but for environment, seconds and options.
    """
    counted = Counter(line["verdict"] for line in lines)
    counts = {verdict: counted[verdict] for verdict in VERDICTS}
    if counts["fail"] or counts["xpass"] or (xfails and xfails["problems"]):
        verdict = "nonconformant"
    elif counts["error"] or not counts["pass"] + counts["warn"] + counts["xfail"]:
        verdict = "incomplete"
    else:
        verdict = "conformant"
    ratios = [float(line["ratio"]) for line in lines if line["ratio"] is not None]
    missing = _missing(hello.components)
    return {
        "suite": __version__,
        "port": port,
        "verdict": verdict,
        "scope": scope + (f"; not offered: {', '.join(missing)}" if missing else ""),
        "level": level(lines),
        "next_level": next_level(lines, hello.components),
        "depth": depth(lines),
        "missing_probes": missing_probes(lines),
        "offers": list(hello.components),
        "stamps": [REAL_WEIGHTS] if stamp(lines) else [],
        "counts": counts,
        "limit": LIMIT,
        "worst_ratio": max(ratios, key=badness) if ratios else None,
        "first_divergence": earliest(lines),
        "faults": [],
        "xfails": xfails,
    }


def earliest(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first divergence earliest in execution order; of equals, the clearest.

    An expected failure is none. Of a component, what splice mode found comes first. Settings of SD
    v1 come before others: a port that ignores those is told so last.
    """
    found = [line for line in lines if line["first_divergence"] and line["verdict"] == "fail"]
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


def _row(record: dict[str, Any]) -> str:
    return json.dumps(plain(record), separators=(",", ":")) + "\n"


def source_digest(port_spec: str) -> str:
    """Return the SHA-256 of the files that a PORT argument names; empty where it names none."""
    words = port_spec.removeprefix(EXEC).split() if port_spec.startswith(EXEC) else [port_spec]
    paths = [Path(re.sub(r":\w+$", "", word)) for word in words]
    files = [path for path in paths if path.is_file()]
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.read_bytes())
    return whole.hexdigest() if files else ""


def plain(value: Any) -> Any:
    """Make a value strict JSON: NaN and infinities become strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
