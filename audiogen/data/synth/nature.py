"""Weather, fire, water, animals and people."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.kind import Registry
from audiogen.data.synth.signals import (
    Signal,
    band,
    decay,
    fade,
    harmonic,
    line,
    lowpass,
    noise,
    phase,
    pulse_train,
    resonate,
    scatter,
    sine,
    vowel,
    wander,
)

NATURE = Registry()
sound = NATURE.add


@sound(
    "wind",
    "{m}wind blows|{a}wind is howling",
    "{m}wind|{m}wind blowing",
    length_s=(1.5, 30),
    backdrop=True,
)
def wind(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    gusts = 0.55 + 0.45 * wander(rng, n, rate, 0.7)
    body = noise(rng, n, rate, [(20, -12), (120, 0), (400, -8), (1500, -30), (8000, -55)])
    whistle = noise(rng, n, rate, band(rng.uniform(350, 600), rng.uniform(620, 900), 36))
    return body * gusts + 0.7 * whistle * gusts**3


@sound(
    "rain",
    "{m}rain falls|{m}rain is falling|it rains",
    "{m}rain|falling {m}rain",
    length_s=(1, 30),
    backdrop=True,
)
def rain(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    tilt = rng.uniform(-4, 4)
    hiss = noise(rng, n, rate, [(50, -25), (400, -8), (2000, 0), (6000, tilt), (20000, tilt - 8)])
    drops = resonate(scatter(rng, n, rate, rng.uniform(60, 300), 25), rng.uniform(1500, 3200), 900, rate)
    return hiss * (1 + 0.1 * wander(rng, n, rate, 2)) + drops * rng.uniform(10, 40)


@sound(
    "sea waves",
    "{m}waves roll in|{m}waves wash ashore|the sea washes onto the beach",
    "{m}waves on a beach|{m}sea waves|{m}surf",
    length_s=(2.5, 30),
    backdrop=True,
)
def sea_waves(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    period = rng.uniform(2.2, 4.5)
    cycle = phase(1 / period, n, rate) + rng.uniform(0, 1) + 0.12 * wander(rng, n, rate, 0.5)
    swell = np.exp(2.2 * np.cos(2 * np.pi * cycle)).astype(np.float32) / 9
    foam = np.exp(2.2 * np.cos(2 * np.pi * (cycle - 0.1))).astype(np.float32) / 9
    deep = noise(rng, n, rate, [(30, -10), (150, 0), (600, -6), (3000, -30)])
    crest = noise(rng, n, rate, [(200, -30), (1500, -3), (4000, 0), (12000, -12)])
    return deep * (0.25 + swell) + 0.8 * crest * (0.08 + foam)


@sound(
    "crackling fire",
    "{a}fire crackles|{a}fire is crackling|{m}wood burns and crackles",
    "{a}crackling fire|{a}campfire",
    length_s=(1.2, 30),
    backdrop=True,
)
def crackling_fire(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    roar = noise(rng, n, rate, [(30, -6), (120, 0), (500, -14), (4000, -34)])
    roar *= 0.035 * (1 + 0.4 * wander(rng, n, rate, 3))
    snaps = scatter(rng, n, rate, rng.uniform(12, 30), 26)
    pops = resonate(scatter(rng, n, rate, rng.uniform(2, 5), 10), rng.uniform(700, 1500), 500, rate)
    bright = resonate(snaps, rng.uniform(2500, 3400), 2200, rate)
    return roar + 3.0 * bright + 12 * pops


@sound(
    "thunder",
    "{m}thunder rumbles|{m}thunder rolls",
    "{m}thunder|{a}clap of thunder|rumbling thunder",
    length_s=(1.5, 6.0),
)
def thunder(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    rumble = noise(rng, n, rate, [(15, -8), (50, 0), (120, -6), (400, -24), (2000, -48)])
    crack = noise(rng, n, rate, [(40, -6), (200, 0), (1500, -10), (6000, -25)])
    rolling = np.clip(0.6 + 0.6 * wander(rng, n, rate, 3.0), 0.1, None)
    fall = line([(0, 0), (0.04, 1), (0.3, 0.7), (1, 0)], n)
    return rumble * rolling * fall + 0.6 * crack * decay(n, rate, rng.uniform(0.12, 0.35), 0.02)


@sound(
    "water drop",
    "{m}water drips|water is dripping",
    "{a}water drop|dripping water",
    "water drops|drips of water",
    once=True,
    length_s=(0.12, 0.2),
    interval_s=(0.35, 1.0),
    fills=True,
    vary=0.15,
)
def water_drop(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    start = rng.uniform(700, 1300)
    glide = start * (1 + rng.uniform(0.6, 1.2) * line([(0, 0), (0.4, 1), (1, 1.2)], n))
    return sine(glide, n, rate) * decay(n, rate, rng.uniform(0.02, 0.035), 0.004)


@sound(
    "bubbles",
    "{m}water bubbles|water is bubbling",
    "{m}bubbling water|bubbles in water",
    length_s=(0.8, 30),
)
def bubbles(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    out = np.zeros(n, dtype=np.float32)
    for _ in range(max(4, rng.poisson(rng.uniform(9, 18) * n / rate))):
        m = min(n, int(rng.uniform(0.04, 0.12) * rate))
        hz = rng.uniform(250, 1100) * line([(0, 1), (1, rng.uniform(1.3, 2.2))], m)
        at = rng.integers(0, max(1, n - m))
        out[at : at + m] += sine(hz, m, rate) * decay(m, rate, m / rate / 4, 0.004) * rng.uniform(0.2, 1)
    return out


@sound(
    "bird chirp",
    "{a}bird chirps{n}|{a}bird is chirping|{a}bird sings",
    "{a}chirping bird|birdsong",
    "bird chirps|chirps of a bird",
    once=True,
    length_s=(0.1, 0.22),
    interval_s=(0.25, 0.7),
    fills=True,
    pitch_hz=(2000, 3300),
    vary=0.05,
)
def bird_chirp(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    shape = rng.permutation([0.85, 1.0, 1.2, 0.95])
    glide = pitch * line(list(zip((0, 0.3, 0.7, 1), shape, strict=True)), n)
    glide = glide * (1 + 0.05 * sine(rng.uniform(20, 45), n, rate))
    return fade(
        harmonic(glide, [1, 0.12, 0.04], n, rate) * line([(0, 0), (0.25, 1), (0.7, 0.8), (1, 0)], n), rate
    )


@sound(
    "crickets",
    "crickets chirp|crickets are chirping|{a}cricket chirps",
    "chirping crickets|{a}chirping cricket|crickets at night",
    length_s=(1.0, 30),
    backdrop=True,
)
def crickets(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(2700, 4600)
    chirps = phase(rng.uniform(1.6, 3.2), n, rate) + rng.uniform(0, 1)
    pulses = phase(rng.uniform(26, 40), n, rate) % 1.0
    gate = (chirps % 1.0 < rng.uniform(0.4, 0.55)).astype(np.float32)
    gate = lowpass(gate * np.sin(np.pi * pulses).astype(np.float32) ** 2, 120, rate)
    return harmonic(hz, [1, 0.08], n, rate) * gate + 0.01 * noise(rng, n, rate, band(2000, 6000))


@sound(
    "dog bark",
    "{a}dog barks{n}|{a}dog is barking",
    "{a}barking dog|the barking of {a}dog",
    "dog barks|barks of a dog",
    once=True,
    length_s=(0.16, 0.3),
    interval_s=(0.38, 0.9),
    pitch_hz=(280, 750),
    low=("big", "deep-voiced"),
    high=("small", "high-voiced"),
    vary=0.06,
)
def dog_bark(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    glide = pitch * line([(0, 0.7), (0.2, 1.1), (0.5, 1.0), (1, 0.6)], n)
    glide = glide * (1 + 0.04 * wander(rng, n, rate, 90))
    size = (pitch / 450) ** 0.4
    formants = [(650 * size, 300), (1300 * size, 350), (2500 * size, 700)]
    voice = harmonic(glide, vowel(pitch, formants, 0.4), n, rate)
    breath = noise(rng, n, rate, [(100, -30), (600, -3), (1500, 0), (4000, -8), (12000, -30)])
    loud = line([(0, 0), (0.08, 1), (0.45, 0.8), (1, 0)], n)
    return voice / (np.abs(voice).max() + 1e-6) * loud + 0.22 * breath * loud**2


@sound(
    "cat meow",
    "{a}cat meows{n}|{a}cat is meowing",
    "{a}meowing cat|the meow of {a}cat",
    "meows of a cat|cat meows",
    once=True,
    length_s=(0.5, 0.9),
    interval_s=(0.9, 1.6),
    pitch_hz=(450, 900),
    low=("big", "low-voiced"),
    high=("small", "high-voiced"),
    vary=0.04,
)
def cat_meow(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    glide = pitch * line([(0, 0.8), (0.3, 1.1), (0.7, 1.0), (1, 0.75)], n)
    glide = glide * (1 + 0.015 * sine(rng.uniform(5, 8), n, rate))
    closed = harmonic(glide, vowel(pitch, [(700, 300), (2200, 500)], 1.2), n, rate)
    opened = harmonic(glide, vowel(pitch, [(1100, 400), (1800, 400), (3200, 700)], 0.5), n, rate)
    opening = line([(0, 0), (0.35, 1), (0.6, 0.8), (1, 0.1)], n)
    return (closed * (1 - opening) + opened * opening) * line([(0, 0), (0.15, 1), (0.6, 0.8), (1, 0)], n)


@sound(
    "rooster crow",
    "{a}rooster crows{n}|{a}rooster is crowing",
    "{a}crowing rooster|the crow of {a}rooster",
    "rooster crows",
    once=True,
    length_s=(1.2, 1.9),
    interval_s=(2.0, 3.2),
    most=3,
    vary=0.02,
)
def rooster_crow(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    top = rng.uniform(650, 900)
    glide = top * line(
        [(0, 0.7), (0.1, 0.8), (0.14, 0.75), (0.24, 0.9), (0.3, 0.85), (0.4, 1.05), (0.8, 1), (1, 0.6)], n
    )
    glide = glide * (1 + 0.02 * wander(rng, n, rate, 40))
    loud = line(
        [
            (0, 0),
            (0.04, 0.7),
            (0.1, 0.1),
            (0.14, 0.8),
            (0.24, 0.1),
            (0.28, 0.8),
            (0.4, 1),
            (0.8, 0.8),
            (1, 0),
        ],
        n,
    )
    voice = harmonic(glide, vowel(top, [(1000, 500), (1900, 600), (3200, 900)], 0.3), n, rate)
    return voice * loud + 0.05 * np.abs(voice).max() * noise(rng, n, rate, band(800, 5000)) * loud


@sound(
    "owl hoot",
    "{a}owl hoots{n}|{a}owl is hooting",
    "{a}hooting owl|the hoot of {a}owl",
    "owl hoots|hoots of an owl",
    once=True,
    length_s=(0.35, 0.6),
    interval_s=(0.7, 1.3),
    pitch_hz=(300, 600),
    vary=0.01,
)
def owl_hoot(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    glide = pitch * line([(0, 0.93), (0.3, 1.0), (1, 0.92)], n) * (1 + 0.01 * sine(6.0, n, rate))
    body = harmonic(glide, [1, 0.1, 0.05], n, rate) * line([(0, 0), (0.25, 1), (0.7, 0.9), (1, 0)], n)
    return body + 0.01 * noise(rng, n, rate, band(300, 900)) * line([(0, 0), (0.3, 1), (1, 0)], n)


@sound(
    "frog croak",
    "{a}frog croaks{n}|{a}frog is croaking",
    "{a}croaking frog|the croak of {a}frog",
    "frog croaks|croaks of a frog",
    once=True,
    length_s=(0.25, 0.45),
    interval_s=(0.55, 1.1),
    vary=0.04,
)
def frog_croak(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    pulses = pulse_train(rng, n, rate, rng.uniform(35, 60))
    body = resonate(pulses, rng.uniform(450, 700), 120, rate) + resonate(
        pulses, rng.uniform(1300, 1900), 250, rate
    )
    return body * line([(0, 0), (0.2, 0.8), (0.8, 1), (1, 0)], n)


@sound(
    "buzzing bee",
    "{a}bee buzzes|{a}bee is buzzing around",
    "{a}buzzing bee|the buzz of {a}insect",
    length_s=(0.8, 30),
)
def buzzing_bee(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(170, 260) * (1 + 0.06 * wander(rng, n, rate, 4))
    wings = harmonic(hz, 1 / np.arange(1, 25) ** 0.8, n, rate)
    return wings * (0.55 + 0.45 * wander(rng, n, rate, 1.5)) + 0.02 * noise(rng, n, rate, band(300, 4000))


@sound(
    "speech",
    "{a}person talks|someone is talking|{a}person mumbles",
    "{a}person talking|{m}speech|a voice talking",
    length_s=(1.0, 30),
    pitch_hz=(95, 240),
    low=("deep-voiced", "low-voiced"),
    high=("high-voiced", "high-pitched"),
)
def speech(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Syllables of random vowels and hiss: the rhythm and formants of a voice without words."""
    out = np.zeros(n, dtype=np.float32)
    size = (pitch / 140) ** 0.25
    vowels = [(730, 1090), (270, 2290), (530, 1840), (570, 840), (300, 870), (660, 1720)]
    at = 0
    while at < n:
        m = min(int(rng.uniform(0.12, 0.28) * rate), n - at)
        if m < 32:
            break
        first, second = vowels[rng.integers(len(vowels))]
        formants = [(first * size, 90), (second * size, 130), (2700 * size, 250), (3500 * size, 350)]
        hz = pitch * rng.uniform(0.9, 1.15) * line([(0, 1.04), (1, rng.uniform(0.85, 1.05))], m)
        voice = harmonic(hz, vowel(pitch, formants, 0.9), m, rate)
        out[at : at + m] = voice * line([(0, 0), (0.2, 1), (0.7, 0.8), (1, 0.05)], m) * rng.uniform(0.5, 1)
        if rng.random() < 0.35:
            k = min(m, int(0.07 * rate))
            out[at : at + k] += 0.12 * fade(noise(rng, k, rate, band(2800, 6500)), rate, 0.02)
        at += m + (int(rng.uniform(0.15, 0.35) * rate) if rng.random() < 0.18 else 0)
    return out


