"""Layers on a CPU: the numbers of PyTorch's, the same with any number of threads, and near them with packed weights."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from audiogen.diffusion.products import DirectConv2d, PointwiseConv2d, use_products
from audiogen.packed import Linear, can_pack, pack


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
        assert {type(layer) for layer in network} == {Linear}
        one = network(x)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(network(x), one)


def test_autocast_is_obeyed_without_gradients_too() -> None:
    """Under it a frozen teacher computes as the student beside it does; its layers stayed in float32."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 1), nn.Linear(4, 16))
    expected = copy.deepcopy(layers)
    use_products(layers)
    assert all(type(one) is not type(other) for one, other in zip(layers, expected, strict=True))
    x = torch.randn(2, 4, 8, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(layers, expected, strict=True):
            assert one(x).dtype == other(x).dtype == torch.bfloat16
            x = other(x).float()


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


CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="PyTorch without oneDNN")
LAYERS = {
    "3 x 3": (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 7, 5)),
    "halves": (nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), (2, 6, 9, 6)),
    "1 x 1": (nn.Conv2d(6, 5, 1), (2, 6, 7, 5)),
    "rows": (nn.Linear(6, 5, bias=False), (2, 7, 6)),
    "dilated": (nn.Conv1d(6, 5, 7, padding=9, dilation=3), (2, 6, 23)),
    "one channel": (nn.Conv1d(1, 5, 7, padding=3, bias=False), (2, 1, 23)),
    "doubles": (nn.ConvTranspose1d(6, 5, 4, stride=2, padding=1), (2, 6, 11)),
    "HiFi-GAN's first": (nn.ConvTranspose1d(6, 5, 16, stride=5, padding=5), (2, 6, 11)),
    "odd stride": (nn.ConvTranspose1d(6, 5, 6, stride=3, padding=2, output_padding=1), (1, 6, 11)),
    "no overlap": (nn.ConvTranspose1d(6, 5, 3, stride=3, bias=False), (1, 6, 11)),
    "shorter than its stride": (nn.ConvTranspose1d(6, 5, 2, stride=3), (1, 6, 11)),
}


@needs_kernels
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_layers_compute_the_same(name: str, normed: bool) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    network, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(shape)
    if normed:
        if not isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            pytest.skip("only codecs on samples have weight norm")
        with warnings.catch_warnings():  # the older kind, which diffusers uses
            warnings.simplefilter("ignore", FutureWarning)
            weight_norm(network[0])
    with torch.inference_mode():
        if normed:
            network[0].weight_g.mul_(3.0)  # the layer's own weight follows at its next call only
        use_products(network)
        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        pack(network, torch.float32)
        assert network[0].packed is not None
        packed = network(x)
        pack(network, None)
        torch.testing.assert_close(packed, network(x), atol=1e-5, rtol=1e-5)
        if can_pack(CPU, torch.bfloat16):
            pack(network, torch.bfloat16)
            rounded = network(x)
            assert rounded.dtype == torch.bfloat16
            torch.testing.assert_close(rounded.float(), packed, atol=0.05, rtol=0.02)
            for count in (2, 3):
                torch.set_num_threads(count)
                assert torch.equal(network(x), rounded)
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())


@needs_kernels
def test_what_is_packed_stays_until_it_is_unpacked() -> None:
    layer = Linear(3, 2)
    with torch.no_grad():
        pack(layer, torch.float32)
        before: Tensor = layer(torch.ones(1, 3))
        layer.weight.add_(1.0)
        pack(layer, torch.float32)
        assert torch.equal(layer(torch.ones(1, 3)), before)
        pack(layer, None)
        torch.testing.assert_close(layer(torch.ones(1, 3)), before + 3.0)
