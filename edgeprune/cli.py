"""The command line: parse, call, print, exit. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgeprune
from edgeprune.cli_sweep import sweep
from edgeprune.errors import EdgepruneError, ExitCode, UsageError
from edgeprune.flags import Flags, settings

if TYPE_CHECKING:
    from rich.console import Console as Terminal

    from edgeprune.console import Console as Messages

app = typer.Typer(
    name="edgeprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prunes trained vision networks for edge devices, and attacks the file that ships.",
    epilog="Exit codes: 0 done or passed, 1 the gate failed, 2 usage, 3 no result, 4 inconclusive, 130 interrupted.",
)

ModelFile = Annotated[Path, typer.Argument(help="The trained network.", show_default=False)]
ExportedFile = Annotated[Path, typer.Argument(help="An exported file (.onnx or .xml).", show_default=False)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings (default: ./edgeprune.toml if it is there).")
]
_NO_BUDGETS = 'set at least one in [budget] of edgeprune.toml, for example accuracy_drop = "2 pt"'
_INTERRUPTED = "interrupted: the same command goes on from the last finished stage"
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result alone.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeprune {edgeprune.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand after any command.")] = False,
) -> None:
    pass  # both are read before any command runs


@app.command()
@settings("run", "model", "data", "prune", "recover", "latency", "remote", "attack", "boundary", "budget")
def compress(
    context: typer.Context,
    model: ModelFile,
    config: ConfigFile = None,
    gate: Annotated[bool, typer.Option("--gate", help="End with the gate's exit code.")] = False,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """Prune a network, export it, measure it, attack the exported file, and report."""
    from edgeprune.config import load_config
    from edgeprune.gate import exit_code
    from edgeprune.pipeline import compress as run
    from edgeprune.pipeline import run_folder, written
    from edgeprune.reporting.terminal import print_summary, print_verdict

    loaded = load_config(config, flags)
    if gate and not loaded.budget.rules():
        raise UsageError("--gate without budgets", hint=_NO_BUDGETS)
    report = run(model, loaded, command=_command(context), console=_messages())
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        print_summary(report, _stdout())
        if report.verdict:
            typer.echo()
            print_verdict(report.verdict, _stdout())
        typer.echo("\n" + "\n".join(str(path) for path in written(run_folder(model, loaded))))
    if gate and report.verdict:
        raise typer.Exit(exit_code(report.verdict))


app.command()(
    settings("run", "model", "data", "prune", "recover", "latency", "remote", "attack", "boundary", "budget", "sweep")(
        sweep
    )
)


@app.command()
@settings("budget")
def gate(
    report: Annotated[Path, typer.Argument(help="report.json of a run, or its folder.", show_default=False)],
    artifact: Annotated[Path, typer.Option("--artifact", help="The file that is about to ship.", show_default=False)],
    test: Annotated[
        str | None, typer.Option("--test", help="Test data that the report must have been made on: its digest counts.")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the rows as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the rows as Markdown.")] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Print GitHub's annotations (::error ...) on stderr.")
    ] = False,
    config: ConfigFile = None,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """Judge a report about a file against the budgets; the exit code is the verdict."""
    from edgeprune.config import load_config
    from edgeprune.gate import exit_code
    from edgeprune.reporting.terminal import print_verdict
    from edgeprune.shipping import judge_report

    loaded = load_config(config, flags)
    if not loaded.budget.rules():
        raise UsageError("no budgets to judge by", hint=_NO_BUDGETS)
    verdict = judge_report(_report_of(report), artifact, loaded, test=test)
    if junit:
        from edgeprune.files import write_text
        from edgeprune.reporting.junit import verdict_junit

        write_text(junit, verdict_junit(verdict))
    if markdown:
        from edgeprune.files import write_text
        from edgeprune.reporting.markdown import verdict_markdown

        write_text(markdown, verdict_markdown(verdict))
    if annotations:
        from edgeprune.reporting.annotations import workflow_commands

        typer.echo("\n".join(workflow_commands(verdict, str(artifact))), err=True)
    if as_json:
        typer.echo(verdict.to_json(), nl=False)
    else:
        print_verdict(verdict, _stdout())
    raise typer.Exit(exit_code(verdict))


@app.command()
@settings("run", "model", "data", "prune")
def inspect(model: ModelFile, config: ConfigFile = None, as_json: Json = False, *, flags: Flags) -> None:
    """Show the groups of channels: what would be pruned, and what cannot be and why."""
    from edgeprune.config import load_config
    from edgeprune.inspection import inspect as look
    from edgeprune.reporting.listings import print_inspection

    found = look(model, load_config(config, flags), _messages())
    typer.echo(found.to_json(), nl=False) if as_json else print_inspection(found, _stdout())


@app.command()
@settings("run", "model", "data", "latency", "remote")
def measure(
    file: ExportedFile,
    against: Annotated[Path | None, typer.Option("--against", help="Time it against this file, interleaved.")] = None,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Measure accuracy on the test data, too.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """Time an exported file in its runtime, alone or against another file."""
    from edgeprune.config import load_config
    from edgeprune.reporting.listings import print_measured
    from edgeprune.single import measure_file

    found = measure_file(file, against, load_config(config, flags), accuracy=accuracy, console=_messages())
    typer.echo(found.to_json(), nl=False) if as_json else print_measured(found, _stdout())


@app.command()
@settings("run", "model", "data", "latency", "attack")
def attack(
    file: ExportedFile,
    gradients: Annotated[
        Path | None,
        typer.Option(
            "--gradients", help="Take the gradients from this bundle or model file, not from the file itself."
        ),
    ] = None,
    evidence: Annotated[Path | None, typer.Option("--evidence", help="Write the adversarials to this .npz.")] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Attack with nothing but the adversarials in this evidence.npz.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="Note here how far the attack got, and go on from there.")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """Attack an exported file in the runtime that serves it."""
    from edgeprune.attacking import attack_one
    from edgeprune.config import load_config
    from edgeprune.replaying import replay_file
    from edgeprune.reporting.listings import print_attacked, print_replayed

    loaded, console = load_config(config, flags), _messages()
    if replay is not None:
        shown = replay_file(file, replay, loaded, console=console)
        typer.echo(shown.to_json(), nl=False) if as_json else print_replayed(shown, _stdout())
        return
    found = attack_one(file, gradients, loaded, evidence=evidence, journal=journal, console=console)
    typer.echo(found.to_json(), nl=False) if as_json else print_attacked(found, _stdout())
    if not found.conclusive:
        raise typer.Exit(ExitCode.INCONCLUSIVE)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder or its report.json; a sweep's.", show_default=False)],
    formats: Annotated[
        str, typer.Option("--format", help="Which renderings: html, md, junit (a run's alone).")
    ] = "html,md",
) -> None:
    """Render a finished run's report, or a sweep's, again."""
    from edgeprune.records import Report, read_record
    from edgeprune.reporting import render
    from edgeprune.reporting.sweep import render_sweep, sweep_of

    wanted = tuple(part.strip() for part in formats.split(",") if part.strip())
    if (swept := sweep_of(run)) is not None:
        typer.echo("\n".join(map(str, render_sweep(swept, wanted))))
        return
    path = _report_of(run)
    for written in render(read_record(Report, path), path.parent, wanted):
        typer.echo(written)


@app.command()
@settings("run", "model", "data", "latency", "certify")
def certify(file: ExportedFile, config: ConfigFile = None, as_json: Json = False, *, flags: Flags) -> None:
    """Certify the smoothed classifier made of an exported file (randomised smoothing), not the file as served."""
    from edgeprune.certifying import certify_file
    from edgeprune.config import load_config
    from edgeprune.reporting.listings import print_certified

    found = certify_file(file, load_config(config, flags), _messages())
    typer.echo(found.to_json(), nl=False) if as_json else print_certified(str(file), found, _stdout())


@app.command()
@settings("run", "data", "latency")
def compare(
    before: Annotated[Path, typer.Argument(help="The run before: its folder or report.json.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="The run after.", show_default=False)],
    measured: Annotated[bool, typer.Option("--measure", help="Time both files together, now.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="End with 1 if something is worse, 4 if undecided.")] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the comparison as Markdown.")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """Compare two runs: the same images paired, times where they may be compared."""
    from edgeprune.comparison import OneRun, compare_runs, exit_code, files_of
    from edgeprune.reporting.comparison import comparison_markdown, print_comparison

    runs = OneRun.read(_report_of(before)), OneRun.read(_report_of(after))
    latency = None
    if measured:
        from edgeprune.config import load_config
        from edgeprune.single import measure_file

        files = files_of(*runs)
        settings = load_config(config, flags)
        latency = measure_file(files[1], files[0], settings, accuracy=False, console=_messages()).latency
    found = compare_runs(*runs, latency)
    if markdown:
        from edgeprune.files import write_text

        write_text(markdown, comparison_markdown(found))
    typer.echo(found.to_json(), nl=False) if as_json else print_comparison(found, _stdout())
    if gate:
        raise typer.Exit(exit_code(found))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="report, plan, verdict, comparison, statement, sweep, profile, config.")],
) -> None:
    """Print the JSON Schema of a file that edgeprune writes or reads."""
    from edgeprune.schema import schema_text

    typer.echo(schema_text(kind), nl=False)


@app.command()
@settings("latency", "remote")
def targets(
    what: Annotated[
        str | None,
        typer.Argument(help="show, probe or calibrate; a target's name shows it; nothing lists them."),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="The target (a name, or a path to a TOML file).")] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write the profile to this TOML file.")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    *,
    flags: Flags,
) -> None:
    """List the hardware profiles; show one, probe its machine, or calibrate its latency estimates on it."""
    from edgeprune.config import load_config
    from edgeprune.latency.profiles import list_profiles
    from edgeprune.reporting.listings import print_profile, print_profiles
    from edgeprune.targets import profile_for

    if what is None:
        profiles = list_profiles()
        if as_json:
            typer.echo("[" + ",\n".join(profile.to_json().rstrip() for profile in profiles) + "]")
        else:
            print_profiles(profiles, _stdout())
        return
    profile = profile_for(what, name, load_config(config, flags), write, _messages())
    typer.echo(profile.to_json(), nl=False) if as_json else print_profile(profile, _stdout())


@app.command()
def doctor(
    threads: Annotated[int, typer.Option("--threads", help="Threads of the runtimes.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, threads, processor, and the precision each runtime really computes in."""
    from edgeprune.environment import doctor as examine
    from edgeprune.reporting.listings import print_doctor

    found = examine(threads)
    typer.echo(found.to_json(), nl=False) if as_json else print_doctor(found, _stdout())


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo goes.")] = Path("edgeprune-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the network and of the run.", min=0)] = 0,
) -> None:
    """Train a small network on real handwritten digits, then compress, measure, attack and judge it."""
    from edgeprune.demo import write_demo

    arguments = write_demo(folder, seed, _messages())
    typer.echo(f"\n$ cd {folder}\n$ edgeprune {shlex.join(arguments)}\n")
    os.chdir(folder)
    raise typer.Exit(app(arguments, standalone_mode=False, obj=arguments) or 0)


