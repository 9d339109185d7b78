"""However tables of a noise schedule are computed in float32, they are right."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.case import find_case
from conformance.golden_files import load_golden
from conformance.tables import judge_table
from conformance.tolerance import LIMIT

FLOAT = np.float32


def table_of(kind: str, config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return betas and their products in float32, one of the ways in which ports compute them."""
    start, end, count = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    square = 2 if config["beta_schedule"] == "scaled_linear" else 1
    if kind == "float64, rounded":
        betas = np.linspace(start ** (1 / square), end ** (1 / square), count) ** square
        return betas.astype(FLOAT), np.cumprod(1 - betas).astype(FLOAT)
    first, last = (FLOAT(x) ** FLOAT(1 / square) for x in (start, end))
    betas = np.linspace(first, last, count, dtype=FLOAT) ** square
    if kind == "from both ends":
        step = (last - first) / FLOAT(count - 1)
        near, far = first + np.arange(count, dtype=FLOAT) * step, np.arange(count, dtype=FLOAT)
        far = last - far[::-1] * step
        betas = np.where(np.arange(count) < count // 2, near, far).astype(FLOAT) ** square
    if kind == "logarithms":
        return betas, np.exp(np.cumsum(np.log1p(-betas), dtype=FLOAT))
    product, products = FLOAT(1), []
    for alpha in FLOAT(1) - betas:
        product *= alpha
        products.append(product)
    return betas, np.array(products)


@pytest.mark.parametrize("scenario", ["base", "linear"])
@pytest.mark.parametrize(
    "kind", ["float64, rounded", "one after another", "from both ends", "logarithms"]
)
def test_honest_tables_stay_below_half_the_limit(kind: str, scenario: str):
    """However float32 tables are computed, every entry is within half the limit."""
    case = find_case(f"scheduler/ddim/-/{scenario}")
    golden = load_golden(case)
    noise = golden.table_noise["float32"]
    for name, found in zip(
        ("betas", "alphas_cumprod"), table_of(kind, case.scenario.config), strict=True
    ):
        record = judge_table(name, found, golden.tables[name], noise[name], "float32")
        assert record.ratio <= LIMIT / 2, (name, record.ratio)
