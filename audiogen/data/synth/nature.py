"""Sounds of weather, animals and people.

Each renders one strike, or one texture, [N].
"""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import Signal, Synth, band

# ---- Weather, water and fire.


def wind(s: Synth) -> Signal:
    """Low rumble and a narrow whistle that rises faster than the gusts that carry it."""
    gusts = 0.55 + 0.45 * s.wander(0.7)
    body = s.noise([(20, -12), (120, 0), (400, -8), (1500, -30), (8000, -55)])
    whistle = s.noise(band(s.uniform(350, 600), s.uniform(620, 900), 36))
    return body * gusts + 0.7 * whistle * gusts**3


def rain(s: Synth) -> Signal:
    """Steady bright hiss with single drops on top."""
    tilt = s.uniform(-4, 4)
    hiss = s.noise([(50, -25), (400, -8), (2000, 0), (6000, tilt), (20000, tilt - 8)])
    drops = s.resonate(s.scatter(s.uniform(60, 300), 25), s.uniform(1500, 3200), 900)
    return hiss * (1 + 0.1 * s.wander(2)) + drops * s.uniform(10, 40)


def sea_waves(s: Synth) -> Signal:
    """Swells of deep noise, each followed by its brighter foam."""
    period = s.uniform(2.2, 4.5)
    cycle = s.phase(1 / period) + s.uniform(0, 1) + 0.12 * s.wander(0.5)
    turn = (2 * np.pi * cycle).astype(np.float32)
    swell = np.exp(2.2 * np.cos(turn) - 2.2)
    foam = np.exp(2.2 * np.cos(turn - np.float32(0.6)) - 2.2)
    deep = s.noise([(30, -10), (150, 0), (600, -6), (3000, -30)])
    crest = s.noise([(200, -30), (1500, -3), (4000, 0), (12000, -12)])
    return deep * (0.25 + swell) + 0.8 * crest * (0.08 + foam)


def thunder(s: Synth) -> Signal:
    """A crack, then a rumble that rolls and dies away."""
    rumble = s.noise([(15, -8), (50, 0), (120, -6), (400, -24), (2000, -48)])
    crack = s.noise([(40, -6), (200, 0), (1500, -10), (6000, -25)])
    rolling = np.clip(0.6 + 0.6 * s.wander(3.0), 0.1, None)
    fall = s.line((0, 0), (0.04, 1), (0.3, 0.7), (1, 0))
    return rumble * rolling * fall + 0.6 * crack * s.decay(s.uniform(0.12, 0.35), 0.02)


def water_drop(s: Synth) -> Signal:
    """A short sine gliding up, the ring of a closing bubble."""
    start = s.uniform(700, 1300)
    glide = start * (1 + s.uniform(0.6, 1.2) * s.line((0, 0), (0.4, 1), (1, 1.2)))
    return s.sine(glide) * s.decay(s.uniform(0.02, 0.035), 0.004)


def bubbles(s: Synth) -> Signal:
    """Many small rising glides, scattered in time."""
    out = np.zeros(s.n, dtype=np.float32)
    for _ in range(max(4, s.rng.poisson(s.uniform(9, 18) * s.n / s.rate))):
        m = min(s.n, int(s.uniform(0.04, 0.12) * s.rate))
        short = s.part(m)
        hz = s.uniform(250, 1100) * short.line((0, 1), (1, s.uniform(1.3, 2.2)))
        at = s.rng.integers(0, max(1, s.n - m))
        out[at : at + m] += short.sine(hz) * short.decay(m / s.rate / 4, 0.004) * s.uniform(0.2, 1)
    return out


def crackling_fire(s: Synth) -> Signal:
    """Snaps and pops of all sizes over a faint low roar."""
    roar = s.noise([(30, -6), (120, 0), (500, -14), (4000, -34)])
    roar *= 0.035 * (1 + 0.4 * s.wander(3))
    snaps = s.scatter(s.uniform(12, 30), 26)
    pops = s.resonate(s.scatter(s.uniform(2, 5), 10), s.uniform(700, 1500), 500)
    bright = s.resonate(snaps, s.uniform(2500, 3400), 2200)
    return roar + 3.0 * bright + 12 * pops


