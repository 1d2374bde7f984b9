"""`evaluate codec`: every row and figure against the parts it is made of; nothing written where something is wrong."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.codec.losses import mel_distance
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import in_segments
from audiogen.codec.spectral import SpectralConfig
from audiogen.data.manifest import read_manifest, select
from audiogen.errors import InputError
from audiogen.evaluate import reconstruction
from audiogen.evaluate.codecs import CodecEvaluation, choose_clips, run, send
from audiogen.evaluate.coding import Originals, codec_systems, decode_opus, encode_opus, level_of
from audiogen.evaluate.embedders import embed_clips, load_embedder
from audiogen.evaluate.metrics import accuracy, frechet_distance, label_kl
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec


def make_codec(folder: Path, rate: int, channels: int = 1, num_codebooks: int = 2) -> str:
    """A codec with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(rate)
        spectral = SpectralConfig(
            160, 80, width=8, num_encoder_blocks=1, num_decoder_blocks=1, phase_iterations=2
        )
        config = CodecConfig(rate, channels, "spectral", spectral=spectral, latent_dim=6, codebook_size=16)
        save_codec(folder, Codec(replace(config, num_codebooks=num_codebooks)))
    return str(folder)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_codec(tmp_path_factory.mktemp("codecs") / "tiny", 8000)


