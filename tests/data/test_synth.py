"""The built-in corpus: determinism, ranges, and captions that are true of the audio, measured on the audio."""

import re

import numpy as np
import pytest
import torch

from audiogen.data import synth
from audiogen.data.synth.captions import write
from audiogen.data.synth.corpus import _track
from audiogen.data.synth.scene import SHARES, Scene, _place, compose
from audiogen.data.synth.signals import Synth, at_speed
from audiogen.errors import InputError

RATE = 16000
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
TIMES = {"once": 1, "twice": 2, "three times": 3, "four times": 4, "five times": 5}
LOUD = {"loud": "loud", "loudly": "loud"} | dict.fromkeys(
    ("quiet", "quietly", "soft", "softly", "faint", "faintly"), "quiet"
)
PACE = {"slow": "slow", "slowly": "slow"} | dict.fromkeys(
    ("quick", "quickly", "rapid", "rapidly", "fast"), "fast"
)


def event_of(name, draw=0, duration_s=4.0, **wanted):
    """An event of a kind, drawn until its attributes are the wanted ones."""
    rng = np.random.default_rng(draw)
    for _ in range(400):
        event = _place(rng, synth.KINDS[name], 0.0, duration_s, wanted.get("loudness"))
        if all(getattr(event, key) == value for key, value in wanted.items()):
            return event
    raise AssertionError(f"no {name} with {wanted}")


def sound_of(event, draw=0, duration_s=4.0):
    """The event alone, dry, in its place in a clip [N]."""
    track = _track(event, np.random.default_rng(1000 + draw), RATE, duration_s)
    audio = np.zeros(round(duration_s * RATE))
    at = round(event.start_s * RATE)
    track = track[: len(audio) - at]
    audio[at : at + len(track)] = track
    return audio


