"""Items: the right part of the right clip, a pure function of (index, epoch, seed), whatever is cached."""

import logging
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.data import synth
from audiogen.data.dataset import (
    SYNTH_SEED,
    AudioDataset,
    BuiltInClip,
    DataConfig,
    SourceConfig,
    Variation,
    open_data,
    parse_sources,
    read_source,
)
from audiogen.data.manifest import Clip, write_manifest
from audiogen.data.synth.scene import compose
from audiogen.errors import InputError

RATE = 8000


def ramp(path: Path, num: int, channels: int = 1, rate: int = RATE) -> Path:
    """A FLAC whose sample i is i / 32768 in channel 0 and its negative in channel 1: a crop shows its place."""
    rising = torch.arange(num) / 32768
    return audio.save(path, torch.stack([rising, -rising])[:channels], rate)


def places(sound: torch.Tensor) -> list[int]:
    return (sound[0] * 32768).round().int().tolist()


def test_longer_clips_are_cropped_anywhere_and_shorter_ones_padded(tmp_path: Path) -> None:
    clips = [Clip(str(ramp(tmp_path / "long.flac", 1000))), Clip(str(ramp(tmp_path / "short.flac", 60)))]
    dataset = AudioDataset(clips, RATE, segment_s=100 / RATE)
    starts = set()
    for epoch in range(3000):
        item = dataset.item(0, epoch, seed=0)
        start = places(item.data)[0]
        assert item.length == 100 and places(item.data) == list(range(start, start + 100))
        starts.add(start)
    assert min(starts) == 0 and max(starts) == 900 and len(starts) > 800
    item = dataset.item(1, 0, seed=0)
    assert item.length == 60 and places(item.data) == [*range(60), *[0] * 40]
    assert item.caption is None and item.key == str(tmp_path / "short.flac")


def test_an_item_depends_on_its_arguments_alone(tmp_path: Path) -> None:
    wordings = tuple(f"wording {i}" for i in range(5))
    clips = [Clip(str(ramp(tmp_path / f"{i}.flac", 3000)), wordings) for i in range(2)]
    vary = Variation(mix_probability=0.5, gain_db=(-6.0, 6.0), speed=(0.8, 1.25))
    first, second = (AudioDataset(clips, RATE, 1, 0.02, vary) for _ in range(2))
    torch.manual_seed(1)
    items = {(e, s): first.item(1, e, s) for e in range(4) for s in range(4)}
    torch.manual_seed(2)
    for (epoch, seed), item in reversed(items.items()):
        again = second.item(1, epoch, seed)
        assert torch.equal(again.data, item.data) and again[1:] == item[1:]
    assert len({float(item.data.sum()) for item in items.values()}) == 16  # and on all of them
    assert len({first.item(1, e, 0).caption for e in range(40)}) > 5


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
@pytest.mark.parametrize("cache_mb", [1, 256])
def test_the_cache_changes_nothing(tmp_path: Path, suffix: str, cache_mb: int) -> None:
    clips: list[Clip] = [BuiltInClip(7)]
    for i in range(4):
        sound = 0.1 * torch.randn(2, 3 * 44100, generator=torch.Generator().manual_seed(i))
        path = str(audio.save(tmp_path / f"{i}.{suffix}", sound, 44100))
        clips += [Clip(path, ("a", "b")), Clip(path, ("c",), start_s=1.1, duration_s=1.0)]
    plain = AudioDataset(clips, 16000, segment_s=0.5, vary=Variation(mix_probability=0.3))
    cached = AudioDataset(clips, 16000, segment_s=0.5, cache_mb=cache_mb, vary=Variation(mix_probability=0.3))
    for epoch in range(3):
        for index in range(len(clips)):
            a, b = plain.item(index, epoch, 0), cached.item(index, epoch, 0)
            assert torch.equal(a.data, b.data) and a[1:] == b[1:]
            b.data.fill_(9)  # what an item's user does to it stays out of the cache
    assert not plain.cache
    assert 0 < cached.cache_bytes <= cache_mb * 1_000_000
    assert cached.cache_bytes == sum(4 * sound.numel() for sound in cached.cache.values())
    assert (len(cached.cache) == len(clips)) == (cache_mb == 256)


