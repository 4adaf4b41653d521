"""`edgeprune sweep`: parse, call, print, exit, as in `edgeprune.cli`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.flags import Flags


def sweep(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The trained network.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings (default: ./edgeprune.toml if it is there).")
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="End with 0 if a point holds all budgets, 1 if none, 4 if undecided.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result alone.")] = False,
    *,
    flags: Flags,
) -> None:
    """Compress with many settings, and find the front: commas part values of pruning and recovery (--speedup 1.5,2,3).

    Each combination is a run of its own in runs/MODEL-TARGET-sweep (--out). The same command goes on where it stopped.
    """
    from rich.console import Console

    from edgeprune.console import TerminalConsole
    from edgeprune.errors import UsageError
    from edgeprune.reporting.sweep import FILES, print_sweep
    from edgeprune.sweeping.space import read_space
    from edgeprune.sweeping.sweep import exit_code, sweep_folder
    from edgeprune.sweeping.sweep import sweep as run

    space = read_space(config, flags)
    if gate and not space.base.budget.rules():
        raise UsageError("--gate without budgets", hint="set at least one in [budget] of edgeprune.toml")
    messages = TerminalConsole(Console(stderr=True, highlight=False))
    found = run(model, space, command=shlex.join(["edgeprune", *context.obj]), console=messages)
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        print_sweep(found, Console(highlight=False))
        typer.echo("\n" + "\n".join(str(sweep_folder(model, space.base) / name) for name in FILES))
    raise typer.Exit(exit_code(found, gate=gate))
