"""What is called float32 is float32."""

import pytest
import torch
import torch.nn.functional as F

from smoe_cli.training import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def medium_is_faster(monkeypatch):
    """A machine on which "medium" is the fastest way."""
    seconds = {(torch.float32, "highest"): 2.0, (torch.float32, "medium"): 1.0, (torch.bfloat16, "highest"): 5.0}
    monkeypatch.setattr(precision, "gemm_seconds", lambda dtype, device, matmul="highest": seconds[dtype, matmul])


def rounded(x, weight, exact=F.linear):
    """As on a CPU with bfloat16 units: "medium" rounds what is multiplied."""
    if torch.get_float32_matmul_precision() == "medium":
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
    return exact(x, weight)


@pytest.mark.parametrize("wanted", ["auto", "fp32"])
def test_a_faster_way_that_rounds_to_bfloat16_is_not_taken_for_float32(medium_is_faster, monkeypatch, wanted):
    monkeypatch.setattr(F, "linear", rounded)
    assert not precision.keeps_float32("medium")
    chosen = precision.choose_precision(wanted, CPU)
    assert (chosen.dtype, chosen.matmul, torch.get_float32_matmul_precision()) == ("fp32", "highest", "highest")


@pytest.mark.parametrize("wanted", ["auto", "fp32"])
def test_a_faster_way_that_is_as_exact_is_taken(medium_is_faster, monkeypatch, wanted):
    monkeypatch.setattr(precision, "keeps_float32", lambda matmul: True)
    chosen = precision.choose_precision(wanted, CPU)
    assert (chosen.dtype, chosen.matmul, torch.get_float32_matmul_precision()) == ("fp32", "medium", "medium")
