"""Runs that nobody ran: very large, hostile, and judged by another suite."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

from conformance.case import find_case
from conformance.golden_files import load_golden

SELECTION = "base and not block and not training"
LIMIT = 4.0
CASES, FAILING = 10_000, 2_500
VARIANTS = tuple(
    size + regime
    for size in ("tiny", "odd")
    for regime in ("", "-lowvar", "-dense", "-sharp", "-outlier", "-offset")
)
SCENARIOS = ("base", "quiet", "loud", "t0", "t999", "nonsquare", "batch3", "odd", "wide", "tall")
DTYPES = ("float32", "float64", "bfloat16", "float16")
# A UNet's case has 600 probes: about 300 a case over all.
SHARES = {"unet": 45, "text_encoder": 20, "vae_encoder": 17, "vae_decoder": 18}
HOSTILE = (
    "<script>alert('x')</script>\"'><img src=x onerror=alert(1)></textarea></style>"
    "{{7*7}}&lt;\u202e\x1b[31m]]>--><svg/onload=alert(2)>\ud800"
)


def write_large(out: Path) -> None:
    """Write a run of 10,000 cases, a quarter of them failing, with about 300 probes each."""
    draw = random.Random(9)  # noqa: S311 - any numbers will do
    names = {c: load_golden(find_case(f"{c}/tiny/base")).asked[:600] for c in SHARES}
    rows = {c: [_texts(name) for name in own] for c, own in names.items()}
    grid = itertools.product(VARIANTS, range(1000), DTYPES, ("splice", "trace"))
    pattern = [c for c, share in SHARES.items() for _ in range(share)]
    draw.shuffle(pattern)
    first = None
    with (out / "results.jsonl").open("w", encoding="ascii") as file:
        file.write(_row(_header("large_port", "3.1")))
        for i in range(CASES):
            variant, number, dtype, mode = next(grid)
            component = pattern[i % len(pattern)]
            scenario = f"{SCENARIOS[number % len(SCENARIOS)]}{number}"
            failing = i % (CASES // FAILING) == 0
            at = draw.randrange(len(names[component]) - 3) if failing else None
            line = _line(component, variant, scenario, dtype, mode, names[component], at)
            first = first or line["first_divergence"]
            probes = _probes(rows[component], at, mode, draw)
            file.write(_row(line)[:-2] + f',"probes":[{probes}]}}\n')
        file.write(_row({"type": "footer", "counts": _counts(), "seconds": 4021.5}))
    faults = [
        {"probes": f"down_blocks.*.resnets.*.norm{i}", "count": 30 * i, "mutant": mutant}
        | {"confirmed": mutant is not None, "ratio_if_so": 1.2 if mutant else None}
        for i, mutant in enumerate(("unet-geglu-tanh", "vae-gn-eps", None), start=1)
    ]
    _write_summary(
        out, "large_port", "3.1", counts=_counts(), faults=faults, first_divergence=first
    )


def _line(
    component: str,
    variant: str,
    scenario: str,
    dtype: str,
    mode: str,
    names: list[str],
    at: int | None,
) -> dict[str, Any]:
    """Make a case line without its probes; it fails from probe number `at` on."""
    case = f"{component}/{variant}/{scenario}[{dtype}-cpu-sdpa-{mode}]"
    first = None
    if at is not None:
        first = {"case": case, "probe": names[at], "after": names[at - 1] if at else None}
        first |= {"ratio": 48.0, "limit": LIMIT, "kind": "fault", "hint": "like unet-geglu-tanh"}
    return {
        "type": "case",
        "case": case,
        "component": component,
        "variant": variant,
        "scenario": scenario,
        "dtype": dtype,
        "device": "cpu",
        "backend": "sdpa",
        "mode": mode,
        "verdict": "pass" if at is None else "fail",
        "ratio": 1.2 if at is None else 48.0,
        "worst_probe": names[0 if at is None else at],
        "first_divergence": first,
        "seconds": 0.4,
        "message": "" if at is None else f"first divergence at {names[at]}: ratio 48, limit 4",
        "detail": "",
        "hunts": "wrong wiring, layer, constant",
        "missing": [],
    }


def _texts(name: str) -> list[str]:
    """Write a probe's record as JSON at several ratios within the limit, and one beyond it."""
    ratios = [*(0.2 + 0.1 * i for i in range(11)), 48.0]
    records = [
        {"name": name, "kind": "probe", "shape": [2, 32, 16, 16], "err": ratio * 9e-8}
        | {"noise": 9e-8, "ratio": ratio, "verdict": "pass" if ratio < LIMIT else "fail"}
        | {"approximate": True, "rms": 1.0, "max_abs": 3.2, "note": ""}
        for ratio in ratios
    ]
    return [json.dumps(record, separators=(",", ":")) for record in records]


def _probes(rows: list[list[str]], at: int | None, mode: str, draw: random.Random) -> str:
    chosen = draw.choices(range(11), k=len(rows))
    if at is not None:
        wrong = range(at, len(rows)) if mode == "trace" else range(at, at + 2)
        for i in wrong:
            chosen[i] = 11
    return ",".join(row[i] for row, i in zip(rows, chosen, strict=True))


def _counts() -> dict[str, int]:
    counts = dict.fromkeys(("pass", "warn", "fail", "error", "skip", "xfail", "xpass"), 0)
    return counts | {"pass": CASES - FAILING, "fail": FAILING}


