"""Codecs that work on segments, and mono codecs that code two channels each by itself."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.segments import cut, loudness, overlap_add
from audiogen.errors import InputError
from audiogen.interfaces import Segment
from audiogen.models.codec_pretrained import identity, load_codec, save_codec

WHOLE = CodecConfig(  # 100 Hz; a hop of 10
    sample_rate=1000,
    channels=2,
    seanet=SeanetConfig(num_filters=4, ratios=(5, 2), lstm=1, norm="group"),
    latent_dim=6,
    num_codebooks=3,
    codebook_size=11,
)
SEGMENTS = replace(WHOLE, segment_s=0.2, segment_overlap=0.25, normalise=True)  # 200 samples, one every 150
MONO = replace(WHOLE, channels=1, seanet=replace(WHOLE.seanet, norm="none", causal=True, pad_mode="reflect"))


def make(config: CodecConfig) -> Codec:
    """Random weights; its codebooks start on the latents of noise."""
    torch.manual_seed(0)
    plain = replace(config, segment_s=None, segment_overlap=0.0, normalise=False, dual_mono=False)
    if config.dual_mono:
        plain = replace(plain, channels=1, num_codebooks=config.num_codebooks // 2)
    trained, codec = Codec(plain), Codec(config)
    with torch.no_grad():
        trained.train()(torch.randn(4, plain.channels, 2000))
    codec.load_state_dict(trained.state_dict())
    return codec.eval()


# --- cutting and joining ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_samples", "frames"),
    [
        (1, [1]),
        (150, [15]),
        (151, [16, 1]),
        (200, [20, 5]),
        (300, [20, 15]),
        (301, [20, 16, 1]),
        (1000, [20] * 6 + [10]),
    ],
)
def test_a_segment_begins_every_stride_as_long_as_there_is_sound(num_samples, frames):
    codec = make(SEGMENTS)
    assert (codec.segment_samples, codec.stride_samples) == (200, 150)
    assert codec.segment_frames(num_samples) == frames
    audio = torch.randn(2, 2, num_samples)
    segments = codec.encode_segments(audio)
    assert [tuple(segment.codes.shape) for segment in segments] == [(2, 3, count) for count in frames]
    assert all(segment.scale.shape == (2,) for segment in segments)
    assert codec.decode_segments(segments, num_samples).shape == audio.shape


def test_segments_that_were_not_changed_join_to_what_was_cut():
    audio = torch.randn(2, 3, 997)
    pieces = [audio[..., piece] for piece in cut(997, 200, 150)]
    assert len(pieces) == 7
    torch.testing.assert_close(overlap_add(pieces, 150), audio)
    torch.testing.assert_close(overlap_add([audio], 997), audio)


def test_two_segments_cross_fade_linearly_where_they_overlap():
    joined = overlap_add([torch.zeros(1, 1, 8), torch.ones(1, 1, 8)], 5)[0, 0]
    assert joined[:5].tolist() == [0] * 5 and joined[8:].tolist() == [1] * 5
    torch.testing.assert_close(joined[5:8], torch.tensor([0.25, 0.5, 0.75]))


def test_loudness_is_that_of_the_mean_of_the_channels_and_never_zero():
    audio = torch.tensor([[[3.0, -3.0], [1.0, -1.0]], [[0.5, 0.5], [-0.5, -0.5]]])
    torch.testing.assert_close(loudness(audio), torch.tensor([2.0, 1e-8]))


def test_each_segment_has_the_codes_of_its_audio_alone_at_any_loudness():
    codec, whole = make(SEGMENTS), make(WHOLE)
    audio = torch.randn(2, 2, 310)
    segments = codec.encode_segments(audio, 2)
    for (codes, scale), piece in zip(segments, cut(310, 200, 150), strict=True):
        alone = audio[..., piece]
        torch.testing.assert_close(scale, alone.mean(1).square().mean(1).sqrt())
        assert torch.equal(codes, whole.encode(alone / scale[:, None, None], 2))
    for quiet, segment in zip(codec.encode_segments(0.01 * audio, 2), segments, strict=True):
        assert torch.equal(quiet.codes, segment.codes)
        torch.testing.assert_close(quiet.scale, 0.01 * segment.scale)
    decoded = codec.decode_segments(segments, 310)
    scaled = [Segment(codes, 3 * scale) for codes, scale in segments]
    torch.testing.assert_close(codec.decode_segments(scaled, 310), 3 * decoded)
    first = whole.decode(segments[0].codes) * segments[0].scale[:, None, None]
    torch.testing.assert_close(decoded[..., :150], first[..., :150])


def test_silence_stays_finite():
    codec = make(SEGMENTS)
    segments = codec.encode_segments(torch.zeros(1, 2, 400))
    assert torch.isfinite(codec.decode_segments(segments, 400)).all()


def test_a_codec_that_takes_the_whole_makes_one_segment_of_it():
    codec = make(MONO)
    audio = torch.randn(2, 1, 333)
    (segment,) = codec.encode_segments(audio)
    assert codec.segment_frames(333) == [34] and segment.scale is None
    assert torch.equal(segment.codes, codec.encode(audio))
    assert torch.equal(codec.decode_segments([segment], 333), codec.decode(segment.codes)[..., :333])


def test_a_segmented_codec_says_what_to_use_instead():
    codec = make(SEGMENTS)
    audio = torch.randn(1, 2, 300)
    with pytest.raises(
        InputError, match="use encode_segments or token files; a language model needs another"
    ):
        codec.encode(audio)
    with pytest.raises(InputError, match="use decode_segments"):
        codec.decode(torch.zeros(1, 3, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="not trained"):
        codec.train()(audio)
    with pytest.raises(InputError, match="use encode_segments"):
        _ = codec.context_frames
    with pytest.raises(InputError, match="group norm"):
        _ = make(WHOLE).context_frames
    assert codec.segmented and not codec.causal


def test_segments_that_do_not_belong_to_the_sound_are_refused():
    codec = make(SEGMENTS)
    segments = codec.encode_segments(torch.randn(1, 2, 300))
    for wrong, num_samples, message in (
        (segments[:1], 300, "1 segments of .* not 300 samples"),
        (segments, 290, r"not 290 samples, which are 2 of \[20, 14\]"),
        ([Segment(codes) for codes, _ in segments], 300, "scale is None"),
        ([Segment(codes + 9, scale) for codes, scale in segments], 300, "another codec"),
        ([], 300, "0 segments"),
    ):
        with pytest.raises(InputError, match=message):
            codec.decode_segments(wrong, num_samples)


@pytest.mark.parametrize(
    "change",
    [
        {"segment_s": None},
        {"segment_s": 0.0},
        {"segment_overlap": 0.6},
        {"segment_overlap": -0.1},
        {"dual_mono": True, "num_codebooks": 4},
    ],
)
def test_settings_of_segments_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match="segment_s"):
        replace(SEGMENTS, **change)


def test_what_segments_are_is_saved_with_the_codec(tmp_path):
    codec = make(SEGMENTS)
    save_codec(tmp_path / "codec", codec)
    loaded = load_codec(tmp_path / "codec")
    audio = torch.randn(1, 2, 451)
    assert loaded.config == SEGMENTS
    for ours, want in zip(loaded.encode_segments(audio), codec.encode_segments(audio), strict=True):
        assert torch.equal(ours.codes, want.codes)


# --- two channels with a mono codec -----------------------------------------------------------------------------


def test_a_mono_codec_codes_two_channels_in_turn(tmp_path):
    mono = make(MONO)
    save_codec(tmp_path / "mono", mono)
    stereo = load_codec(tmp_path / "mono", dual_mono=True)
    assert (stereo.channels, stereo.num_codebooks, stereo.name) == (2, 6, "mono")
    audio = torch.randn(3, 2, 407)
    codes = stereo.encode(audio)
    left, right = mono.encode(audio[:, :1]), mono.encode(audio[:, 1:])
    assert torch.equal(codes, rearrange([left, right], "c b k t -> b (k c) t"))
    assert torch.equal(codes[:, 1], right[:, 0]) and torch.equal(codes[:, 2], left[:, 1])
    decoded = stereo.decode(codes)
    torch.testing.assert_close(decoded, torch.cat([mono.decode(left), mono.decode(right)], 1))
    assert torch.equal(stereo.encode(audio, 4), codes[:, :4])
    torch.testing.assert_close(stereo.decode(codes[:, :2])[:, 1:], mono.decode(right[:, :1]))
    assert stereo.bandwidth_kbps(6) == 2 * mono.bandwidth_kbps(3)


def test_tokens_of_two_channels_mean_something_else(tmp_path):
    save_codec(tmp_path / "mono", make(MONO))
    mono, stereo = load_codec(tmp_path / "mono"), load_codec(tmp_path / "mono", dual_mono=True)
    assert mono.identity != stereo.identity
    save_codec(tmp_path / "stereo", stereo)
    loaded = load_codec(tmp_path / "stereo")
    assert loaded.identity == stereo.identity == identity(loaded)
    assert load_codec(tmp_path / "stereo", dual_mono=True).config == loaded.config


def test_what_cannot_be_dual_mono_says_so(tmp_path):
    save_codec(tmp_path / "stereo", make(WHOLE))
    with pytest.raises(InputError, match="only a mono EnCodec can"):
        load_codec(tmp_path / "stereo", dual_mono=True)
    codec = make(replace(MONO, channels=2, dual_mono=True, num_codebooks=6))
    for count in (1, 3):
        with pytest.raises(InputError, match="even number"):
            codec.encode(torch.randn(1, 2, 100), count)
        with pytest.raises(InputError, match="even number"):
            codec.decode(torch.zeros(1, count, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="not trained"):
        codec.train()(torch.randn(1, 2, 100))
    with pytest.raises(InputError, match="an even number"):
        replace(MONO, channels=2, dual_mono=True)
