"""What a visitor of the page has: sounds, one to begin from, choices between systems. Gone with the browser's tab."""

import asyncio
import base64
import csv
import io
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from pydantic import ValidationError

from audiogen import audio
from audiogen.codec.segmented import in_segments
from audiogen.errors import InputError
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Edit
from audiogen.serve import sounds
from audiogen.serve.orders import Api
from audiogen.serve.page.takes import Take, Takes
from audiogen.serve.refusals import Refused
from audiogen.serve.schema import Settings

LOOK_S = 0.1  # between two looks at how far sounds are
MOST_TAKES = 50  # of a visitor's results
MOST_VISITORS = 1000  # at once; programs do not always say that they leave
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LM_ONLY = ("temperature", "top_k", "top_p")
LATENT_ONLY = ("num_inference_steps", "sampler", "guidance_rescale")
NOT_USED, CHANGE, PART, CONTINUE = USES = ("Not used", "Change it", "Make a part anew", "Continue it")
SENDS = {"init": CHANGE, "inpaint": PART, "prolong": CONTINUE}


@dataclass
class Vote:
    """A choice between systems. models: in the order in which they were shown."""

    prompt: str
    seed: int
    duration_s: float
    is_blind: bool
    models: Sequence[str]
    chosen: str


@dataclass
class Session:
    """A visitor. results, compared, coded: the sounds of the three tabs.

    source: the sound to begin from. span: the part of it that is made anew, in seconds. chosen: of the compared ones.
    """

    results: list[Take] = field(default_factory=list)
    compared: list[Take] = field(default_factory=list)
    coded: list[Take] = field(default_factory=list)
    source: Take | None = None
    span: tuple[float, float] = (0.0, 1.0)
    is_blind: bool = False
    chosen: Take | None = None
    votes: list[Vote] = field(default_factory=list)

    def takes(self) -> list[Take]:
        """All of its sounds."""
        return [*self.results, *self.compared, *self.coded, *([self.source] if self.source else [])]

    def table(self) -> str:
        """How often each system was chosen of how many times it was there, as HTML, and all choices as a CSV file."""
        if not self.votes:
            return ""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(("prompt", "seed", "duration_s", "blind", "models", "chosen"))
        for vote in self.votes:
            models = " ".join(vote.models)
            writer.writerow((vote.prompt, vote.seed, vote.duration_s, vote.is_blind, models, vote.chosen))
        rows = ""
        for model in sorted({model for vote in self.votes for model in vote.models}):
            shown = sum(model in vote.models for vote in self.votes)
            chosen = sum(vote.chosen == model for vote in self.votes)
            rows += f"<tr><td>{escape(model)}</td><td>{chosen} of {shown}</td></tr>"
        content = base64.b64encode(file.getvalue().encode()).decode()
        return (
            f"<table><tr><th>System</th><th>Chosen</th></tr>{rows}</table>"
            f'<a download="choices.csv" href="data:text/csv;base64,{content}">choices.csv</a>'
        )