def envelope(audio, block_s=0.01):
    """RMS of blocks [N / block]."""
    block = round(block_s * RATE)
    return np.sqrt(np.mean(audio[: len(audio) // block * block].reshape(-1, block) ** 2, axis=1))


def onsets(audio):
    """Peaks of the spectral flux above 0.3 of the highest, at least 0.15 s apart, in s."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 512), 512)[::160]
    level = np.sqrt(np.abs(np.fft.rfft(frames * np.hanning(512), axis=1)))
    power = np.mean(frames**2, axis=1) + 1e-9
    flux = np.maximum(level[3:] - level[:-3], 0).sum(1)
    found: list[int] = []
    for i in np.argsort(-flux):
        if (
            flux[i] > 0.3 * flux.max()
            and power[i + 3] > 2 * power[max(0, i - 3)]
            and all(abs(i - j) > 15 for j in found)
        ):
            found.append(i)
    return np.sort(found) * 0.01 - 0.01


def spectrum(audio):
    power = np.abs(np.fft.rfft(audio)) ** 2
    return np.fft.rfftfreq(len(audio), 1 / RATE), power


def centroid(audio):
    hz, power = spectrum(audio)
    return float((hz * power).sum() / power.sum())


# ---- a pure function


def test_a_clip_is_a_function_of_seed_and_index():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    for index in range(8):
        first, again = synth.render(3, index), synth.render(3, index)
        assert torch.equal(first.audio, again.audio)
        assert first.captions == again.captions == synth.captions(3, index)
        assert first.events == again.events
    assert (np.random.get_state()[1] == state).all()
    assert not torch.equal(synth.render(3, 0).audio, synth.render(4, 0).audio)
    assert not torch.equal(synth.render(3, 0).audio, synth.render(3, 1).audio)


@pytest.mark.parametrize(
    ("sample_rate", "duration_s"), [(8000, 0.5), (11025, 1.3), (48000, 2.0), (8000, 30.0)]
)
def test_any_rate_and_duration(sample_rate, duration_s):
    for index in range(12):
        clip = synth.render(5, index, sample_rate, duration_s)
        assert clip.audio.shape == (1, round(sample_rate * duration_s))
        assert clip.audio.dtype == torch.float32
        assert torch.isfinite(clip.audio).all()
        assert 5e-3 < clip.audio.abs().max() <= 1
        assert clip.captions == synth.captions(5, index, duration_s)
        for event in clip.events:
            assert 0 <= event.start_s < event.end_s <= duration_s + 1e-6


def test_the_scene_does_not_depend_on_the_sample_rate():
    for index in range(10):
        low, high = (synth.render(2, index, rate, 3.0) for rate in (8000, 48000))
        assert low.captions == high.captions
        assert [(e.kind, e.onsets_s, e.count) for e in low.events] == [
            (e.kind, e.onsets_s, e.count) for e in high.events
        ]


@pytest.mark.parametrize("duration_s", [0, -1, 0.1, 31, float("nan"), float("inf")])
def test_refuses_a_duration_it_cannot_render(duration_s):
    with pytest.raises(InputError, match="0.5 to 30"):
        synth.captions(0, 0, duration_s)


def test_refuses_a_sample_rate_it_cannot_render():
    with pytest.raises(InputError, match="8000 to 48000"):
        synth.render(0, 0, 4000)


def test_the_mix_of_scenes_and_kinds():
    scenes = [compose(1, index, 5.0) for index in range(1500)]
    for form, share in SHARES.items():
        assert sum(s.form == form for s in scenes) / len(scenes) == pytest.approx(share, abs=0.05)
    assert {event.kind for scene in scenes for event in scene.events} == set(synth.KINDS)
    assert len(synth.KINDS) >= 36


# ---- every kind


@pytest.mark.parametrize("rate", [8000, RATE, 48000])
def test_every_kind_renders_at_every_rate(rate):
    for name, kind in synth.KINDS.items():
        pitch = kind.pitch_hz[1] if kind.pitch_hz else 0.0
        n = round(kind.length_s[0] * rate)
        sound = kind.render(Synth(np.random.default_rng(0), n, rate, pitch))
        assert sound.shape == (n,), name
        assert np.isfinite(sound).all() and np.abs(sound).max() > 1e-4, name


def fingerprint(audio):
    """Log energies of 32 log-spaced bands and of 8 rates of change: colour and rhythm."""
    hz, power = spectrum(audio)
    edges = np.geomspace(40, 8000, 33)
    colour = [power[(hz >= a) & (hz < b)].sum() for a, b in zip(edges, edges[1:], strict=False)]
    beat = np.abs(np.fft.rfft(np.sqrt(envelope(audio)))[1:])  # rates of 0.25 .. 50 Hz
    rhythm = [part.mean() for part in np.split(beat[:192], [2, 4, 8, 16, 32, 64, 128])]
    colour = np.log(np.array(colour) / np.sum(colour) + 1e-5)
    return np.concatenate([colour, 3 * np.log(np.array(rhythm) / np.sum(rhythm) + 1e-3)])


def test_kinds_can_be_told_apart():
    names = list(synth.KINDS)
    prints, labels = [], []
    for draw in range(3):
        for name in names:
            prints.append(fingerprint(sound_of(event_of(name, draw), draw)))
            labels.append(name)
    references = np.array(prints)
    hits = 0
    for draw in range(10, 11):
        for name in names:
            guess = np.abs(references - fingerprint(sound_of(event_of(name, draw), draw))).sum(1).argmin()
            hits += labels[guess] == name
    assert hits / len(names) > 0.6  # nearest neighbour of 52 kinds; chance is 0.02


# ---- captions say what the events are


def words_of(caption):
    return re.findall(r"[a-z-]+", caption.lower())


def test_captions_speak_only_of_attributes_that_are_true():
    spoken = set()
    for index in range(400):
        scene = compose(7, index, 5.0)
        for caption in synth.captions(7, index):
            text, words = caption.lower(), words_of(caption)
            counts = {e.count for e in scene.events}
            for word in words:
                if word in LOUD:
                    assert LOUD[word] in {e.loudness for e in scene.events}, caption
                    spoken.add(LOUD[word])
                if word in PACE:
                    assert PACE[word] in {e.pace for e in scene.events}, caption
                    spoken.add(PACE[word])
                if word in ("high", "high-pitched", "high-voiced", "small"):
                    assert "high" in {e.pitch for e in scene.events}, caption
                    spoken.add("high")
                if word in ("low", "low-pitched", "low-voiced", "deep", "deep-voiced", "big", "large"):
                    assert "low" in {e.pitch for e in scene.events}, caption
                    spoken.add("low")
                if word in NUMBERS and f"{word} notes" not in text.replace("between two notes", "") + "":
                    assert NUMBERS[word] in counts or "between two notes" in text, caption
                    spoken.add(NUMBERS[word])
            for times, count in TIMES.items():
                if re.search(rf"\b{times}\b", text):
                    assert count in counts, caption
                    spoken.add(times)
    assert spoken >= {"loud", "quiet", "slow", "fast", "high", "low", 2, 3, 4, 5, *TIMES}


STEMS = {
    "rain": r"\brain",
    "wind": r"\bwind",
    "thunder": "thunder",
    "dog bark": r"\bdog",
    "rooster crow": "rooster|cock",
    "baby cry": "baby",
    "engine": "engine|motor",
    "helicopter": "helicopter",
    "siren": "siren",
    "bell": r"\bbell",
    "clock tick": r"\bclock tick|ticks of a clock|clock is ticking|ticking",
    "drum": "drum",
    "door slam": "slam",
    "laser": "laser",
    "telephone": "phone",
    "crickets": "cricket",
    "knock": "knock|raps",
    "typing": "typ|keyboard",
    "rising tone": r"ris\w+|sweeps up|going up",
    "falling tone": r"tone falls|falling tone|sweeps down|going down",
}


def pair(first, second, form="order", draw=0):
    duration_s = 5.0
    rng = np.random.default_rng(draw)
    early = _place(rng, synth.KINDS[first], 0.0, 2.4, None)
    late = _place(rng, synth.KINDS[second], 2.6, duration_s, None)
    return Scene(form, (early, late))


def test_captions_give_the_order_of_the_events():
    wordings = set()
    names = [n for n in STEMS if n != "thunder"]
    for draw, first in enumerate(names):
        second = names[(draw * 7 + 3) % len(names)]
        if second == first:
            continue
        for caption in write(pair(first, second, draw=draw), np.random.default_rng(draw), most=9):
            text = caption.lower()
            where = [re.search(STEMS[name], text) for name in (first, second)]
            assert all(where), (first, second, caption)
            backwards = " after " in text
            assert (where[0].start() < where[1].start()) != backwards, (first, second, caption)
            wordings.update(re.findall(r"followed by|before|and then|, then|first|after", text))
    assert wordings == {"followed by", "before", "and then", ", then", "first", "after"}


def test_captions_of_an_overlap_name_both_and_claim_no_order():
    for draw in range(20):
        scene = pair("rain", "dog bark", "overlap", draw)
        for caption in write(scene, np.random.default_rng(draw)):
            text = caption.lower()
            assert re.search("rain", text) and re.search("dog", text), caption
            assert not re.search("then|follow|before|after", text), caption
            if "background" in text:
                assert text.index("dog") < text.index("rain"), caption


def test_every_clip_has_paraphrases():
    counts = [len(synth.captions(9, index)) for index in range(200)]
    assert min(counts) >= 2 and np.mean(counts) > 4.5
    for index in range(50):
        wordings = synth.captions(9, index)
        assert len(set(wordings)) == len(wordings)
        for caption in wordings:
            assert caption[0].isupper() and "{" not in caption and "  " not in caption, caption
            assert not re.search(r"\ba [aeio]", caption.lower()) and not caption.endswith(" "), caption


def test_emphasised_clips_always_say_an_attribute():
    said = "|".join([*LOUD, *PACE, *TIMES, *NUMBERS, "low", "high", "deep", "big", "small", "large"])
    scenes = [(i, s) for i in range(300) if (s := compose(12, i, 5.0)).form == "emphasis"]
    assert len(scenes) > 15
    for index, _ in scenes:
        for caption in synth.captions(12, index):
            assert re.search(said, caption.lower()), caption


# ---- the audio is what the events and captions say


def test_sound_is_where_the_events_are():
    for index in range(30):
        clip = synth.render(21, index)
        audio = clip.audio[0].numpy()
        inside = np.zeros(len(audio), dtype=bool)
        for event in clip.events:
            inside[int(event.start_s * RATE) : int((event.end_s + 0.6) * RATE)] = True  # 0.6 s for the room
            part = audio[int(event.start_s * RATE) : int(event.end_s * RATE)]
            assert np.abs(part).max() > 0.02, (index, event.kind)
        if (~inside).sum() > RATE // 10:
            assert np.sqrt(np.mean(audio[~inside] ** 2)) < 0.1 * np.sqrt(np.mean(audio[inside] ** 2)), index


@pytest.mark.parametrize(
    "name", ["knock", "click", "drum", "door slam", "alarm", "laser", "dog bark", "bell"]
)
def test_the_count_can_be_counted(name):
    for count in (2, 3) if name == "door slam" else (2, 3, 5):
        for draw in range(3):
            event = event_of(name, draw, count=count)
            found = onsets(sound_of(event, draw))
            assert len(found) == count, (name, count, draw, found, event.onsets_s)
            assert np.abs(found - event.onsets_s).max() < 0.06


def test_the_first_in_the_caption_is_heard_first():
    low, high = ["thunder", "hum", "drum", "helicopter"], ["hi-hat", "crickets", "static", "bird chirp"]
    for draw, (dull, bright) in enumerate(zip(low, high, strict=True)):
        for first, second in ((dull, bright), (bright, dull)):
            scene = pair(first, second, draw=draw)
            audio = sum(sound_of(e, draw, 5.0) for e in scene.events)
            early, late = centroid(audio[: int(2.5 * RATE)]), centroid(audio[int(2.5 * RATE) :])
            assert (early < 0.7 * late) if first == dull else (late < 0.7 * early), (first, second)


@pytest.mark.parametrize("name", ["tone", "owl hoot", "alarm", "xylophone"])
def test_the_pitch_is_the_pitch(name):
    for draw in range(4):
        event = event_of(name, draw)
        hz, power = spectrum(sound_of(event, draw))
        assert hz[power.argmax()] == pytest.approx(event.pitch_hz, rel=0.08), draw


def test_high_is_higher_than_low_for_every_pitched_kind():
    for name, kind in synth.KINDS.items():
        if kind.pitch_hz:
            low, high = (
                np.mean([centroid(sound_of(event_of(name, d, pitch=p), d)) for d in range(4)])
                for p in ("low", "high")
            )
            assert high > 1.08 * low, (name, low, high)


def test_loud_is_louder_than_plain_and_plain_than_quiet():
    for name in ("rain", "bell", "click", "speech"):
        quiet, plain, loud = (
            max(np.abs(sound_of(event_of(name, d, loudness=word), d)).max() for d in range(4))
            for word in ("quiet", None, "loud")
        )
        assert 2.3 * quiet < plain < loud <= 1, name


def test_slow_is_slower_than_fast():
    for name, kind in synth.KINDS.items():
        if kind.paced:
            slow, fast = (
                np.diff(event_of(name, 1, duration_s=8.0, pace=p).onsets_s).mean() for p in ("slow", "fast")
            )
            assert slow > 1.25 * fast, name
    slow, fast = (
        np.diff(onsets(sound_of(event_of("clock tick", 1, pace=p), 1))).mean() for p in ("slow", "fast")
    )
    assert slow > 1.5 * fast


def test_an_overlap_has_its_backdrop_before_and_under_the_foreground():
    found = 0
    for index in range(130):
        scene = compose(4, index, 5.0)
        if scene.form != "overlap":
            continue
        found += 1
        under, over = scene.events
        assert synth.KINDS[under.kind].backdrop
        assert under.start_s == 0 and under.end_s == pytest.approx(5.0) and over.start_s > 0.2
        level = envelope(synth.render(4, index).audio[0].numpy(), 0.05)
        start, end = int(over.start_s / 0.05), int(np.ceil(over.end_s / 0.05))
        assert level[:start].max() > 1e-3, (index, under.kind)
        assert level[start : end + 1].max() > 1.15 * np.median(level[:start]), (index, over.kind, under.kind)
    assert found > 10


# ---- signals


def synth_of(num_samples):
    return Synth(np.random.default_rng(0), num_samples, RATE)


def test_harmonic_has_the_given_amplitudes_and_leaves_out_what_would_alias():
    audio = synth_of(RATE).harmonic(1000.0, [1.0, 0.5, 0.25, 0, 0, 0, 0, 1.0, 1.0])
    hz, power = spectrum(audio)
    amplitude = np.sqrt(power) / (RATE / 2)
    for order, expected in ((1, 1.0), (2, 0.5), (3, 0.25), (7, 0.0)):
        assert amplitude[hz == 1000 * order][0] == pytest.approx(expected, abs=2e-3)


def test_noise_follows_its_curve():
    audio = synth_of(8 * RATE).noise([(100, 0), (1000, 0), (4000, -20), (8000, -20)])
    hz, power = spectrum(audio)
    low, high = power[(hz > 200) & (hz < 900)].mean(), power[(hz > 4500) & (hz < 7500)].mean()
    assert 10 * np.log10(low / high) == pytest.approx(20, abs=0.5)
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(1, abs=1e-3)


def test_at_speed_shifts_the_pitch():
    audio = at_speed(synth_of(RATE).sine(500.0), 1.1)
    assert len(audio) == RATE
    hz, power = spectrum(audio)
    assert hz[power.argmax()] == pytest.approx(550, abs=1)
    assert np.abs(audio[int(RATE / 1.1) + 3 :]).max() == 0
    assert np.allclose(at_speed(audio, 1.0), audio, atol=1e-6)


def test_a_room_adds_a_tail_and_keeps_the_direct_sound():
    dry = np.zeros(RATE, dtype=np.float32)
    dry[100] = 1
    wet = synth_of(RATE).room(dry, decay_s=0.3, wet_db=-10)
    assert np.abs(wet[:100]).max() < 1e-5
    assert 10 * np.log10(np.sum((wet - dry) ** 2)) == pytest.approx(-10, abs=0.1)
    assert np.abs(wet[100 + int(0.32 * RATE) :]).max() < 1e-5
