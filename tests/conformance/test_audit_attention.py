"""A user's attention: good ones pass, imprecise ones are caught, broken ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance.audit import attention_table_torch
from conformance.audit.attention_table_torch import table
from conformance.audit.attention_torch import load_attention
from conformance.audit.auditor import Auditor, Questions
from conformance.case import find_case
from conformance.errors import UsageError
from conformance.execution import Execution
from conformance.port import resolve
from conformance.runner import Runner

FUNCTIONS = """
import torch
import torch.nn.functional as F

def sdpa(query, key, value, is_causal=False):
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)

def scores_of(query, key, is_causal):
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * query.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf) if is_causal else scores

def plain(query, key, value, is_causal=False):
    return scores_of(query, key, is_causal).softmax(-1).to(value.dtype) @ value

def narrow(query, key, value, is_causal=False):
    scores = scores_of(query, key, is_causal).to(query.dtype)
    return scores.softmax(-1) @ value

def sliced(query, key, value, is_causal=False):
    heads = [x.split(1, dim=1) for x in (query, key, value)]
    return torch.cat([plain(*one, is_causal) for one in zip(*heads)], dim=1)

def coarse(query, key, value, is_causal=False):
    scores = scores_of(query, key, is_causal).bfloat16().to(query.dtype)
    return scores.softmax(-1) @ value

def overflows(query, key, value, is_causal=False):
    weights = scores_of(query, key, is_causal).exp()
    return weights / weights.sum(-1, keepdim=True) @ value

def transposed(query, key, value, is_causal=False):
    return sdpa(query, key, value, is_causal).transpose(1, 2)

def widened(query, key, value, is_causal=False):
    return sdpa(query, key, value, is_causal).double()

def raises(query, key, value, is_causal=False):
    raise NotImplementedError("no kernel for head size 40")

def small(query, key, value, is_causal=False):
    if query.shape[-1] > 100:
        raise NotImplementedError("head size")
    return sdpa(query, key, value, is_causal)

def positional(query, key, value):
    return sdpa(query, key, value)
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    """Write the attentions into a file."""
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS, "utf-8")
    return path


@pytest.fixture
def few(monkeypatch) -> None:
    """Measure fewer head sizes and lengths."""
    monkeypatch.setattr(attention_table_torch, "SIZES", (40, 160))
    monkeypatch.setattr(attention_table_torch, "LENGTHS", (77, 256))


def audit(name: str, functions: Path, dtype: str = "float32"):
    """Audit an attention in the text encoder."""
    execution = Execution(dtype)
    questions = Questions(attention=f"{functions}:{name}")
    auditor = Auditor(Runner(resolve("sd1_impl")), execution, questions, lambda _: None)
    return auditor.run([find_case("text_encoder/tiny/base")])


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["sdpa", "plain", "sliced"])
def test_good_ones_pass(name: str, dtype: str, functions: Path) -> None:
    """Torch's attention, two products with a softmax, and that in slices are within the limit."""
    function = load_attention(f"{functions}:{name}")
    cells = list(table(function, dtype, "cpu"))
    assert {cell.verdict for cell in cells} <= {"pass", "warn"}
    assert {cell.regime for cell in cells} == {"unit", "sharp", "outlier"}
    assert sum(cell.causal for cell in cells) == 3


@pytest.mark.usefixtures("few")
def test_coarse_scores_are_caught(functions: Path) -> None:
    """Scores in bfloat16 fail alone in every regime, and in both networks with them."""
    report = audit("coarse", functions)
    assert report.missed
    assert {cell["verdict"] for cell in report.attention.cells} == {"fail"}
    swaps = report.attention.swaps
    assert [(swap.port, swap.verdict, swap.calls) for swap in swaps] == [
        ("sd1_impl", "fail", 3),
        ("diffusers", "fail", 3),
    ]
    assert min(output.ratio for swap in swaps for output in swap.after) > 100


@pytest.mark.usefixtures("few")
def test_torchs_own_changes_nothing(functions: Path) -> None:
    """With torch's attention in the place of torch's the outputs stay what they are."""
    report = audit("sdpa", functions)
    assert not report.missed
    for swap in report.attention.swaps:
        assert swap.before == swap.after


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scores_in_a_half_type_are_caught(dtype: str, functions: Path) -> None:
    """Scores that are kept in a half type fail where logits are large: float32 is the contract."""
    cells = list(table(load_attention(f"{functions}:narrow"), dtype, "cpu"))
    assert {cell.regime for cell in cells if cell.verdict == "fail"} >= {"sharp"}


@pytest.mark.usefixtures("few")
def test_overflow_shows_where_logits_are_large(functions: Path) -> None:
    """A softmax that does not subtract the largest logit fails where logits pass 88."""
    cells = list(table(load_attention(f"{functions}:overflows"), "float32", "cpu"))
    failing = {cell.regime for cell in cells if cell.verdict == "fail"}
    assert failing == {"sharp", "outlier"}


@pytest.mark.usefixtures("few")
def test_refusal_of_one_size_is_a_failure(functions: Path) -> None:
    """Head sizes that are refused fail, and the row says why; the others are measured."""
    cells = list(table(load_attention(f"{functions}:small"), "float32", "cpu"))
    failing = [cell for cell in cells if cell.verdict == "fail"]
    assert {cell.size for cell in failing} == {160}
    assert "raised NotImplementedError for q (1, 2, 256, 160)" in failing[0].message


BROKEN = {
    "transposed": r"returned shape \(1, 256, 2, 40\) for q .*: expected \(1, 2, 256, 40\)",
    "widened": r"returned dtype torch.float64 for q .*: expected torch.float32",
    "raises": r"raised NotImplementedError for q .*: no kernel for head size 40 \(.*mine.py:\d+\)",
    "positional": r"is_causal.*it is called with \(query, key, value, is_causal=...\)",
    "missing": r"has no function 'missing'",
}


@pytest.mark.parametrize(("name", "message"), BROKEN.items(), ids=BROKEN)
def test_broken_ones_are_refused(name: str, message: str, functions: Path) -> None:
    """What cannot answer the simplest question is refused in one line, before anything runs."""
    with pytest.raises(UsageError, match=message):
        audit(name, functions)


def test_file_that_cannot_be_imported(tmp_path: Path) -> None:
    """A file that raises when it is imported is named, with its error."""
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n", "utf-8")
    with pytest.raises(UsageError, match=r"broken.py cannot be imported: ModuleNotFoundError"):
        load_attention(f"{path}:f")
