"""Every device kernel compiles without a GPU: PTX for each number type, registers where there is an assembler."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fastrfm._cuda import device_kernel, over_items
from fastrfm.devices import why_not_compiled

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "compile_cuda.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compile_cuda", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_cuda"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.compiled_only
def test_every_kernel_compiles_and_keeps_to_its_registers():
    reason = why_not_compiled()
    if reason is not None:
        pytest.skip(reason)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--check", "--only", "sm_80"],  # the script by itself takes all
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-8000:] + run.stdout[-500:]
    assert " 0 failed" in run.stdout


def test_a_signature_has_a_word_for_each_argument(script):
    from numba import types

    wanted = script.signature("l1 i1 v1 r2 d0", 5, "float64", "float32")
    assert wanted.args == (
        types.Array(types.int64, 1, "C"),
        types.Array(types.int32, 1, "C"),
        types.Array(types.float32, 1, "C"),
        types.Array(types.float64, 2, "C"),
        types.float64,
    )
    with pytest.raises(ValueError, match="are 2 words for 3 arguments"):
        script.signature("l1 r2", 3, "float64", "float64")
    for word in ("x1", "r", "r12", "1r"):
        with pytest.raises(ValueError, match="is no letter of"):
            script.signature(f"l1 {word}", 2, "float64", "float64")


def test_values_of_either_type_are_compiled_where_there_are_values(script):
    same = [("float32", "float32"), ("float64", "float64")]
    assert script.variants("l1 r2") == same
    assert script.variants("l1 v1 r2") == [*same, ("float64", "float32")]


def test_what_the_assembler_says_is_read(script):
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1088 bytes smem, 400 bytes cmem[0]
ptxas info    : Function properties for helper
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert script.counted(said) == (40, 1088, 16, 12, 16)
    assert script.counted(said.replace("1088 bytes smem, ", ""))[1] == 0
    with pytest.raises(RuntimeError, match="nothing of registers"):
        script.counted("ptxas info    : 0 bytes gmem")


def test_an_assembler_that_is_too_old_is_passed_over(script, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("#!/bin/sh\necho 'ptxas k.ptx, line 9; fatal : Unsupported .version 9.5' >&2; exit 255\n")
    new.write_text(
        "#!/bin/sh\necho '0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads Used 7 registers'\n"
    )
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho 'fatal : out of luck' >&2; exit 1\n")
    for path in (old, new, bad):
        path.chmod(0o755)
    monkeypatch.setattr(script, "assemblers", lambda: (str(old), str(new)))
    assert script.assemble("", (8, 0)) == (7, 0, 0, 0, 0)
    monkeypatch.setattr(script, "assemblers", lambda: (str(old),))
    assert script.assemble("", (8, 0)) is None
    monkeypatch.setattr(script, "assemblers", lambda: (str(bad), str(new)))
    with pytest.raises(RuntimeError, match="out of luck"):
        script.assemble("", (8, 0))


def _not_a_kernel(values, out):
    out[0] = values.no_such_thing


@pytest.mark.compiled_only
def test_what_does_not_compile_is_reported(script):
    if why_not_compiled() is not None:
        pytest.skip(why_not_compiled())
    launch = lambda out: over_items(out.size)  # noqa: E731
    broken = device_kernel(launch, "r1 r1")(_not_a_kernel)
    failed = script.compile_one("here.broken", broken, (8, 0), "float32", "float32")
    assert failed.counts is None and "no_such_thing" in failed.error
    short = device_kernel(launch, "r1")(_not_a_kernel)
    assert "1 words for 2 arguments" in script.compile_one("here.short", short, (8, 0), "float32", "float32").error


def test_the_table_and_the_page(script, tmp_path, monkeypatch):
    one = script.Assembled("residual.masked_residual", "float64", "float32", counts=(40, 0, 0, 0, 0))
    other = script.Assembled("residual.masked_residual", "float64", "float32", counts=(38, 0, 0, 4, 0))
    page = script.render({(8, 0): [one], (9, 0): [other]})
    assert "For sm_80 and sm_90" in page
    assert "| `residual.masked_residual` | float64 | float32 | 40 / 38 | 0 | 0 | 0 / 4 | 0 |\n" in page
    assert not one.spills and other.spills
    monkeypatch.setattr(script, "PAGE", tmp_path / "cuda.md")
    script.PAGE.write_text(f"before\n{script.START}\nold\n{script.END}\nafter\n")
    script.write(page)
    script.write(page)
    text = script.PAGE.read_text()
    assert text.startswith(f"before\n{script.START}\n\nFor sm_80") and text.endswith(f"{script.END}\nafter\n")
    assert "old" not in text and text.count("masked_residual") == 1


def test_the_page_has_room_for_the_table(script):
    text = script.PAGE.read_text(encoding="utf-8")
    assert text.count(script.START) == text.count(script.END) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [(["residuals"], "no file residuals.py in"), (["residual", "--write"], "wants all of it")],
)
def test_wrong_use_is_refused(script, monkeypatch, options, said):
    monkeypatch.setattr(script, "why_not_compiled", lambda: None)
    outcome = CliRunner().invoke(script.main, options)
    assert outcome.exit_code == 1 and said in outcome.stderr


def test_without_a_toolkit_the_reason_is_said(script, monkeypatch):
    monkeypatch.setattr(script, "why_not_compiled", lambda: "NVVM not found")
    outcome = CliRunner().invoke(script.main, ["--check"])
    assert outcome.exit_code == 1 and "nothing can be compiled: NVVM not found" in outcome.stderr


def test_spills_fail_the_check(script, monkeypatch):
    spilled = script.Assembled("residual.predict_pairs", "float32", "float32", counts=(255, 0, 8, 8, 8))

    class Pool:  # the processes that compile
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, *_):
            return [[spilled], [spilled]]

    monkeypatch.setattr(script, "why_not_compiled", lambda: None)
    monkeypatch.setattr(script, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(script, "get_context", lambda _: SimpleNamespace())
    outcome = CliRunner().invoke(script.main, ["--check"])
    assert outcome.exit_code == 1 and "predict_pairs, factors float32, values float32: spills 8 and 8" in outcome.stderr
    assert CliRunner().invoke(script.main, []).exit_code == 0
