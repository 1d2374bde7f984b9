"""Sounds of machines, electronics and struck objects.

Each renders one strike, or one texture, [N].
"""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import Signal, Synth, band

# ---- Engines, and what calls from a distance: sirens, horns, bells of telephones.


def engine(s: Synth) -> Signal:
    """Harmonics of the firing rate, uneven from cylinder to cylinder, and puffs of exhaust."""
    firing = s.uniform(22, 55) * (1 + 0.05 * s.wander(2.5))
    order = np.arange(1, 41)
    body = 1 / (1 + (order * float(firing[0]) / s.uniform(150, 350)) ** 2)
    exhaust = s.harmonic(firing, body * (0.5 + s.uniform(0, 1, 40)))
    cycle = s.phase(firing) % 1.0
    puff = np.exp(-5 * cycle).astype(np.float32)
    air = s.noise([(40, -6), (200, 0), (900, -8), (4000, -26)])
    return exhaust / (exhaust.std() + 1e-6) + 0.5 * air * puff


def helicopter(s: Synth) -> Signal:
    """Low thumps at the rate of the blades, air noise and the whine of a turbine."""
    blades = s.uniform(9, 16)
    cycle = (s.phase(blades) + s.uniform(0, 1)) % 1.0
    chop = np.exp(-6 * cycle).astype(np.float32)
    thump = s.noise([(25, -4), (80, 0), (250, -6), (1000, -24), (6000, -48)])
    wash = s.noise([(100, -12), (600, 0), (3000, -12), (10000, -30)])
    turbine = s.harmonic(s.uniform(500, 900), [1, 0.3, 0.2])
    distance = 0.75 + 0.25 * s.wander(0.3)
    return (thump * (0.15 + chop) + 0.45 * wash * (0.3 + chop) + 0.02 * turbine) * distance


def chainsaw(s: Synth) -> Signal:
    """A rough high-revving buzz with the noise of the chain, overdriven."""
    revving = np.clip(s.wander(0.9) * 1.5, -0.6, 1)
    hz = s.uniform(80, 120) * (1 + 0.4 * revving) * (1 + 0.03 * s.wander(60))
    buzz = s.harmonic(hz, (1 / np.arange(1, 41) ** 0.5) * s.uniform(0.4, 1, 40))
    chain = s.noise([(200, -20), (1500, 0), (4000, -2), (12000, -16)])
    return np.tanh(0.4 * buzz + 0.35 * chain) * (0.75 + 0.25 * revving)


def vacuum_cleaner(s: Synth) -> Signal:
    """Rushing air and the whine of a motor that has just come up to speed."""
    hz = s.uniform(180, 320)
    air = s.noise([(80, -18), (400, -3), (1200, 0), (4000, -8), (12000, -20)])
    spin_up = s.line((0, 0.7), (min(0.5, 0.4 * s.rate / s.n), 1), (1, 1))
    return air + 0.7 * s.harmonic(hz * spin_up, [1, 0.5, 0.7, 0.3, 0.3, 0.2, 0.1])


def siren(s: Synth) -> Signal:
    """A tone with overtones, swinging up and down by about an octave."""
    low, period = s.uniform(450, 750), s.uniform(0.8, 4.0)
    cycle = s.phase(1 / period)
    octave = 0.5 - 0.5 * np.cos(2 * np.pi * cycle)
    hz = low * 2 ** (s.uniform(0.7, 1.2) * octave)
    return s.fade(s.harmonic(hz, 1 / np.arange(1, 9) ** s.uniform(0.9, 1.6)), 0.05)


def two_tone_siren(s: Synth) -> Signal:
    """Two notes about a third apart, in turn."""
    low, period = s.uniform(420, 700), s.uniform(0.7, 1.3)
    upper = (s.phase(1 / period) % 1.0 < 0.5).astype(np.float32)
    hz = low * (1 + s.uniform(0.25, 0.4) * s.lowpass(upper, 40))
    return s.fade(s.harmonic(hz, 1 / np.arange(1, 9)), 0.03)


