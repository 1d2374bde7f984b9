"""Language models with a backbone of Qwen3: training from random and from given weights, resume, generation, LoRA."""

import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiogen.convert.__main__ import main as convert
from audiogen.errors import InputError
from audiogen.generate.__main__ import main as generate
from audiogen.generators.load import load
from audiogen.info.describe import describe
from audiogen.models.build import load_lm
from audiogen.train.run import open_recipe
from tests.random_qwen3 import save_random_qwen3
from tests.train.conftest import scalars
from tests.train.test_train_lm import kill_at_step, same_state

Train = Callable[..., Path]
SIZES = "model.backbone={num_kv_heads: 1, head_dim: 8, ff_dim: 24}"
BACKBONE = (SIZES, "text.encoder=tokens")


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    return save_random_qwen3(tmp_path / "qwen3")


def test_text_is_learned_and_decides_what_is_generated(lm_run: Train) -> None:
    """Tones and noises share no tokens: a wrong caption must cost, and the most probable tokens follow the text."""
    run = lm_run(
        "run", *BACKBONE, "fit.steps=160", "fit.valid_every=160", "model.dropout=0", "data.mix_probability=0",
        "fit.batch_size=6", "pretokenize_epochs=2", "fit.save_every=0", "fit.log_every=20",
    )  # fmt: skip
    records = scalars(run)
    last = [record for record in records if "valid/loss" in record][-1]
    assert last["valid/ce"] < 1.2  # of ln 8 = 2.08 by chance
    assert last["valid/ce"] < last["valid/ce_shuffled"] - 0.05
    found = load_lm(run)
    condition = found.conditioner(["a tone", "rain falls"])
    with torch.no_grad():
        first = found.lm(torch.full((2, 3, 1), found.lm.special), condition)[:, 0, 0].argmax(
            -1
        )  # of codebook 0
    assert first[0] != first[1]
    about = describe(str(run))
    assert "--temperature" in about["own options"] and "--cuda-graph" not in about["own options"]
    sizes = about["sizes"]
    assert "backbone a Qwen3 of its own" in sizes and "text encoder" in sizes


def test_killed_in_the_middle_of_a_save_resumes_bit_for_bit(lm_run: Train, tmp_path: Path) -> None:
    whole = lm_run("whole", *BACKBONE)
    process = get_context("fork").Process(target=kill_at_step, args=(lm_run, BACKBONE))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    killed = lm_run("killed", "resume=must", *BACKBONE)
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole)


