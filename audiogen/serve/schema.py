"""What clients send. Names follow OpenAI's speech API where it has the thing, as vLLM-Omni's audio API does."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from audiogen.errors import LONGEST_TEXT
from audiogen.finish import Finish
from audiogen.interfaces import Sampling
from audiogen.text.schedule import read_schedule

Format = Literal["wav", "flac", "mp3", "ogg", "opus", "pcm"]
StreamFormat = Literal["audio", "sse"]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """How a sound is made, and in which format it comes. What is missing is the model's own default."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[
        str | None, Field(description="one of GET /v1/models; the server's first is the default")
    ] = None
    response_format: Format = "wav"
    audio_length: Annotated[float | None, Field(gt=0, description="seconds; 5 if missing")] = None
    negative_prompt: Annotated[Text | None, Field(description="what the sound should not be like")] = None
    guidance_scale: Annotated[float | None, Field(description="weight of the text; 1 is none")] = None
    seed: Annotated[Seed | None, Field(description="missing: a new one, which the answer names")] = None
    loop: Annotated[bool, Field(description="the end continues into the beginning")] = False
    schedule: Annotated[
        str | None, Field(max_length=LONGEST_TEXT, description="later texts by time: '8:thunder; 15:birds'")
    ] = None
    crossfade: Annotated[float | None, Field(ge=0, description="seconds from text to text")] = None
    morph_to: Annotated[Text | None, Field(description="a sound between input and this text")] = None
    morph: Annotated[float | None, Field(ge=0, le=1, description="how far it is from input")] = None
    temperature: Annotated[float | None, Field(ge=0, description="language models: 0 is greedy")] = None
    top_k: Annotated[int | None, Field(ge=0, description="language models: draw from the k likeliest")] = None
    top_p: Annotated[
        float | None, Field(ge=0, le=1, description="language models: draw from the likeliest of this sum")
    ] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, description="latent diffusion")] = None
    sampler: Annotated[str | None, Field(description="latent diffusion")] = None
    guidance_rescale: Annotated[float | None, Field(ge=0, le=1, description="latent diffusion")] = None
    in_order: Annotated[
        bool | None, Field(description="make 'A, then B' part by part; missing: the model's default")
    ] = None
    candidates: Annotated[
        int | None, Field(ge=1, le=16, description="latent diffusion: sounds of which CLAP chooses")
    ] = None

    loudness: Annotated[float | None, Field(description="LUFS, as --loudness")] = None
    peak: Annotated[float | None, Field(description="dBTP, as --peak")] = None
    fade_in: Annotated[float | None, Field(description="seconds")] = None
    fade_out: Annotated[float | None, Field(description="seconds")] = None
    trim_silence: bool = False
    stereo_width: Annotated[float | None, Field(description="0 to 1, as --stereo-width")] = None
    sample_rate: Annotated[int | None, Field(description="Hz; the model's if missing")] = None
    prompt_metadata: Annotated[
        bool, Field(description="false leaves text, seed and settings out of the file's metadata")
    ] = True

    def finish(self) -> Finish:
        """What becomes of the sound before it is sent."""
        return Finish(**{name: getattr(self, name) for name in Finish.__dataclass_fields__})

    def sampling(self) -> Sampling:
        """Those that are the generator's."""
        return Sampling(
            negative=self.negative_prompt,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            steps=self.num_inference_steps,
            sampler=self.sampler,
            guidance_rescale=self.guidance_rescale,
            candidates=self.candidates,
            in_order=self.in_order,
            loop=self.loop,
            schedule=None if self.schedule is None else read_schedule(self.schedule, "schedule"),
            crossfade_s=self.crossfade,
            to=self.morph_to,
            morph=self.morph,
        )


class Item(Settings):
    """One sound of a batch; what is missing is as in the batch."""

    input: Annotated[Text, Field(min_length=1, description="what the sound is of")]


class Generate(Item):
    """POST /v1/audio/generate."""

    stream_format: Annotated[
        StreamFormat | None,
        Field(
            description="send the sound while it is made: audio, bytes of wav or pcm; sse, events with base64"
        ),
    ] = None


class Batch(Settings):
    """POST /v1/audio/generate/batch."""

    items: Annotated[list[Item], Field(min_length=1, max_length=32)]

    def each(self) -> list[Generate]:
        """The items with the batch's settings where they give none."""
        common = self.model_dump(exclude={"items"}, exclude_unset=True)
        return [Generate(**common | item.model_dump(exclude_unset=True)) for item in self.items]


class Speech(BaseModel):
    """POST /v1/audio/speech, as OpenAI's clients send it: voice, speed and instructions have no meaning here."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[str, Field(min_length=1, max_length=4096)]
    model: str | None = None
    voice: Any = None
    response_format: Format = "mp3"
    stream_format: StreamFormat | None = None


class SoundGeneration(BaseModel):
    """POST /v1/sound-generation, as ElevenLabs' clients send it."""

    model_config = ConfigDict(extra="ignore")

    text: Annotated[Text, Field(min_length=1)]
    duration_seconds: Annotated[float | None, Field(ge=0.5, le=30)] = None
    prompt_influence: Annotated[float, Field(ge=0, le=1)] = 0.3
    loop: bool = False
    model_id: str | None = None
