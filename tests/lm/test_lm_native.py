"""The native step against PyTorch's, on sizes that fit no vector; the build: no compiler, several at once, damage."""

import copy
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.kernels import native
from audiogen.lm.kernels.native import NativeLM
from audiogen.lm.model import LMConfig, TokenLM, quantise_groups
from audiogen.native import library
from audiogen.text.condition import null

K, V = 3, 21
# Largest difference of a logit, whose standard deviation is 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04, "int8": 0.12, "int4": 0.12}
# (dim, heads): heads of 6, 5 and 65 values; pairs and fours that do not come out; one that fits everything
SIZES = [(24, 4), (70, 14), (130, 2), (64, 2)]
ON_X86 = platform.machine() in ("x86_64", "AMD64")
TARGETS = {"native": library.TARGETS}
if ON_X86:  # the code of older processors; -O1 builds sooner
    TARGETS["sse2"] = (("-march=x86-64", "-O1"),)
    if "avx2" in Path("/proc/cpuinfo").read_text():
        TARGETS["avx2"] = (("-march=x86-64-v3", "-O1"),)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiler() -> str:
    found = library.find_compiler()
    if found is None:
        pytest.skip("needs a C++ compiler")
    return found


@pytest.fixture(scope="session", params=TARGETS)
def kernels(request: pytest.FixtureRequest, compiler: str, builds: Path) -> ctypes.CDLL:
    return library.build(compiler, builds, TARGETS[request.param])


@pytest.fixture(scope="session")
def built(compiler: str, builds: Path) -> ctypes.CDLL:
    return library.build(compiler, builds)


def test_the_source_takes_every_instruction_of_this_machine(compiler: str, builds: Path) -> None:
    """Else the build falls back, in silence, to code that is several times slower."""
    library.build(compiler, builds, library.TARGETS[:1] if ON_X86 else library.TARGETS[:2])


def make_lm(dim: int, num_heads: int, num_layers: int = 2, codebook_size: int = V) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(K, codebook_size, dim, num_layers, num_heads, ff_mult=3)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():  # norms that are not one and zero
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        for block in lm.layers:  # the text matters more than at initialisation
            block.cross_attention.text_proj.weight *= 3  # type: ignore[union-attr, operator]
    return lm


