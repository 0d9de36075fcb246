"""Compile every device kernel without a GPU, and say what the assembler makes of it.

    pip install 'fastrfm[cuda]'                  # or Numba alone, with a CUDA toolkit in /usr/local/cuda
    python scripts/compile_cuda.py               # print the table
    python scripts/compile_cuda.py residual      # of one file of fastrfm/kernels/cuda
    python scripts/compile_cuda.py --check       # exit code 1 if a kernel does not compile, or spills registers
    python scripts/compile_cuda.py --write       # put the table into docs/cuda.md

A kernel's ``types`` say what it is compiled for: factors of float32 and of float64, values of the same type and float32
values beside float64 factors. NVVM makes PTX of it; ``ptxas``, where there is one, makes machine code of that and
counts registers. Numba asks the current device what to compile device functions for, and keeps them for the life of a
process: a process of its own for each compute capability is told that such a device is there.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from fastrfm.devices import describe_software, why_not_compiled

if TYPE_CHECKING:
    from fastrfm._cuda import DeviceKernel

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cuda.md"
START, END = "<!-- compiled -->", "<!-- end of compiled -->"
CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0)}  # A100, H100
_SHOWN_LINES = 25  # of a compiler's message


@dataclass(frozen=True)
class Assembled:
    """What became of one kernel, for one pair of number types and one compute capability.

    `counts` are registers of a thread and bytes: static shared memory, stack frame, spill stores, spill loads; None
    without an assembler. `error` is what a compiler said, None if it was content.
    """

    kernel: str
    factors: str
    values: str
    error: str | None = None
    counts: tuple[int, int, int, int, int] | None = None

    @property
    def spills(self) -> bool:
        """Whether registers did not suffice."""
        return self.counts is not None and self.counts[3] + self.counts[4] > 0

    @property
    def title(self) -> str:
        """Kernel and types for messages."""
        return f"{self.kernel}, factors {self.factors}, values {self.values}"


def device_kernels(only: tuple[str, ...] = ()) -> Iterator[tuple[str, DeviceKernel]]:
    """Yield every device kernel with its name, file.function, those of the files in `only` if it is not empty."""
    import fastrfm.kernels.cuda as home
    from fastrfm._cuda import DeviceKernel

    names = [module.name for module in pkgutil.iter_modules(home.__path__)]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise click.ClickException(f"no file {unknown[0]}.py in fastrfm/kernels/cuda: there are {', '.join(names)}")
    for name in only or names:
        module = import_module(f"{home.__name__}.{name}")
        for found in vars(module).values():
            if isinstance(found, DeviceKernel) and found.function.__module__ == module.__name__:
                yield f"{name}.{found.__name__}", found


def signature(words: str, n_arguments: int, factors: str, values: str) -> Any:
    """Return Numba's signature for a kernel's `types`, see ``fastrfm._cuda.DeviceKernel``.

    Raises
    ------
    ValueError
        If there is not one word for each argument, or a word that means nothing.
    """
    from numba import types, void

    if len(words.split()) != n_arguments:
        raise ValueError(f"types {words!r} are {len(words.split())} words for {n_arguments} arguments")
    elements = {"i": "int32", "l": "int64", "d": "float64", "r": factors, "v": values}
    arguments = []
    for word in words.split():
        if not re.fullmatch(f"[{''.join(elements)}][0-9]", word):
            raise ValueError(f"types {words!r}: {word!r} is no letter of {', '.join(elements)} with a digit behind it")
        element = getattr(types, elements[word[0]])
        arguments.append(element if word[1] == "0" else types.Array(element, int(word[1]), "C"))
    return void(*arguments)


def variants(words: str) -> list[tuple[str, str]]:
    """Return the number types of factors and of values to compile for."""
    mixed = [("float64", "float32")] if any(word.startswith("v") for word in words.split()) else []
    return [("float32", "float32"), ("float64", "float64"), *mixed]


def compile_all(capability: tuple[int, int], only: tuple[str, ...]) -> list[Assembled]:
    """Compile and assemble every kernel for one compute capability; for a process of its own."""
    from fastrfm import _cuda

    dispatcher: Any = sys.modules[type(_cuda.block_sum).__module__]
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    return [
        compile_one(name, kernel, capability, factors, values)
        for name, kernel in device_kernels(only)
        for factors, values in variants(kernel.types)
    ]


def compile_one(name: str, kernel: DeviceKernel, capability: tuple[int, int], factors: str, values: str) -> Assembled:
    """Compile one kernel to PTX, and that to machine code."""
    from numba import cuda

    try:
        wanted = signature(kernel.types, kernel.function.__code__.co_argcount, factors, values)
        ptx, _ = cuda.compile(kernel.function, wanted, cc=capability, device=False, abi="numba", output="ptx")
        return Assembled(name, factors, values, counts=assemble(ptx, capability))
    except Exception as error:  # Numba's errors of typing and lowering, NVVM's, the assembler's
        lines = f"{type(error).__name__}: {error}".splitlines()
        return Assembled(name, factors, values, error="\n".join(lines[:_SHOWN_LINES]))


@cache
def assemblers() -> tuple[str, ...]:
    """Return the ``ptxas`` of this machine: of the installed packages first, then of a toolkit, then on the path."""
    package = importlib.util.find_spec("nvidia")
    homes = [] if package is None else list(package.submodule_search_locations or ())
    found = [path for home in homes for path in sorted(Path(home).glob("*/bin/ptxas"))]
    found += [Path(home) / "bin" / "ptxas" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    on_path = shutil.which("ptxas")
    found += [Path(on_path)] if on_path else []
    return tuple(str(path) for path in dict.fromkeys(found) if os.access(path, os.X_OK))


def assemble(ptx: str, capability: tuple[int, int]) -> tuple[int, int, int, int, int] | None:
    """Return registers and bytes of shared memory, stack frame, spill stores and loads; None without an assembler.

    An assembler older than the compiler does not read its PTX: the next one is tried.

    Raises
    ------
    RuntimeError
        If the assembler refuses the kernel.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        architecture = f"-arch=sm_{capability[0]}{capability[1]}"
        for program in assemblers():
            command = [program, "-v", architecture, "-o", str(source.with_suffix(".cubin")), str(source)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode == 0:
                return counted(run.stderr + run.stdout)
            if "Unsupported .version" not in run.stderr:
                raise RuntimeError(f"{program}: {run.stderr.strip()}")
    return None


def counted(said: str) -> tuple[int, int, int, int, int]:
    """Return what ``ptxas -v`` said of a kernel and the functions that it calls."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.findall(r"Used (\d+) registers", said)
    shared = re.findall(r"(\d+) bytes smem", said)
    if not frames or not registers:
        raise RuntimeError(f"ptxas said nothing of registers: {said.strip()}")
    stack, stores, loads = (sum(int(frame[part]) for frame in frames) for part in range(3))
    return max(map(int, registers)), max(map(int, shared), default=0), stack, stores, loads


def render(by_capability: dict[tuple[int, int], list[Assembled]]) -> str:
    """Return the table in Markdown; where capabilities differ, a cell has a number for each."""
    names = [f"sm_{major}{minor}" for major, minor in by_capability]
    software = describe_software()
    made_by = f"numba.cuda {software['cuda_target']}, CUDA {software['toolkit']}"
    lines = [
        f"For {' and '.join(names)}, a number for each where they differ. Compiled by {made_by}; by "
        "`scripts/compile_cuda.py --write`.",
        "",
        "| kernel | factors | values | registers | shared memory, B | stack frame, B | spilled stores, B | loads, B |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in zip(*by_capability.values(), strict=True):
        counts = [one.counts or ("?",) * 5 for one in row]
        cells = [" / ".join(dict.fromkeys(str(value) for value in column)) for column in zip(*counts, strict=True)]
        lines.append("| " + " | ".join([f"`{row[0].kernel}`", row[0].factors, row[0].values, *cells]) + " |")
    return "\n".join(lines) + "\n"


def write(page: str) -> None:
    """Put the table between its marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(f"{before}{START}\n\n{page}\n{END}{rest.split(END)[1]}", encoding="utf-8")


@click.command()
@click.argument("files", nargs=-1)
@click.option("--check", is_flag=True, help="Fail also if registers are spilled; print no table.")
@click.option(
    "--only", type=click.Choice(tuple(CAPABILITIES)), multiple=True, help="Only this compute capability. [default: all]"
)
@click.option("--write", "is_written", is_flag=True, help="Put the table into docs/cuda.md.")
def main(files: tuple[str, ...], check: bool, only: tuple[str, ...], is_written: bool) -> None:
    """Compile the device kernels in FILES of fastrfm/kernels/cuda, such as residual, or in all of them."""
    reason = why_not_compiled()
    if reason is not None:
        raise click.ClickException(f"nothing can be compiled: {reason}")
    if is_written and (files or only or not assemblers()):
        raise click.ClickException("the page wants all of it: no FILES, no --only, and ptxas on the path")
    kernels = list(device_kernels(files))
    if not kernels:
        raise click.ClickException("there is no kernel to compile")
    wanted = [capability for name, capability in CAPABILITIES.items() if not only or name in only]
    # A fresh process for each: device functions stay compiled for whatever came first.
    n_workers = min(len(wanted), os.cpu_count() or 1)
    with ProcessPoolExecutor(n_workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        results = list(pool.map(compile_all, wanted, [files] * len(wanted)))
    by_capability = dict(zip(wanted, results, strict=True))
    n_failed = n_spilled = 0
    for capability, ones in by_capability.items():
        for one in ones:
            n_failed += one.error is not None
            n_spilled += one.spills
            said = one.error or (
                f"spills {one.counts[3]} and {one.counts[4]} bytes" if one.counts and one.spills else ""
            )
            if said:
                click.echo(f"sm_{capability[0]}{capability[1]}: {one.title}: {said}", err=True)
    n_counted = sum(one.counts is not None for ones in results for one in ones)
    n_compiled = sum(map(len, results)) - n_failed
    if is_written and not n_failed:
        write(render(by_capability))
        click.echo(f"wrote {PAGE}")
    elif not check and not n_failed:
        click.echo(render(by_capability))
    click.echo(
        f"{len(kernels)} kernels: {n_compiled} compiled and {n_counted} assembled for their number types and "
        f"{len(wanted)} compute capabilities, {n_failed} failed, {n_spilled} spilled registers"
    )
    if n_failed or (check and n_spilled):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
