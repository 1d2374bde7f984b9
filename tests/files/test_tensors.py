"""Names, shapes and sizes of published tensors: what makes one of ours, and what is refused by name."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from audiogen.diffusion.systems import released
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.tensors import (
    Match,
    Source,
    assign,
    check_sizes,
    empty,
    fill,
    length,
    match,
    release,
    shaped,
    unfilled,
)


@dataclass
class Sizes:
    layers: tuple[tuple[int, ...], ...]
    sample_rate: int = 10**6


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
    assert torch.equal(parts["w"].value(), table[2:, :, 0, 0])


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


@pytest.mark.parametrize("dims", [(4, 3, 1), (1, 4, 3), (4, 3)])
def test_what_fits_but_for_ones_or_weight_norm_fills_a_module_and_gives_its_rows(
    dims: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    plain = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}
    bias = {"0.bias": plain["0.bias"][None]}
    normed = {"0.weight_g": length(plain["0.weight"]), "0.weight_v": plain["0.weight"]}
    for tensors in ({"0.weight": plain["0.weight"].reshape(dims)} | bias, normed | bias):
        module = nn.Sequential(nn.Linear(3, 4))
        checkpoint.load_into(module, tensors, "x")
        for name, found in match(module.state_dict(), tensors, same, "x").items():
            rows = list(found.rows(3, "x"))
            assert torch.equal(torch.cat(rows), plain[name]) and len(rows[0]) == 3
            assert torch.equal(module.get_parameter(name), plain[name])


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
    for sizes in (2**18 + 1, [8, 2**40], [8, -8]):
        with pytest.raises(
            InputError, match="x: its configuration asks for a size of .*; 262144 is the largest"
        ):
            check_sizes("x", sizes)
    check_sizes("x", [1, 2**18])
    with pytest.raises(InputError, match="x: no network has the sizes of its configuration"):
        empty(lambda: nn.Linear(2**40, 2**40), "x")
    with pytest.raises(InputError, match="x: no network has .*: the 100 tensors that there are cannot fill"):
        empty(lambda: [nn.Linear(2, 2) for _ in range(10**9)], "x", 100)
    assert len(empty(lambda: [nn.LSTM(2, 2) for _ in range(25)], "x", 100)) == 25
    check_sizes("x", released()["audioldm2"])
    check_sizes("x", Sizes(((1, 2**18),)))  # a sample rate is no size
    with pytest.raises(InputError, match="a size of 1.04858e[+]06"):
        check_sizes("x", (True, Sizes(((1, 2**20),))))


# ------------------------------------------------------------------------------------------- lean loading


class Net(nn.Module):
    """Every kind of tensor that a model holds: parameters, a buffer of whole numbers, an LSTM's list of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = nn.Linear(3, 6, bias=False)
        self.lstm = nn.LSTM(3, 2)
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def on_meta() -> Net:
    with unfilled():
        return Net()


def test_unfilled_takes_no_memory_and_changes_nothing_outside() -> None:
    with unfilled():
        net = nn.Sequential(nn.Linear(10**7, 10**7), nn.Embedding(10**9, 10**4), Net())
        nn.init.trunc_normal_(net[0].weight)
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    drawn = nn.Embedding(50, 40).weight
    assert drawn.device.type == "cpu" and drawn.std().item() == pytest.approx(1.0, abs=0.1)


def test_layers_that_no_tensors_are_for_are_refused_while_they_are_made() -> None:
    """A file may have two tensors for each of ours, or ours be two; five layers for one are not made to the end."""
    made: list[nn.Module] = []

    def layers(number: int) -> nn.ModuleList:
        for _ in range(number):
            made.append(nn.Linear(3, 4))
        return nn.ModuleList(made)

    for number in (10, 20, 40):
        empty(lambda number=number: layers(number), "x", num_tensors=40)
    made.clear()
    with pytest.raises(InputError, match="x: .*the 40 tensors that there are cannot fill its layers"):
        empty(lambda: layers(100), "x", num_tensors=40)
    assert len(made) < 100


JOINED = ("joined.0", "joined.1", "joined.2")


def source(name: str) -> str | Source:
    return Source(JOINED) if name == "joined.weight" else name


def sources() -> dict[str, torch.Tensor]:
    """Random values for each tensor of `Net`, one of them in three parts."""
    torch.manual_seed(0)
    whole = {name: torch.randn(tensor.shape) for name, tensor in Net().state_dict().items()}
    parts = zip(JOINED, whole.pop("joined.weight").split(2), strict=True)
    return {**whole, "count": torch.tensor([3, 4]), **dict(parts)}


def found(tensors: dict[str, torch.Tensor]) -> dict[str, Match]:
    return match(Net().state_dict(), tensors, source, "m")