def write_other(out: Path) -> None:
    """Write a conformant run of a port that another suite judged by other goldens."""
    names = ["sample"]
    lines = [
        _line("unet", variant, "base", "bfloat16", "trace", names, None)
        | {"probes": [json.loads(_texts("sample")[3])], "device": "cuda"}
        for variant in VARIANTS
    ]
    header = _header("other", "2.0") | {"suite": "0.0.9", "goldens": "0" * 64}
    counts = dict.fromkeys(_counts(), 0) | {"pass": len(lines)}
    footer = {"type": "footer", "counts": counts, "seconds": 3.0}
    (out / "results.jsonl").write_text("".join(map(_row, [header, *lines, footer])), "ascii")
    facts = {"verdict": "conformant", "suite": "0.0.9", "worst_ratio": 1.1, "level": 1}
    facts["goldens"] = header["goldens"]
    facts |= {"counts": counts, "stamps": ["precision:bfloat16"], "offers": ["unet"]}
    _write_summary(out, "other", "2.0", **facts)


def write_hostile(out: Path) -> None:
    """Write a run in which every text that a port or a file chooses is an attack."""
    bad = HOSTILE
    names = ["down_blocks.0.resnets.0.norm1", bad, "__proto__", "constructor", "</script>"]
    probe = json.loads(_texts("x")[11])
    first = {"case": f"unet/{bad}/base", "probe": bad, "after": bad, "ratio": "nan"}
    first |= {"limit": LIMIT, "kind": bad, "hint": bad}
    lines = []
    for component, dtype, verdict in (
        (bad, "float32", "fail"),
        ("unet", bad, "fail"),
        ("pipeline/txt2img", "float32", "fail"),
        ("__proto__", "constructor", "error"),
        ("unet", "float32", "skip"),
        ("unet", "float32", "xfail"),
    ):
        line = _line(component, bad, bad, dtype, "trace", names, 1) | {"verdict": verdict}
        line |= {"case": f"{component}/{bad}/{verdict}", "message": bad, "detail": bad}
        line |= {"device": bad, "backend": bad, "mode": bad, "hunts": bad, "missing": [bad]}
        line["first_divergence"] = first | {"case": line["case"]} if verdict == "fail" else None
        line["probes"] = [probe | {"name": n, "note": bad, "shape": [bad]} for n in names]
        line["trajectory"] = [{"step": bad, bad: {"ratio": bad}}, {"step": 1, "model": {}}]
        line["data"] = {"tensor": "bad.json", "pictures": [{"index": bad, "oracle": "../x.png"}]}
        lines.append(line)
    header = _header(bad, bad) | {"environment": {bad: bad, "__proto__": bad}, "scope": bad}
    control = lines[1] | {"type": "control"}
    footer = {"type": "footer", "counts": {}, "seconds": bad}
    records = [header, *lines, control, bad, {"type": bad}, footer]
    (out / "results.jsonl").write_text("".join(map(_row, records)), "ascii")
    fault = {"probes": bad, "count": 3, "mutant": bad, "confirmed": True, "ratio_if_so": bad}
    facts = {"environment": header["environment"], "scope": bad, "stamps": [bad], "offers": [bad]}
    facts |= {"faults": [fault, bad], "first_divergence": first | {"case": lines[0]["case"]}}
    facts |= {"control": {"port": bad, "cases": 3, "failing": [bad], "changed": {bad: [bad, bad]}}}
    facts |= {"baseline": {"dir": bad, "worse": [bad], "regressions": [bad], "environment": bad}}
    facts |= {"xfails": {"file": bad, "entries": 1, "used": 1, "problems": [bad]}, "depth": bad}
    facts |= {"missing_probes": {bad: [bad]}, "next_level": {"level": 1, "because": bad}}
    _write_summary(out, bad, bad, counts={"fail": 3, "error": 1, "skip": 1, "xfail": 1}, **facts)
    data = out / "data"
    data.mkdir()
    slices = {"channel": [1.0, "inf", bad], bad: [3.0, bad]}
    grid = {"rows": bad, "columns": bad, "height": 2, "width": 2, "of": [2, 2]}
    tensor = {"case": lines[0]["case"], "probe": bad, "kind": bad, "shape": [bad], "axes": [bad]}
    tensor |= {"err": bad, "noise": 1e-7, "ratio": "nan", "pcc": bad, "slices": slices}
    tensor |= {"map": grid | {"values": [[1.0, bad], ["nan", 9.0]]}, "caption": bad}
    tensor["worst"] = {"index": [bad], "got": bad, "expected": bad}
    (data / "bad.json").write_text(json.dumps(tensor), "ascii")
    source = {"file": bad, "start": bad, "lines": [bad, "</script>"], "marked": [bad, 1]}
    (data / "sources.json").write_text(json.dumps({bad: source, "x": bad}), "ascii")


def _header(name: str, version: str) -> dict[str, Any]:
    return {
        "type": "header",
        "suite": "0.1.0",
        "port": {"name": name, "version": version, "spec": f"{name}.py:port"},
        "scope": "fabricated",
        "limit": LIMIT,
        "goldens": "f" * 64,
        "environment": {"python": "3.11.2", "torch": "2.13.0"},
        "started": "2026-11-26T12:00:00+00:00",
    }


def _write_summary(out: Path, name: str, version: str, **facts: Any) -> None:
    """Write summary.json: a failing run's, but for what `facts` say."""
    summary = _header(name, version) | {
        "verdict": "nonconformant",
        "level": None,
        "stamps": [],
        "worst_ratio": 48.0,
        "first_divergence": None,
        "faults": [],
        "seconds": 12.5,
    }
    (out / "summary.json").write_text(json.dumps(summary | facts), "ascii")


def _row(record: Any) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"
