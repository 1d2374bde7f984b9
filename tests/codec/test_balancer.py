"""The balancer gives every loss the share of the gradient that its weight names."""

import pytest
import torch

from audiogen.codec.balancer import Balancer
from audiogen.errors import InputError


def gradient(balancer: Balancer, losses_of, seed: int) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(seed)
    leaf = torch.randn(3, 1, 20, requires_grad=True)
    output = leaf * 1.0
    shares = balancer.backward(losses_of(output), output)
    return leaf.grad, shares


def test_shares_are_the_weights_whatever_the_losses_scale():
    balancer = Balancer({"small": 1.0, "large": 3.0}, ema_decay=0.9)

    def losses_of(x):
        return {"small": 1e-4 * x.abs().sum(), "large": 1e5 * x.square().sum()}

    for seed in range(40):
        _, shares = gradient(balancer, losses_of, seed)
    assert shares["small"] == pytest.approx(0.25, abs=0.03)
    assert shares["large"] == pytest.approx(0.75, abs=0.03)


def test_one_loss_alone_sends_its_direction_at_the_total_norm():
    grad, _ = gradient(Balancer({"only": 0.3}, total_norm=2.0), lambda x: {"only": 7.0 * x.square().sum()}, 0)
    torch.manual_seed(0)
    x = torch.randn(3, 1, 20)
    torch.testing.assert_close(grad / grad.norm(), x / x.norm())
    assert grad.flatten(1).norm(dim=1).mean() == pytest.approx(2.0, rel=1e-4)


def test_state_makes_a_resumed_balancer_go_on_as_before():
    def losses_of(x):
        return {"a": x.abs().sum(), "b": x.pow(4).sum()}

    one = Balancer({"a": 1.0, "b": 1.0})
    gradient(one, losses_of, 0)
    two = Balancer({"a": 1.0, "b": 1.0})
    two.load_state_dict(one.state_dict())
    first, second = gradient(one, losses_of, 1)[0], gradient(two, losses_of, 1)[0]
    assert torch.equal(first, second)


def test_bad_weights_are_refused():
    with pytest.raises(InputError, match="not all 0"):
        Balancer({"a": 0.0})