@sound(
    "baby cry",
    "{a}baby cries|{a}baby is crying",
    "{a}crying baby|the crying of {a}baby",
    once=True,
    length_s=(0.7, 1.2),
    interval_s=(1.0, 1.6),
    fills=True,
    vary=0.04,
)
def baby_cry(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    top = rng.uniform(400, 560)
    glide = (
        top * line([(0, 0.75), (0.2, 1.0), (0.6, 1.03), (1, 0.7)], n) * (1 + 0.02 * wander(rng, n, rate, 25))
    )
    voice = harmonic(glide, vowel(top, [(1100, 400), (1700, 500), (3300, 800)], 0.4), n, rate)
    return voice * line([(0, 0), (0.15, 1), (0.7, 0.9), (1, 0)], n) * (1 + 0.2 * wander(rng, n, rate, 20))


@sound(
    "sneeze",
    "{a}person sneezes{n}|someone sneezes{n}",
    "{a}sneeze|{a}person sneezing",
    "sneezes",
    once=True,
    length_s=(0.5, 0.8),
    interval_s=(1.0, 1.8),
    most=3,
    vary=0.05,
)
def sneeze(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    inhale = noise(rng, n, rate, band(700, 2500)) * line([(0, 0), (0.3, 0.12), (0.4, 0), (1, 0)], n)
    burst = noise(rng, n, rate, [(100, -20), (900, -4), (2500, 0), (6000, -4), (16000, -14)])
    burst = burst * line([(0, 0), (0.44, 0), (0.48, 1), (0.6, 0.5), (1, 0)], n)
    start = rng.uniform(220, 380)
    hz = start * line([(0, 1.2), (0.5, 1.2), (1, 0.7)], n)
    voice = harmonic(hz, vowel(start, [(700, 200), (1600, 300)], 0.8), n, rate)
    return inhale + burst + 0.6 * voice * line([(0, 0), (0.42, 0), (0.5, 1), (0.8, 0.4), (1, 0)], n)


@sound(
    "clapping",
    "people clap|an audience applauds",
    "{m}applause|{a}clapping audience",
    length_s=(1.0, 30),
)
def clapping(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    claps = scatter(rng, n, rate, rng.uniform(60, 140), 18)
    claps = lowpass(np.abs(claps), 60, rate) * noise(rng, n, rate, band(900, 2600, 12))
    return claps


@sound(
    "whistle",
    "{a}person whistles|someone is whistling",
    "{a}person whistling|{a}whistled melody",
    length_s=(0.6, 30),
    pitch_hz=(900, 2200),
)
def whistle(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    notes = max(1, round(n / rate / rng.uniform(0.28, 0.5)))
    steps = 2 ** (rng.choice([-5, -3, 0, 2, 4, 5], notes) / 12)
    index = np.minimum(np.arange(n) * notes // n, notes - 1)
    hz = lowpass((pitch * steps[index]).astype(np.float32) - pitch, 12, rate) + pitch
    hz = hz * (1 + 0.008 * sine(5.5, n, rate))
    place = (np.arange(n) * (notes / n)) % 1.0
    loud = np.minimum(1, np.minimum(place, 1 - place) * 8).astype(np.float32)
    return harmonic(hz, [1, 0.04], n, rate) * loud + 0.012 * noise(rng, n, rate, band(1000, 5000)) * loud