def car_horn(s: Synth) -> Signal:
    """Two reeds a third apart."""
    hz = s.uniform(330, 460)
    reeds = 1 / np.arange(1, 21) ** 0.6
    return s.fade(s.harmonic(hz, reeds) + s.harmonic(hz * s.uniform(1.18, 1.27), reeds), 0.02)


def train_horn(s: Synth) -> Signal:
    """A chord of four reeds with breath."""
    root = s.uniform(240, 330)
    reeds = 1 / np.arange(1, 13) ** 0.9
    chord = sum(s.harmonic(root * ratio, reeds) for ratio in (1.0, 1.19, 1.5, 1.79))
    breath = 0.1 * s.noise(band(500, 4000))
    return (chord + breath) * s.line((0, 0), (0.08, 1), (0.85, 0.9), (1, 0))


def telephone(s: Synth) -> Signal:
    """Two gongs struck by a fast hammer."""
    low = s.uniform(1000, 1500)
    hammer = s.phase(s.uniform(18, 26)) % 1.0
    strokes = np.exp(-3 * hammer).astype(np.float32)
    gongs = s.sine(low) + 0.8 * s.sine(low * 1.26) + 0.5 * s.sine(low * 2.1)
    return s.fade(gongs * (0.25 + strokes), 0.02)


# ---- Plain signals, electric noises and the sounds of games.


def tone(s: Synth) -> Signal:
    """A steady sine, sometimes with overtones."""
    overtones = s.uniform(0, 0.3, 4) * s.rng.integers(0, 2)
    return s.fade(s.harmonic(s.pitch, [1, *overtones]), 0.02)


def rising_tone(s: Synth) -> Signal:
    """A glide up by one to two octaves."""
    start = np.exp(s.uniform(np.log(150), np.log(700)))
    hz = start * 2 ** (s.line((0, 0), (1, s.uniform(1.2, 2.2))))
    return s.fade(s.harmonic(hz, [1, *(s.uniform(0, 0.25, 3))]), 0.02)


def falling_tone(s: Synth) -> Signal:
    """A glide down by one to two octaves."""
    start = np.exp(s.uniform(np.log(700), np.log(2800)))
    hz = start * 2 ** (-s.line((0, 0), (1, s.uniform(1.2, 2.2))))
    return s.fade(s.harmonic(hz, [1, *(s.uniform(0, 0.25, 3))]), 0.02)


def alarm(s: Synth) -> Signal:
    """A beep of odd harmonics."""
    return s.fade(s.harmonic(s.pitch, [1, 0, 0.33, 0, 0.2, 0, 0.14]), 0.005)


def buzzer(s: Synth) -> Signal:
    """A low pulse wave, rich in harmonics."""
    return s.fade(s.harmonic(s.uniform(95, 160), 1 / np.arange(1, 41) ** 0.4), 0.01)


def hum(s: Synth) -> Signal:
    """Mains frequency and its harmonics."""
    amplitudes = np.array([0.5, 1, 0.3, 0.6, 0.15, 0.3, 0.1, 0.2, 0.05, 0.1]) * s.uniform(0.5, 1.5, 10)
    mains = s.rng.choice([50.0, 60.0]) * s.uniform(0.998, 1.002)
    return s.harmonic(mains, amplitudes) + 0.004 * s.noise(band(60, 3000))


def static(s: Synth) -> Signal:
    """White noise."""
    return s.fade(s.noise([(20, 0), (24000, s.uniform(-3, 0))]))


def laser(s: Synth) -> Signal:
    """A fast glide down over several octaves."""
    hz = s.uniform(1800, 3200) * 2 ** (-s.uniform(2.5, 4) * s.line((0, 0), (1, 1)))
    return s.fade(s.harmonic(hz, 1 / np.arange(1, 6)) * s.line((0, 1), (1, 0.1)), 0.003)


def game_coin(s: Synth) -> Signal:
    """Two square-like notes, a fourth apart, the second dying away."""
    hz = np.where(np.arange(s.n) < 0.08 * s.rate, 1.0, 4 / 3) * s.uniform(900, 1100)
    return s.fade(s.harmonic(hz, [1, 0, 0.33, 0, 0.2]) * s.line((0, 1), (0.2, 1), (1, 0)), 0.003)


