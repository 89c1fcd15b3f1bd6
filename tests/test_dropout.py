"""Laws of dropout: as torch's own in the mean, its gradient that of what it did, and drawn from the seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smoe_cli.model.dropout import Dropout, ReluDropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(400, 500), (7, 11, 13), (1,), (3,)])
def test_as_many_elements_as_asked_for_are_dropped_and_the_others_keep_the_mean(p, shape):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(shape))
    assert set(out.unique().tolist()) <= {0.0, out.max().item()}
    if out.numel() > 1000:
        share = (out == 0).float().mean().item()
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / out.numel()) ** 0.5)
        assert out.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
def test_the_gradient_is_that_of_what_was_kept(kind):
    torch.manual_seed(0)
    x = torch.randn(50, 70, requires_grad=True)
    out = kind(0.3)(x)
    weight = torch.randn(50, 70)
    (out * weight).sum().backward()
    scale = 65536 / (65536 - round(0.3 * 65536))
    kept = out != 0
    torch.testing.assert_close(out[kept], scale * x.detach()[kept])
    torch.testing.assert_close(x.grad, torch.where(kept, scale * weight, 0.0))
    if kind is ReluDropout:
        assert bool((x.detach()[kept] > 0).all())


def test_no_place_is_dropped_more_often_than_another():
    torch.manual_seed(0)
    dropped = sum((Dropout(0.25)(torch.ones(16)) == 0).float() for _ in range(4000)) / 4000
    assert (dropped - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("kind", [Dropout, ReluDropout])
def test_the_seed_decides_and_the_number_of_threads_does_not(kind):
    x, found, threads = torch.randn(300, 400), [], torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            found.append(kind(0.1)(x))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert not torch.equal(found[0], kind(0.1)(x))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("kind", "plain"), [(Dropout, nn.Identity()), (ReluDropout, nn.ReLU())])
def test_outside_training_and_without_dropout_nothing_is_drawn(kind, plain):
    x, state = torch.randn(5, 6), torch.get_rng_state()
    assert torch.equal(kind(0.1).eval()(x.clone()), plain(x))
    assert torch.equal(kind(0.0)(x.clone()), plain(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(kind(1.0)(x.clone()), torch.zeros(5, 6))