def random_text(lengths: Sequence[int], dim: int) -> Condition:
    """Rows of so many tokens; 0 is no text, as `null` says it."""
    mask = torch.arange(max(max(lengths), 1)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(*mask.shape, dim) * mask[..., None]
    mask[:, 0] = True
    return Condition(tokens, mask)


def random_steps(batch: int, num_steps: int) -> Tensor:
    return torch.randint(0, V + 1, (batch, K, num_steps))  # V is the special token


@torch.no_grad()
def rounded(lm: TokenLM) -> TokenLM:
    """The same with the weights of its matrices as int4 has them, which leaves the heads to int8."""
    lm = copy.deepcopy(lm)
    for name, module in lm.named_modules():
        if isinstance(module, nn.Linear) and name != "heads":
            inputs = module.in_features
            values, scales = quantise_groups(module.weight, native.GROUP)
            weight = values.unflatten(1, (-1, native.GROUP)) * scales[..., None]
            module.weight.copy_(weight.flatten(1)[:, :inputs])
    return lm


@torch.no_grad()
def largest_difference(
    lm: TokenLM, fast: NativeLM, condition: Condition | None, steps: Tensor, calls: Sequence[int]
) -> float:
    """Of the logits after every call, each of so many steps."""
    lm = rounded(lm) if fast.dtype == "int4" else lm
    assert sum(calls) == steps.shape[2]
    slow_cache = lm.new_cache(condition, len(steps), sum(calls))
    fast_cache = fast.new_cache(condition, len(steps), sum(calls))
    worst = 0.0
    for new in steps.split(list(calls), dim=2):
        expected = lm.logits(lm.features(new, cache=slow_cache)[:, -1:])[:, :, 0]
        logits = fast.step(new, fast_cache)
        assert logits.dtype == torch.float32 and fast_cache.length == slow_cache.length
        worst = max(worst, float((logits - expected).abs().max()))
    return worst


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize(("dim", "num_heads"), SIZES)
def test_equals_pytorch_on_odd_sizes(kernels: ctypes.CDLL, dim: int, num_heads: int, dtype: str) -> None:
    """Prefill and single steps, past blocks of 16 positions, rows with text of every length and without."""
    lm = make_lm(dim, num_heads)
    fast = NativeLM(lm, dtype, kernels)
    for lengths in ([5], [5, 0], [0, 1, 19], [16, 0, 3, 7], [2, 0, 17, 0, 4]):
        calls = [1, 5, 1, 9, 1, 1, 17, 1]  # to 36
        steps, condition = random_steps(len(lengths), sum(calls)), random_text(lengths, dim)
        assert largest_difference(lm, fast, condition, steps, calls) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_without_text_and_with_nothing_but_null_are_the_same(built: ctypes.CDLL, dtype: str) -> None:
    lm = make_lm(24, 4)
    fast, steps = NativeLM(lm, dtype, built), random_steps(3, 4)
    assert largest_difference(lm, fast, None, steps, [3, 1]) < TOLERANCE[dtype]
    without, empty = (fast.step(steps, fast.new_cache(text, 3, 4)) for text in (None, null(3, 24)))
    assert torch.equal(without, empty)


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize(("dim", "num_heads"), [(70, 14), (64, 2)])  # 64: matrix tiles, where there are any
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads_nor_on_the_pieces_of_a_prefill(
    built: ctypes.CDLL, dim: int, num_heads: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm(dim, num_heads, codebook_size=V + 1)  # an odd number of panels
    fast, steps, condition = (
        NativeLM(lm, dtype, built),
        random_steps(5, 40),
        random_text([3, 0, 9, 1, 0], dim),
    )
    together = fast.step(steps, fast.new_cache(condition, 5, 40))
    for row in range(5):
        own = Condition(condition.tokens[row : row + 1], condition.mask[row : row + 1])
        cache = fast.new_cache(own, 1, 50)
        for new in steps[row : row + 1].split([1, 30, 9], dim=2):
            alone = fast.step(new, cache)
        assert torch.equal(alone[0], together[row])
    torch.set_num_threads(3)
    assert torch.equal(fast.step(steps, fast.new_cache(condition, 5, 40)), together)
    torch.set_num_threads(1)
    monkeypatch.setattr(native, "MAX_STEPS", 7)
    assert torch.equal(fast.step(steps, fast.new_cache(condition, 5, 40)), together)


def test_hundreds_of_positions_and_attention_that_is_sure_of_itself(kernels: ctypes.CDLL) -> None:
    lm = make_lm(24, 4)
    with torch.no_grad():
        for block in lm.layers:
            block.self_attention.in_proj.weight *= 4  # type: ignore[union-attr, operator]
    calls = [130, 1, 148, 1, 20, 1]
    steps, condition = random_steps(2, sum(calls)), random_text([4, 0], 24)
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.3)):
        fast = NativeLM(lm, dtype, kernels)
        assert largest_difference(lm, fast, condition, steps, calls) < tolerance


def test_int8_keeps_the_distribution_and_takes_a_quarter_of_the_memory(built: ctypes.CDLL) -> None:
    lm = make_lm(256, 4, num_layers=6)
    steps, condition = random_steps(4, 20), random_text([9, 9, 0, 0], 256)
    exact, bfloat16, int8, int4 = (NativeLM(lm, dtype, built) for dtype in native.DTYPES)
    logits = [fast.step(steps, fast.new_cache(condition, 4, 20)) for fast in (exact, bfloat16, int8, int4)]
    # after guidance of 3, as it is sampled from
    wanted, *others = ((u + 3 * (c - u)).log_softmax(-1) for c, u in (both.chunk(2) for both in logits))
    for other, most in zip(others, (5e-4, 3e-3, 0.1), strict=True):
        assert float((wanted.exp() * (wanted - other)).sum(-1).mean()) < most
    kept = 4 * sum(
        part.numel() for name, part in lm.named_parameters() if "norm" in name or "embedding" in name
    )
    exact_bytes, bfloat16_bytes, int8_bytes, int4_bytes = (
        fast.num_bytes - kept for fast in (exact, bfloat16, int8, int4)
    )
    assert exact_bytes == 2 * bfloat16_bytes
    assert 3.9 < exact_bytes / int8_bytes < 4  # a scale for every 256 values
    assert 7.0 < exact_bytes / int4_bytes < 32 / 4.5  # and for every 64, and heads of int8


def test_bfloat16_and_float16_weights_are_taken_as_they_are(built: ctypes.CDLL) -> None:
    lm = make_lm(24, 4)
    steps = random_steps(2, 4)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = make_lm(24, 4).to(dtype)
        fast = NativeLM(rounded, "float32", built)
        logits = fast.step(steps, fast.new_cache(None, 2, 4))
        lm.load_state_dict(rounded.state_dict())
        assert largest_difference(lm, fast, None, steps, [4]) < 1e-4
        assert logits.isfinite().all()


