"""`bench`: both sides compute the same, on the same weights, before anything is timed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from conformance import cli
from conformance.adapters import bench_models as sides
from conformance.bench import models
from conformance.bench.tasks import DECODER, ENCODER, TEXT, UNET, Task
from conformance.errors import SuiteError
from conformance.requirements import ORACLE, adding
from conformance.sampling import TEXT_TO_IMAGE
from conformance.variants import parse_variant

TASKS = [
    Task(TEXT, "tiny", 2),
    Task(UNET, "tiny", 2, 64),
    Task(DECODER, "tiny", 1, 64),
    Task(ENCODER, "tiny", 1, 64),
    Task(TEXT_TO_IMAGE, "tiny", 1, 64),
]


class Bar:
    """A progress bar that nobody sees."""

    def __init__(self, items=(), **_) -> None:
        self.items = items
        self.steps = 0

    def __iter__(self):
        return iter(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        """Count."""
        self.steps += 1


@pytest.fixture(scope="module")
def device():
    """Return the CPU in float32."""
    return sides.Device("cpu", torch.float32)


@pytest.fixture(scope="module")
def both(device):
    """Return both implementations of `tiny`."""
    return sides.Models(parse_variant("tiny"), device)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_sides_agree(both, task: Task) -> None:
    """Eager and packed against diffusers, which is the last; all on one set of tensors."""
    wanted, flops = sides.counted(both.reference(task).output)
    found = both.sides(task, compiled=False)
    assert [(side.name, side.way) for side in found] == [
        ("sd1_impl", "eager"),
        ("sd1_impl", "packed"),
        ("diffusers", "eager"),
    ]
    for side in found:
        error, most = sides.distance(side.output(), wanted, torch.float32)
        assert error <= most < 1e-3
        side.run()
    assert flops > 0


def test_weights_are_shared(both) -> None:
    """No side has a copy of its own, but for what it packs."""
    ours, theirs = (both.network("unet", name, "eager") for name in ("sd1_impl", "diffusers"))
    places = [{n: p.data_ptr() for n, p in net.named_parameters()} for net in (ours, theirs)]
    assert places[0] == places[1]
    text = [both.network("text_encoder", n, "eager") for n in ("sd1_impl", "diffusers")]
    first, second = ({p.data_ptr() for p in net.parameters()} for net in text)
    assert first == second


def test_operations(both) -> None:
    """Products, convolutions and attention are counted: of one layer of text, by hand."""
    _, flops = sides.counted(both.reference(Task(TEXT, "tiny", 1)).output)
    n, width, inner, layers = 77, 64, 256, 3
    products = 4 * n * width * width + 2 * n * width * inner
    attention = 2 * n * n * width
    assert flops == 2 * layers * (products + attention)


def test_rows(device, both) -> None:
    """Every way beside diffusers, run for run; the share of the peak follows from the figures."""
    choice = models.Choice(TASKS[:2], "float32", "cpu", 2)
    matmul, rows = models.measure(choice, sides, both, device, Bar)
    assert matmul.name == "matmul[float32-cpu]"
    assert matmul.facts["peak"] >= matmul.facts["flops"] / min(matmul.runs)
    assert [row.name for row in rows] == [
        f"{task.id}[float32-cpu-{way}]" for task in TASKS[:2] for way in ("eager", "packed")
    ]
    for row in rows:
        assert len(row.runs) == len(row.ratios) == 2
        assert row.reference.name == "diffusers"
        assert row.facts["error"] < 3.5e-4
        assert row.facts["flops"] > 0
    assert rows[0].reference == rows[1].reference


def test_wrong_sides_are_not_timed(device) -> None:
    """A side whose output is another is named before anything is timed."""
    wrong = sides.Models(parse_variant("tiny"), device)
    weight = wrong.network(TEXT, "sd1_impl", "packed").text_model.final_layer_norm.weight
    weight.data = weight.data * 1.01
    choice = models.Choice(TASKS[:1], "float32", "cpu", 1)
    with pytest.raises(
        SuiteError, match=r"sd1_impl \(packed\) and diffusers differ by 0\.00\d+"
    ) as e:
        models.measure(choice, sides, wrong, device, Bar)
    assert "`sd1-conformance run -k text_encoder` says where" in str(e.value)


def test_broken_outputs() -> None:
    """NaN is not near, and a reference of NaN is nothing to be near to."""
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    error, most = sides.distance(nan, one, torch.float32)
    assert not error <= most
    with pytest.raises(SuiteError, match="the reference is not finite in float16"):
        sides.distance(one, nan, torch.float16)
    with pytest.raises(SuiteError, match=r"shapes \(2,\) and \(3,\)"):
        sides.distance(one, torch.ones(3), torch.float32)


def test_command(tmp_path: Path, capsys) -> None:
    """The table and the file."""
    out = tmp_path / "models.json"
    words = ["bench", "--variant", "tiny", "--case", "text*", "--repeat", "1", "--out", str(out)]
    assert cli.main(words) == 0
    head, columns, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("float32-cpu: the peak is that of a large product of matrices")
    assert columns.split()[:3] == ["sd1_impl", "middle", "half"]
    assert [line.split()[:2] for line in lines[:-1]] == [
        [f"text_encoder/tiny/batch{n}", way] for n in (1, 2) for way in ("eager", "packed")
    ]
    assert lines[-1].startswith("outputs agree within ")
    report = json.loads(out.read_text())
    assert (report["bench"], len(report["rows"])) == ("models", 4)
    assert report["matmul"]["name"] == "matmul[float32-cpu]"
    assert report["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeat", "0"], "--repeat 0: give a positive number"),
        (
            ["--variant", "sd1-lowvar"],
            "--variant sd1-lowvar: what is timed is one of tiny, odd, toy, sd1",
        ),
        (["--device", "tpu9x"], "--device 'tpu9x' is no device: write cpu, cuda or cuda:1"),
        (["--device", "meta"], "--device meta: only cpu and cuda are timed"),
        (
            ["--dtype", "bfloat16", "load"],
            "--dtype is an option of `bench` alone, not of `bench load`",
        ),
    ],
    ids=["repeat", "variant", "device", "meta", "load"],
)
def test_mistakes(capsys, words: list[str], message: str) -> None:
    """One line, exit 2."""
    assert cli.main(["bench", *words]) == 2
    assert capsys.readouterr().err == f"sd1-conformance: {message}\n"


def test_no_reference(capsys, monkeypatch) -> None:
    """Without diffusers: how to get it."""

    def absent(name: str) -> ModuleType:
        if name.startswith("conformance.adapters"):
            raise ImportError("No module named 'diffusers'")
        return import_module(name)

    monkeypatch.setattr("conformance.cli_common.importlib.import_module", absent)
    assert cli.main(["bench"]) == 2
    assert adding(ORACLE) in capsys.readouterr().err


@pytest.mark.compile
def test_compiled(both, device) -> None:
    """Both compiled: what they compute stays the same, and the first call is told."""
    choice = models.Choice(TASKS[:1], "float32", "cpu", 1, compiled=True)
    with sides.compiling():
        _, (row,) = models.measure(choice, sides, both, device, Bar)
    assert row.name.endswith("[float32-cpu-compiled]")
    assert row.facts["first call"] > row.value


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_on_a_gpu(*, compiled: bool) -> None:
    """The device is waited for, bytes are counted, and graphs compute the same."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = sides.Device("cuda", torch.bfloat16)
    both = sides.Models(parse_variant("tiny"), device)
    choice = models.Choice(TASKS, "bfloat16", "cuda", 2, compiled)
    with sides.compiling():
        _, rows = models.measure(choice, sides, both, device, Bar)
    ways = {row.name.rstrip("]").rpartition("-")[2] for row in rows if row.reference}
    assert ways == ({"compiled", "graphs"} if compiled else {"eager"})
    assert sum(row.unit == "bytes" for row in rows) == len(TASKS) * len(ways)
