"""Sounds on their way over HTTP: whole in a format, and uploaded ones."""

import io

import soundfile
import torch
from torch import Tensor

from audiogen import audio
from audiogen.errors import InputError
from audiogen.files.tags import Tagged, Tags

# Of each format: libsndfile's names for it, and its media type.
FORMATS = {
    "wav": (("WAV", "PCM_16"), "audio/wav"),
    "flac": (("FLAC", "PCM_16"), "audio/flac"),
    "mp3": (("MP3", "MPEG_LAYER_III"), "audio/mpeg"),
    "ogg": (("OGG", "VORBIS"), "audio/ogg"),
    "opus": (("OGG", "OPUS"), "audio/ogg"),
    "pcm": (("RAW", "PCM_16"), "audio/pcm"),  # 16 bits, little-endian, channels in turn
}
STREAMED = ("wav", "pcm")
OPUS_RATE = 48_000
MOST_A_SECOND = 400_000  # samples of an uploaded sound, channels together: 8 at 48 kHz, 2 at 192 kHz


def encode(sound: Tensor, sample_rate: int, form: str, tags: Tags | None = None) -> bytes:
    """A sound [C, N], within full scale, as a file of a format. tags: its metadata, which pcm has not."""
    (kind, subtype), _ = FORMATS[form]
    if form == "opus" and sample_rate not in (8000, 12000, 16000, 24000, OPUS_RATE):
        sound, sample_rate = audio.resample(sound, sample_rate, OPUS_RATE), OPUS_RATE
    if form == "pcm":
        return audio.pcm16(sound)
    data = io.BytesIO()
    tagged = Tagged(data, kind.lower(), tags)
    with soundfile.SoundFile(tagged, "w", sample_rate, len(sound), subtype, format=kind) as file:
        for name, text in tagged.strings.items():
            setattr(file, name, text)
        for piece in sound.clamp(-1, 1).split(audio.SAVE_SAMPLES, dim=-1):
            file.write(piece.T.numpy())
    tagged.finish()
    return data.getvalue()


def decode(data: bytes, longest_s: float, what: str) -> tuple[Tensor, int]:
    """An uploaded file -> audio [C, N] and its sample rate; InputError for what is no sound, or longer than allowed."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            if (whole := rate * file.channels) > MOST_A_SECOND:
                raise InputError(
                    f"{what} has {whole} samples a second; send a sound of up to {MOST_A_SECOND}: "
                    "fewer channels, or a lower rate"
                )
            # one more than is allowed, and no more: a small file may hold hours of silence
            samples = file.read(int(longest_s * rate) + 1, dtype="float32", always_2d=True)
    except InputError:
        raise
    except (soundfile.SoundFileError, ValueError) as error:
        raise InputError(f"{what} is no sound that can be read; send wav, flac, ogg or mp3") from error
    if not 0 < len(samples) <= longest_s * rate:
        length = "no samples" if not len(samples) else f"more than {longest_s:g} s"
        raise InputError(f"{what} has {length}; send a sound of up to {longest_s:g} s")
    return torch.from_numpy(samples).T.contiguous(), rate
