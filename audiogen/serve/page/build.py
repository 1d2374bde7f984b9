"""The page's controls, by Gradio, and what they call. All of it comes from this server: it works without internet."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount

from audiogen.diffusion.samplers import SAMPLERS
from audiogen.errors import InputError
from audiogen.serve.orders import DURATION_S, Api
from audiogen.serve.page.session import (
    CONTINUE,
    NOT_USED,
    SENDS,
    USES,
    Session,
    Visitors,
    problem,
)
from audiogen.serve.page.takes import Take, Takes, add_routes, page_file
from audiogen.serve.refusals import Refused

EXAMPLES = (
    "a dog barks",
    "rain falls",
    "a rooster crows",
    "a helicopter flies by",
    "waves on a beach",
    "a clock ticks",
)
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const press = (name) => [...document.querySelectorAll(name)].find((node) => node.offsetParent)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press(".go");
  if (event.key === "Escape") press(".stop");
});
</script>"""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def mount(app: FastAPI, api: Api, root_path: str = "") -> asyncio.Event:
    """Put the page at / of an app that has all its other routes already.

    Returns what is to be set when the server stops: until then open pages keep it running.
    """
    takes = Takes()
    add_routes(app, takes)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def missing(path: str) -> None:
        raise Refused(404, "there is no such path; see /docs", code="not_found")

    key = api.limits.api_key
    gr.mount_gradio_app(
        app, Page(api, takes).blocks(), "/", footer_links=[], show_error=True, root_path=root_path or None,
        max_file_size=api.limits.max_body, theme=gr.themes.Default(font=["system-ui", "sans-serif"]),
        css=page_file("page.css"), head=KEYS,
        auth=None if key is None else lambda name, word: secrets.compare_digest(word.encode(), key.encode()),
        auth_message="Any name; the password is the server's API key.",
    )  # fmt: skip
    page = next(route.app for route in app.routes if isinstance(route, Mount) and route.path == "")
    return cast("asyncio.Event", page.stop_event)  # type: ignore[attr-defined]