def test_long_clips_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(str(ramp(tmp_path / "x.flac", 3000)))
    monkeypatch.setattr("audiogen.data.dataset.CACHED_CLIP_S", 0.1)
    dataset = AudioDataset([clip], RATE, segment_s=0.01, cache_mb=100)
    dataset.item(0, 0, 0)
    assert not dataset.cache


def test_parts_of_a_file(tmp_path: Path) -> None:
    path = str(ramp(tmp_path / "x.flac", 8000))
    whole = AudioDataset([Clip(path, start_s=0.25, duration_s=0.125), Clip(path, start_s=0.9)], RATE)
    assert places(whole.item(0, 0, 0).data) == list(range(2000, 3000))
    assert places(whole.item(1, 0, 0).data) == list(range(7200, 8000))
    cropped = AudioDataset(whole.clips, RATE, segment_s=0.01)
    for epoch in range(50):
        assert 2000 <= places(cropped.item(0, epoch, 0).data)[0] <= 3000 - 80


def test_a_file_shorter_than_promised_is_an_error_not_silence(tmp_path: Path) -> None:
    path = str(ramp(tmp_path / "x.flac", 8000))
    for clip, reason in [
        (
            Clip(path, duration_s=2.0),
            "lasts 1 s, the manifest has 2 s of it from 0 s on; the file is truncated",
        ),
        (Clip(path, start_s=0.5, duration_s=0.8), "lasts 1 s, the manifest has 0.8 s of it from 0.5 s on"),
        (Clip(path, start_s=1.5), "lasts 1 s, the manifest has some of it from 1.5 s on"),
        (Clip(str(tmp_path / "gone.flac")), "cannot be opened"),
    ]:
        with pytest.raises(InputError, match=reason):
            AudioDataset([clip], RATE, segment_s=0.1).item(0, 0, 0)
    assert AudioDataset([Clip(path, duration_s=1.0001)], RATE).item(0, 0, 0).length == 8000  # a rounding
    dataset = AudioDataset([Clip(path)], RATE, segment_s=0.5)
    dataset.item(0, 0, 0)
    ramp(tmp_path / "x.flac", 2000)
    with pytest.raises(InputError, match=r"x\.flac"):
        for epoch in range(20):
            dataset.item(0, epoch, 0)


def test_rate_and_channels(tmp_path: Path) -> None:
    path = str(ramp(tmp_path / "x.flac", 4000, channels=2))
    stereo = AudioDataset([Clip(path)], RATE, channels=2).item(0, 0, 0).data
    assert stereo.shape == (2, 4000) and torch.equal(stereo[0], -stereo[1])
    assert not AudioDataset([Clip(path)], RATE, channels=1).item(0, 0, 0).data.any()  # the channels cancel
    resampled = AudioDataset([Clip(path)], 16000, channels=2, segment_s=0.2).item(0, 0, 0)
    assert resampled.data.shape == (2, 3200)
    both = AudioDataset([BuiltInClip(3)], 16000, channels=2).item(0, 0, 0).data
    assert both.shape == (2, 80000) and not torch.equal(both[0], both[1])  # it is in stereo


def test_mixing_joins_two_different_clips(tmp_path: Path) -> None:
    clips = [
        Clip(
            str(audio.save(tmp_path / f"{i}.flac", torch.full((1, 4000), 0.02 * (i + 1)), RATE)),
            (f"Sound {i}",),
        )
        for i in range(3)
    ]
    dataset = AudioDataset(clips, RATE, segment_s=0.25, vary=Variation(mix_probability=0.5))
    captions = [dataset.item(0, epoch, 0).caption for epoch in range(400)]
    mixed = [caption for caption in captions if caption != "Sound 0"]
    assert 160 < len(mixed) < 240
    assert set(mixed) == {"Sound 0 and sound 1", "Sound 0 and sound 2"}
    assert dataset.item(0, captions.index("Sound 0"), 0).data.std() < 1e-6
    alone = AudioDataset(clips[:1], RATE, segment_s=0.25, vary=Variation(mix_probability=1.0))
    assert alone.item(0, 0, 0).caption == "Sound 0"


