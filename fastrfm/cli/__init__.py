"""The ``fastrfm`` command: one group, one file for each subcommand, no maths.

A subcommand's module loads when it is called, and loads numpy, numba and h5py only when it runs, so that ``--help``
answers at once. Errors raised on purpose become one line and an exit code here, for all subcommands alike:
0 done, 1 failure, 2 usage, 3 not converged (the output is written).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from fastrfm import __version__
from fastrfm.errors import FastrfmError

EXIT_FAILURE = 1
EXIT_NOT_CONVERGED = 3
ITERATION_KEY = "fastrfm.iteration"  # in the context's meta: the last iteration that was finished
OUTCOME_KEY = "fastrfm.outcome"  # in the context's meta: a function that says what a run stopped by now has left

# First lines of the subcommands' help, kept here so that ``fastrfm --help`` need not load them.
COMMANDS = {
    "convert": "Turn a file of observations into HDF5.",
    "info": "Say what a file holds, or which devices there are.",
    "split": "Divide the entries in two: at random, by time or by group.",
    "complete": "Complete a matrix and write the result as HDF5.",
    "predict": "Predict the values of row and column pairs from a result.",
    "fill": "Write the whole completed matrix of a result.",
    "top": "Write the columns with the largest estimates of each row.",
    "evaluate": "Measure the error on held-out entries over repeated random splits.",
    "plot": "Draw how a result came about and what it holds.",
    "report": "Write one html page about a result, with plots.",
    "tune": "Try a grid of options by cross-validation and say which to take.",
}


def _in_one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"Warning: {message}\n"


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings without the place in the source, which tells nothing to who typed a command."""
    plain = warnings.formatwarning
    warnings.formatwarning = _in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = plain


class LazyGroup(click.Group):
    """A group that loads a subcommand when it is asked for and reports errors raised on purpose in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"fastrfm.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from fastrfm._interrupt import ending_on_sigterm

        try:
            with ending_on_sigterm(), _short_warnings():
                return super().invoke(ctx)
        except FastrfmError as error:
            click.echo(f"Error: {error}", err=True)
        except MemoryError as error:
            click.echo(f"Error: not enough memory ({error}): use a smaller rank or method factored", err=True)
        except KeyboardInterrupt:
            iteration = ctx.meta.get(ITERATION_KEY)
            where = "" if iteration is None else f" after iteration {iteration}"
            outcome = ctx.meta.get(OUTCOME_KEY, lambda: "nothing was written")()
            click.echo(f"Stopped by Ctrl-C{where}: {outcome}", err=True)
        ctx.exit(EXIT_FAILURE)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastrfm")
def main() -> None:
    """Complete low-rank matrices with linear recursive feature machines.

    A file of observations is csv, tsv, npy, npz, Matrix Market (all of them also as gz) or HDF5. Exit codes: 0 done,
    1 failure, 2 wrong usage, 3 not converged (the output is written all the same).
    """
