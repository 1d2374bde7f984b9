"""Names, shapes and sizes of published tensors: what makes one of ours, and what is refused by name."""

import pytest
import torch
from torch import nn

from audiogen.diffusion.systems import released
from audiogen.errors import InputError
from audiogen.models.tensors import Source, check_sizes, empty, fill, length, match, shaped, whole_numbers


def same(name: str) -> str:
    return name


def filled(module: nn.Module, tensors, source=same, **more) -> dict[str, torch.Tensor]:
    fill(module, tensors, source, "x.ckpt", **more)
    return dict(module.state_dict())


def test_joined_chunked_and_squeezed_tensors() -> None:
    module = empty(lambda: nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 2, bias=False)}), "x")
    q, k, table = torch.randn(2, 3), torch.randn(2, 3), torch.randn(8, 3, 1, 1)
    sources = {
        "a.weight": Source(("q", "k")),
        "a.bias": Source(("bias",)),
        "b.weight": Source(("table",), 1, 2, 4),
    }
    tensors = {"q": q.half(), "k": k.half(), "bias": torch.ones(4, 1), "table": table}
    found = filled(module, tensors, sources.__getitem__)
    assert torch.equal(found["a.weight"], torch.cat([q.half(), k.half()]).float())
    assert found["a.bias"].shape == (4,) and torch.equal(found["b.weight"], table[2:4, :, 0, 0])
    assert found["a.weight"].data_ptr() != q.data_ptr()
    parts = match({"w": torch.empty(6, 3)}, {"table": table}, lambda _: Source(("table",), 1, 4, 4), "x")
    assert torch.equal(parts["w"].value(), table[2:])


@pytest.mark.parametrize(
    "names",
    [
        ("0.weight_g", "0.weight_v"),
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
    ],
)
def test_weight_norm_in_both_spellings_is_folded(names: tuple[str, str]) -> None:
    torch.manual_seed(0)
    v = torch.randn(4, 3, 5)
    g_name, v_name = names
    tensors = {g_name: length(v), v_name: v, "0.bias": torch.zeros(4)}

    def convolution() -> nn.Module:
        return empty(lambda: nn.Sequential(nn.Conv1d(3, 4, 5)), "x")

    assert torch.equal(filled(convolution(), tensors)["0.weight"], v)
    for wrong in (torch.tensor(1.0), torch.ones(4), torch.ones(1, 1, 1), torch.ones(4, 1)):
        with pytest.raises(
            InputError, match=r"^weights of x.ckpt do not fit their config: .*weight.* should make"
        ):
            filled(convolution(), tensors | {g_name: wrong})
    del tensors[v_name]
    with pytest.raises(InputError, match=f"missing {v_name}"):
        filled(convolution(), tensors)


def test_what_does_not_fit_is_named() -> None:
    def refused(message: str, tensors, source=same) -> None:
        with pytest.raises(InputError, match=message) as caught:
            filled(empty(lambda: nn.Linear(3, 4), "x"), tensors, source)
        assert "\n" not in str(caught.value)

    good = {"weight": torch.randn(4, 3), "bias": torch.randn(4)}
    refused("missing bias; unexpected extra", {"weight": good["weight"], "extra": torch.ones(1)})
    refused(r"weight is \[3, 4\], should make \[4, 3\]", good | {"weight": torch.randn(3, 4)})
    refused("weight is .* of int64, not a tensor of floats", good | {"weight": torch.ones(4, 3).long()})
    refused("bias is a list, not a tensor of floats", good | {"bias": [1.0]})
    claimed = torch.ones(1).expand(4, 3)
    refused("weight is .* without as many values", good | {"weight": claimed})
    refused("damaged: bias holds values that are not finite", good | {"bias": torch.full((4,), torch.nan)})
    for scalar in (torch.tensor(1.0), torch.ones(7, 3)):
        refused(
            "joined is .* should make",
            {"joined": scalar, "bias": good["bias"]},
            lambda name: Source(("joined",), 0, 1, 3) if name == "weight" else name,
        )
    refused(
        "a is .* should make",
        {"a": torch.tensor(1.0), "b": torch.randn(4, 3), "bias": good["bias"]},
        lambda name: Source(("a", "b")) if name == "weight" else name,
    )


def test_a_table_of_shapes_is_checked_as_a_module_is() -> None:
    wanted = shaped({"a": (2, 3)})
    assert match(wanted, {"a": torch.ones(2, 3)}, same, "x")["a"].names == ("a",)
    with pytest.raises(InputError, match=r"a is \[3, 2\], should make \[2, 3\]"):
        match(wanted, {"a": torch.ones(3, 2)}, same, "x")


def test_flags_may_be_stored_as_floats() -> None:
    module = nn.Module()
    module.register_buffer("ready", torch.tensor(False))
    assert filled(module, {"ready": torch.ones(1)})["ready"].item() is True


def test_sizes_are_refused_before_anything_is_made() -> None:
    for num_layers, sizes in ((10**9, [8]), (-1, [8]), (2, [8, 2**40]), (2, [-8, 8])):
        with pytest.raises(InputError, match="asks for .* layers, .* wide, but it holds 100 tensors"):
            check_sizes("x", 100, num_layers, sizes)
    check_sizes("x", 100, 100, [1, 2**18])
    with pytest.raises(InputError, match="x: no network has the sizes of its configuration"):
        empty(lambda: nn.Linear(2**40, 2**40), "x")
    assert max(whole_numbers(released()["audioldm2"])) == 50257