@pytest.fixture(scope="module")
def evaluation(codec: str, labelled: Path, tiny_tagger: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(settings, the report's JSON, warnings) of one run that most tests read."""
    settings = CodecEvaluation(
        str(labelled),
        (codec,),
        {"fold": (0,)},
        embedders=(tiny_tagger,),
        opus_kbps=(16.0,),
        num_sounds=2,
        command="python -m audiogen.evaluate codec",
        out=tmp_path_factory.mktemp("report"),
    )
    warnings: list[str] = []
    run(settings, warnings.append)
    return settings, json.loads((settings.out / "report.json").read_text()), warnings


def rows_of(report: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(row["system"], row.get("codebooks")) for row in report["rows"]]


def test_rows_are_ground_truth_the_codec_at_every_bitrate_and_opus(evaluation: Any) -> None:
    _, report, warnings = evaluation
    of_codec = [("tiny", 1), ("tiny", 2), ("tiny, beam 8", 2)]
    assert rows_of(report) == [("Ground truth", None), *of_codec, ("Opus", None)]
    assert [row.get("kbps") for row in report["rows"][:4]] == [None, 0.4, 0.8, 0.8]  # 100 frames of 4 bits
    assert [row.get("reference", False) for row in report["rows"]] == [True, False, False, False, True]
    assert all(row["n"] == 9 == len(row["clips"]) for row in report["rows"]) and not warnings
    text = "\n".join(report["notes"])
    assert report["notes"][0] == "Command: `python -m audiogen.evaluate codec`"
    assert "9 clips of" in text and "fold 0" in text and "8000 Hz" in text and "16 asked" in text
    assert "CPU threads: 1;" in text and "libsndfile" in text


def test_figures_are_those_of_the_parts(evaluation: Any) -> None:
    settings, report, _ = evaluation
    model = load_codec(settings.codecs[0])
    embedder = load_embedder(settings.embedders[0])
    clips = select(read_manifest(settings.data), {"fold": (0,)})
    waves = [audio.load(clip.path, 8000, 1)[0] for clip in clips]
    codes = [model.encode(wave[None], 2) for wave in waves]
    decoded = [model.decode(each)[0, :, : wave.shape[-1]] for each, wave in zip(codes, waves, strict=True)]
    row = report["rows"][2]
    distance = [mel_distance(d[None], w[None], 8000).item() for d, w in zip(decoded, waves, strict=True)]
    assert row["per_clip"]["mel"] == pytest.approx(distance, rel=1e-4)
    assert row["mel"]["value"] == pytest.approx(np.mean(distance), rel=1e-4)
    assert row["mel"]["low"] < row["mel"]["value"] < row["mel"]["high"]

    shares = np.stack([torch.cat([each[0, k] for each in codes]).bincount(minlength=16) for k in range(2)])
    shares = shares / shares.sum(1, keepdims=True)
    entropy = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(1)
    assert row["bits_per_s"] == pytest.approx(100 * entropy.sum())
    assert row["carried"]["value"] == pytest.approx(0.1 * entropy.sum())
    assert row["perplexity"] == pytest.approx(2**entropy) and row["used"] == (shares > 0).sum(1).tolist()
    assert row["codes_used"] == pytest.approx(100 * (shares > 0).mean())

    key = f"{embedder.name} {embedder.identity}"
    real, embedded = (embed_clips(embedder, sounds, 8000) for sounds in (waves, decoded))
    assert real.probabilities is not None and embedded.probabilities is not None
    fad = frechet_distance(real.embeddings, embedded.embeddings)
    assert row[f"fad {key}"]["value"] == pytest.approx(fad, rel=1e-3)
    assert row[f"kl {key}"]["value"] == pytest.approx(
        label_kl(real.probabilities, embedded.probabilities).mean(), rel=1e-3
    )
    wanted = [embedder.labels.index(clip.fields["label"]) for clip in clips]
    for found, of in ((row, embedded), (report["rows"][0], real)):
        right = accuracy(of.probabilities, wanted)
        assert found["per_clip"][f"accuracy {key}"] == right.tolist()
        assert found[f"accuracy {key}"]["value"] == pytest.approx(right.mean())
    assert f"fad {key}" not in report["rows"][0]  # ground truth has no distance to itself


def test_opus_is_measured_from_its_files(evaluation: Any) -> None:
    settings, report, _ = evaluation
    row = report["rows"][-1]
    waves = [audio.load(path, 8000, 1)[0] for path in row["clips"]]
    level = float(next(note for note in report["notes"] if "asked" in note).split("level ")[-1].rstrip("."))
    sizes = [len(encode_opus(wave, 8000, level)) for wave in waves]
    duration_s = sum(wave.shape[-1] for wave in waves) / 8000
    assert row["kbps"] == pytest.approx(sum(sizes) * 8 / duration_s / 1000, rel=0.02)
    assert 0 < row["carried"]["value"] < row["kbps"] and "perplexity" not in row
    assert row["bits_per_s"] == pytest.approx(1000 * row["carried"]["value"])


def test_more_codebooks_carry_more_and_speeds_are_positive(evaluation: Any) -> None:
    _, report, _ = evaluation
    one, two = report["rows"][1:3]
    assert two["carried"]["value"] > one["carried"]["value"] and one["carried"]["value"] <= 0.4
    for row in report["rows"][1:]:
        for key in ("encode", "decode"):
            assert 0 < row[key]["low"] <= row[key]["value"] <= row[key]["high"]
            wall_s = row["per_clip"][f"{key}_s"]
            assert row[key]["value"] == pytest.approx(sum(row["per_clip"]["duration_s"]) / sum(wall_s))


def test_files_of_a_report(evaluation: Any) -> None:
    settings, report, _ = evaluation
    text = (settings.out / "report.md").read_text()
    assert "| System | Codebooks | kbps |" in text and "ViSQOL" not in text and "| *Ground truth* |" in text
    assert (settings.out / "quality.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in settings.out.iterdir())
    assert names == ["quality.png", "report.html", "report.json", "report.md", "sounds"]
    assert len(report["sounds"]) == 2 * 5
    for sound in report["sounds"]:
        assert audio.info(settings.out / sound["path"]).num_frames == 3200


@pytest.mark.parametrize("rate", [None, 10000])
def test_a_codec_of_another_rate_is_compared_at_the_common_one(
    codec: str, labelled: Path, tmp_path: Path, rate: int | None
) -> None:
    """One at 12 kHz in stereo: it gets the clips so, and the table is at 8 kHz in mono, or as asked."""
    other = make_codec(tmp_path / "wide", 12000, channels=2, num_codebooks=1)
    settings = CodecEvaluation(
        str(labelled),
        (codec, other),
        num_clips=1,
        embedders=(),
        opus_kbps=(),
        sample_rate=rate,
        num_sounds=0,
        out=tmp_path / "out",
    )
    run(settings)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    of_tiny = [("tiny", 1), ("tiny", 2), ("tiny, beam 8", 2)]
    assert rows_of(report) == [
        ("Ground truth", None),
        *of_tiny,
        ("wide", 1),
    ]  # one codebook: nothing to search
    rate = rate or 8000
    assert f"Compared at {rate} Hz in mono" in report["notes"][0]
    model = load_codec(other)
    row = report["rows"][4]
    path = row["clips"][0]
    wave, target = audio.load(path, 12000, 2)[0], audio.load(path, rate, 1)[0]
    decoded = model.decode(model.encode(wave[None]))[0, :, : wave.shape[-1]].mean(0, keepdim=True)
    decoded = audio.resample(decoded, 12000, rate)[None, :, : target.shape[-1]]
    expected = mel_distance(decoded, target[None], rate).item()
    assert row["per_clip"]["mel"] == pytest.approx([expected], rel=1e-3)
    assert row["mel"]["low"] is None  # one clip has no interval


def test_a_long_clip_goes_through_in_windows_unchanged(codec: str, tmp_path: Path) -> None:
    """45 s: more than the codec's window of 20 s, for codes and audio of the whole."""
    sound = 0.1 * torch.randn(1, 45 * 8000, generator=torch.Generator().manual_seed(0))
    model = load_codec(codec)
    decoded, measured = codec_systems("tiny", in_segments(model))[1].code(sound)
    codes = model.encode(sound[None])
    assert torch.allclose(decoded, model.decode(codes)[0], atol=1e-4)
    counts = torch.stack([row.bincount(minlength=16) for row in codes[0]])
    assert measured["counts"].tolist() == counts.tolist()


def test_the_choice_of_clips_is_balanced_and_repeats(codec: str, labelled: Path) -> None:
    settings = CodecEvaluation(str(labelled), (codec,))
    chosen = [choose_clips(replace(settings, num_clips=number)) for number in (3, 6, 6)]
    labels = [sorted(clip.fields["label"] for clip in clips) for clips in chosen]
    assert labels[0] == ["noise", "pulses", "tone"] and labels[1] == sorted(2 * labels[0])
    assert chosen[1] == chosen[2] and chosen[1][:3] == chosen[0]
    assert choose_clips(settings) == read_manifest(labelled)


def test_clips_without_captions_and_the_built_in_corpus_are_data_too(codec: str, tmp_path: Path) -> None:
    data = write_clips(tmp_path, {name: torch.ones(1, 3000) for name in "abc"})
    assert len(choose_clips(CodecEvaluation(data, (codec,), num_clips=2))) == 2
    corpus = choose_clips(CodecEvaluation("synth:3", (codec,), num_clips=2))
    assert [clip.key for clip in corpus] == ["synth:1@0", "synth:1@1"]
    assert Originals(corpus, 8000).target(1).shape == (1, 40000)


def write_clips(folder: Path, sounds: dict[str, torch.Tensor]) -> str:
    lines = []
    for name, sound in sounds.items():
        audio.save(folder / f"{name}.wav", sound, 8000)
        lines.append(json.dumps({"audio": f"{name}.wav", "label": "bell"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return str(folder / "manifest.jsonl")


def test_silent_and_constant_clips_are_warned_of_and_left_out_where_undefined(
    codec: str, tiny_tagger: str, tmp_path: Path
) -> None:
    noise = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    sounds = {"loud": noise, "silent": torch.zeros(1, 4000), "constant": torch.full((1, 4000), 0.25)}
    data = write_clips(tmp_path, sounds | {"soft": 0.1 * noise.flip(-1)})
    warnings: list[str] = []
    settings = CodecEvaluation(
        data, (codec,), embedders=(tiny_tagger,), opus_kbps=(12.0,), out=tmp_path / "out"
    )
    run(settings, warnings.append)
    assert "2 of 4 clips are silent or constant, the first is" in warnings[0] and "silent.wav" in warnings[0]
    assert len(warnings) == 2 and "clips are too few" in warnings[1]  # 4 clips of 4 dimensions
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("silent or constant" in note for note in report["notes"])
    for row in report["rows"][1:]:
        by_clip = row["per_clip"]
        assert [value is None for value in by_clip["si_sdr_db"]] == [False, True, True, False]
        assert [value is None for value in by_clip["multi_resolution_stft"]] == [False, True, False, False]
        assert all(value is not None for value in by_clip["mel"] + by_clip["log_spectral_db"])
        defined = [value for value in by_clip["si_sdr_db"] if value is not None]
        assert row["si_sdr_db"]["value"] == pytest.approx(np.mean(defined))
        assert not any(key.startswith("accuracy") for key in row)  # the tagger has no label of a bell


def test_clips_that_a_metric_does_not_judge_are_counted(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over some of the clips says so: a stand-in for PESQ, which refuses what holds no speech."""
    noise = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    data = write_clips(tmp_path, {"a": noise, "b": noise.flip(-1), "c": 0.5 * noise})

    def judge(decoded: torch.Tensor, target: torch.Tensor, rate: int) -> torch.Tensor:
        return torch.where(target.abs().amax((1, 2)) < 0.3, math.nan, 2.0)

    monkeypatch.setitem(reconstruction.OPTIONAL, "pesq", judge)
    monkeypatch.setitem(reconstruction.PACKAGES, "pesq", "numpy")
    warnings: list[str] = []
    out = tmp_path / "out"
    run(
        CodecEvaluation(data, (codec,), embedders=(), opus_kbps=(), metrics=("pesq",), out=out),
        warnings.append,
    )
    assert warnings == ["pesq: not defined on 1 of 3 clips, which its mean leaves out"]
    report = json.loads((out / "report.json").read_text())
    assert f"Warning: {warnings[0]}" in report["notes"]
    assert any(note.startswith("PESQ: wide-band") for note in report["notes"])
    assert report["rows"][1]["pesq"]["value"] == 2 and report["rows"][1]["per_clip"]["pesq"][2] is None


def test_mistakes_are_one_line_and_leave_nothing(codec: str, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = CodecEvaluation(str(labelled), (codec,), embedders=(), opus_kbps=(), num_clips=2, out=out)
    for changes, message in [
        ({"codecs": ()}, "no codec is given"),
        ({"codecs": (codec, codec)}, "--codec names one twice"),
        ({"opus_kbps": (-6.0,)}, "opus_kbps[0] is -6.0; it must be above 0"),
        ({"opus_kbps": (math.nan,)}, "opus_kbps[0] is nan; it must be above 0"),
        ({"num_clips": 0}, "num_clips is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"sample_rate": 10}, "sample_rate is 10; it must be in [1000, 768000]"),
        ({"num_clips": 19}, "--num-clips is 19, but there are 18 clips"),
        ({"codecs": ("codec_tyni",)}, "did you mean 'codec_tiny'"),
        ({"data": str(tmp_path / "none.jsonl")}, "no such manifest"),
        ({"where": {"fold": (9,)}}, "no clip has the value '9'"),
        ({"metrics": ("mos",)}, "no metric is called 'mos'"),
        ({"embedders": ("tager",)}, "no embedder is called 'tager'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)) as error:
            run(replace(good, **changes))
        assert "\n" not in str(error.value)
    assert not out.exists()


def test_clips_that_cannot_be_measured_are_named_before_anything_is_written(
    codec: str, tmp_path: Path
) -> None:
    noise = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    data = write_clips(tmp_path, {"good": noise, "short": noise[:, :2000]})
    settings = CodecEvaluation(data, (codec,), embedders=(), opus_kbps=(), out=tmp_path / "out")
    with pytest.raises(InputError, match=r"short.wav lasts 0.250 s; the distances need 0.256 s"):
        run(settings)
    broken = noise[0].numpy().copy()
    broken[7] = math.nan
    soundfile.write(tmp_path / "short.wav", broken, 8000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"short.wav: holds samples that are not finite"):
        run(settings)
    (tmp_path / "short.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match=r"short.wav: not a sound file"):
        run(settings)
    assert not (tmp_path / "out").exists()


def test_a_codec_that_breaks_down_is_named_with_the_clip(codec: str, labelled: Path) -> None:
    model = load_codec(codec)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.fill_(math.nan)
    system = codec_systems("broken", in_segments(model))[0]
    with pytest.raises(
        InputError, match=r"broken, 1 codebook, .*tone_0.wav: the audio holds samples that are not finite"
    ):
        list(send(system, Originals(read_manifest(labelled), 8000), ()))


def test_the_number_of_threads_is_set_back_even_after_an_error(labelled: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(InputError, match="codec_tyni"):
            run(CodecEvaluation(str(labelled), ("codec_tyni",)))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_real_recordings_through_the_bundled_codec(shared: Path, tmp_path: Path) -> None:
    """More codebooks are nearer to the recordings; what is fixed by the codec is as documented."""
    manifest = str(shared / "data" / "esc10" / "manifest.jsonl")
    settings = CodecEvaluation(
        manifest,
        ("codec_tiny",),
        {"fold": (4,)},
        2,
        embedders=(),
        opus_kbps=(),
        num_sounds=1,
        out=tmp_path / "a",
    )
    run(settings)
    rows = json.loads((tmp_path / "a" / "report.json").read_text())["rows"]
    codec = load_codec("codec_tiny")
    bandwidths = in_segments(codec).bandwidths_kbps
    assert [row["kbps"] for row in rows[1:]] == pytest.approx([*bandwidths, bandwidths[-1]])
    assert rows[-1]["system"] == "codec_tiny, beam 8"
    distances = [row["mel"]["value"] for row in rows[1:]]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.9
    assert all(row["carried"]["value"] <= row["kbps"] for row in rows[1:])


def test_opus_at_full_rate_is_near_the_original() -> None:
    """The reference row itself: a check that nothing is shifted or scaled on its way."""
    time_s = torch.arange(16000) / 16000
    sound = 0.3 * torch.sin(2 * math.pi * 440 * time_s)[None]
    decoded = decode_opus(encode_opus(sound, 16000, level_of(128)), 16000, 16000)
    assert (decoded - sound).abs().mean() < 0.01
