"""Foreign configurations: what is read, in which range, and that nothing is ignored silently."""

from pathlib import Path

import pytest

from audiogen.config import Range
from audiogen.diffusion.mel import VocoderConfig
from audiogen.errors import InputError
from audiogen.models.settings import Settings, parse_yaml, read_settings, resolve

ROWS = {"resblock_dilations": ["layers"]}
CONTENTS = {
    "model": {"dim": 8, "layers": [1, 2.0], "rate": 0.5, "causal": True, "act": "gelu", "none": None},
    "parts": [{"id": "a", "size": 3}, {"id": "b", "size": 4}],
    "_version": "1",
}


def test_values_are_read_by_dotted_key_or_section() -> None:
    settings = Settings(CONTENTS, "c.json")
    model = settings.section("model")
    assert (settings.whole("model.dim"), model.whole("dim")) == (8, 8)
    assert model.wholes("layers") == (1, 2)
    assert model.number("rate") == 0.5 and model.number("dim") == 8.0
    assert model.flag("causal") is True
    rows = Settings({"layers": [[1, 2], [3]]}, "c.json").values(VocoderConfig, ROWS)
    assert rows == {"resblock_dilations": ((1, 2), (3,))}
    assert model.choice("act", ["gelu", "relu"]) == "gelu"
    assert model.whole("none", None) is None and model.whole("absent", None) is None
    assert [part.text("id") for part in settings.sections("parts")] == ["a", "b"]
    assert "model.dim" in settings and "model.dim.x" not in settings
    assert settings.section("model.none", {}).contents == {}
    with pytest.raises(InputError, match=r"^c.json: parts.0.size is 3, which is not implemented"):
        settings.done(["_*"])
    with pytest.raises(InputError, match=r"^c.json: _version is '1', which is not"):
        settings.done(["parts.*.size"])
    settings.done(["_version", "*.size"])


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (lambda s: s.whole("model.width"), r"^c.json lacks model.width: it is not whole"),
        (lambda s: s.section("model").whole("width"), r"^c.json lacks model.width"),
        (lambda s: s.whole("model.rate"), r"model.rate is 0.5; it must be a whole number in \[1, 262144\]"),
        (lambda s: s.whole("model.causal"), r"model.causal is True; it must be a whole number"),
        (lambda s: s.whole("model.dim", within=Range(9)), r"is 8; it must be a whole number at least 9"),
        (lambda s: s.wholes("model.dim"), r"model.dim is 8; it must be a list of 1 to 256 values"),
        (lambda s: s.wholes("model.layers", within=Range(2)), r"model.layers.0 is 1; it must be a whole"),
        (lambda s: s.section("model").values(VocoderConfig, ROWS), r"model.layers.0 is 1; it must be a list of 1"),
        (lambda s: s.number("model.causal"), r"model.causal is True; it must be a number"),
        (lambda s: s.number("model.rate", within=Range(1)), r"it must be a number at least 1"),
        (lambda s: s.flag("model.dim"), r"model.dim is 8; it must be true or false"),
        (lambda s: s.text("model.dim"), r"model.dim is 8; it must be a text"),
        (lambda s: s.choice("model.act", ["silu"]), r"model.act is 'gelu'; only 'silu' is implemented"),
        (lambda s: s.choice("model.causal", [1]), r"model.causal is True; only 1 is implemented"),
        (lambda s: s.section("model").choice("kind", ["gelu"], "relu"), r"model.kind is 'relu'; only 'gelu'"),
        (lambda s: s.section("parts"), r"c.json: parts is \[\{.*; a mapping of keys to values is needed"),
        (lambda s: s.sections("model"), r"model is \{.*; it must be a list of mappings"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_full_key(get, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        get(Settings(CONTENTS, "c.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['{"a": }', '{"a": ' + "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "[1]", b"\xff\xfe{}"],
)
def test_a_damaged_file_is_one_line(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"settings.json (cannot be read|is \[1\])") as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="settings.yaml(: a is| cannot be read| is | holds no)"):
        read_settings(path.rename(tmp_path / "settings.yaml")).whole("a", within=Range(0, 9))


def test_numbers_that_overflow_are_refused() -> None:
    settings = Settings({"a": 10**400, "b": float("nan"), "c": -(2**70), "d": [1] * 300}, "c.json")
    for get in (settings.whole, settings.number):
        for key in ("a", "b"):
            with pytest.raises(InputError, match=f"{key} is .*; it must be"):
                get(key)
    with pytest.raises(InputError, match="c is -1180591620717411303424"):
        settings.whole("c")
    with pytest.raises(InputError, match="d is .*; it must be a list of 1 to 256 values"):
        settings.wholes("d")


def test_json_with_comments_and_trailing_commas_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(
        '{"a": [1, 2,], // note: ", } "\n "b": "http://x, ]", /* more\n "c": 1, */ "d": {"e": true,},}'
    )
    assert read_settings(path).contents == {"a": [1, 2], "b": "http://x, ]", "d": {"e": True}}


def test_yaml_is_resolved_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: {b: '${c}'}\nc: 1e3\n")
    assert read_settings(path).section("a").whole("b") == 1000
    top = parse_yaml("a: {b: '${c}'}\nc: 2\nd: '${oc.env:NO_SUCH_VARIABLE}'\n", "xp.cfg of x.th")
    assert resolve(top, "a", "xp.cfg of x.th") == {"b": 2}
    assert resolve(top, "e", "xp.cfg of x.th") is None
    with pytest.raises(InputError, match="^xp.cfg of x.th: d cannot be resolved"):
        resolve(top, "d", "xp.cfg of x.th")
