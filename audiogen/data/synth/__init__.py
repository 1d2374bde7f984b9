"""The built-in corpus: synthesised sound events with captions that are true of them, for people without data.

Clip `index` of corpus `seed` is a pure function of the two (and of duration and sample rate): nothing is stored,
and any split is a range of indices. A clip holds one event, two in order, or one over another. Its captions say
which sounds it holds, in which order, how many, how high, how fast and how loud; its events say the same to a program.
"""

from audiogen.data.synth.corpus import SynthClip, captions, render
from audiogen.data.synth.scene import KINDS, SynthEvent, select

__all__ = ["KINDS", "SynthClip", "SynthEvent", "captions", "render", "select"]