def test_a_clip_without_a_caption_leaves_the_mixture_without(tmp_path: Path) -> None:
    paths = [str(audio.save(tmp_path / f"{i}.flac", torch.full((1, 4000), 0.1), RATE)) for i in range(2)]
    dataset = AudioDataset(
        [Clip(paths[0], ("A bell",)), Clip(paths[1])],
        RATE,
        1,
        0.25,
        vary=Variation(mix_probability=1.0),
    )
    assert [dataset.item(index, 0, 0).caption for index in (0, 1)] == [None, None]


def test_gain_stays_in_its_range_and_below_full_scale(tmp_path: Path) -> None:
    quiet = Clip(str(audio.save(tmp_path / "q.flac", torch.full((1, 800), 0.1), RATE)))
    loud = Clip(str(audio.save(tmp_path / "l.flac", torch.full((1, 800), 0.9), RATE)))
    silent = Clip(str(audio.save(tmp_path / "s.flac", torch.zeros(1, 800), RATE)))
    dataset = AudioDataset([quiet, loud, silent], RATE, vary=Variation(gain_db=(-6.0, 12.0)))
    gains = torch.tensor([float(dataset.item(0, epoch, 0).data.max()) / 0.1 for epoch in range(300)])
    db = 20 * gains.log10()
    assert db.min() >= -6.01 and db.max() <= 12.01 and db.max() - db.min() > 17
    peaks = [float(dataset.item(1, epoch, 0).data.max()) for epoch in range(100)]
    assert max(peaks) == pytest.approx(1.0, abs=1e-4) and min(peaks) < 0.5
    assert not dataset.item(2, 0, 0).data.any()


def test_speed_moves_pitch_and_length(tmp_path: Path) -> None:
    time = torch.arange(16000) / 16000
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * time)[None]
    clip = Clip(str(audio.save(tmp_path / "x.flac", tone, 16000)))
    for speed in (0.8, 1.25):
        whole = AudioDataset([clip], 16000, vary=Variation(speed=(speed, speed))).item(0, 0, 0)
        assert whole.length == whole.data.shape[1] == pytest.approx(16000 / speed, abs=1)
        peak = int(torch.fft.rfft(whole.data[0]).abs().argmax())
        assert peak * 16000 / whole.length == pytest.approx(1000 * speed, abs=1)
        part = AudioDataset([clip], 16000, segment_s=0.5, vary=Variation(speed=(speed, speed))).item(0, 0, 0)
        assert part.data.shape == (1, 8000) and part.length == 8000


