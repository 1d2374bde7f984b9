"""Engines, alarms, household noises, instruments, and the plain signals of electronics and games."""

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
    partials,
    phase,
    resonate,
    sine,
    wander,
)

MACHINES = Registry()
sound = MACHINES.add


@sound("tone", "{a}steady tone sounds|{a}beep holds", "{a}steady tone|{a}pure tone", pitch_hz=(180, 2600))
def tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    overtones = rng.uniform(0, 0.3, 4) * rng.integers(0, 2)
    return fade(harmonic(pitch, [1, *overtones], n, rate), rate, 0.02)


@sound("rising tone", "{a}tone rises in pitch|{a}tone sweeps up", "{a}rising tone|{a}tone going up in pitch")
def rising_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    start = np.exp(rng.uniform(np.log(150), np.log(700)))
    hz = start * 2 ** (line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


@sound(
    "falling tone",
    "{a}tone falls in pitch|{a}tone sweeps down",
    "{a}falling tone|{a}tone going down in pitch",
)
def falling_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    start = np.exp(rng.uniform(np.log(700), np.log(2800)))
    hz = start * 2 ** (-line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


@sound(
    "siren",
    "{a}siren wails|{a}siren is wailing",
    "{a}siren|{a}wailing siren|the wail of {a}siren",
    length_s=(1.2, 30),
)
def siren(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    low, period = rng.uniform(450, 750), rng.uniform(0.8, 4.0)
    cycle = phase(1 / period, n, rate)
    octave = 0.5 - 0.5 * np.cos(2 * np.pi * cycle)
    hz = low * 2 ** (rng.uniform(0.7, 1.2) * octave)
    return fade(harmonic(hz, 1 / np.arange(1, 9) ** rng.uniform(0.9, 1.6), n, rate), rate, 0.05)


@sound(
    "two-tone siren",
    "{a}two-tone siren sounds|an ambulance siren alternates between two notes",
    "{a}two-tone siren|{a}ambulance siren",
    length_s=(1.2, 30),
)
def two_tone_siren(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    low, period = rng.uniform(420, 700), rng.uniform(0.7, 1.3)
    upper = (phase(1 / period, n, rate) % 1.0 < 0.5).astype(np.float32)
    hz = low * (1 + rng.uniform(0.25, 0.4) * lowpass(upper, 40, rate))
    return fade(harmonic(hz, 1 / np.arange(1, 9), n, rate), rate, 0.03)


@sound(
    "hum",
    "{m}electricity hums|{a}transformer hums",
    "{a}electric hum|{a}mains hum",
    length_s=(0.8, 30),
    backdrop=True,
)
def hum(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    amplitudes = np.array([0.5, 1, 0.3, 0.6, 0.15, 0.3, 0.1, 0.2, 0.05, 0.1]) * rng.uniform(0.5, 1.5, 10)
    mains = rng.choice([50.0, 60.0]) * rng.uniform(0.998, 1.002)
    return harmonic(mains, amplitudes, n, rate) + 0.004 * noise(rng, n, rate, band(60, 3000))


@sound(
    "engine",
    "{a}engine runs|{a}engine is idling|{a}motor runs",
    "{a}running engine|{a}idling engine",
    length_s=(1.0, 30),
    backdrop=True,
)
def engine(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    firing = rng.uniform(22, 55) * (1 + 0.05 * wander(rng, n, rate, 2.5))
    order = np.arange(1, 41)
    body = 1 / (1 + (order * float(firing[0]) / rng.uniform(150, 350)) ** 2)
    exhaust = harmonic(firing, body * (0.5 + rng.uniform(0, 1, 40)), n, rate)
    cycle = phase(firing, n, rate) % 1.0
    puff = np.exp(-5 * cycle).astype(np.float32)
    air = noise(rng, n, rate, [(40, -6), (200, 0), (900, -8), (4000, -26)])
    return exhaust / (exhaust.std() + 1e-6) + 0.5 * air * puff


@sound(
    "helicopter",
    "{a}helicopter flies|{a}helicopter flies overhead|{a}helicopter hovers",
    "{a}helicopter|{a}helicopter flying overhead",
    length_s=(1.2, 30),
    backdrop=True,
)
def helicopter(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    blades = rng.uniform(9, 16)
    cycle = (phase(blades, n, rate) + rng.uniform(0, 1)) % 1.0
    chop = np.exp(-6 * cycle).astype(np.float32)
    thump = noise(rng, n, rate, [(25, -4), (80, 0), (250, -6), (1000, -24), (6000, -48)])
    wash = noise(rng, n, rate, [(100, -12), (600, 0), (3000, -12), (10000, -30)])
    turbine = harmonic(rng.uniform(500, 900), [1, 0.3, 0.2], n, rate)
    distance = 0.75 + 0.25 * wander(rng, n, rate, 0.3)
    return (thump * (0.15 + chop) + 0.25 * wash * (0.25 + chop) + 0.02 * turbine) * distance


@sound(
    "chainsaw",
    "{a}chainsaw runs|{a}chainsaw is cutting {m}wood|{a}chainsaw revs",
    "{a}chainsaw|{a}chainsaw cutting wood",
    length_s=(1.2, 30),
)
def chainsaw(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    revving = np.clip(wander(rng, n, rate, 0.9) * 1.5, -0.6, 1)
    hz = rng.uniform(80, 120) * (1 + 0.4 * revving) * (1 + 0.03 * wander(rng, n, rate, 60))
    buzz = harmonic(hz, (1 / np.arange(1, 41) ** 0.5) * rng.uniform(0.4, 1, 40), n, rate)
    chain = noise(rng, n, rate, [(200, -20), (1500, 0), (4000, -2), (12000, -16)])
    return np.tanh(0.4 * buzz + 0.35 * chain) * (0.75 + 0.25 * revving)


@sound(
    "vacuum cleaner",
    "{a}vacuum cleaner runs|{a}vacuum cleaner is running",
    "{a}vacuum cleaner|{a}running vacuum cleaner",
    length_s=(1.0, 30),
    backdrop=True,
)
def vacuum_cleaner(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(180, 320)
    air = noise(rng, n, rate, [(80, -18), (400, -3), (1200, 0), (4000, -8), (12000, -20)])
    spin_up = line([(0, 0.7), (min(0.5, 0.4 * rate / n), 1), (1, 1)], n)
    return air + 0.7 * harmonic(hz * spin_up, [1, 0.5, 0.7, 0.3, 0.3, 0.2, 0.1], n, rate)


@sound(
    "static",
    "{m}static hisses|{a}radio hisses with static",
    "{m}static|{m}white noise|{m}radio static",
    length_s=(0.5, 30),
    backdrop=True,
)
def static(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    return fade(noise(rng, n, rate, [(20, 0), (24000, rng.uniform(-3, 0))]), rate)


@sound(
    "bell",
    "{a}bell rings{n}|{a}bell tolls{n}|{a}bell is ringing",
    "{a}bell|{a}ringing bell|the ringing of {a}bell",
    "bell strikes|strokes of a bell|rings of a bell",
    once=True,
    length_s=(1.2, 2.5),
    interval_s=(0.5, 1.2),
    rings=True,
    pitch_hz=(220, 1500),
    low=("low", "deep", "large"),
    high=("high", "high-pitched", "small"),
)
def bell(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.0, 3.76, 4.07]) * rng.uniform(0.995, 1.005, 9)
    levels = np.array([0.4, 1.0, 0.6, 0.3, 0.7, 0.35, 0.25, 0.2, 0.15]) * rng.uniform(0.6, 1.2, 9)
    ring = n / rate / 3
    sounding = partials(pitch * ratios, levels, ring / ratios**0.7, n, rate)
    return fade(sounding * decay(n, rate, ring * 2, 0.002), rate, 0.005)


@sound(
    "telephone",
    "{a}telephone rings{n}|{a}phone is ringing",
    "{a}ringing telephone|{a}telephone ring",
    "telephone rings|rings of a telephone",
    once=True,
    length_s=(0.7, 1.1),
    interval_s=(1.1, 2.2),
    most=4,
    jitter=0.0,
)
def telephone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    low = rng.uniform(1000, 1500)
    hammer = phase(rng.uniform(18, 26), n, rate) % 1.0
    strokes = np.exp(-3 * hammer).astype(np.float32)
    gongs = sine(low, n, rate) + 0.8 * sine(low * 1.26, n, rate) + 0.5 * sine(low * 2.1, n, rate)
    return fade(gongs * (0.25 + strokes), rate, 0.02)


@sound(
    "alarm",
    "{a}alarm beeps{n}|{a}alarm clock is beeping|{a}alarm goes off",
    "{a}beeping alarm|{a}alarm",
    "alarm beeps|beeps",
    once=True,
    length_s=(0.1, 0.25),
    interval_s=(0.28, 0.6),
    fills=True,
    pitch_hz=(700, 2600),
    jitter=0.0,
)
def alarm(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    return fade(harmonic(pitch, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate), rate, 0.005)


@sound(
    "car horn",
    "{a}car honks{n}|{a}car horn blows",
    "{a}car horn|the honking of {a}car",
    "car horn honks|honks of a car",
    once=True,
    length_s=(0.25, 0.8),
    interval_s=(0.5, 1.3),
    vary=0.005,
)
def car_horn(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(330, 460)
    reeds = 1 / np.arange(1, 21) ** 0.6
    return fade(
        harmonic(hz, reeds, n, rate) + harmonic(hz * rng.uniform(1.18, 1.27), reeds, n, rate), rate, 0.02
    )


@sound(
    "clock tick",
    "{a}clock ticks{n}|{a}clock is ticking",
    "{a}ticking clock|the ticking of {a}clock",
    "clock ticks|ticks of a clock",
    once=True,
    length_s=(0.06, 0.09),
    interval_s=(0.3, 1.0),
    fills=True,
    vary=0.04,
    jitter=0.0,
)
def clock_tick(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(1800, 3400)
    body = partials([hz, hz * 0.63, 900], [1, 0.5, 0.3], [0.006, 0.005, 0.01], n, rate)
    return body + 0.25 * noise(rng, n, rate, band(1500, 7000)) * decay(n, rate, 0.003)


@sound(
    "click",
    "{a}mouse clicks{n}|{a}switch clicks{n}",
    "{a}click|{a}clicking switch",
    "clicks",
    once=True,
    length_s=(0.03, 0.05),
    interval_s=(0.25, 0.8),
    vary=0.1,
)
def click(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    return noise(rng, n, rate, band(1200, 6000)) * decay(n, rate, rng.uniform(0.0015, 0.004), 0.0003)


@sound(
    "typing",
    "someone types on a keyboard|{a}keyboard clatters",
    "typing on a keyboard|{a}keyboard being typed on",
    length_s=(1.0, 30),
)
def typing(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    out = np.zeros(n, dtype=np.float32)
    m = min(n, int(0.05 * rate))
    at = 0.02 * rate
    while at < n - m:
        key = noise(rng, m, rate, band(rng.uniform(700, 1500), 5500, 12)) * decay(m, rate, 0.006, 0.0005)
        out[int(at) : int(at) + m] += key * rng.uniform(0.4, 1)
        at += rng.uniform(0.08, 0.2) * rate * (3 if rng.random() < 0.1 else 1)
    return out


@sound(
    "knock",
    "someone knocks on a door{n}|{m}knocking sounds on a door",
    "{m}knocking|{m}knocking on a door",
    "knocks|knocks on a door",
    once=True,
    length_s=(0.12, 0.18),
    interval_s=(0.25, 0.6),
    vary=0.03,
)
def knock(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(110, 240)
    wood = partials(
        [hz, hz * 2.3, hz * 3.9, hz * 6.1], [1, 0.6, 0.35, 0.2], [0.03, 0.02, 0.012, 0.008], n, rate
    )
    return wood + 0.15 * noise(rng, n, rate, band(300, 3000, 12)) * decay(n, rate, 0.006)


@sound(
    "footstep",
    "someone walks|{m}footsteps sound",
    "{m}footsteps|{m}footsteps on a floor",
    "footsteps",
    once=True,
    length_s=(0.12, 0.2),
    interval_s=(0.3, 0.8),
    fills=True,
    vary=0.12,
)
def footstep(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    heel = noise(rng, n, rate, [(40, -8), (130, 0), (500, -12), (3000, -30)]) * decay(n, rate, 0.025, 0.004)
    scuff = noise(rng, n, rate, band(1200, 5000, 12)) * line([(0, 0), (0.3, 0.06), (0.5, 0.12), (1, 0)], n)
    return heel + scuff + 0.2 * sine(rng.uniform(70, 110), n, rate) * decay(n, rate, 0.03, 0.003)


@sound(
    "door slam",
    "{a}door slams{n}|{a}door slams shut",
    "{a}door slam|{a}slamming door",
    "door slams",
    once=True,
    length_s=(0.4, 0.7),
    interval_s=(0.8, 1.6),
    most=3,
    vary=0.05,
)
def door_slam(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    boom = noise(rng, n, rate, [(30, -4), (90, 0), (250, -8), (1200, -28)]) * decay(n, rate, 0.09, 0.003)
    smack = noise(rng, n, rate, [(100, -10), (500, 0), (2500, -8), (9000, -24)]) * decay(
        n, rate, 0.025, 0.001
    )
    return boom + smack


@sound(
    "glass breaking",
    "{a}glass breaks|{m}glass shatters",
    "breaking {m}glass|shattering {m}glass",
    once=True,
    length_s=(0.6, 1.1),
    interval_s=(1.2, 2.0),
    most=1,
)
def glass_breaking(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    smash = noise(rng, n, rate, [(500, -20), (2500, -2), (6000, 0), (12000, -6)])
    out = smash * decay(n, rate, 0.05, 0.001)
    for _ in range(14):
        at = int(abs(rng.normal(0, 0.25)) * n * 0.8) % max(1, n - 16)
        hz = rng.uniform(2200, 7000) * np.array([1, 1.47, 2.09])
        out[at:] += partials(hz, [0.5, 0.3, 0.2], [0.06, 0.04, 0.03], n - at, rate) * rng.uniform(0.2, 1)
    return fade(out, rate, 0.001)


@sound(
    "drum",
    "{a}drum beats{n}|{a}drum is being hit",
    "{a}drum|{a}beating drum",
    "drum beats|beats of a drum",
    once=True,
    length_s=(0.3, 0.5),
    interval_s=(0.35, 0.8),
    rings=True,
    fills=True,
    pitch_hz=(55, 220),
    low=("low", "deep", "big"),
    high=("high", "small"),
)
def drum(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    glide = pitch * (1 + 0.6 * decay(n, rate, 0.02, 1e-5))
    skin = sine(glide, n, rate) + 0.4 * sine(glide * 1.59, n, rate) + 0.2 * sine(glide * 2.14, n, rate)
    return skin * decay(n, rate, 0.11, 0.002) + 0.1 * noise(rng, n, rate, band(300, 3000)) * decay(
        n, rate, 0.01
    )


@sound(
    "hi-hat",
    "{a}hi-hat plays|{a}hi-hat is tapped",
    "{a}hi-hat|{a}tapped cymbal",
    "hi-hat hits|taps on a hi-hat",
    once=True,
    length_s=(0.08, 0.2),
    interval_s=(0.25, 0.6),
    fills=True,
)
def hi_hat(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    metal = noise(rng, n, rate, [(500, -50), (3000, -15), (6500, 0), (16000, -2)])
    return metal * decay(n, rate, rng.uniform(0.015, 0.05), 0.0005)


@sound(
    "plucked string",
    "{a}string is plucked{n}|{a}guitar string rings",
    "{a}plucked string|{a}guitar note",
    "plucked notes|plucks of a string",
    once=True,
    length_s=(0.8, 1.6),
    interval_s=(0.4, 0.9),
    rings=True,
    pitch_hz=(90, 660),
)
def plucked_string(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    order = np.arange(1, 25)
    where = rng.uniform(0.1, 0.35)
    levels = np.abs(np.sin(np.pi * order * where)) / order
    hz = pitch * order * np.sqrt(1 + 2e-4 * order**2)
    return fade(partials(hz, levels, 0.6 / order**0.6, n, rate), rate, 0.002)


@sound(
    "xylophone",
    "{a}xylophone plays|{a}xylophone note sounds",
    "{a}xylophone|{a}wooden xylophone",
    "xylophone notes|notes on a xylophone",
    once=True,
    length_s=(0.35, 0.6),
    interval_s=(0.3, 0.7),
    rings=True,
    pitch_hz=(400, 2000),
)
def xylophone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = pitch * np.array([1, 3.0, 6.1])
    bar = partials(hz, [1, 0.35, 0.12], np.array([0.16, 0.06, 0.03]) * (800 / pitch) ** 0.4, n, rate)
    return bar + 0.05 * noise(rng, n, rate, band(800, 5000)) * decay(n, rate, 0.004)


@sound(
    "train horn",
    "{a}train horn blows{n}|{a}train blows its horn",
    "{a}train horn|{a}train horn blast",
    "blasts of a train horn",
    once=True,
    length_s=(0.8, 1.8),
    interval_s=(1.3, 2.4),
    most=3,
)
def train_horn(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    root = rng.uniform(240, 330)
    reeds = 1 / np.arange(1, 13) ** 0.9
    chord = sum(harmonic(root * ratio, reeds, n, rate) for ratio in (1.0, 1.19, 1.5, 1.79))
    breath = 0.1 * noise(rng, n, rate, band(500, 4000))
    return (chord + breath) * line([(0, 0), (0.08, 1), (0.85, 0.9), (1, 0)], n)


@sound(
    "laser",
    "{a}laser fires{n}|{a}laser gun shoots",
    "{a}laser shot|{a}laser gun",
    "laser shots|shots of a laser gun",
    once=True,
    length_s=(0.18, 0.35),
    interval_s=(0.35, 0.7),
    vary=0.03,
)
def laser(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(1800, 3200) * 2 ** (-rng.uniform(2.5, 4) * line([(0, 0), (1, 1)], n))
    return fade(harmonic(hz, 1 / np.arange(1, 6), n, rate) * line([(0, 1), (1, 0.1)], n), rate, 0.003)


@sound(
    "game coin",
    "{a}coin is collected in a game|{a}video game coin chimes",
    "{a}video game coin|{a}game coin sound",
    "coin sounds from a game",
    once=True,
    length_s=(0.4, 0.6),
    interval_s=(0.65, 1.1),
    most=4,
)
def game_coin(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = np.where(np.arange(n) < 0.08 * rate, 1.0, 4 / 3) * rng.uniform(900, 1100)
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2], n, rate) * line([(0, 1), (0.2, 1), (1, 0)], n), rate, 0.003
    )


@sound(
    "game jump",
    "{a}character jumps in a video game|{a}video game jump sounds",
    "{a}video game jump|{a}game jump sound",
    "jump sounds from a game",
    once=True,
    length_s=(0.2, 0.35),
    interval_s=(0.4, 0.8),
    most=4,
)
def game_jump(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    hz = rng.uniform(250, 400) * 2 ** (1.6 * line([(0, 0), (1, 1)], n))
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate) * line([(0, 1), (0.7, 0.8), (1, 0)], n), rate
    )


@sound(
    "buzzer",
    "{a}buzzer sounds{n}|{a}buzzer goes off",
    "{a}buzzer|{a}harsh buzzer",
    "blasts of a buzzer",
    once=True,
    length_s=(0.4, 0.9),
    interval_s=(0.7, 1.4),
    most=3,
)
def buzzer(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    return fade(harmonic(rng.uniform(95, 160), 1 / np.arange(1, 41) ** 0.4, n, rate), rate, 0.01)


@sound(
    "heartbeat",
    "{a}heart beats{n}|{a}heart is beating",
    "{a}heartbeat|{a}beating heart",
    "heartbeats",
    once=True,
    length_s=(0.38, 0.45),
    interval_s=(0.6, 1.1),
    fills=True,
    jitter=0.0,
)
def heartbeat(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    out = np.zeros(n, dtype=np.float32)
    hz = rng.uniform(55, 80)
    for at, level in ((0.0, 1.0), (0.24, 0.7)):
        m = n - int(at * rate)
        if m > 0:
            beat = sine(hz * (1.1 if at else 1.0), m, rate) + 0.4 * sine(2 * hz, m, rate)
            out[n - m :] += level * beat * decay(m, rate, 0.05, 0.012)
    return out
