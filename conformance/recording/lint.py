"""`golden lint`: would these goldens let a wrong port pass?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from conformance.case import Case, all_cases
from conformance.compare import Record, judge_kept, judge_output
from conformance.errors import GoldenError
from conformance.golden import Golden
from conformance.golden_files import check_inputs, load_golden
from conformance.large import Large
from conformance.manifest import golden_path, manifest_path, read_manifest
from conformance.pixels import LEVELS
from conformance.recipe import digest
from conformance.recorded import case_probes
from conformance.sampling import TIMESTEPS, term_and_step
from conformance.spec import golden_prompts
from conformance.tolerance import LIMIT
from conformance.vocabulary import Vocabulary
from sd1_weights.names import golden_root

_MAY_BE_ZERO = ("timestep", "masked_image")
"""The last timestep of an evenly spaced run; a picture of which all is drawn anew."""

SIZE_LIMIT = 20 * 2**20
"""All of `golden/`, in bytes."""

Say = Callable[[str], None]


def lint(say: Say) -> list[str]:
    """Check every golden without the oracle.

    Args:
        say: Told the sizes, in one line each.

    Returns:
        Problems, one line each; empty where all is well.
    """
    manifest = read_manifest()
    problems = [*lock_problems(manifest["goldens"]), *file_problems(manifest["goldens"])]
    problems += prompt_problems()
    for case in all_cases():
        if case.id in manifest["goldens"]:
            problems += _golden_problems(case, manifest["goldens"][case.id])
    problems += _size_problems(manifest["goldens"], say)
    return problems


def lock_problems(goldens: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A case that disappears, or was never recorded, is a problem."""
    path = manifest_path().with_name("cases.lock")
    locked = set(path.read_text(encoding="utf-8").split()) if path.exists() else set()
    known = {case.id for case in all_cases()}
    refused = {case.id for case in all_cases() if case.refused}
    for case_id in sorted(locked - known):
        yield f"{case_id} is in cases.lock but no longer exists: a case must not disappear"
    for case_id in sorted(known - locked):
        yield f"{case_id} is not in cases.lock: run golden record"
    for case_id in sorted(known - refused - set(goldens)):
        yield f"{case_id} has no golden: run golden record"
    for case_id in sorted(set(goldens) - known):
        yield f"{case_id} is in the manifest but is no case"


