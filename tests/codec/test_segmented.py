"""Codecs that work on segments, and mono codecs that code two channels each by itself."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.segmented import SegmentedCodec, as_configured, cross_fade, in_segments, loudness
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec

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


def make_segmented() -> SegmentedCodec:
    """The codec of SEGMENTS."""
    codec = as_configured(make(SEGMENTS))
    assert isinstance(codec, SegmentedCodec)
    return codec


def cut(num_samples: int, length: int, stride: int) -> list[slice]:
    """Where the segments lie, by the definition: one begins every stride, as long as there is sound."""
    return [slice(start, min(start + length, num_samples)) for start in range(0, num_samples, stride)]


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
    codec = make_segmented()
    assert (codec.header.segment_samples, codec.header.stride_samples) == (200, 150)
    assert list(replace(codec.header, num_samples=num_samples).segment_frames()) == frames
    audio = torch.randn(2, 2, num_samples)
    segments = codec.encode(audio)
    assert [tuple(segment.codes.shape) for segment in segments] == [(2, 3, count) for count in frames]
    assert all(segment.scale.shape == (2,) for segment in segments)
    assert codec.decode(segments, num_samples).shape == audio.shape


def test_segments_that_were_not_changed_join_to_what_was_cut():
    audio = torch.randn(2, 3, 997)
    pieces = [audio[..., piece] for piece in cut(997, 200, 150)]
    assert len(pieces) == 7
    torch.testing.assert_close(torch.cat(list(cross_fade(pieces, 150)), -1), audio)
    torch.testing.assert_close(torch.cat(list(cross_fade([audio], 997)), -1), audio)


def test_two_segments_cross_fade_linearly_where_they_overlap():
    joined = torch.cat(list(cross_fade([torch.zeros(1, 1, 8), torch.ones(1, 1, 8)], 5)), -1)[0, 0]
    assert joined[:5].tolist() == [0] * 5 and joined[8:].tolist() == [1] * 5
    torch.testing.assert_close(joined[5:8], torch.tensor([0.25, 0.5, 0.75]))


def test_loudness_is_that_of_the_mean_of_the_channels_and_never_zero():
    audio = torch.tensor([[[3.0, -3.0], [1.0, -1.0]], [[0.5, 0.5], [-0.5, -0.5]]])
    torch.testing.assert_close(loudness(audio), torch.tensor([2.0, 1e-8]))


def test_each_segment_has_the_codes_of_its_audio_alone_at_any_loudness():
    codec, whole = make_segmented(), make(WHOLE)
    audio = torch.randn(2, 2, 310)
    segments = codec.encode(audio, 2)
    for (codes, scale), piece in zip(segments, cut(310, 200, 150), strict=True):
        alone = audio[..., piece]
        torch.testing.assert_close(scale, alone.mean(1).square().mean(1).sqrt())
        assert torch.equal(codes, whole.encode(alone / scale[:, None, None], 2))
    for quiet, segment in zip(codec.encode(0.01 * audio, 2), segments, strict=True):
        assert torch.equal(quiet.codes, segment.codes)
        torch.testing.assert_close(quiet.scale, 0.01 * segment.scale)
    decoded = codec.decode(segments, 310)
    scaled = [Segment(codes, 3 * scale) for codes, scale in segments]
    torch.testing.assert_close(codec.decode(scaled, 310), 3 * decoded)
    first = whole.decode(segments[0].codes) * segments[0].scale[:, None, None]
    torch.testing.assert_close(decoded[..., :150], first[..., :150])


def test_silence_stays_finite():
    codec = make_segmented()
    segments = codec.encode(torch.zeros(1, 2, 400))
    assert torch.isfinite(codec.decode(segments, 400)).all()


def test_a_codec_that_takes_the_whole_makes_one_segment_of_it():
    codec = make(MONO)
    segmented = in_segments(codec)
    audio = torch.randn(2, 1, 333)
    (segment,) = segmented.encode(audio)
    assert segment.codes.shape[-1] == 34 and segment.scale is None
    assert torch.equal(segment.codes, codec.encode(audio))
    assert torch.equal(segmented.decode([segment], 333), codec.decode(segment.codes)[..., :333])
    blocks = [Segment(codes) for codes in segment.codes.split([1, 33], -1)]
    assert torch.equal(segmented.decode(blocks, 333), codec.decode(segment.codes)[..., :333])
    assert in_segments(segmented) is segmented


def test_a_codec_of_segments_is_not_trained_and_has_no_windows():
    codec = make_segmented()
    with pytest.raises(InputError, match="not trained"):
        codec.codec.train()(torch.randn(1, 2, 300))
    with pytest.raises(InputError, match="audio has shape"):
        codec.encode(torch.zeros(1, 2, 0))
    with pytest.raises(InputError, match="group norm"):
        _ = make(WHOLE).context_frames


def test_segments_that_do_not_belong_to_the_sound_are_refused():
    codec = make_segmented()
    segments = codec.encode(torch.randn(1, 2, 300))
    for wrong, num_samples, message in (
        (segments[:1], 300, "1 segments of .* not 300 samples"),
        (segments, 290, r"not 290 samples, which are 2 of \[20, 14\]"),
        ([Segment(codes) for codes, _ in segments], 300, "scale is None"),
        ([Segment(codes + 9, scale) for codes, scale in segments], 300, "another codec"),
        ([], 300, "0 segments"),
    ):
        with pytest.raises(InputError, match=message):
            codec.decode(wrong, num_samples)


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
    codec = make_segmented()
    save_codec(tmp_path / "codec", codec)
    loaded = load_codec(tmp_path / "codec")
    audio = torch.randn(1, 2, 451)
    assert isinstance(loaded, SegmentedCodec) and loaded.codec.config == SEGMENTS
    assert loaded.name == "codec" and loaded.header.identity == checkpoint.identity(codec.codec.meaning())
    for ours, want in zip(loaded.encode(audio), codec.encode(audio), strict=True):
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
    both, one = in_segments(stereo).bandwidths_kbps, in_segments(mono).bandwidths_kbps
    assert len(both) == 6 and both[5] == 2 * one[2]


def test_tokens_of_two_channels_mean_something_else(tmp_path):
    save_codec(tmp_path / "mono", make(MONO))
    mono, stereo = load_codec(tmp_path / "mono"), load_codec(tmp_path / "mono", dual_mono=True)
    assert mono.identity != stereo.identity
    save_codec(tmp_path / "stereo", stereo)
    loaded = load_codec(tmp_path / "stereo")
    assert loaded.identity == stereo.identity == checkpoint.identity(loaded.meaning())
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