def test_fill_gives_a_module_its_weights_and_joins_parts() -> None:
    net, parts = on_meta(), sources()
    fill(net, parts, source, "m")
    expected = {**parts, "joined.weight": torch.cat([parts[name] for name in JOINED])}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    assert isinstance(net.joined.weight, nn.Parameter) and net.joined.weight.requires_grad
    assert not net.frozen.requires_grad
    reference = Net()
    reference.load_state_dict(net.state_dict())
    audio = torch.randn(4, 3)
    assert torch.equal(net.lstm(audio)[0], reference.lstm(audio)[0]), (
        "the LSTM's own list has the new weights"
    )
    net.lstm.bias_hh_l0.data.zero_()
    assert parts["lstm.bias_hh_l0"].count_nonzero(), "the weights are the module's own"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_assign_gives_floating_tensors_the_dtype_and_leaves_whole_numbers(dtype: torch.dtype) -> None:
    net, parts = on_meta(), sources()
    parts["frozen"] = torch.ones(5, dtype=torch.float16)
    assign(net, found(parts), "m", dtype=dtype)
    assert net.count.dtype == torch.int64
    assert net.lstm.bias_hh_l0.dtype == net.frozen.dtype == net.joined.weight.dtype == dtype
    assert torch.equal(net.lstm.bias_hh_l0, parts["lstm.bias_hh_l0"].to(dtype))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_rows_of_a_tensor_are_all_of_it(stored: torch.dtype) -> None:
    parts = {name: tensor.to(stored) for name, tensor in sources().items() if name != "count"}
    matches = found(parts | {"count": torch.tensor([3, 4])})
    rows = list(matches["joined.weight"].rows(4, "m"))
    assert [len(block) for block in rows] == [4, 2] and rows[0].dtype == torch.float32
    assert torch.equal(torch.cat(rows), torch.cat([parts[name] for name in JOINED]).float())
    rows = list(matches["frozen"].rows(4, "m"))
    rows[0].zero_()
    assert parts["frozen"].count_nonzero() == 5, "they are copies"
    parts["frozen"][2] = torch.nan
    with pytest.raises(InputError, match="m is damaged: frozen holds values that are not"):
        list(matches["frozen"].rows(4, "m"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.ones(1)}, "m do not fit their config: unexpected other"),
        ({"frozen": torch.ones(6)}, r"frozen is \[6\], should make \[5\]"),
        ({"joined.2": torch.ones(3, 3)}, r"joined.0 is .*, should make \[6, 3\]"),
        ({"joined.2": torch.ones(2, 4)}, r"joined.0 is .*, should make \[6, 3\]"),
        ({"count": torch.ones(2)}, r"count is \[2\], not a tensor of whole numbers"),
        ({"frozen": torch.ones(5).int()}, r"frozen is \[5\] of int32, not a tensor of floats"),
        (
            {"frozen": torch.tensor([1.0, 2.0, torch.nan, 1.0, 1.0])},
            "m is damaged: frozen holds values that are not",
        ),
    ],
)
def test_fill_says_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    net = on_meta()
    with pytest.raises(InputError, match=message):
        fill(net, {**sources(), **change}, source, "m")
    assert all(tensor.is_meta for tensor in net.state_dict().values()), "all or nothing"
    with pytest.raises(InputError, match="missing frozen"):
        fill(net, {name: part for name, part in sources().items() if name != "frozen"}, source, "m")


def test_sizes_are_compared_before_memory_is_taken() -> None:
    with torch.device("meta"):
        net = nn.Linear(10**7, 10**7)  # 400 TB
    with pytest.raises(InputError, match=r"weight is \[2, 2\]"):
        fill(net, {"weight": torch.ones(2, 2), "bias": torch.ones(10**7)}, same, "m")


SIZE, COUNT = 2_000_000, 16  # numbers in a tensor, tensors in a file: 8 MB each in float32

LEAN = """
import sys, torch
from pathlib import Path
from torch import nn
from audiogen.files.checkpoint import read_weights
from audiogen.files.tensors import assign, fill, match, release

def memory(key):  # MB
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024

with torch.device("meta"):
    net = nn.ParameterList(torch.empty(SIZE) for _ in range(COUNT))
source = sys.argv[1]
tensors = read_weights(Path(source))
fill(nn.ParameterList([torch.empty(1)]), {"0": torch.ones(1)}, str, "warm")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = memory("VmHWM")
assign(net, match(net.state_dict(), tensors, str, source), source, dtype=getattr(torch, sys.argv[2]))
peak = memory("VmHWM") - before
held = memory("RssFile")
for tensor in tensors.values():
    tensor.sum()  # read again, now that all was given back
grown = memory("RssFile") - held
release(tensors["3"])
print(peak, grown, grown - (memory("RssFile") - held), all(weight[0] == i for i, weight in enumerate(net)))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has"
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_loading_takes_the_weights_and_one_tensor(
    tmp_path: Path, suffix: str, dtype: str, bytes_each: int
) -> None:
    path = tmp_path / f"m{suffix}"
    stored = {str(index): torch.full((SIZE,), float(index)) for index in range(COUNT)}
    checkpoint.write_tensors(path, stored) if suffix == ".safetensors" else torch.save(stored, path)
    script = LEAN.replace("SIZE", str(SIZE)).replace("COUNT", str(COUNT))
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), dtype], capture_output=True, text=True, check=True
    )
    peak, grown, given_back, same = done.stdout.split()
    weights, tensor = SIZE * COUNT * bytes_each / 2**20, SIZE * 4 / 2**20
    assert weights < float(peak) < weights + tensor + 12
    assert float(grown) > 0.9 * COUNT * tensor, "the file's pages are only there when they are looked at"
    assert 0.9 * tensor < float(given_back) < 1.1 * tensor
    assert same == "True"


def test_release_leaves_ordinary_memory_alone() -> None:
    for tensor in (torch.ones(100_000), torch.ones(300, 400)[:, 1], torch.ones(()), torch.ones(0)):
        release(tensor)
        assert bool((tensor == 1).all())
