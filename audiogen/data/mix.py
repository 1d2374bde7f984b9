"""Two sounds and their captions as one, in the manner of AudioGen (arXiv:2209.15352, 3.2)."""

import math

from audiogen.data.loader import Item

SILENT = 1e-12  # power, -120 dB: of less, the gain of a mixture could be beyond float32
MIN_OVERLAP = 0.5  # of the shorter sound, as published


def mix(a: Item, b: Item, snr_db: float, start: float) -> Item:
    """Add sound b to sound a, both [C, N]; the caption describes both sounds, or is None (arXiv:2209.15352, 3.2).

    snr_db: power of a over power of b after scaling b. start in [0, 1]: where b begins, from the beginning of
    a (0) to the latest place where half of the shorter sound still overlaps (1); b is cut at N. A mixture whose
    peak is above full scale is divided by it.

    Differs from AudioGen's code where that fails: the peak is max |x| instead of max x, power is measured on the valid
    part instead of the padding too, and a missing caption is handled.
    """
    latest = a.length - math.ceil(MIN_OVERLAP * min(a.length, b.length))
    offset = min(latest, int(start * (latest + 1)))
    end = min(offset + b.length, a.data.shape[-1])
    power_a, power_b = (float(x.data[:, : x.length].double().square().mean()) for x in (a, b))
    gain = 1.0
    if min(power_a, power_b) > SILENT:  # silence has no power ratio: both stay as they are
        # power_a / (gain^2 power_b) = 10^(snr_db / 10)
        gain = math.sqrt(power_a / power_b) * 10 ** (-snr_db / 20)
    mixed = a.data.clone()
    mixed[:, offset:end] += gain * b.data[:, : end - offset]
    peak = float(mixed.abs().max())
    if peak > 1:
        mixed /= peak
    return a._replace(data=mixed, length=max(a.length, end), caption=join_captions(a.caption, b.caption))


def join_captions(a: str | None, b: str | None) -> str | None:
    """`"A dog barks." + "Rain falls" -> "A dog barks and rain falls"`.

    None unless both are given: a caption of one of two sounds would teach the model to add sounds of its own.
    """
    if not a or not b:
        return None
    first, second = a.strip().rstrip(".!;, "), b.strip().rstrip(".!;, ")
    if first.casefold() == second.casefold():
        return first
    is_word = second[1:2].islower() or second[1:2] in ("", " ")  # leaves "DJ ..." and "F-16 ..." as they are
    return f"{first} and {second[:1].lower() + second[1:] if is_word else second}"