def file_problems(goldens: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A file that no golden lists, one that is missing and one that was changed are problems."""
    listed = {golden_root() / entry["file"] for entry in goldens.values()}
    for path in sorted(golden_root().rglob("*.safetensors")):
        if path not in listed:
            yield f"{path} is an orphan: the manifest does not list it"
    for case_id, entry in goldens.items():
        path = golden_path(case_id)
        if not path.exists():
            yield f"{path} is missing"
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != entry["sha256"]:
            yield f"{path} is damaged: sha256 expected {entry['sha256']}, found {found}"


def prompt_problems() -> Iterator[str]:
    """Ids of a prompt that do not spell its text are a problem."""
    vocabulary = Vocabulary.load()
    for name, entry in golden_prompts().items():
        rows, texts = entry.get("input_ids", []), entry["text"]
        if len(rows) != len(texts) or not all(map(vocabulary.belongs, rows, texts)):
            yield f"prompts.json: the ids of {name} are not its text's: run golden record --spec"


def _golden_problems(case: Case, entry: dict[str, Any]) -> Iterator[str]:
    try:
        golden = load_golden(case)
        check_inputs(golden, {name: digest(array) for name, array in case.inputs().items()})
    except GoldenError as error:
        yield str(error)
        return
    yield from _manifest_problems(case, golden, entry)
    yield from _old_facts(case, golden)
    if any("sd1_impl" in value for value in golden.provenance.values()):
        yield f"{case.id} was made from sd1_impl: only the oracle makes goldens"
    for arithmetic, noise in golden.noise.items():
        if np.isnan(noise).any() or (noise < 0).any():
            yield f"{case.id}: noise in {arithmetic} is not a number"
    for arithmetic in () if case.exact else ("float64", "float32"):
        reason = golden.why_not_offered(arithmetic)
        if reason is not None:
            yield f"{case.id}: every case must judge {arithmetic}, but {reason}"
    for name, norm in zip(golden.probes, golden.norms, strict=True):
        if norm == 0 and term_and_step(name)[0] not in _MAY_BE_ZERO:
            yield f"{case.id}: probe {name} is all zero, so nothing is seen of it"
    yield from vacuities(golden, offered(golden))


def _old_facts(case: Case, golden: Golden) -> Iterator[str]:
    """What was changed since a golden was recorded."""
    if golden.hunts != case.scenario.hunts:
        yield f"{case.id}: hunts is no longer the scenario's: run golden record"
    if case.is_network and golden.probes != case_probes(case):
        yield f"{case.id}: its probes are not those of golden/spec/probes.json: run golden record"


def _manifest_problems(case: Case, golden: Golden, entry: dict[str, Any]) -> Iterator[str]:
    """What the manifest says of a golden is what the golden says."""
    for field, wanted in (
        ("bytes", golden_path(case.id).stat().st_size),
        ("hunts", golden.hunts),
        ("inputs", {name: facts["sha256"] for name, facts in golden.inputs.items()}),
        ("provenance", golden.provenance),
    ):
        if entry[field] != wanted:
            yield f"{case.id}: {field} in the manifest is not the golden's: run golden record"


def offered(golden: Golden) -> list[str]:
    """Return the arithmetics that a golden can judge."""
    return [a for a in golden.noise if golden.why_not_offered(a) is None]


def vacuities(golden: Golden, arithmetics: Collection[str] | None = None) -> Iterator[str]:
    """Yield the degenerate outputs that a golden would let pass, in each arithmetic.

    Args:
        golden: The golden to try.
        arithmetics: Those to look at; None for all that were recorded.

    Yields:
        One line per output, arithmetic and degenerate value that is within the limit.
    """
    if golden.exact:
        return
    for name, kind, judge in _trials(golden):
        for arithmetic, noise in golden.output_noise.items():
            if arithmetics is not None and arithmetic not in arithmetics:
                continue
            if name not in noise or not np.isfinite(noise[name]).all():
                continue
            if judge(noise[name], arithmetic).ratio <= LIMIT:
                yield f"{golden.case}: a {kind} output {name} would pass in {arithmetic}"


def _trials(golden: Golden) -> Iterator[tuple[str, str, Callable[[np.ndarray, str], Record]]]:
    """Yield output, kind of degenerate value, and what judges that value."""
    for name, kept in golden.large.items():
        pixels = golden.outputs.get(f"{name}_uint8")
        for kind, value in (
            _degenerate_large(kept) if pixels is None else _degenerate_picture(pixels, kept.edge)
        ):
            yield name, kind, partial(judge_kept, name, value, kept)
    for name, truth in golden.outputs.items():
        if truth.dtype.kind not in "iu" and name != TIMESTEPS:
            for kind, array in _degenerate(truth):
                yield name, kind, partial(judge_output, name, array, truth)


def _degenerate_large(truth: Large) -> Iterator[tuple[str, Large]]:
    """The same for outputs of which only a sketch and the edges are kept."""
    yield "zero", replace(truth, buckets=0 * truth.buckets, rows=0 * truth.rows)
    yield "sign-flipped", replace(truth, buckets=-truth.buckets, rows=-truth.rows)
    shuffled = np.random.default_rng(0).permutation(truth.rows.reshape(-1))
    yield "shuffled", replace(truth, rows=shuffled.reshape(truth.rows.shape))
    yield "mirrored", replace(truth, columns=truth.columns[..., ::-1])
    if truth.shape[0] > 1:
        yield "batch-reversed", replace(truth, rows=truth.rows[::-1])


def _degenerate_picture(pixels: np.ndarray, edge: int) -> Iterator[tuple[str, Large]]:
    """The same for a picture, whose pixels are kept: they are its image up to half a level."""
    for kind, image in _degenerate(np.moveaxis(pixels, -1, 1) / LEVELS):
        yield kind, Large.of(image, edge)


def _degenerate(truth: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "zero", np.zeros_like(truth)
    if truth.ndim == 0:  # a loss
        yield "sign-flipped", -truth
        return
    yield "constant", np.full_like(truth, truth.mean())
    shuffled = np.random.default_rng(0).permutation(truth.reshape(-1)).reshape(truth.shape)
    yield "shuffled", shuffled
    yield "sign-flipped", -truth
    if truth.shape[-1] == truth.shape[-2]:
        yield "transposed", truth.swapaxes(-1, -2)
    yield "mirrored", truth[..., ::-1]
    if truth.shape[1] > 1:
        yield "channel-reversed", truth[:, ::-1]
    if truth.shape[0] > 1:
        yield "batch-reversed", truth[::-1]


def _size_problems(goldens: dict[str, dict[str, Any]], say: Say) -> Iterator[str]:
    by_variant: Counter[str] = Counter()
    for case_id, entry in goldens.items():
        by_variant["/".join(case_id.split("/")[:2])] += int(entry["bytes"])
    for name, size in sorted(by_variant.items()):
        say(f"{name:28s} {size / 2**20:6.2f} MiB")
    total = sum(p.stat().st_size for p in golden_root().rglob("*") if p.is_file())
    say(f"{'golden/ in all':28s} {total / 2**20:6.2f} MiB of {SIZE_LIMIT / 2**20:.0f}")
    if total > SIZE_LIMIT:
        yield f"golden/ holds {total} bytes, more than {SIZE_LIMIT}"