def test_a_given_qwen3_begins_the_training_and_is_no_longer_needed(
    lm_run: Train, qwen3: Path, tmp_path: Path
) -> None:
    run = lm_run(
        "run",
        f"model.backbone={qwen3}",
        "optim.lr=1e-12",
        "fit.steps=1",
        "fit.valid_every=0",
        "optim.weight_decay=0",
    )
    stored, given = load_file(run / "model.safetensors"), load_file(qwen3 / "model.safetensors")
    parts = [given[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.allclose(stored["layers.1.self_attention.in_proj.weight"], torch.cat(parts), atol=1e-9)
    words = load_file(run / "text" / "model.safetensors")["embed_tokens.weight"]
    assert torch.allclose(words, given["model.embed_tokens.weight"], atol=1e-9)
    assert f"backbone {qwen3}" in describe(str(run))["sizes"]
    shutil.rmtree(qwen3)
    found = load_lm(run)
    assert found.conditioner.token_ids("a dog barks") == [2, 4, 5]
    assert found.lm.config.dim == 24 and found.lm.config.num_heads == 4


def test_sounds_depend_on_seed_text_and_guidance_and_not_on_their_neighbours(
    lm_run: Train, tmp_path: Path
) -> None:
    run = lm_run("run", *BACKBONE, "fit.steps=20", "fit.valid_every=0", "fit.save_every=0")
    model = load(run)
    both = model.generate(["a tone", "rain falls"], 0.4, seed=[3, 4])
    assert both.shape == (2, 1, 800)
    assert torch.equal(model.generate(["rain falls"], 0.4, seed=4)[0], both[1])
    assert not torch.equal(model.generate(["rain falls"], 0.4, seed=5)[0], both[1])
    assert not torch.equal(model.generate(["rain falls"], 0.4, seed=4, guidance=1.0)[0], both[1])
    assert not torch.equal(model.generate(["a tone"], 0.4, seed=4)[0], both[1])
    streamed = torch.cat(list(model.stream("rain falls", 0.4, seed=4)), -1)
    assert streamed.shape == (1, 800)
    torch.testing.assert_close(streamed, both[1], atol=1e-4, rtol=0)
    longer = model.generate([None], 1.2)  # past the half second it was trained on
    assert longer.shape == (1, 1, 2400) and longer.isfinite().all()
    out = tmp_path / "sounds"
    given = ["--model", str(run), "--text", "rain falls", "--duration", "0.4", "--seed", "4"]
    assert generate([*given, "--out", str(out)]) == 0
    (file,) = out.glob("*.wav")
    assert soundfile.info(file).frames == 800
    again = model.save_pretrained(tmp_path / "copy")
    assert again is None
    assert torch.equal(load(tmp_path / "copy").generate(["rain falls"], 0.4, seed=4)[0], both[1])


def test_adapters_beside_a_backbone(lm_run: Train) -> None:
    base = lm_run("base", *BACKBONE, "fit.steps=2", "fit.valid_every=0")
    run = lm_run("run", f"init_from={base}", "lora={rank: 2}", "fit.steps=30", "fit.valid_every=0")
    assert len(load_file(run / "model.safetensors")) == 2 * 2 * 4 + 1  # two of four matrices in two layers
    plain = load(base).generate(["a tone"], 0.4)
    assert not torch.equal(load(base, adapter=str(run)).generate(["a tone"], 0.4), plain)


def test_what_runs_no_backbone_says_so(lm_run: Train, tmp_path: Path) -> None:
    run = lm_run("run", *BACKBONE, "fit.steps=1", "fit.valid_every=0")
    given = ["--model", str(run), "--text", "rain", "--out", str(tmp_path / "sounds")]
    with pytest.raises(InputError, match="this model has a backbone, which runs in float32, bfloat16"):
        generate([*given, "--dtype", "int8"])
    with pytest.raises(InputError, match="has a backbone, which runs as it is; drop --cuda-graph"):
        generate([*given, "--cuda-graph"])
    for layout in ("transformers", "onnx"):
        with pytest.raises(InputError, match="the model has a backbone of Qwen3"):
            convert([str(run), "--to", layout, "--out", str(tmp_path / layout)])


def test_a_recipe_takes_the_sizes_of_a_given_qwen3(qwen3: Path) -> None:
    given = f"model.backbone={qwen3}"
    recipe = open_recipe("lm_backbone", [given, "model.dropout=0.2", "text.max_tokens=12"])
    assert (recipe.model.dim, recipe.model.num_layers, recipe.model.dropout) == (24, 2, 0.2)
    assert recipe.model.backbone.pretrained == str(qwen3)
    assert (recipe.text.width, recipe.text.vocab_size, recipe.text.max_tokens) == (24, 40, 12)
    assert open_recipe("lm_backbone").model.backbone.pretrained is None
    for wrong, message in (
        (["model.backbone=nowhere"], "backbone 'nowhere' cannot be opened"),
        ([given, "model.dim=32"], "model.dim=32: model.backbone decides this, it is 24; leave one out"),
        ([given, "text=5"], "model.backbone: got"),
        (["model.backbone=5"], "model.backbone: got 5, expected a mapping with keys num_kv_heads"),
        (["model.backbone.heads=5"], "unknown key model.backbone.heads"),
    ):
        with pytest.raises(InputError, match=message):
            open_recipe("lm_backbone", wrong)
