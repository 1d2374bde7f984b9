"""Linear layers in int8 on a CPU: exact sums of rounded numbers, each row by itself."""

import pytest
import torch

from audiogen import onednn, packed

pytestmark = pytest.mark.skipif(not onednn.has_int8_products(), reason="products of bytes are not exact here")


def layer(num_inputs: int, num_outputs: int, bias: bool = True) -> packed.Linear:
    torch.manual_seed(num_inputs + num_outputs)
    return packed.Linear(num_inputs, num_outputs, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7), (331, 7), (3, 130), (65, 4099)])
@pytest.mark.parametrize(("num_outputs", "bias"), [(1, True), (5, False), (33, True)])
def test_it_is_the_exact_product_of_rounded_numbers(
    shape: tuple[int, ...], num_outputs: int, bias: bool
) -> None:
    linear = layer(shape[-1], num_outputs, bias)
    x = torch.randn(*shape)
    expected = linear(x)
    # the same in float64, by its definition
    weight, rows = linear.weight.double(), x.double()
    w_scales, x_scales = (t.abs().amax(-1, keepdim=True) / 127 for t in (weight, rows))
    rounded = ((rows / x_scales).round() * x_scales) @ ((weight / w_scales).round() * w_scales).T
    rounded = rounded if linear.bias is None else rounded + linear.bias
    packed.pack(linear, None, torch.int8)
    found = linear(x)
    assert found.shape == (*shape[:-1], num_outputs) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), rounded, rtol=1e-5, atol=1e-3)
    if shape[-1] > 100:
        assert 0 < (found - expected).norm() < 0.03 * expected.norm()


def test_a_row_depends_on_no_other_and_not_on_threads() -> None:
    linear = layer(1030, 77)
    packed.pack(linear, None, torch.int8)
    x = torch.randn(2, 165, 1030)
    whole = linear(x)
    x[0, 7] *= 1e6
    assert torch.equal(linear(x)[1], whole[1]) and torch.equal(linear(x[1, 5]), whole[1, 5])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(linear(x)[1], whole[1])
    finally:
        torch.set_num_threads(threads)


def test_zeros_and_what_is_not_finite() -> None:
    linear = layer(16, 3)
    linear.weight[1] = 0.0
    packed.pack(linear, None, torch.int8)
    x = torch.zeros(3, 16)
    x[1, 2], x[2, 2] = torch.nan, torch.inf
    found = linear(x)
    assert torch.equal(found[0], linear.bias)
    assert not found[1].isfinite().any() and not found[2].isfinite().any()


def test_the_result_is_in_the_number_type_of_autocast_and_weights_return() -> None:
    linear = layer(40, 24)
    x = torch.randn(3, 40)
    own = linear(x)
    packed.pack(linear, None, torch.int8)
    exact = linear(x)
    with torch.autocast("cpu", torch.bfloat16):
        lower = linear(x.bfloat16())
    assert lower.dtype == torch.bfloat16 and 0 < (lower - exact).norm() < 0.02 * exact.norm()
    packed.pack(linear, None)
    assert torch.equal(linear(x), own)
