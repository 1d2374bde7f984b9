"""The language model of `.ecdc` files: causal, limited in its reach, and loaded from nothing but its own tensors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen.codec.ecdc_lm import EcdcLM, LMState, find_lm, load_lm
from audiogen.errors import InputError

CONTEXT = 4


def make_lm(num_layers: int = 1) -> EcdcLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = EcdcLM(3, 11, 16, 24, num_layers, CONTEXT).eval()
    for linear in lm.linears:
        linear.weight.data.mul_(5.0)
    return lm


def predict(lm: EcdcLM, codes: Tensor) -> Tensor:
    """Codes [K, T] -> probabilities [K, T + 1, V] of each frame and the one after the last."""
    state, before = LMState(), torch.full((codes.shape[0], 1), -1)
    steps = [lm.step(frame, state) for frame in [before, *codes.split(1, 1)]]
    return torch.stack(steps, 1)


def make_codes(num_codebooks: int = 3) -> Tensor:
    return torch.randint(11, (num_codebooks, 9), generator=torch.Generator().manual_seed(1))


def test_each_frame_is_a_distribution_of_every_codebook() -> None:
    probabilities = predict(make_lm(2), make_codes())
    assert probabilities.shape == (3, 10, 11)
    assert torch.allclose(probabilities.sum(2), torch.ones(3, 10))
    assert (probabilities[0] - probabilities[1]).abs().max() > 0.01


def test_a_frame_depends_on_those_before_it_as_far_as_the_context_reaches() -> None:
    lm, codes = make_lm(), make_codes()
    changed = codes.clone()
    changed[1, 2] = (changed[1, 2] + 1) % 11
    differs = (predict(lm, codes) != predict(lm, changed)).any(2).any(0)
    # Frame 2 is seen when 3 is predicted, and from then on for `CONTEXT` more frames: one layer reaches no further.
    assert differs.tolist() == [False] * 3 + [True] * (CONTEXT + 1) + [False] * 2


def test_fewer_codebooks_than_the_model_has() -> None:
    lm, codes = make_lm(), make_codes(2)
    assert predict(lm, codes).shape == (2, 10, 11)


def test_sizes_are_read_from_the_file(tmp_path: Path) -> None:
    lm, codes = make_lm(2), make_codes()
    torch.save(lm.state_dict(), tmp_path / "encodec_lm_24khz-0.th")
    found = find_lm(tmp_path, "encodec_24khz")
    assert found is not None
    assert find_lm(tmp_path, "encodec_48khz") is None
    loaded = load_lm(found, frame_rate=75)
    assert loaded.context_frames == 262
    assert (loaded.num_codebooks, loaded.codebook_size) == (3, 11)
    loaded.context_frames = CONTEXT
    assert torch.equal(predict(loaded, codes), predict(lm, codes))


def test_tensors_larger_than_their_file_are_not_copied(tmp_path: Path) -> None:
    tensors = {**make_lm().state_dict(), "emb.0.weight": torch.zeros(1, 1).expand(1 << 40, 16)}
    torch.save(tensors, path := tmp_path / "lm.th")
    with pytest.raises(InputError, match=r"lm\.th claims tensors of \d+ bytes"):
        load_lm(path, 75)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("emb.0.weight", None),
        ("emb.1.weight", (13, 16)),
        ("emb.0.weight", (12, 17)),
        ("transformer.layers.0.linear1.weight", (24,)),
        ("transformer.layers.0.norm1.bias", None),
        ("linears.2.bias", (12,)),
        ("decoder.weight", (2, 2)),
    ],
)
def test_other_tensors_are_one_line_that_names_the_file(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None
) -> None:
    tensors = make_lm().state_dict()
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    torch.save(tensors, path := tmp_path / "lm.th")
    with pytest.raises(InputError, match=r"lm\.th") as error:
        load_lm(path, 75)
    assert "\n" not in str(error.value)
