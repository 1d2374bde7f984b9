"""PyTorch's packed products against TokenLM: every type, odd sizes, rows that do not depend on their neighbours."""

import pytest
import torch
from torch import Tensor

from audiogen import onednn
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.kernels import packed
from audiogen.lm.kernels.packed import PackedLinear, PackedLM
from audiogen.lm.model import LMConfig, TokenLM

K, V = 3, 21
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06, "int8": 0.2}  # of a logit, whose standard deviation is 1
CALLS = [4, 1, 1, 3]


def make_lm(dim: int, num_heads: int) -> TokenLM:
    torch.manual_seed(0)
    return TokenLM(LMConfig(K, V, dim, 2, num_heads, ff_mult=3)).eval()


def random_text(batch: int, dim: int) -> Condition:
    return Condition(torch.randn(batch, 4, dim), torch.ones(batch, 4, dtype=torch.bool))


@torch.no_grad()
def logits(lm: TokenLM | PackedLM, steps: Tensor, text: Condition) -> list[Tensor]:
    cache = lm.new_cache(text, len(steps), steps.shape[2])
    return [lm.step(new, cache) for new in steps.split(CALLS, dim=2)]


@pytest.mark.parametrize("dtype", packed.DTYPES)
@pytest.mark.parametrize(("dim", "num_heads"), [(24, 4), (70, 14), (130, 2)])
def test_equals_the_model(dim: int, num_heads: int, dtype: str) -> None:
    lm = make_lm(dim, num_heads)
    fast = PackedLM(lm, dtype)
    for batch in (1, 2, 5):
        steps, text = torch.randint(0, V + 1, (batch, K, sum(CALLS))), random_text(batch, dim)
        for slow, quick in zip(logits(lm, steps, text), logits(fast, steps, text), strict=True):
            assert quick.dtype == torch.float32
            assert (slow - quick).abs().max() < TOLERANCE[dtype]
            assert not torch.equal(slow, quick) or dtype == "float32"


def test_int8_rows_do_not_depend_on_their_neighbours() -> None:
    """Though PyTorch quantises all rows of a product by one range."""
    torch.manual_seed(0)
    product = PackedLinear(torch.randn(9, 33), "int8")
    x = torch.randn(3, 33) * torch.tensor([[1.0], [1000.0], [1e-3]])
    together = product(x)
    for row in range(3):
        assert torch.equal(product(x[row : row + 1])[0], together[row])
    assert not product(torch.zeros(2, 33)).any()


@pytest.mark.parametrize("where", ["not x86", "no oneDNN", "no bfloat16"])
def test_where_there_is_no_packed_product_the_plain_one_serves(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An old or another processor: opening a model must not ask for kernels that are not there."""
    refuse = lambda *_: pytest.fail("asked oneDNN for it")  # noqa: E731
    if where == "not x86":
        monkeypatch.setattr(onednn.platform, "machine", lambda: "aarch64")
    elif where == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    weight, x = torch.randn(5, 7), torch.randn(2, 3, 7)
    if where != "no bfloat16":
        torch.testing.assert_close(PackedLinear(weight, "float32")(x), x @ weight.T)
    rounded = PackedLinear(weight, "bfloat16")(x)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, x @ weight.T, atol=0.1, rtol=0.05)


def test_a_pytorch_without_int8_products_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ENGINES", ())
    with pytest.raises(InputError, match="int8 needs a C\\+\\+ compiler, or a PyTorch with FBGEMM"):
        PackedLinear(torch.randn(2, 3), "int8")
    with pytest.raises(InputError, match="dtype is 'int4'; allowed: float32, bfloat16, int8"):
        PackedLM(make_lm(24, 4), "int4")