# ---- Animals, most of them a pitched source through moving resonances.


def bird_chirp(s: Synth) -> Signal:
    """A fast glide through four pitches with a trill."""
    shape = s.rng.permutation([0.85, 1.0, 1.2, 0.95])
    glide = s.pitch * s.line(*zip((0, 0.3, 0.7, 1), shape, strict=True))
    glide = glide * (1 + 0.05 * s.sine(s.uniform(20, 45)))
    return s.fade(s.harmonic(glide, [1, 0.12, 0.04]) * s.line((0, 0), (0.25, 1), (0.7, 0.8), (1, 0)))


def crickets(s: Synth) -> Signal:
    """One high pitch, cut into pulses and these into chirps."""
    hz = s.uniform(2700, 4600)
    chirps = s.phase(s.uniform(1.6, 3.2)) + s.uniform(0, 1)
    pulses = s.phase(s.uniform(26, 40)) % 1.0
    gate = (chirps % 1.0 < s.uniform(0.4, 0.55)).astype(np.float32)
    gate = s.lowpass(gate * np.sin(np.pi * pulses).astype(np.float32) ** 2, 120)
    return s.harmonic(hz, [1, 0.08]) * gate + 0.01 * s.noise(band(2000, 6000))


def dog_bark(s: Synth) -> Signal:
    """A rough voiced burst whose pitch jumps up and falls, with breath."""
    glide = s.pitch * s.line((0, 0.7), (0.2, 1.1), (0.5, 1.0), (1, 0.6))
    glide = glide * (1 + 0.04 * s.wander(90))
    size = (s.pitch / 450) ** 0.7
    formants = [(650 * size, 300), (1300 * size, 350), (2500 * size, 700)]
    voice = s.voice(glide, s.pitch, formants, 0.7)
    breath = s.noise([(100, -30), (500, -3), (1100, 0), (2500, -10), (8000, -30)])
    loud = s.line((0, 0), (0.08, 1), (0.45, 0.8), (1, 0))
    return voice / (np.abs(voice).max() + 1e-6) * loud + 0.22 * breath * loud**2


def cat_meow(s: Synth) -> Signal:
    """A voice that opens from a closed to an open vowel and closes again."""
    glide = s.pitch * s.line((0, 0.8), (0.3, 1.1), (0.7, 1.0), (1, 0.75))
    glide = glide * (1 + 0.015 * s.sine(s.uniform(5, 8)))
    size = (s.pitch / 650) ** 0.7
    closed = s.voice(glide, s.pitch, [(700 * size, 300), (2200 * size, 500)], 1.2)
    opened = s.voice(glide, s.pitch, [(1100 * size, 400), (1800 * size, 400), (3200 * size, 700)], 0.5)
    opening = s.line((0, 0), (0.35, 1), (0.6, 0.8), (1, 0.1))
    return (closed * (1 - opening) + opened * opening) * s.line((0, 0), (0.15, 1), (0.6, 0.8), (1, 0))


def rooster_crow(s: Synth) -> Signal:
    """Three short syllables and one long, hoarse and bright."""
    top = s.uniform(650, 900)
    glide = top * s.line(
        (0, 0.7), (0.1, 0.8), (0.14, 0.75), (0.24, 0.9), (0.3, 0.85), (0.4, 1.05), (0.8, 1), (1, 0.6)
    )
    glide = glide * (1 + 0.02 * s.wander(40))
    loud = s.line(
        (0, 0), (0.04, 0.7), (0.1, 0.1), (0.14, 0.8), (0.24, 0.1), (0.28, 0.8), (0.4, 1), (0.8, 0.8), (1, 0)
    )
    voice = s.voice(glide, top, [(1000, 500), (1900, 600), (3200, 900)], 0.3)
    return voice * loud + 0.05 * np.abs(voice).max() * s.noise(band(800, 5000)) * loud


