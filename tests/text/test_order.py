"""Texts that say an order, taken apart."""

import pytest

from audiogen.data.synth import captions
from audiogen.data.synth.scene import compose
from audiogen.text.order import events


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a bell, then a siren", ["a bell", "a siren"]),
        ("A dog barks and then rain falls.", ["A dog barks", "rain falls"]),
        ("a door slam followed by footsteps", ["a door slam", "footsteps"]),
        ("A helicopter before sea waves", ["A helicopter", "sea waves"]),
        ("First a cat meows, then a clock ticks", ["a cat meows", "a clock ticks"]),
        ("a siren after a bell", ["a bell", "a siren"]),
        ("after a bell, a siren", ["a bell", "a siren"]),
        ("After a bell, a siren, then a horn", ["a bell", "a siren", "a horn"]),
        ("a bell, then a siren, then a horn", ["a bell", "a siren", "a horn"]),
        ("thunder. After that rain falls", ["thunder", "rain falls"]),
        ("a dog barks", ["a dog barks"]),
        (
            "the strengthening wind, aftershock and beforehand",
            ["the strengthening wind, aftershock and beforehand"],
        ),
        ("then", ["then"]),
        ("then a bell", ["then a bell"]),
        ("a bell, then ", ["a bell, then "]),
        ("first light", ["first light"]),
        ("", [""]),
    ],
)
def test_events_are_those_of_the_text_in_the_order_of_time(text: str, expected: list[str]) -> None:
    assert events(text) == expected


def test_every_way_to_say_an_order_in_the_corpus_is_understood() -> None:
    ordered = [clip for clip in range(600) if compose(0, clip, 5.0).form == "order"]
    found = [(clip, events(text)) for clip in ordered for text in captions(0, clip, 5.0)]
    assert len(found) > 50
    assert [(clip, parts) for clip, parts in found if len(parts) != 2] == []
    others = [clip for clip in range(200) if compose(0, clip, 5.0).form in ("one", "overlap", "emphasis")]
    assert len(others) > 100
    assert all(len(events(text)) == 1 for clip in others for text in captions(0, clip, 5.0))
