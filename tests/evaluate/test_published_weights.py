"""Reading published weights: every layout there is, and never code."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiogen.errors import InputError
from audiogen.evaluate.published import read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


def same(tensors, expected=WEIGHTS) -> bool:
    return set(tensors) == set(expected) and all(
        torch.equal(tensors[name], expected[name]) for name in expected
    )


def test_plain_and_nested_state_dicts_and_other_formats_are_one(tmp_path):
    torch.save(WEIGHTS, tmp_path / "plain.pth")
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / "nested.ckpt")
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "weights.npz", **{name: tensor.numpy() for name, tensor in WEIGHTS.items()})
    for name in ("plain.pth", "nested.ckpt", "weights.safetensors", "weights.npz"):
        assert same(read_weights(tmp_path / name)), name


def test_a_training_checkpoint_with_numpy_inside_as_the_public_ones(tmp_path):
    """PANNs' files are of torch's first format and hold the sampler's arrays, pickled by a NumPy of that time."""
    allowed = set(torch.serialization.get_safe_globals())
    sampler = {
        "indexes_per_class": [np.arange(4), np.arange(3)[::-1].copy()],
        "queue": [1, 2],
        "pointers_of_classes": [np.int64(3)],
    }
    path = tmp_path / "old.pth"
    torch.save(
        {"iteration": 7, "model": WEIGHTS, "sampler": sampler}, path, _use_new_zipfile_serialization=False
    )
    assert same(read_weights(path))
    data = path.read_bytes()
    renamed = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in renamed
    path.write_bytes(renamed)
    assert same(read_weights(path))
    assert set(torch.serialization.get_safe_globals()) == allowed  # nothing stays so


class Code:
    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, capsys):
    torch.save({"model": WEIGHTS, "hook": Code()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="asks for print, which is more than data"):
        read_weights(tmp_path / "bad.pth")
    assert "this ran" not in capsys.readouterr().out


def test_missing_damaged_and_other_files_are_one_clear_line(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in {
        "none.pth": "is not there",
        ".": "is a directory",
        "text.pth": "no file of torch.save",
        "empty.pth": "no file of torch.save",
        "text.npz": "cannot be opened",
        "text.safetensors": "damaged",
        "list.pth": "holds a list",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