def main(argv: list[str] | None = None) -> None:
    """Entry point: every error becomes a clear line on stderr and its documented exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    sys.exit(_guarded([argument for argument in arguments if argument != "--debug"], debug))


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        code = int(app(arguments, prog_name="edgeprune", standalone_mode=False, obj=arguments) or 0)
        sys.stdout.flush()
        if code != ExitCode.INTERRUPTED:
            return code
        message = _INTERRUPTED  # typer has caught Ctrl-C already
    except (BrokenPipeError, SystemExit):  # whoever read our output has gone, and typer turns that into exit(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, typer.Abort):
        message, code = _INTERRUPTED, ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last fence: a bug of ours is said as one, never shown as a result
        message, code = _said(error)
        if debug:
            traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    return int(code)


def _said(error: Exception) -> tuple[str, ExitCode]:
    """What to tell the user of an error, and the exit code."""
    if isinstance(error, EdgepruneError):
        return str(error), error.exit_code
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgeprune"
        return f"{error.format_message()}\n  `{command} --help` lists what there is", ExitCode.USAGE
    if isinstance(error, OSError):
        place = f"cannot use {error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}\n  check the path, the permissions and the space", ExitCode.NO_RESULT
    if isinstance(error, MemoryError):
        return "out of memory\n  use a smaller --batch-size, or fewer images (--samples)", ExitCode.NO_RESULT
    name = type(error).__name__
    return f"{name}: {error}\n  this is a bug of edgeprune: --debug shows where", ExitCode.NO_RESULT


def _report_of(run: Path) -> Path:
    path = run / "report.json" if run.is_dir() else run
    if not path.exists():
        raise UsageError(f"no such report: {path}", hint="`edgeprune compress` writes it when a run has finished")
    return path


def _command(context: typer.Context) -> str:
    return shlex.join(["edgeprune", *context.obj])


def _stdout() -> Terminal:
    from rich.console import Console

    return Console(highlight=False)


def _messages() -> Messages:
    from rich.console import Console

    from edgeprune.console import TerminalConsole

    return TerminalConsole(Console(stderr=True, highlight=False))


if __name__ == "__main__":
    main()
