"""Convolutions on a CPU: those of PyTorch, and the same numbers with any number of threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from audiogen.diffusion.pointwise import DirectConv2d, PointwiseConv2d, use_products
from audiogen.onednn import SteadyLinear


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Where two threads made PyTorch's own result differ from one's, and a single row.
@pytest.mark.parametrize("shape", [(2, 32, 4, 8), (2, 144, 7, 4), (1, 96, 16, 32), (1, 96, 4, 16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_any_number_of_threads_gives_the_same(shape: tuple[int, ...], kernel_size: int, bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(shape[1], 72, kernel_size, padding=kernel_size // 2, bias=bias))
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = network(x)
        use_products(network)
        if kernel_size == 1 or torch.backends.mkldnn.is_available():
            assert isinstance(network[0], PointwiseConv2d if kernel_size == 1 else DirectConv2d)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
        one = network(x)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(network(x), one)


@pytest.mark.parametrize("rows", [8, 51])  # where two threads made PyTorch's own result differ from one's
def test_products_of_any_number_of_threads_are_the_same(rows: int) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(256, 2048), nn.Linear(2048, 256)), torch.randn(2, rows, 256)
    with torch.inference_mode():
        expected = network(x)
        use_products(network)
        assert {type(layer) for layer in network} == {SteadyLinear}
        one = network(x)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(network(x), one)


def test_what_is_no_plain_convolution_stays() -> None:
    kept = [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="circular"),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
    ]
    use_products(nn.ModuleList(kept))
    assert {type(layer) for layer in kept} == {nn.Conv2d}


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_it_trains_as_before(kernel_size: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(5, 3, kernel_size), torch.randn(2, 5, 7, 4)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    use_products(layer)
    (found,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    assert torch.equal(found, expected)
