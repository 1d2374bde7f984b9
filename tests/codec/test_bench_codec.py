"""The benchmark compares like with like."""

import re

import pytest
import torch

from audiogen.packed import can_pack
from tools import bench_codec

CPU = torch.device("cpu")


@pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="oneDNN has no bfloat16 here")
def test_all_models_do_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    codec = bench_codec.random_codec(bench_codec.SHAPES["tiny"])
    sound = torch.randn(2, 1, 4000)
    with torch.inference_mode():
        codes = codec.encode(sound)
        whole = codec.decode(codes)
        assert len(codes.unique()) > 8
        for model in bench_codec.candidates(codec, bench_codec.MODELS):
            exact = model.name.endswith("float32")
            assert (model.encode(sound) == codes).float().mean() > (0.99 if exact else 0.5)
            error = (model.decode(codes).float() - whole).square().mean() / whole.square().mean()
            assert error < (1e-10 if exact else 1e-3), model.name
    bench_codec.main("--shape tiny --threads 1 --batch 1 --seconds 0.1 --rounds 1".split())
    rows = re.findall(r"^(\S+)((?: +[-\d.nan]+){6})$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == list(bench_codec.MODELS)
    assert rows[0][1].split()[1] == rows[0][1].split()[4] == "1.00"