def owl_hoot(s: Synth) -> Signal:
    """A soft, almost pure tone with a slight arch."""
    glide = s.pitch * s.line((0, 0.93), (0.3, 1.0), (1, 0.92)) * (1 + 0.01 * s.sine(6.0))
    body = s.harmonic(glide, [1, 0.1, 0.05]) * s.line((0, 0), (0.25, 1), (0.7, 0.9), (1, 0))
    return body + 0.01 * s.noise(band(300, 900)) * s.line((0, 0), (0.3, 1), (1, 0))


def frog_croak(s: Synth) -> Signal:
    """A slow pulse train through two resonances."""
    pulses = s.pulse_train(s.uniform(35, 60))
    body = s.resonate(pulses, s.uniform(450, 700), 120) + s.resonate(pulses, s.uniform(1300, 1900), 250)
    return body * s.line((0, 0), (0.2, 0.8), (0.8, 1), (1, 0))


def buzzing_bee(s: Synth) -> Signal:
    """Wing beats rich in harmonics, wandering in pitch and distance."""
    hz = s.uniform(170, 260) * (1 + 0.06 * s.wander(4))
    wings = s.harmonic(hz, 1 / np.arange(1, 25) ** 0.8)
    return wings * (0.55 + 0.45 * s.wander(1.5)) + 0.02 * s.noise(band(300, 4000))


# ---- People: voices, hands, feet and hearts.


def speech(s: Synth) -> Signal:
    """Syllables gliding between vowels, with hisses and pauses: the sound of a voice, without words."""
    out = np.zeros(s.n, dtype=np.float32)
    size = (s.pitch / 140) ** 0.25
    vowels = [(730, 1090), (270, 2290), (530, 1840), (570, 840), (300, 870), (660, 1720)]
    at = 0
    while at < s.n:
        m = min(int(s.uniform(0.12, 0.28) * s.rate), s.n - at)
        if m < 32:
            break
        syllable = s.part(m)
        hz = s.pitch * s.uniform(0.85, 1.2) * syllable.line((0, 1.04), (1, s.uniform(0.85, 1.08)))
        hz = hz * (1 + 0.01 * syllable.wander(40))
        voices = []
        for first, second in s.rng.permutation(vowels)[:2]:
            formants = [(first * size, 90), (second * size, 130), (2700 * size, 250), (3500 * size, 350)]
            voices.append(syllable.voice(hz, s.pitch, formants, 0.9))
        voice = voices[0] + (voices[1] - voices[0]) * syllable.line((0, 0), (0.3, 0), (0.8, 1), (1, 1))
        out[at : at + m] = voice * syllable.line((0, 0), (0.2, 1), (0.7, 0.8), (1, 0.05)) * s.uniform(0.5, 1)
        if s.rng.random() < 0.35:
            k = min(m, int(0.07 * s.rate))
            out[at : at + k] += 0.12 * s.fade(s.part(k).noise(band(2800, 6500)), 0.02)
        at += m + (int(s.uniform(0.15, 0.35) * s.rate) if s.rng.random() < 0.18 else 0)
    return out


def baby_cry(s: Synth) -> Signal:
    """A long arched wail, bright and trembling."""
    top = s.uniform(400, 560)
    glide = top * s.line((0, 0.75), (0.2, 1.0), (0.6, 1.03), (1, 0.7)) * (1 + 0.02 * s.wander(25))
    voice = s.voice(glide, top, [(1100, 400), (1700, 500), (3300, 800)], 0.4)
    return voice * s.line((0, 0), (0.15, 1), (0.7, 0.9), (1, 0)) * (1 + 0.2 * s.wander(20))