def game_jump(s: Synth) -> Signal:
    """A square-like glide up."""
    hz = s.uniform(250, 400) * 2 ** (1.6 * s.line((0, 0), (1, 1)))
    return s.fade(s.harmonic(hz, [1, 0, 0.33, 0, 0.2, 0, 0.14]) * s.line((0, 1), (0.7, 0.8), (1, 0)))


# ---- Struck, plucked and broken things.


def bell(s: Synth) -> Signal:
    """Inharmonic partials: hum, prime, minor third, fifth, nominal; the high ones die first."""
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.0, 3.76, 4.07]) * s.uniform(0.995, 1.005, 9)
    levels = np.array([0.4, 1.0, 0.6, 0.3, 0.7, 0.35, 0.25, 0.2, 0.15]) * s.uniform(0.6, 1.2, 9)
    ring = s.n / s.rate / 3
    sounding = s.partials(s.pitch * ratios, levels, ring / ratios**0.7)
    return s.fade(sounding * s.decay(ring * 2, 0.002), 0.005)


def drum(s: Synth) -> Signal:
    """The modes of a skin, gliding down as its tension settles."""
    glide = s.pitch * (1 + 0.6 * s.decay(0.02, 1e-5))
    skin = s.sine(glide) + 0.4 * s.sine(glide * 1.59) + 0.2 * s.sine(glide * 2.14)
    return skin * s.decay(0.11, 0.002) + 0.1 * s.noise(band(300, 3000)) * s.decay(0.01)


def hi_hat(s: Synth) -> Signal:
    """A short burst of high noise."""
    metal = s.noise([(500, -50), (3000, -15), (6500, 0), (16000, -2)])
    return metal * s.decay(s.uniform(0.015, 0.05), 0.0005)


def plucked_string(s: Synth) -> Signal:
    """Slightly stretched harmonics, shaped by where the string is plucked."""
    order = np.arange(1, 25)
    where = s.uniform(0.1, 0.35)
    levels = np.abs(np.sin(np.pi * order * where)) / order
    hz = s.pitch * order * np.sqrt(1 + 2e-4 * order**2)
    return s.fade(s.partials(hz, levels, 0.6 / order**0.6), 0.002)


def xylophone(s: Synth) -> Signal:
    """The 1 : 3 : 6 partials of a tuned wooden bar."""
    hz = s.pitch * np.array([1, 3.0, 6.1])
    bar = s.partials(hz, [1, 0.35, 0.12], np.array([0.16, 0.06, 0.03]) * (800 / s.pitch) ** 0.4)
    return bar + 0.05 * s.noise(band(800, 5000)) * s.decay(0.004)


def clock_tick(s: Synth) -> Signal:
    """Tiny metallic partials and a click."""
    hz = s.uniform(1800, 3400)
    body = s.partials([hz, hz * 0.63, 900], [1, 0.5, 0.3], [0.006, 0.005, 0.01])
    return body + 0.25 * s.noise(band(1500, 7000)) * s.decay(0.003)


def click(s: Synth) -> Signal:
    """A few milliseconds of noise."""
    return s.noise(band(1200, 6000)) * s.decay(s.uniform(0.0015, 0.004), 0.0003)


def door_slam(s: Synth) -> Signal:
    """A low boom under a short broad smack."""
    boom = s.noise([(30, -4), (90, 0), (250, -8), (1200, -28)]) * s.decay(0.09, 0.003)
    smack = s.noise([(100, -10), (500, 0), (2500, -8), (9000, -24)]) * s.decay(0.025, 0.001)
    return boom + smack


def glass_breaking(s: Synth) -> Signal:
    """A bright crash, then shards ringing as they fall."""
    smash = s.noise([(500, -20), (2500, -2), (6000, 0), (12000, -6)])
    out = smash * s.decay(0.05, 0.001)
    for _ in range(14):
        at = int(abs(s.rng.normal(0, 0.25)) * s.n * 0.8) % max(1, s.n - 16)
        hz = s.uniform(2200, 7000) * np.array([1, 1.47, 2.09])
        out[at:] += s.part(s.n - at).partials(hz, [0.5, 0.3, 0.2], [0.06, 0.04, 0.03]) * s.uniform(0.2, 1)
    return s.fade(out, 0.001)
