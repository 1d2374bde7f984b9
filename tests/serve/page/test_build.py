"""The page in a real browser: sounds play while they are made, results are sent on, systems compared."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import soundfile
import torch

from audiogen import audio
from tests.serve.conftest import Start  # noqa: F401 (skips without the extra)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: Debian's package chromium")
WAIT = {"timeout": 120_000}  # ms, on a busy machine
PLAYER = """() => {
  const player = document.querySelector('#results audio');
  return [player.currentTime, player.buffered.length && player.buffered.end(0)];
}"""
COLOURS = """() => ['.take', '.take h3'].map(name => getComputedStyle(document.querySelector(name)))
  .map((style, index) => index ? style.color : style.backgroundColor)"""
VALUES = "all => all.map(each => [each.innerText, each.querySelector('input, textarea')?.value])"
PICTURES = "number => document.querySelectorAll('#results .picture').length == number"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the bundled models."""
    command = [sys.executable, "-m", "audiogen.serve", "--port", "0"]
    temporary = tmp_path_factory.mktemp("temporary")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip() + "/"
        process.terminate()
    assert not [
        path for path in temporary.rglob("*") if path.suffix in (".wav", ".mp3", ".png")
    ]  # nothing on disk


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page; at the end no error was logged, and nothing was asked of another host."""
    faults, host = [], urlsplit(address).netloc
    page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda asked: None if urlsplit(asked.url).netloc in (host, "") else faults.append(asked.url),
    )
    page.goto(address)
    page.wait_for_selector("#go", **WAIT)
    yield page
    page.close()
    assert not [fault for fault in faults if not fault.startswith("blob:")]


def generate(page: Any, text: str, seconds: float, number: int) -> None:
    """Generate, and wait for the picture of the result that is the `number`th."""
    page.fill("#prompt textarea", text)
    page.fill("#seconds input[type=number]", str(seconds))
    page.click("#go")
    try:
        page.wait_for_function(PICTURES, arg=number, **WAIT)
    except sync_api.TimeoutError:
        names = (
            "#results article",
            "[class*=toast-body]",
            "#prompt",
            "#model",
            "#seconds",
            "#use label.selected",
        )
        said = {name: page.eval_on_selector_all(name, VALUES) for name in names}
        pytest.fail(f"no picture of sound {number}; the page says {said}")


def download(
    page: Any, address: str, kind: str = "wav", card: str = "#results article:first-child"
) -> tuple[torch.Tensor, int]:
    link = page.get_attribute(f"{card} a[download$={kind}]", "href")
    return read(httpx.get(f"{address}{link}").content)


def read(data: bytes) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return torch.from_numpy(samples).T, rate


def test_a_sound_plays_while_it_is_made_and_is_that_of_the_api(page: Any, address: str) -> None:
    page.fill("#prompt textarea", "a dog barks")
    page.fill("#seconds input[type=number]", "12")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results audio", **WAIT)
    page.wait_for_function(f"() => ({PLAYER})()[0] > 0.1", **WAIT)  # it plays
    assert page.is_visible("#results progress")
    _, first = page.evaluate(PLAYER)
    page.wait_for_function(
        f"first => ({PLAYER})()[1] > first + 0.5 && document.querySelector('#results progress').offsetParent",
        arg=first,
        **WAIT,
    )
    page.wait_for_function(PICTURES, arg=1, **WAIT)
    assert not page.is_visible("#results progress")
    page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 100", **WAIT)
    seed = page.input_value("#seed input")
    assert f"lm_tiny, 12 s, seed {seed}" in page.inner_text("#results")
    name = page.get_attribute("#results a[download$=wav]", "download")
    assert name == f"a-dog-barks-{seed}.wav"
    sound, rate = download(page, address)
    asked = {
        "input": "a dog barks",
        "audio_length": 12,
        "seed": int(seed),
        "stream_format": "audio",
        "response_format": "pcm",
    }
    answer = httpx.post(f"{address}v1/audio/generate", json=asked, timeout=120).content
    wanted = torch.frombuffer(bytearray(answer), dtype=torch.int16)
    assert ((sound[0] * 32768).round() - wanted).abs().max() <= 2  # libsndfile rounds down, to another scale
    compressed, _ = download(page, address, "mp3")
    assert compressed.shape == sound.shape and rate == 16_000


def test_escape_stops_it_and_what_was_made_stays(page: Any, address: str) -> None:
    page.fill("#prompt textarea", "rain falls")
    page.fill("#seconds input[type=number]", "60")
    page.click("#go")
    page.wait_for_selector("#results audio", **WAIT)
    page.keyboard.press("Escape")
    page.wait_for_function(PICTURES, arg=1, **WAIT)
    assert page.inner_text("#results .note") == "stopped"
    sound, _ = download(page, address)
    assert 0 < sound.shape[1] < 60 * 16_000
    page.click("#results button.drop")
    page.wait_for_function("() => !document.querySelector('#results article')", **WAIT)


def test_a_closed_page_frees_its_place(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.fill("#prompt textarea", "rain falls")
    page.fill("#seconds input[type=number]", "60")
    page.click("#go")
    page.wait_for_selector("#results audio", **WAIT)
    assert 'audiogen_running{model="lm_tiny"} 1.0' in httpx.get(f"{address}metrics").text
    page.close()
    latest = time.monotonic() + 60
    while 'audiogen_running{model="lm_tiny"} 0.0' not in httpx.get(f"{address}metrics").text:
        assert time.monotonic() < latest
        time.sleep(0.1)


def test_a_result_is_sent_on_and_a_part_of_it_made_anew(page: Any, address: str) -> None:
    generate(page, "a dog barks", 2, 1)
    before, rate = download(page, address)
    page.click("#results button.inpaint")
    page.wait_for_selector("#source .picture img", **WAIT)
    page.wait_for_function("() => document.querySelector('#model input').value != 'lm_tiny'", **WAIT)
    box = page.query_selector("#source .picture").bounding_box()
    for share, act in ((0.25, page.mouse.down), (0.5, page.mouse.up)):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + 9)
        act()
    page.wait_for_function("() => document.querySelector('#begin input').value == '0.5'", **WAIT)
    generate(page, "a rooster crows", 2, 2)
    after, _ = download(page, address)
    fade = rate // 50
    kept = torch.ones(before.shape[1], dtype=torch.bool)
    kept[rate // 2 - fade : rate + fade] = False
    assert (after[:, kept] - before[:, kept]).abs().max() < 1e-4 < (after - before).abs().max()
    page.click("#results article:last-child button.prolong")
    page.wait_for_selector("#use label.selected:has-text('Continue it')", **WAIT)
    page.wait_for_function("() => document.querySelector('#seconds input[type=number]').value == '7'", **WAIT)
    assert page.input_value("#model input") == "lm_tiny"
    generate(page, "a dog barks", 4, 3)
    longer, _ = download(page, address)
    assert (
        longer.shape[1] == 4 * rate
        and (longer[:, : 3 * rate // 2] - before[:, : 3 * rate // 2]).abs().max() < 1e-4
    )
    page.click("#results article:last-child button.reuse")
    page.wait_for_function("() => document.querySelector('#seconds input[type=number]').value == '2'", **WAIT)


def test_two_systems_side_by_side_and_blind(page: Any, tmp_path: Path) -> None:
    page.click("button[role=tab]:has-text('Compare')")
    page.fill("#both textarea", "a dog barks")
    page.click("#compare")
    page.wait_for_selector("#compared button.choose", **WAIT)
    shown = page.inner_text("#compared")
    assert "lm_tiny" not in shown and "A" in shown and "B" in shown and not page.query_selector("#compared a")
    page.click("#compared article:nth-child(2) button.choose")
    page.wait_for_selector("#votes table", **WAIT)
    assert "lm_tiny" in page.inner_text("#compared") and "1 of 1" in page.inner_text("#votes")
    with page.expect_download() as waited:
        page.click("#votes a")
    waited.value.save_as(tmp_path / "votes.csv")
    (row,) = csv.DictReader((tmp_path / "votes.csv").open())
    assert (
        row["prompt"] == "a dog barks"
        and row["chosen"] in row["models"].split()
        and len(row["models"].split()) == 2
    )


def test_a_sound_at_each_number_of_codebooks(page: Any, tmp_path: Path) -> None:
    audio.save(tmp_path / "tone.wav", torch.sin(torch.arange(16_000) / 9)[None] * 0.5, 16_000)
    page.click("button[role=tab]:has-text('Codec')")
    page.set_input_files("input:has(+ #coded-upload)", tmp_path / "tone.wav")
    page.wait_for_function("() => document.querySelectorAll('#coded .picture').length == 6", **WAIT)
    assert re.findall(r"([\d.]+) kbit/s", page.inner_text("#coded")) == ["0.225", "0.45", "0.9", "1.8", "3.6"]


def test_mistakes_are_said_and_uploads_that_are_no_sound(page: Any, tmp_path: Path) -> None:
    page.click("#go")  # without a prompt
    page.wait_for_selector("text=text is missing", **WAIT)
    (tmp_path / "a.wav").write_bytes(b"RIFF no sound")
    page.click("text=A sound to begin from")
    page.set_input_files("input:has(+ #upload)", tmp_path / "a.wav")
    page.wait_for_selector("text=no sound that can be read", **WAIT)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    generate(page, "rain falls", 1, 1)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    colours = page.evaluate(COLOURS)
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in colours]
    assert abs(light[0] - light[1]) > 0.5  # letters can be read on their ground


def test_programs_reach_it_by_gradios_client(address: str, tmp_path: Path) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False, download_files=str(tmp_path))
    made = client.predict("rain falls", "lm_tiny", 1.0, 5, api_name="/generate")
    assert made["error"] is None and "seed 5" in made["facts"]
    samples, rate = soundfile.read(io.BytesIO(httpx.get(address + made["url"]).content))
    assert len(samples) == rate == 16_000
    with pytest.raises(Exception, match="no model"):
        client.predict("rain falls", "nosuch", 1.0, 5, api_name="/generate")