def test_threads_follow_torch_and_end_with_the_model(built: ctypes.CDLL) -> None:
    def num_tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("counts threads in /proc")
    before = num_tasks()
    fast = NativeLM(make_lm(24, 4), "float32", built)
    steps = random_steps(1, 1)
    for num_threads, started in ((1, 0), (3, 2), (2, 3), (3, 3), (1, 3)):
        torch.set_num_threads(num_threads)
        fast.step(steps, fast.new_cache(None, 1, 1))
        assert fast._threads().num_threads == num_threads
        assert num_tasks() == before + started
    del fast
    assert num_tasks() == before


@pytest.mark.parametrize("count", [1, 2])  # torch takes no more than there are cores
def test_the_environment_decides_how_many_threads_there_are(built: ctypes.CDLL, count: int) -> None:
    if (os.cpu_count() or 1) < count:
        pytest.skip(f"needs {count} cores")
    code = """
import torch
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.kernels.native import NativeLM
fast = NativeLM(TokenLM(LMConfig(3, 21, 24, 1, 4)).eval())
fast.step(torch.zeros(1, 3, 1, dtype=torch.long), fast.new_cache(None, 1, 1))
print(fast._threads().num_threads)
"""
    environment = os.environ | {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert run.stdout.split() == [str(count)]


def test_a_forked_process_has_threads_of_its_own(built: ctypes.CDLL) -> None:
    torch.set_num_threads(2)
    fast, steps = NativeLM(make_lm(24, 4), "float32", built), random_steps(1, 1)
    expected = fast.step(steps, fast.new_cache(None, 1, 1))
    child = os.fork()
    if not child:  # without a team of its own it would wait for ever
        os._exit(0 if torch.equal(fast.step(steps, fast.new_cache(None, 1, 1)), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_arguments_are_named(built: ctypes.CDLL) -> None:
    fast = NativeLM(make_lm(24, 4), "float32", built)
    cache = fast.new_cache(None, 2, 3)
    with pytest.raises(ValueError, match="the cache is for 3 steps; it holds 0 and 4 are new"):
        fast.step(random_steps(2, 4), cache)
    with pytest.raises(ValueError, match=r"steps are \[1, 3, 2\]; they must be \[2, 3, 1 or more\]"):
        fast.step(random_steps(1, 2), cache)
    for wrong in (-1, V + 1):
        with pytest.raises(IndexError, match=f"allowed: 0 to {V}"):
            fast.step(torch.full((2, K, 1), wrong), cache)
    assert cache.length == 0
    with pytest.raises(ValueError, match=r"the condition is \[1, 2, 24\]; it must be \[2, L, 24\]"):
        fast.new_cache(random_text([2], 24), 2, 3)
    with pytest.raises(InputError, match="dtype is 'float8'; allowed: float32, bfloat16, int8, int4"):
        NativeLM(make_lm(24, 4), "float8", built)


# The same without PyTorch, which reaches processors that this machine only emulates

HARNESS = Path(__file__).with_name("native_harness.cpp")
# Without and with SDOT and BFDOT, products of four int8 and of two bfloat16 values
ARM = ("armv8-a", "armv8.2-a+dotprod+bf16")
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def passes(compiler: str, flags: Sequence[str], built: Path, directory: Path, *emulator: str) -> None:
    """The harness, linked with the library of kernels, finds every logit right."""
    harness = directory / "harness"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        str(HARNESS),
        str(built),
    ]
    subprocess.run([*command, "-o", str(harness)], check=True)
    run = subprocess.run([*emulator, str(harness)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_equals_a_naive_step_in_double_precision(kernels: ctypes.CDLL, compiler: str, tmp_path: Path) -> None:
    passes(compiler, (), Path(kernels._name), tmp_path)


@pytest.mark.parametrize("architecture", ARM)
def test_on_arm_it_equals_a_naive_step_in_double_precision(architecture: str, tmp_path: Path) -> None:
    for tool in (ARM_COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    built, flags = tmp_path / "native.so", (f"-march={architecture}", "-O1")
    command = [ARM_COMPILER, *library.FLAGS, "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*command, str(library.SOURCE), "-o", str(built)], check=True)
    passes(ARM_COMPILER, flags, built, tmp_path, EMULATOR, "-L", "/usr/aarch64-linux-gnu", "-cpu", "max")


# The build, with a source that compiles in no time

SMALL = 'extern "C" {\n' + "\n".join(
    f"long audiogen_{name}(void) {{ return 7; }}"
    for name in "team_new team_free pages head_bytes text step transform_new inverse forward read".split()
) + "\n}\n"  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    source = tmp_path / "small.cpp"
    source.write_text(SMALL)
    return source


def works(built: ctypes.CDLL) -> bool:
    built.audiogen_read.argtypes = []
    return built.audiogen_read() == 7


def test_it_is_built_once_and_again_for_another_source_or_header(
    compiler: str, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert works(library.build(compiler, tmp_path, source=small))
    first = capfd.readouterr().err
    assert first.startswith("building fast kernels for this machine, once") and first.count("\n") == 2
    assert works(library.build(compiler, tmp_path, source=small))
    assert capfd.readouterr().err == ""
    small.write_text(SMALL + "// changed\n")
    assert works(library.build(compiler, tmp_path, source=small))
    (tmp_path / "part.h").write_text("")  # what it includes
    assert works(library.build(compiler, tmp_path, source=small))
    assert len(list(tmp_path.glob("*.so"))) == 3


def test_a_corrupted_build_is_built_again(compiler: str, small: Path, tmp_path: Path) -> None:
    assert works(library.build(compiler, tmp_path, source=small))
    (path,) = tmp_path.glob("*.so")
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-9] + b"different"):
        path.unlink()  # not in place: this process has it loaded
        path.write_bytes(damaged)
        assert works(library.build(compiler, tmp_path, source=small))
        (path,) = tmp_path.glob("*.so")
        assert path.stem.endswith(library._digest(path)) and len(path.read_bytes()) == len(whole)


def test_processes_that_build_at_once_build_one(
    compiler: str, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ready, go = os.pipe()
    children = []
    for _ in range(4):
        if child := os.fork():
            children.append(child)
            continue
        try:
            os.close(go)
            os.read(ready, 1)  # until the parent closes its end
            os._exit(0 if works(library.build(compiler, tmp_path, source=small)) else 1)
        finally:
            os._exit(2)
    os.close(ready)
    os.close(go)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert capfd.readouterr().err.count("building fast kernels") == 1
    assert len(list(tmp_path.glob("*.so"))) == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".so", ".lock", ".cpp"}  # nothing half done


def test_without_a_compiler_there_is_none_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    library.library.cache_clear()
    assert library.library() is None and library.library() is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "there is no C++ compiler" in said and "PyTorch's are slower" in said
    with pytest.raises(InputError, match="need a C\\+\\+ compiler"):
        NativeLM(make_lm(24, 4))
    monkeypatch.undo()
    library.library.cache_clear()


def test_a_compiler_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "disk is full" >&2; exit 1; }\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path))
    library.library.cache_clear()
    assert library.library() is None
    assert "disk is full; PyTorch's are" in capfd.readouterr().err
    monkeypatch.undo()
    library.library.cache_clear()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of process groups")
@pytest.mark.parametrize("call", ["--version", "-O2"])
def test_an_interrupt_from_the_keyboard_leaves_the_compiler_alone(
    compiler: str, small: Path, tmp_path: Path, call: str
) -> None:
    """It goes to the whole group; a training finishes its step, which without the kernels differs in the last bits."""
    script = tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *{call}*) kill -s INT -- "-$GROUP"; sleep 0.2;; esac\nexec {compiler} "$@"\n'
    )
    script.chmod(0o755)
    program = f"""
import os
from pathlib import Path
from audiogen.native import library
from audiogen.signals import stop_signals
os.environ["GROUP"] = str(os.getpgrp())
with stop_signals() as received:
    built = library.build({str(script)!r}, Path({str(tmp_path)!r}), source=Path({str(small)!r}))
print(received, built is not None)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, start_new_session=True
    )
    assert run.stdout.split("\n") == ["[2] True", ""], run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of process groups")
def test_a_command_that_is_interrupted_ends_the_compiler(compiler: str, small: Path, tmp_path: Path) -> None:
    script = tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {compiler} "$@"\necho $$ > {tmp_path}/pid\n'
        'sleep 0.2; kill -s INT "$PPID"\nexec sleep 600\n'
    )
    script.chmod(0o755)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            library.build(str(script), tmp_path, source=small)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.killpg(int((tmp_path / "pid").read_text()), 0)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # where it built


def test_a_cache_that_cannot_be_written_is_replaced_for_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path / "file" / "below"))
    directory = library.cache_directory()
    assert directory.is_dir() and not directory.is_relative_to(tmp_path)
    directory.rmdir()
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path / "new"))
    assert library.cache_directory() == tmp_path / "new"
