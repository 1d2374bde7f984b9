"""Plain signals, electric noises and the sounds of games."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.kind import Kind
from audiogen.data.synth.signals import (
    Signal,
    band,
    fade,
    harmonic,
    line,
    noise,
)


def tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A steady sine, sometimes with overtones."""
    overtones = rng.uniform(0, 0.3, 4) * rng.integers(0, 2)
    return fade(harmonic(pitch, [1, *overtones], n, rate), rate, 0.02)


def rising_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A glide up by one to two octaves."""
    start = np.exp(rng.uniform(np.log(150), np.log(700)))
    hz = start * 2 ** (line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


def falling_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A glide down by one to two octaves."""
    start = np.exp(rng.uniform(np.log(700), np.log(2800)))
    hz = start * 2 ** (-line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


def alarm(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A beep of odd harmonics."""
    return fade(harmonic(pitch, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate), rate, 0.005)


def buzzer(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A low pulse wave, rich in harmonics."""
    return fade(harmonic(rng.uniform(95, 160), 1 / np.arange(1, 41) ** 0.4, n, rate), rate, 0.01)


def hum(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Mains frequency and its harmonics."""
    amplitudes = np.array([0.5, 1, 0.3, 0.6, 0.15, 0.3, 0.1, 0.2, 0.05, 0.1]) * rng.uniform(0.5, 1.5, 10)
    mains = rng.choice([50.0, 60.0]) * rng.uniform(0.998, 1.002)
    return harmonic(mains, amplitudes, n, rate) + 0.004 * noise(rng, n, rate, band(60, 3000))


def static(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """White noise."""
    return fade(noise(rng, n, rate, [(20, 0), (24000, rng.uniform(-3, 0))]), rate)


def laser(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A fast glide down over several octaves."""
    hz = rng.uniform(1800, 3200) * 2 ** (-rng.uniform(2.5, 4) * line([(0, 0), (1, 1)], n))
    return fade(harmonic(hz, 1 / np.arange(1, 6), n, rate) * line([(0, 1), (1, 0.1)], n), rate, 0.003)


def game_coin(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two square-like notes, a fourth apart, the second dying away."""
    hz = np.where(np.arange(n) < 0.08 * rate, 1.0, 4 / 3) * rng.uniform(900, 1100)
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2], n, rate) * line([(0, 1), (0.2, 1), (1, 0)], n), rate, 0.003
    )


def game_jump(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A square-like glide up."""
    hz = rng.uniform(250, 400) * 2 ** (1.6 * line([(0, 0), (1, 1)], n))
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate) * line([(0, 1), (0.7, 0.8), (1, 0)], n), rate
    )


SOUNDS = (
    Kind(
        "tone",
        ("{a}steady tone sounds", "{a}tone plays"),
        ("{a}steady tone", "{a}continuous tone"),
        tone,
        pitch_hz=(180, 2600),
    ),
    Kind(
        "rising tone",
        ("{a}tone rises in pitch", "{a}tone sweeps up"),
        ("{a}rising tone", "{a}tone going up in pitch"),
        rising_tone,
    ),
    Kind(
        "falling tone",
        ("{a}tone falls in pitch", "{a}tone sweeps down"),
        ("{a}falling tone", "{a}tone going down in pitch"),
        falling_tone,
    ),
    Kind(
        "alarm",
        ("{a}alarm beeps{n}", "{a}alarm clock beeps{n}", "{a}alarm clock is beeping", "{a}alarm is beeping"),
        ("{a}beeping alarm", "{a}alarm"),
        alarm,
        counted=("alarm beeps", "beeps"),
        once=True,
        length_s=(0.1, 0.25),
        interval_s=(0.28, 0.6),
        fills=True,
        pitch_hz=(700, 2600),
        jitter=0.0,
        paced=True,
        least=2,
    ),
    Kind(
        "buzzer",
        ("{a}buzzer sounds{n}", "{a}buzzer goes off{n}"),
        ("{a}buzzer", "{a}harsh buzzer"),
        buzzer,
        counted=("blasts of a buzzer",),
        once=True,
        length_s=(0.4, 0.9),
        interval_s=(0.7, 1.4),
        most=3,
    ),
    Kind(
        "hum",
        ("{m}electricity hums", "{a}power line hums", "{a}transformer hums"),
        ("{a}electric hum", "{a}mains hum"),
        hum,
        length_s=(0.8, 30),
        backdrop=True,
    ),
    Kind(
        "static",
        ("{m}static hisses", "{m}white noise hisses", "{a}radio hisses with static"),
        ("{m}static", "{m}white noise", "{m}radio static"),
        static,
        length_s=(0.5, 30),
        backdrop=True,
    ),
    Kind(
        "laser",
        ("{a}laser fires{n}", "{a}laser gun shoots{n}"),
        ("{1}{a}laser shot", "{a}laser gun"),
        laser,
        counted=("laser shots", "shots of a laser gun"),
        once=True,
        length_s=(0.18, 0.35),
        interval_s=(0.35, 0.7),
        vary=0.03,
    ),
    Kind(
        "game coin",
        ("{1}{a}coin is collected in a game", "{a}video game coin chimes{n}"),
        ("{a}video game coin", "{1}{a}game coin sound"),
        game_coin,
        counted=("coin sounds from a game",),
        once=True,
        length_s=(0.4, 0.6),
        interval_s=(0.65, 1.1),
        most=4,
    ),
    Kind(
        "game jump",
        ("{a}video game character jumps{n}", "{1}{a}video game jump sounds"),
        ("{a}jumping video game character", "{1}{a}game jump sound"),
        game_jump,
        counted=("jump sounds from a game",),
        once=True,
        length_s=(0.2, 0.35),
        interval_s=(0.4, 0.8),
        most=4,
    ),
)
