"""What a run leaves behind: results.jsonl as it goes, then summary.json, junit.xml, index.html."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from conformance import __version__
from conformance.case import Case
from conformance.environment import environment, source_digest
from conformance.errors import UsageError
from conformance.explain import Explanation, explain
from conformance.manifest import manifest_digest
from conformance.port import Hello
from conformance.report.html import write_html
from conformance.report.junit import write_junit
from conformance.runner import Runner
from conformance.summary import summarise
from conformance.tolerance import LIMIT
from conformance.witness import is_witness
from conformance.xfails import Xfails, unexcused

DEFAULT_OUT = Path("conformance-report")
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


def _row(record: dict[str, Any]) -> str:
    return json.dumps(plain(record), separators=(",", ":")) + "\n"


def plain(value: Any) -> Any:
    """Make a value strict JSON: NaN and infinities become strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