def test_what_is_played_slower_keeps_its_highest_band(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(1, 44100, generator=torch.Generator().manual_seed(0))
    clip = Clip(str(audio.save(tmp_path / "x.wav", noise, 44100)))
    slow = AudioDataset([clip], 16000, segment_s=0.9, vary=Variation(speed=(0.7, 0.7))).item(0, 0, 0)
    power = torch.fft.rfft(slow.data[0]).abs().square()
    assert power[-len(power) // 10 : -len(power) // 50].mean() > 0.5 * power.mean()  # 7.2 to 7.8 kHz
    made = AudioDataset(read_source(SourceConfig("synth:1")), 16000, vary=Variation(speed=(0.8, 0.8)))
    assert made.item(0, 0, 0).length == 5 * 16000 / 0.8


def test_a_clip_that_fills_the_segment_is_not_played_so_fast_that_silence_follows(tmp_path: Path) -> None:
    tone = 0.5 * torch.sin(torch.arange(32000) * 0.4)[None]
    fast = Variation(speed=(1.25, 1.25))
    for seconds, length in ((2.0, 16000), (1.1, 16000), (1.0, 16000), (0.95, 15200), (0.5, 6400)):
        name = tmp_path / f"{seconds}.wav"
        clip = Clip(str(audio.save(name, tone[:, : int(16000 * seconds)], 16000)))
        assert AudioDataset([clip], 16000, segment_s=1.0, vary=fast).item(0, 0, 0).length == length


def test_built_in_clips_of_another_length_than_the_segment() -> None:
    source = SourceConfig("synth:300@40", where={"form": ["one"]}, duration_s=2.5)
    clips = read_source(source)
    assert all(
        compose(SYNTH_SEED, int(clip.path.rpartition("@")[2]), 2.5).form == "one" for clip in clips[:20]
    )
    dataset = AudioDataset([*clips[:1], BuiltInClip(40)], 16000, segment_s=5.0)
    short, long = dataset.item(0, 0, 0), dataset.item(1, 0, 0)
    assert (short.length, long.length) == (40000, 80000)
    assert short.data[:, :40000].abs().max() > 0 and not short.data[:, 40000:].any()
    number = int(clips[0].path.rpartition("@")[2])
    assert dataset.captions(0) == synth.captions(SYNTH_SEED, number, 2.5)
    assert torch.equal(short.data[:, :40000], synth.render(SYNTH_SEED, number, 16000, 2.5).audio)
    assert BuiltInClip(3, 2.5).place != BuiltInClip(3).place and BuiltInClip(3, 2.5).key == BuiltInClip(3).key
    with pytest.raises(
        InputError, match=r"duration_s is of clips of the built-in corpus, not of a\.jsonl; drop it"
    ):
        SourceConfig("a.jsonl", duration_s=2.5)
    with pytest.raises(InputError, match="duration_s is 31.0; it must be in"):
        SourceConfig("synth:9", duration_s=31.0)


def test_the_built_in_corpus_is_named_and_true(tmp_path: Path) -> None:
    clips = read_source(SourceConfig("synth:3@40"))
    assert [clip.key for clip in clips] == ["synth:1@40", "synth:1@41", "synth:1@42"]
    assert read_source(SourceConfig(clips[2].key)) == [clips[2]]
    item = AudioDataset(clips, 16000, segment_s=5.0).item(1, 0, 0)
    assert torch.equal(item.data, synth.render(0, 41, 16000, 5.0).audio)
    assert item.caption in synth.captions(0, 41)
    longer = AudioDataset(clips, 16000, segment_s=7.0)
    assert longer.item(1, 0, 0).length == 7 * 16000
    assert tuple(longer.captions(1)) == synth.captions(
        0, 41, 7.0
    )  # of the clip of that length, not of another


def test_clips_of_the_built_in_corpus_are_chosen_by_what_they_hold() -> None:
    some = {"kind": ("rain", "dog bark"), "form": "order"}
    clips = read_source(SourceConfig("synth:4000@100", where=some))
    for clip in clips:
        events = synth.render(0, int(clip.key.partition("@")[2]), 16000, 5.0).events
        assert {event.kind for event in events} == {"rain", "dog bark"} and len(events) == 2
    alone = read_source(SourceConfig("synth:200", where={"form": ["one", "emphasis"]}))
    assert [len(synth.render(0, number, 8000).events) == 1 for number in range(20)] == [
        f"synth:1@{number}" in {clip.key for clip in alone} for number in range(20)
    ]
    for where, reason in [
        ({"kind": "violin"}, "where.kind: no 'violin'; there are .*rain"),
        ({"label": "rain"}, "where.label: clips of the built-in corpus have kind and form"),
        ({"kind": "rain", "form": "order"}, "no clip fulfils all of"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_source(SourceConfig("synth:500", where=where))


# -------------------------------------------------------------------------------------------------- sources and splits


def test_sources_may_be_spelled_in_several_ways() -> None:
    full = SourceConfig("a.jsonl", 2, {"fold": (1, 2)})
    assert parse_sources("a.jsonl") == (SourceConfig("a.jsonl"),)
    assert parse_sources(["a", {"source": "a.jsonl", "repeat": 2, "where": {"fold": [1, 2]}}]) == (
        SourceConfig("a"),
        full,
    )
    assert parse_sources(full) == parse_sources((full,)) == (full,)
    assert SourceConfig("a", where={"fold": 4}).where == {"fold": (4,)}
    assert parse_sources(None) == parse_sources([]) == ()
    assert DataConfig(train="synth:9").train == (SourceConfig("synth:9"),)
    for value, reason in [
        ({"sauce": "a"}, "unknown key source.sauce; did you mean 'source'"),
        (3, "source 3"),
    ]:
        with pytest.raises(InputError, match=reason):
            parse_sources(value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train": ()}, "train: names no source"),
        ({"segment_s": 0.0}, "segment_s is 0.0; it must be above 0"),
        ({"segment_s": float("nan")}, "segment_s is nan"),
        ({"mix_probability": 1.5}, "mix_probability is 1.5"),
        ({"mix_snr_db": (5.0, -5.0)}, r"mix_snr_db: \[5.0, -5.0\]"),
        ({"gain_db": (1.0, 0.0)}, "gain_db"),
        ({"speed": (0.0, 1.0)}, "speed"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"cache_mb": -1}, "cache_mb is -1"),
    ],
)
def test_config_mistakes_name_their_key(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        DataConfig(**({"train": "synth:9"} | change))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="repeat is 0; it must be at least 1"):
        SourceConfig("x", repeat=0)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_text("")
    (tmp_path / "notes.txt").write_text("")
    for source, reason in [
        (str(tmp_path / "gone"), "no such manifest or folder"),
        (str(tmp_path / "gone.jsonl"), "no such manifest"),
        (str(tmp_path / "notes.txt"), "a manifest ends in .jsonl or .csv"),
        (str(tmp_path / "bad"), "none of its 1 sounds can be read"),
        ("synth:0", "expected synth:COUNT or .*, COUNT above 0"),
        ("synth:many", "expected synth:COUNT or synth:COUNT@START"),
        ("synth", "expected synth:COUNT"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_source(SourceConfig(source))


def test_a_folder_is_read_by_its_manifest_or_else_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ramp(tmp_path / "rain" / "1.flac", 100)
    (tmp_path / "rain" / "2.wav").write_text("")
    [clip] = read_source(SourceConfig(str(tmp_path)))
    assert clip.captions == ("rain",)
    assert f"left out: {tmp_path}/rain/2.wav: the file is empty" in caplog.text
    write_manifest(tmp_path / "manifest.jsonl", [Clip(clip.path, ("Rain falls",))])
    [clip] = read_source(SourceConfig(str(tmp_path)))
    assert clip.captions == ("Rain falls",)


def test_training_and_validation_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clips = [
        Clip(str(ramp(tmp_path / f"{i}.flac", 100)), ("x",), fields={"fold": i % 4, "source": f"s{i // 2}"})
        for i in range(40)
    ]
    manifest = str(write_manifest(tmp_path / "m.jsonl", clips))
    train, valid = open_data(
        DataConfig((SourceConfig(manifest, repeat=3),), segment_s=0.01, holdout=0.2), RATE
    )
    assert valid is not None and len(valid) == 8 and len(train) == 3 * 32
    seen = {clip.fields["source"] for clip in train.clips}
    assert not seen & {clip.fields["source"] for clip in valid.clips}
    train, valid = open_data(
        DataConfig(
            train=(SourceConfig(manifest, where={"fold": (0, 1)}), SourceConfig("synth:5")),
            valid=(SourceConfig(manifest, where={"fold": (3,)}),),
            mix_probability=0.5,
            gain_db=(-3, 3),
        ),
        RATE,
    )
    assert len(train) == 25 and train.vary.mix_probability == 0.5
    assert valid is not None and len(valid) == 10 and valid.vary == Variation()
    assert open_data(DataConfig("synth:9", holdout=0.0), RATE).valid is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"{manifest}: where.fold: no clip has the value '9'"):
        open_data(DataConfig((SourceConfig(manifest, where={"fold": (9,)}),)), RATE)