class Visitors:
    """Everybody who has the page open, and what they ask for."""

    def __init__(self, api: Api, takes: Takes):
        self.api, self.takes = api, takes
        self._sessions: dict[str, Session] = {}

    def __getitem__(self, key: str | None) -> Session:
        session = self._sessions.setdefault(key or "", Session())
        if len(self._sessions) > MOST_VISITORS:
            self.leave(next(iter(self._sessions)))
        return session

    def leave(self, key: str | None) -> None:
        """A tab was closed."""
        for take in self._sessions.pop(key or "", Session()).takes():
            self.takes.remove(take)

    # ---------------------------------------------------------------------------------------------- asking for sounds

    def submit(self, session: Session, asked: dict[str, Any], request: Any, title: str | None = None) -> Take:
        """One sound, by the values of the controls; Refused or InputError for what cannot be."""
        worker = self.api.worker(asked["model"])
        given = {name: asked[name] for name in (LM_ONLY if worker.streams else LATENT_ONLY)}
        given |= {name: asked[name] for name in ("model", "seed", "guidance_scale", "negative_prompt")}
        given = {name: value for name, value in given.items() if value not in (None, "")}
        use, source = asked.get("use", NOT_USED), session.source
        prompt, edit = None, None
        if use != NOT_USED:
            if source is None or source.sound is None:
                raise Refused(400, "there is no sound to begin from yet; upload one, or send a result there")
            if use == CONTINUE:
                prompt = source.sound, source.sample_rate
            else:
                span = session.span if use == PART else None
                edit = Edit(
                    source.sound, source.sample_rate, asked["strength"] if use == CHANGE else None, span
                )
        if edit is None:
            given["audio_length"] = asked["duration_s"]
        text = asked["text"].strip() or None
        try:
            settings = Settings(**given)
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(422, f"{first['loc'][0]}: {first['msg']}") from None
        worker, order = self.api.order(settings, text, request, worker.streams, prompt, edit)
        facts = [worker.name, f"{order.duration_s:g} s", f"seed {order.seed}"]
        facts += [] if use == NOT_USED else [use.lower()]
        facts += [
            f"{name.replace('_', ' ')} {value}" for name, value in given.items()
            if name not in ("model", "seed", "audio_length")
        ]  # fmt: skip
        take = Take(
            title or text or "no text",
            ", ".join(facts),
            stem(text, order.seed),
            worker.generator.sample_rate,
            asked,
        )
        take.follow(worker, self.api.submit(worker, order))
        return self.takes.add(take)

    async def generate(
        self, session: Session, asked: dict[str, Any], request: Any
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The cards of the results, again and again until all that was asked for is there."""
        new = []
        for number in range(int(asked["count"])):
            one = asked | {"seed": int(asked["seed"] or 0) + number, "count": 1}
            new.append(self.submit(session, one, request))
            session.results.append(new[-1])
        for take in session.results[:-MOST_TAKES]:
            self.drop(session, take)
        async for cards in self._watch(new, lambda: self.results(session)):
            yield cards

    async def compare(
        self, session: Session, asked: dict[str, Any], models: Sequence[str], is_blind: bool, request: Any
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """One prompt by several systems, side by side; blind: in an order by chance, and without their names."""
        if len(models) < 2:
            raise Refused(400, "choose two systems or more")
        for take in session.compared:
            self.takes.remove(take)
        order = list(models)
        if is_blind:
            secrets.SystemRandom().shuffle(order)
        session.compared, session.chosen, session.is_blind = [], None, is_blind
        for letter, model in zip(LETTERS, order, strict=False):
            session.compared.append(self.submit(session, asked | {"model": model}, request, letter))
        async for cards in self._watch(session.compared, lambda: self.comparison(session)):
            yield cards

    async def code(
        self, session: Session, path: str, model: str | None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """An uploaded sound through the codec of a model, with one codebook, with two, ... with all.

        Of more than eight codebooks with 1, 2, 4, ... and all.
        """
        generator = self.api.worker(model).generator
        if not isinstance(generator, AudioGen):
            raise Refused(400, "this model has no codec of tokens; choose a language model")
        original, given_rate = await asyncio.to_thread(self._read, path)
        codec = in_segments(generator.codec)
        for take in session.coded:
            self.takes.remove(take)
        rate = codec.sample_rate
        wanted = audio.convert_channels(audio.resample(original, given_rate, rate), codec.channels)
        session.coded = [self.takes.add(Take("Original", f"{rate} Hz", "original", rate).hold(wanted))]
        with torch.inference_mode():
            segments = await asyncio.to_thread(codec.encode, wanted[None].to(codec.device))
        total = codec.header.num_codebooks
        for count, kbps in enumerate(codec.bandwidths_kbps, 1):
            if total > 8 and count < total and count & (count - 1):
                continue
            first = [segment._replace(codes=segment.codes[:, :count]) for segment in segments]
            sound = await asyncio.to_thread(codec.decode, first, wanted.shape[-1])
            title = f"{count} of {total} codebooks"
            take = Take(title, f"{kbps:g} kbit/s", f"{count}-codebooks", rate).hold(sound[0].cpu())
            session.coded.append(self.takes.add(take))
            yield self.coded(session)

    async def _watch(self, takes: Sequence[Take], cards: Any) -> AsyncIterator[list[dict[str, Any]]]:
        shown = None
        while True:
            is_over = all(
                take.is_over for take in takes
            )  # before the look, so that the last one shows the end
            if (now := cards()) != shown:
                shown = now
                yield now
            if is_over:
                return
            await asyncio.sleep(LOOK_S)

    def stop(self, session: Session) -> None:
        """End all that runs or waits."""
        for take in session.takes():
            take.stop()

    # ------------------------------------------------------------------------------------------- what a card can do

    def drop(self, session: Session, take: Take) -> None:
        """A result is not wanted any more."""
        session.results.remove(take)
        if take is not session.source:
            self.takes.remove(take)

    def choose(self, session: Session, take: Take) -> None:
        """One of the compared sounds is the best; once a comparison."""
        if session.chosen is not None or take not in session.compared:
            return
        asked, models = take.asked, [each.asked["model"] for each in session.compared]
        vote = Vote(
            asked["text"], asked["seed"], asked["duration_s"], session.is_blind, models, asked["model"]
        )
        session.votes.append(vote)
        session.chosen = take

    def receive(self, session: Session, path: str, name: str) -> Take:
        """An uploaded sound becomes the source."""
        sound, rate = self._read(path)
        facts = f"{sound.shape[-1] / rate:.2f} s, {rate} Hz"
        self.use(session, self.takes.add(Take(name[:60], facts, "source", rate).hold(sound)))
        assert session.source is not None
        return session.source

    def use(self, session: Session, take: Take) -> None:
        """A sound becomes the source."""
        sound = take.sound
        if sound is None:
            raise Refused(400, "this sound is not finished")
        session.source = take
        length_s = sound.shape[-1] / take.sample_rate
        session.span = (round(0.4 * length_s, 2), round(0.6 * length_s, 2))

    def _read(self, path: str) -> tuple[torch.Tensor, int]:
        with open(path, "rb") as file:
            data = file.read()
        return sounds.decode(data, self.api.limits.max_duration_s, "the file")

    def find(self, session: Session, key: str) -> Take:
        """One of the visitor's own sounds."""
        take = self.takes[key]
        if take not in session.takes():
            raise Refused(404, "this sound is not here")
        return take

    # ----------------------------------------------------------------------------------------------------- their cards

    def results(self, session: Session) -> list[dict[str, Any]]:
        """Of all results, oldest first."""
        cards = []
        for take in session.results:
            if take not in self.takes:  # made place for others
                continue
            card = take.card()
            sends = [action for action, use in SENDS.items() if self._fits(use)] if card["plays"] else []
            cards.append(card | {"actions": ["reuse", *sends, "drop"]})
        return cards

    def comparison(self, session: Session) -> list[dict[str, Any]]:
        """Side by side; without names before the choice where it is blind."""
        is_open = session.chosen is not None or not session.is_blind
        may_choose = session.chosen is None and all(take.is_over for take in session.compared)
        cards = []
        for take in session.compared:
            card = take.card() | {"beside": True, "chosen": take is session.chosen, "blind": not is_open}
            card["actions"] = ["choose"] if may_choose and card["plays"] else []
            cards.append(card if is_open else card | {"facts": ""})
        return cards

    def coded(self, session: Session) -> list[dict[str, Any]]:
        """Of the codec's tab."""
        return [take.card() | {"beside": True} for take in session.coded]

    def source(self, session: Session) -> list[dict[str, Any]]:
        """The source, with the span that is made anew."""
        take = session.source
        if take is None or take.sound is None:
            return []
        length_s = take.sound.shape[-1] / take.sample_rate
        return [take.card() | {"spans": True, "span": [min(1.0, end / length_s) for end in session.span]}]

    def _fits(self, use: str) -> bool:
        return any(self.fits(name, use) for name in self.api.workers)

    def fits(self, model: str, use: str) -> bool:
        """Whether a model can use a sound so."""
        return use == NOT_USED or (use == CONTINUE) == self.api.workers[model].streams


def stem(text: str | None, seed: int) -> str:
    """The name of a sound's files."""
    words = re.sub(r"[^\w]+", "-", (text or "sound").lower()).strip("-")[:40].rstrip("-")
    return f"{words or 'sound'}-{seed}"


def problem(error: Exception) -> str:
    """An error of the visitor's in words; others are raised."""
    if isinstance(error, Refused):
        return str(error.body["message"])
    if isinstance(error, InputError):
        return str(error)
    raise error