class Page:
    """The controls over the visitors' sessions."""

    def __init__(self, api: Api, takes: Takes):
        self.api, self.visitors = api, Visitors(api, takes)
        self.models = list(api.workers)
        self.codecs = [name for name, worker in api.workers.items() if worker.streams]
        self.controls: dict[str, Any] = {}

    def blocks(self) -> gr.Blocks:
        """All of the page."""
        with gr.Blocks(title="audiogen", analytics_enabled=False, fill_width=True) as blocks:
            gr.api(self.sound, api_name="generate", concurrency_limit=None)  # first, so that it has this name
            with gr.Tab("Generate"):
                self._generate()
            with gr.Tab("Compare"):
                self._compare()
            if self.codecs:
                with gr.Tab("Codec"):
                    self._codec()
            blocks.unload(self.leave)
        return blocks

    # ------------------------------------------------------------------------------------------------ the first tab

    def _generate(self) -> None:
        controls = self.controls
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                controls["text"] = gr.Textbox(
                    label="Prompt", lines=2, placeholder="a dog barks", elem_id="prompt"
                )
                gr.Examples([[text] for text in EXAMPLES], controls["text"], label="Examples", api_name=None)
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_classes="go", elem_id="go")
                    stop = gr.Button("Stop", variant="stop", elem_classes="stop", elem_id="stop")
                with gr.Row():
                    controls["model"] = gr.Dropdown(
                        self.models, value=self.models[0], label="Model", elem_id="model"
                    )
                    controls["duration_s"] = gr.Slider(
                        0.5,
                        self.longest_s(self.models[0]),
                        DURATION_S,
                        step=0.5,
                        label="Seconds",
                        elem_id="seconds",
                    )
                with gr.Row():
                    controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                    controls["is_new"] = gr.Checkbox(True, label="A new seed each time", elem_id="new")
                    controls["count"] = gr.Slider(1, 4, 1, step=1, label="Sounds", elem_id="count")
                with gr.Accordion("A sound to begin from", open=False) as from_sound:
                    source = self._source()
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    groups = self._more()
            with gr.Column(scale=3, min_width=320):
                panel = takes_panel("results")
        inputs = list(controls.values())
        gr.on(
            [go.click, controls["text"].submit], self.generate, inputs, [panel, controls["seed"]],
            trigger_mode="multiple", **QUIET,
        )  # fmt: skip
        stop.click(self.stop, None, None, **QUIET)
        model = controls["model"]
        model.change(self.suit, model, [controls["duration_s"], *groups], **QUIET)
        panel.click(self.act, inputs, [panel, source, from_sound, *inputs], **QUIET)
        source.click(self.mark, None, [controls["begin_s"], controls["end_s"]], **QUIET)
        for name in ("begin_s", "end_s"):
            controls[name].input(self.span, [controls["begin_s"], controls["end_s"]], source, **QUIET)
        self.upload.upload(
            self.receive, self.upload, [source, controls["begin_s"], controls["end_s"]], **QUIET
        )

    def _source(self) -> gr.HTML:
        """What a new sound may begin from."""
        controls = self.controls
        self.upload = gr.UploadButton("Upload a sound", file_types=["audio"], size="sm", elem_id="upload")
        source = takes_panel("source")
        controls["use"] = gr.Radio(USES, value=NOT_USED, label="Use", elem_id="use")
        controls["strength"] = gr.Slider(0, 1, 0.6, step=0.05, label="How much is changed")
        with gr.Row():
            controls["begin_s"] = gr.Number(0.0, label="New part from (s)", minimum=0, elem_id="begin")
            controls["end_s"] = gr.Number(1.0, label="to (s)", minimum=0, elem_id="end")
        return source

    def _more(self) -> list[gr.Group]:
        """Settings of each family, of which those of the model are shown -> their two groups."""
        controls, streams = self.controls, self.api.workers[self.models[0]].streams
        controls["negative_prompt"] = gr.Textbox(label="Not like", placeholder="birds")
        controls["guidance_scale"] = gr.Number(None, label="Guidance", placeholder="the model's own")
        with gr.Group(visible=streams) as tokens:
            controls["temperature"] = gr.Number(None, label="Temperature", minimum=0, placeholder="1")
            controls["top_k"] = gr.Number(None, label="Top k", precision=0, minimum=0, placeholder="250")
            controls["top_p"] = gr.Number(None, label="Top p", minimum=0, maximum=1, placeholder="0")
        with gr.Group(visible=not streams) as latents:
            controls["num_inference_steps"] = gr.Number(
                None, label="Steps", precision=0, minimum=1, placeholder="the model's own"
            )
            names = list(dict.fromkeys(name for kind in SAMPLERS.values() for name in kind))
            controls["sampler"] = gr.Dropdown([("the model's own", ""), *names], value="", label="Sampler")
            controls["guidance_rescale"] = gr.Number(
                None, label="Guidance rescale", minimum=0, maximum=1, placeholder="0"
            )
        return [tokens, latents]

    def longest_s(self, model: str) -> float:
        """Seconds that a model makes here."""
        return min(self.api.limits.max_duration_s, self.api.workers[model].generator.max_duration_s)

    async def generate(self, request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, Any]]:
        """Generate was pressed."""
        session, asked = self.visitors[request.session_hash], dict(zip(self.controls, values, strict=True))
        if asked["is_new"]:
            asked["seed"] = secrets.randbelow(2**31)
        session.span = (asked["begin_s"] or 0.0, asked["end_s"] or 0.0)
        async for cards in said(self.visitors.generate(session, asked, request)):
            yield cards, asked["seed"]

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visitors.leave(request.session_hash)

    async def stop(self, request: gr.Request) -> None:
        """Stop was pressed."""
        self.visitors.stop(self.visitors[request.session_hash])

    def suit(self, model: str) -> tuple[Any, ...]:
        """Another model was chosen."""
        streams = self.api.workers[model].streams
        return (
            gr.update(maximum=self.longest_s(model)),
            gr.update(visible=streams),
            gr.update(visible=not streams),
        )

    async def act(self, event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        """A button of a result was pressed -> results, source, its fold, controls."""
        session, asked = self.visitors[request.session_hash], dict(zip(self.controls, values, strict=True))
        shown: dict[str, Any] = {}
        try:
            take = self.visitors.find(session, event.key)
            if event.action == "drop":
                self.visitors.drop(session, take)
            elif event.action == "reuse":
                shown = {name: take.asked[name] for name in self.controls if name in take.asked} | {
                    "is_new": False
                }
            elif event.action in SENDS:
                self.visitors.use(session, take)
                shown = self._sent(session, take, asked, SENDS[event.action])
        except (Refused, InputError) as error:
            raise gr.Error(problem(error), print_exception=False) from None
        fold = gr.update(open=True) if event.action in SENDS else gr.skip()
        controls = [gr.update(value=shown[name]) if name in shown else gr.skip() for name in self.controls]
        return [self.visitors.results(session), self.visitors.source(session), fold, *controls]

    def _sent(self, session: Session, take: Take, asked: dict[str, Any], use: str) -> dict[str, Any]:
        """The controls' values after a result became the source."""
        shown: dict[str, Any] = {"use": use, "text": take.asked.get("text", ""), "begin_s": session.span[0]}
        shown["end_s"] = session.span[1]
        if not self.visitors.fits(asked["model"], use):
            shown["model"] = next(name for name in self.models if self.visitors.fits(name, use))
        if use == CONTINUE and take.sound is not None:
            longer_s = take.sound.shape[-1] / take.sample_rate + DURATION_S
            shown["duration_s"] = min(self.longest_s(shown.get("model", asked["model"])), longer_s)
        return shown

    def mark(self, event: gr.EventData, request: gr.Request) -> tuple[float, float]:
        """A part of the source was marked -> where it begins and ends."""
        session = self.visitors[request.session_hash]
        take = self.visitors.find(session, event.key)
        assert take.sound is not None
        length_s = take.sound.shape[-1] / take.sample_rate
        session.span = (round(event.ends[0] * length_s, 2), round(event.ends[1] * length_s, 2))
        return session.span

    def span(self, begin_s: float | None, end_s: float | None, request: gr.Request) -> list[dict[str, Any]]:
        """Its ends were typed -> the source."""
        session = self.visitors[request.session_hash]
        session.span = (begin_s or 0.0, end_s or 0.0)
        return self.visitors.source(session)

    def receive(self, path: str, request: gr.Request) -> tuple[Any, ...]:
        """A sound was uploaded -> the source and its span."""
        session = self.visitors[request.session_hash]
        try:
            self.visitors.receive(session, path, Path(path).name)
        except (Refused, InputError) as error:
            raise gr.Error(problem(error), print_exception=False) from None
        finally:
            os.unlink(path)  # nothing stays on disk
        return self.visitors.source(session), *session.span

    # ------------------------------------------------------------------------------------------------ the other tabs

    def _compare(self) -> None:
        text = gr.Textbox(label="Prompt", placeholder="a dog barks", elem_id="both")
        with gr.Row():
            models = gr.CheckboxGroup(self.models, value=self.models, label="Systems", elem_id="systems")
            duration = gr.Slider(
                0.5, min(map(self.longest_s, self.models)), DURATION_S, step=0.5, label="Seconds"
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            blind = gr.Checkbox(True, label="Blind: names are shown after the choice", elem_id="blind")
        with gr.Row():
            go = gr.Button("Compare", variant="primary", elem_classes="go", elem_id="compare")
            stop = gr.Button("Stop", variant="stop", elem_classes="stop")
        panel = takes_panel("compared", "beside")
        votes = gr.HTML(elem_classes="votes", elem_id="votes")
        gr.on([go.click, text.submit], self.compare, [text, models, duration, seed, blind], panel, **QUIET)
        stop.click(self.stop, None, None, **QUIET)
        panel.click(self.choose, None, [panel, votes], **QUIET)

    async def compare(
        self, text: str, models: list[str], duration_s: float, seed: int, is_blind: bool, request: gr.Request
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Compare was pressed."""
        asked = dict.fromkeys(self.controls) | {
            "text": text,
            "duration_s": duration_s,
            "seed": seed or 0,
            "use": NOT_USED,
        }
        session = self.visitors[request.session_hash]
        async for cards in said(self.visitors.compare(session, asked, models, is_blind, request)):
            yield cards

    def choose(self, event: gr.EventData, request: gr.Request) -> tuple[list[dict[str, Any]], str]:
        """One of the compared sounds was chosen -> their cards, the counts."""
        session = self.visitors[request.session_hash]
        self.visitors.choose(session, self.visitors.find(session, event.key))
        return self.visitors.comparison(session), session.table()

    def _codec(self) -> None:
        with gr.Row():
            model = gr.Dropdown(self.codecs, value=self.codecs[0], label="Codec of", elem_id="codec")
            upload = gr.UploadButton(
                "Upload a sound", file_types=["audio"], variant="primary", elem_id="coded-upload"
            )
        upload.upload(self.code, [upload, model], takes_panel("coded", "beside"), **QUIET)

    async def code(self, path: str, model: str, request: gr.Request) -> AsyncIterator[list[dict[str, Any]]]:
        """A sound was uploaded to the codec's tab."""
        try:
            async for cards in said(self.visitors.code(self.visitors[request.session_hash], path, model)):
                yield cards
        finally:
            os.unlink(path)

    # ----------------------------------------------------------------------------------------------- for gradio_client

    async def sound(
        self, request: gr.Request, text: str, model: str = "", duration_s: float = DURATION_S, seed: int = 0
    ) -> dict[str, Any]:
        """A sound of a text -> its facts, and the address of its WAV file below the server's."""
        session = self.visitors[request.session_hash]
        asked = dict.fromkeys(self.controls) | {
            "text": text,
            "duration_s": duration_s,
            "seed": seed,
            "count": 1,
        }
        asked |= {"model": model or self.models[0], "use": NOT_USED}
        *_, cards = [each async for each in said(self.visitors.generate(session, asked, request))]
        return {"facts": cards[-1]["facts"], "error": cards[-1]["error"], "url": cards[-1]["url"] + ".wav"}


def takes_panel(name: str, kind: str = "") -> gr.HTML:
    """A list of sounds."""
    template = '<div class="takes"></div>'
    script = page_file("takes.js")
    return gr.HTML(
        [],
        html_template=template,
        js_on_load=script,
        apply_default_css=False,
        elem_id=name,
        elem_classes=kind,
    )


async def said(cards: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[list[dict[str, Any]]]:
    """Cards as they come; what the visitor got wrong is a message on the page."""
    try:
        async for each in cards:
            yield each
    except (Refused, InputError) as error:
        raise gr.Error(problem(error), print_exception=False) from None
