"""The one door: a name becomes files on this machine, and what they hold, once per command.

    found = find("facebook/audiogen-medium")         # or a bundled name, a directory, a codec's file
    found.kind, found.layout, found.path             # "token_lm", "audiocraft", Path(...)

Everything below takes a `Found`, or a directory. A layout is a line in `LAYOUTS`, in which the first of the required
files marks a directory, whose reader says what else is missing; to read another package's files, add one and write its
reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from audiogen.config import did_you_mean, short
from audiogen.errors import InputError
from audiogen.files import hub, writing
from audiogen.files.hub import CARD, PICKLES, Layout

LM, CODEC, SYSTEM, TAGGER = "token_lm", "codec", "system", "tagger"  # our own directories have more kinds
OWN = "audiogen"  # the layout of our own model directories, whose config.json has their kind
CONFIG = "config.json"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"  # audiocraft's
CODEC_SUFFIXES = (".bin", ".th", ".pt", ".pth")  # of files that hold one codec
TOKENIZER = ("tokenizer*", "spiece.model", "special_tokens_map.json")
TANGO = ("pytorch_model_main.bin", "pytorch_model_vae.bin", "main_config.json", "vae_config.json")
TANGOFLUX = ("tangoflux.safetensors", "vae.safetensors", CONFIG)
# model_type in the config.json of transformers -> what such a model holds
MODEL_TYPES = {"musicgen": (LM, CODEC), "encodec": (CODEC,), "dac": (CODEC,)}


# What a model of each kind is, and what opens it.
KINDS = {
    LM: ("a token language model", "audiogen.load"),
    SYSTEM: ("a latent-diffusion system", "audiogen.load"),
    CODEC: ("a codec", "audiogen.load_codec"),
    TAGGER: ("a tagger", "audiogen.models.own.load_tagger"),
}


class Found(NamedTuple):
    """A model's files. kind: what they hold. layout: how. path: their directory, or a codec's one file.

    name: as the user gave it, for messages.
    """

    kind: str
    layout: str
    path: Path
    name: str

    def check(self, *kinds: str) -> Found:
        """Itself; InputError unless it is of one of these kinds."""
        if self.kind not in kinds:
            what, opens = KINDS.get(self.kind, (f"a model of kind {short(self.kind)}", ""))
            raise InputError(
                f"{self.name} holds {what}{opens and f', which {opens} opens'}; "
                f"{' or '.join(KINDS[kind][0] for kind in kinds)} is needed here"
            )
        return self


# In order of preference. Releases in both layouts of a language model carry their text encoder in that of transformers;
# some have a second copy in another precision, as model.fp32.safetensors. A codec's smallest file comes first: beside
# the one of audiocraft lies a whole MusicGen.
_SAFETENSORS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
_TEXTS = ("generation_config.json", "preprocessor_config.json", *TOKENIZER)
_STABLE_AUDIO = ("model_config.json", "model.safetensors")
LAYOUTS = (
    Layout("transformers", (CONFIG, "model*.safetensors"), (CONFIG, *_TEXTS, *_SAFETENSORS), LM),
    Layout("audiocraft", (LM_FILE, CODEC_FILE), (LM_FILE, CODEC_FILE), LM),
    Layout(
        "diffusers",
        ("model_index.json",),
        (
            *("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.model"),
            *("*/model*.safetensors", "*/diffusion*.safetensors"),
        ),
        SYSTEM,
    ),
    Layout("diffusers", ("system.json", "model_index.json"), (), SYSTEM),  # one of ours that is not whole
    Layout(
        "stable-audio-tools",
        _STABLE_AUDIO,
        (*_STABLE_AUDIO, *(f"t5gemma*/{file}" for file in ("*.json", "*.model", "*.safetensors"))),
        SYSTEM,
    ),
    Layout("Tango", ("pytorch_model_[mv]a*.bin", *TANGO[2:]), ("*.json", *TANGO[:2]), SYSTEM),
    Layout("TangoFlux", TANGOFLUX, TANGOFLUX, SYSTEM),
    Layout("LAFMA", ("hifigan*",), (), SYSTEM),  # no hub has these three
    Layout("AudioLDM", ("*.ckpt",), (), SYSTEM),
    Layout("AudioLDM", ("*.pth",), (), SYSTEM),
    Layout("audiocraft", (CODEC_FILE,), (CODEC_FILE,), CODEC),
    *(
        Layout("transformers", (CONFIG, weights[0]), (CONFIG, *weights), CODEC)
        for weights in (
            ("model.safetensors",),
            ("model.safetensors.index.json", "model-*.safetensors"),
            ("pytorch_model.bin",),
        )
    ),
    Layout("encodec", ("encodec_[0-9]*khz*.th",), ("encodec_[0-9]*khz*.th",), CODEC),
)
OWN_LAYOUT = Layout(OWN, (CONFIG, "model.safetensors"), (CONFIG, "model.safetensors", "text/*", "codec/*"))


def find(name: str | Path | Found, prefer: str = "", kinds: Sequence[str] = ()) -> Found:
    """What a bundled name, a directory, a codec's file or a hub id[@revision] holds; a hub id is downloaded.

    What was found is given back as it is, so that whoever takes a name takes a `Found` as well.

    prefer: the kind that is wanted of files that hold several, as the release of a language model holds its codec. What
    is there may still be of another kind (`Found.check`). InputError where there is nothing, or nothing that is read.
    kinds: of the bundled models that it lists, where several serve; else those of the kind that is preferred.
    """
    if isinstance(name, Found):
        return name
    text, path = str(name), Path(name)
    if not path.exists():
        if path.parts[1:] or not (weights_folder() / path).is_dir():
            if path.parts[0] == "runs" or not hub.is_hub_id(text):  # runs/name is where our own runs lie
                raise InputError(_nothing(text, kinds or ([prefer] if prefer else KINDS)))
            return _find_on_hub(text, prefer)[0]
        path = weights_folder() / path
    if path.is_file() and path.suffix in CODEC_SUFFIXES:
        return Found(CODEC, "file", path, text)
    if not path.is_dir():
        _refuse(path)
    files = [entry.name for entry in path.iterdir()]
    config = writing.read_json(path / CONFIG) if (path / CONFIG).is_file() else None
    if layout := _layout(LAYOUTS, files, config, prefer, path):
        return Found(layout.kind, layout.name, path, text)
    if config is None and not any(file.endswith((*PICKLES, ".safetensors")) for file in files):
        others = ", ".join(dict.fromkeys(f"{layout.required[0]} ({layout.name})" for layout in LAYOUTS))
        raise InputError(
            f"{path} is not a model directory or was half-written: model.safetensors is missing; of other packages it "
            f"would need {others}"
        )
    _refuse(path)


def _refuse(path: Path) -> NoReturn:
    """InputError, which says what is there or what a model directory lacks."""
    from audiogen.files import checkpoint  # late: it imports torch, and models are listed without

    checkpoint.read_config(path)
    raise AssertionError("config.json without a kind was accepted")


def look(name: str) -> tuple[Found, bool]:
    """As `find`, but of a hub id whose weights are not in the cache only the settings are downloaded.

    -> whether the weights are here.
    """
    if Path(name).exists() or (weights_folder() / name).is_dir() or not hub.is_hub_id(name):
        return find(name), True
    return _find_on_hub(name, "", weights=False)


def _find_on_hub(name: str, prefer: str, weights: bool = True) -> tuple[Found, bool]:
    """As `find` and `look`. config.json comes first: what is not read here is refused before its weights come."""
    repository = hub.Repository(name)
    config, path = None, Path(name)
    if CONFIG in repository.files:
        path = repository.fetch([CONFIG])
        config = writing.read_json(path / CONFIG)
    layouts = [layout for layout in LAYOUTS if layout.patterns]
    fitting = [layout for layout in layouts if layout.fits(repository.files)]
    if layout := _layout(fitting, repository.files, config, prefer, path):
        with suppress(InputError):
            repository.fetch([CARD])  # for the licence; a model does without
        if weights or repository.has(layout.patterns):
            path = repository.fetch(layout.patterns, layout.required)
            return Found(layout.kind, layout.name, path, name), True
        # without what marks a whole model, so that no later command takes this for one
        marks = [pattern for pattern in layout.required if pattern != CONFIG]
        small = [file for file in repository.files if file.endswith((".json", ".yaml"))]
        path = repository.fetch([file for file in small if not any(fnmatch(file, mark) for mark in marks)])
        return Found(layout.kind, layout.name, path, name), False
    raise repository.lacks([OWN_LAYOUT, *layouts])


def _layout(
    layouts: Sequence[Layout], files: Sequence[str], config: Any, prefer: str, where: Path
) -> Layout | None:
    """The layout that files show: the first of the wanted kind, else the first.

    Ours is one by the kind in config.json, one of transformers by its model_type, which is an InputError where no such
    model is read, any other by the first file that it requires.
    """
    contents = config if isinstance(config, dict) else {}
    kind = contents.get("kind")
    model_type = contents.get("model_type")
    if kind is not None:
        return OWN_LAYOUT._replace(kind=str(kind))
    # beside audiocraft's weights, a config.json without weights of its own says nothing
    alone = LM_FILE not in files or any(fnmatch(file, "model*.safetensors") for file in files)
    fitting = [
        layout
        for layout in layouts
        if (layout.name == "transformers" and "model_type" in contents and (alone or layout.kind == CODEC))
        or (layout.name != "transformers" and any(fnmatch(file, layout.required[0]) for file in files))
    ]
    kinds = MODEL_TYPES.get(str(model_type), ())
    read = [layout for layout in fitting if layout.name != "transformers" or layout.kind in kinds]
    if fitting and not read:
        raise InputError(
            f"{where / CONFIG}: model_type is {short(model_type)}; allowed: 'musicgen' (a generator), 'encodec', 'dac' "
            "(codecs); a generator that follows a melody is not implemented"
        )
    return next((layout for layout in read if layout.kind == prefer), next(iter(read), None))


# ------------------------------------------------------------------------------------------ bundled models


def weights_folder() -> Path:
    """Where the bundled models lie."""
    return Path(__file__).parents[1] / "weights"


def bundled(kinds: Iterable[str] = tuple(KINDS)) -> list[str]:
    """Models of these kinds that travel with the package, sorted."""
    found = {path.parent.name: SYSTEM for path in weights_folder().glob("*/model_index.json")}
    found |= {
        path.parent.name: writing.read_json(path)["kind"] for path in weights_folder().glob(f"*/{CONFIG}")
    }
    return sorted(name for name, kind in found.items() if kind in kinds)


def _nothing(name: str, kinds: Iterable[str]) -> str:
    """The message for a name that is nothing at all."""
    names = bundled(kinds)
    hint = did_you_mean(name, names)
    return (
        f"{name!r} is neither a directory nor a bundled model (here: {', '.join(names) or 'none'}); "
        f"{hint if 'mean' in hint else 'give one of these, the path of a model directory or a hub id (org/name)'}"
    )