def sneeze(s: Synth) -> Signal:
    """An indrawn breath, then a burst of noise over a short voice."""
    inhale = s.noise(band(700, 2500)) * s.line((0, 0), (0.3, 0.12), (0.4, 0), (1, 0))
    burst = s.noise([(100, -20), (900, -4), (2500, 0), (6000, -4), (16000, -14)])
    burst = burst * s.line((0, 0), (0.44, 0), (0.48, 1), (0.6, 0.5), (1, 0))
    start = s.uniform(220, 380)
    hz = start * s.line((0, 1.2), (0.5, 1.2), (1, 0.7))
    voice = s.voice(hz, start, [(700, 200), (1600, 300)], 0.8)
    return inhale + burst + 0.6 * voice * s.line((0, 0), (0.42, 0), (0.5, 1), (0.8, 0.4), (1, 0))


def whistle(s: Synth) -> Signal:
    """A breathy, almost pure melody."""
    notes = max(1, round(s.n / s.rate / s.uniform(0.28, 0.5)))
    steps = 2 ** (s.rng.choice([-5, -3, 0, 2, 4, 5], notes) / 12)
    index = np.minimum(np.arange(s.n) * notes // s.n, notes - 1)
    hz = s.lowpass((s.pitch * steps[index]).astype(np.float32) - s.pitch, 12) + s.pitch
    hz = hz * (1 + 0.008 * s.sine(5.5))
    place = (np.arange(s.n) * (notes / s.n)) % 1.0
    loud = np.minimum(1, np.minimum(place, 1 - place) * 8).astype(np.float32)
    return s.harmonic(hz, [1, 0.04]) * loud + 0.012 * s.noise(band(1000, 5000)) * loud


def clapping(s: Synth) -> Signal:
    """Hundreds of claps, each a short band of noise."""
    claps = s.scatter(s.uniform(60, 140), 18)
    claps = s.lowpass(np.abs(claps), 60) * s.noise(band(900, 2600, 12))
    return claps


def footstep(s: Synth) -> Signal:
    """A dull heel, then the scuff of the sole."""
    heel = s.noise([(40, -8), (130, 0), (500, -12), (3000, -30)]) * s.decay(0.025, 0.004)
    scuff = s.noise(band(1200, 5000, 12)) * s.line((0, 0), (0.3, 0.06), (0.5, 0.12), (1, 0))
    return heel + scuff + 0.2 * s.sine(s.uniform(70, 110)) * s.decay(0.03, 0.003)


def knock(s: Synth) -> Signal:
    """A knuckle on wood: short low partials and a touch of noise."""
    hz = s.uniform(110, 240)
    wood = s.partials([hz, hz * 2.3, hz * 3.9, hz * 6.1], [1, 0.6, 0.35, 0.2], [0.03, 0.02, 0.012, 0.008])
    return wood + 0.15 * s.noise(band(300, 3000, 12)) * s.decay(0.006)


def typing(s: Synth) -> Signal:
    """Uneven key strokes with pauses between words."""
    out = np.zeros(s.n, dtype=np.float32)
    m = min(s.n, int(0.05 * s.rate))
    stroke, at = s.part(m), 0.02 * s.rate
    while at < s.n - m:
        key = stroke.noise(band(s.uniform(700, 1500), 5500, 12)) * stroke.decay(0.006, 0.0005)
        out[int(at) : int(at) + m] += key * s.uniform(0.4, 1)
        at += s.uniform(0.08, 0.2) * s.rate * (3 if s.rng.random() < 0.1 else 1)
    return out


def heartbeat(s: Synth) -> Signal:
    """Two soft low thumps, the second weaker."""
    out = np.zeros(s.n, dtype=np.float32)
    hz = s.uniform(55, 80)
    for at, level in ((0.0, 1.0), (0.24, 0.7)):
        m = s.n - int(at * s.rate)
        if m > 0:
            short = s.part(m)
            beat = short.sine(hz * (1.1 if at else 1.0)) + 0.4 * short.sine(2 * hz)
            out[s.n - m :] += level * beat * short.decay(0.05, 0.012)
    return out
