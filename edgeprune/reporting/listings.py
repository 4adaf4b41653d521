"""Terminal tables of the commands that look at one thing: inspect, measure, attack, targets, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.records import Certified, Environment, LatencyStats, Proportion, RefusalRecord, Unmeasured
from edgeprune.reporting.attacked import unfinished
from edgeprune.robustness.suites import effort

if TYPE_CHECKING:
    from edgeprune.attacking import Attacked
    from edgeprune.environment import DoctorReport
    from edgeprune.inspection import Inspection
    from edgeprune.latency.profiles import Profile
    from edgeprune.replaying import Replayed
    from edgeprune.single import Measured


def print_inspection(found: Inspection, console: Console) -> None:
    """The network in a paragraph, then its groups, then what is left alone and why."""
    channels, height, width = found.input_shape
    console.print(
        Text.assemble((found.model, "bold"), f"  sha256 {found.file_sha256[:12]}, weights {found.digest[:12]}")
    )
    console.print(
        f"input {channels}x{height}x{width}, {len(found.classes)} classes: {_some(found.classes)}", markup=False
    )
    console.print(f"{found.macs / 1e6:,.2f} M MACs, {found.parameters:,} parameters")
    console.print(f"accuracy of the torch module: {_share(found.accuracy)}", markup=False)
    console.print(
        f"\n{len(found.groups)} groups proved in {found.seconds:.1f} s; kept: {found.goal} by {found.criterion}, "
        f"widths in multiples of {found.channel_multiple}: {found.kept_macs / found.macs:.0%} of the MACs"
    )
    table = _table("group", ">width", ">kept", "layers that go with it")
    for group in found.groups:
        others = [name for name in group.layers if name != group.name]
        table.add_row(Text(group.name), str(group.width), str(group.kept), Text(_some(others, 6)))
    console.print(table)
    _print_refusals("not pruned, because", "layer", found.refusals, console)
    _print_blocks(found, console)
    for note in found.notes:
        console.print(Text(f"note: {note}", "yellow"))


def _print_blocks(found: Inspection, console: Console) -> None:
    """Blocks that could go, the ones that would marked; then what is not offered as one."""
    if found.blocks:
        would = "" if found.scope == "channels" else f"; scores by {found.block_criterion}"
        console.print(f"\n{len(found.blocks)} blocks proved (--scope blocks or both removes them){would}", markup=False)
        table = _table("block", "kind", ">M MACs", ">score", "in its place", "")
        for block in found.blocks:
            score = "" if block.score is None else f"{block.score:.2f}"
            stays = " ".join(block.stays) or "nothing"
            mark = "would go" if block.removed else ""
            table.add_row(Text(block.name), block.kind, f"{block.macs / 1e6:,.2f}", score, Text(stays), mark)
        console.print(table)
    _print_refusals("not offered as a block, because", "module", found.block_refusals, console)


def _print_refusals(title: str, what: str, refusals: Sequence[RefusalRecord], console: Console) -> None:
    if refusals:
        console.print(f"\n{title}")
        table = _table(what, "reason")
        for refusal in refusals:
            table.add_row(Text(refusal.name), Text(refusal.reason))
        console.print(table)


def print_measured(found: Measured, console: Console) -> None:
    """Latency of one file, or of two with the ratio; the verdict and what was odd."""
    latency = found.latency
    runtime = latency.runtime
    console.print(f"{runtime.name} {runtime.version}, {runtime.precision}, {latency.kind} on {latency.target}")
    options = ", ".join(f"{name} {value}" for name, value in runtime.options.items())
    console.print(f"{options}" + (f"; {_machine(latency.machine)}" if latency.machine else ""), markup=False)
    console.print(
        f"{runtime.threads} thread(s), batch {latency.batch_size}, {latency.processes} processes, {found.inputs} images"
    )
    table = _table("file", ">p50 ms", ">95 %", ">p90", ">p99", ">min", ">images/s", ">samples")
    if latency.compressed is None:
        _add_stats(table, found.file, latency.dense)
    else:
        _add_stats(table, "against", latency.dense)
        _add_stats(table, found.file, latency.compressed)
    console.print(table)
    for name, stats in (
        ("against" if latency.compressed else found.file, latency.dense),
        (found.file, latency.compressed),
    ):
        if stats is not None:
            console.print(_start(name, stats), markup=False)
    console.print(f"sha256 {found.sha256}")
    control = latency.control
    if latency.speedup:
        low, high = latency.speedup.interval.low, latency.speedup.interval.high
        console.print(f"speed-up {latency.speedup.value:.3f}x ({low:.3f} to {high:.3f}): {latency.verdict}")
    console.print(f"A/A control {control.value:.3f}x ({control.interval.low:.3f} to {control.interval.high:.3f})")
    if latency.stopped:
        console.print(f"stopped because {latency.stopped}", markup=False)
    for note in latency.notes:
        console.print(Text(f"note: {note}", "yellow"))
    if found.parity:
        console.print(
            f"the logits there and here differ by at most {found.parity.max_difference:.1g} "
            f"(allowed: {found.parity.tolerance:.0e}; {found.parity.inputs} images)"
        )
    if found.accuracy:
        console.print(f"accuracy {_share(found.accuracy)}", markup=False)


def print_attacked(found: Attacked, console: Console) -> None:
    """Clean and robust accuracy of one file, and whether the attack can be believed."""
    threat, result = found.threat, found.result
    console.print(Text.assemble((found.file, "bold"), f"  sha256 {result.sha256}"))
    console.print(
        f"{threat.attack} ({effort(threat)}), {threat.norm} {threat.epsilon}, "
        f"{threat.samples} images, seed {threat.seed}"
    )
    console.print(f"judged by {found.runtime.name} {found.runtime.version}, {found.runtime.precision}")
    console.print(f"gradients from the {result.gradient_source.removeprefix('the ')}", markup=False)
    console.print(f"clean accuracy   {_share(result.clean)}", markup=False)
    console.print(f"robust accuracy  {_share(result.robust)}", markup=False)
    console.print(
        f"{result.fell} fell, {result.rounded} of them still after rounding to 8 bits; {result.rejected} claims refused"
    )
    if result.unfinished:
        console.print(unfinished("one", result).replace("the one file", "the file"), markup=False)
    for warning in found.warnings:
        console.print(Text(f"inconclusive: {warning}", "yellow"))


def print_replayed(found: Replayed, console: Console) -> None:
    """How many of the adversarials still fool the file."""
    console.print(Text.assemble((found.file, "bold"), f"  sha256 {found.sha256}"))
    same = "this file" if found.found_on == found.sha256 else f"the file {found.found_on[:12]}"
    threat = found.threat
    console.print(f"adversarials of {threat.attack}, {threat.norm} {threat.epsilon}, found on {same}")
    console.print(f"{found.fell} of {found.claimed} still fall; {found.outside} break the threat model")
    console.print(f"{found.already_wrong} belong to images that the file gets wrong anyway")
    console.print(f"clean accuracy   {_share(found.clean)}", markup=False)
    console.print(
        f"left standing    {_share(found.robust)}  (by replay alone: no evidence of robustness)", markup=False
    )


def print_certified(file: str, found: Certified, console: Console) -> None:
    """Certified accuracy by radius, and what it is about: the smoothed classifier, not the file as served."""
    noise = found.noise
    console.print(Text.assemble((file, "bold"), f"  sha256 {found.sha256}"))
    console.print(f"judged by {found.runtime.name} {found.runtime.version}, {found.runtime.precision}")
    console.print(
        f"noise of sigma {noise.sigma:g}, {noise.guesses:,} + {noise.draws:,} draws an image, seed {noise.seed}; "
        f"each radius is wrong with a probability of at most {noise.alpha:g}"
    )
    console.print(f"accuracy of the file itself  {_share(found.plain)}", markup=False)
    console.print("\nthe smoothed classifier, not the file as it is served:")
    table = _table(">within l2", "certified right")
    for each in found.at:
        beyond = " (more draws are needed to show it)" if each.radius > found.largest_radius else ""
        table.add_row(f"{each.radius:g}", Text(_share(each.right) + beyond))
    console.print(table)
    console.print(
        f"abstained on {found.abstained} of {found.plain.total}; {noise.draws:,} draws can show a radius of at most "
        f"{found.largest_radius:.3g}"
    )


def print_profiles(profiles: Sequence[Profile], console: Console) -> None:
    """A line a profile."""
    table = _table("target", "where", ">cores", ">multiple", "description")
    for profile in profiles:
        where = {"local": "this machine", "remote": "a device", "never": "figures only"}[profile.measured]
        table.add_row(
            profile.name, where, str(profile.cores or "?"), str(profile.channel_multiple), profile.description
        )
    console.print(table)


def print_profile(profile: Profile, console: Console) -> None:
    """Every figure of a profile with its kind and source."""
    console.print(Text.assemble((profile.name, "bold"), f"  {profile.description}"))
    where = {
        "local": "this machine",
        "remote": "a device: measured with --host, else not",
        "never": "figures only: nothing of ours runs there",
    }[profile.measured]
    console.print(f"{profile.architecture}, {where}, widths in multiples of {profile.channel_multiple}")
    if profile.features:
        console.print(" ".join(profile.features), markup=False)
    for name, found in profile.estimates.items():
        console.print(
            f"estimates for {name}, {found.threads} thread(s): {found.method}; on {found.tested} networks that it had "
            f"not seen off by {found.error:.1%} (median), {found.within_10:.0%} within 10 %; {found.source}",
            markup=False,
        )
    table = _table("figure", ">value", "unit", "kind", "source")
    for figure in profile.figures:
        table.add_row(figure.name, f"{figure.value:g}", figure.unit, figure.kind, Text(figure.source))
    console.print(table)


def print_doctor(found: DoctorReport, console: Console) -> None:
    """The machine, the versions, each runtime's real precision, and advice."""
    machine = found.environment
    console.print(
        Text.assemble(("edgeprune ", "bold"), f"{machine.edgeprune}, Python {machine.python}, {machine.system}")
    )
    usable = ", ".join(map(str, found.usable_cores))
    console.print(f"{machine.cpu}: {machine.cores} cores (usable: {usable}), {' '.join(machine.cpu_features)}")
    console.print(", ".join(f"{name} {version}" for name, version in machine.packages.items()), markup=False)
    table = _table("runtime", "version", "computes in", "by default in")
    for runtime in found.runtimes:
        ours = runtime.failure or runtime.ours or "unknown"
        table.add_row(runtime.name, runtime.version or "missing", Text(ours), runtime.default or "unknown")
    console.print(table)
    noise = found.noise
    console.print(
        f"noise: spread {noise.spread:.1%}, preempted {noise.preempted:.1%}; timer {found.timer_resolution_ns} ns, "
        f"load {found.load_average if found.load_average is not None else 'unknown'}"
    )
    for advice in found.advice:
        console.print(Text(f"{advice.what}\n  {advice.remedy}", "yellow"))
    if not found.advice:
        console.print("nothing to mend")


def _add_stats(table: Table, name: str, stats: LatencyStats) -> None:
    table.add_row(
        Text(name),
        f"{stats.p50_ms:.3f}",
        f"{stats.p50_interval.low:.3f}-{stats.p50_interval.high:.3f}",
        _or_dash(stats.p90_ms),
        _or_dash(stats.p99_ms),
        f"{stats.min_ms:.3f}",
        f"{stats.throughput_per_s:,.0f}",
        f"{stats.samples}" + (f" (-{stats.preempted})" if stats.preempted else ""),
    )


def _or_dash(value: float | None) -> str:
    return "too few" if value is None else f"{value:.3f}"


def _machine(machine: Environment) -> str:
    """The device in a line."""
    return f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}"


def _start(name: str, stats: LatencyStats) -> str:
    """Size, the runtime's own part of the p50 and cold start of a file in a line."""
    size = "" if stats.size_bytes is None else f"{stats.size_bytes / 1000:,.0f} kB; "
    if stats.runtime_p50_ms is not None:
        size += f"inside the runtime {stats.runtime_p50_ms:.3f} ms of the p50; "
    if stats.peak_rss_bytes is not None:
        size += f"peak memory of a process that serves it {stats.peak_rss_bytes / 1e6:,.0f} MB; "
    if stats.load_ms is None or stats.first_ms is None:
        return f"{name}: {size}cold start {_whole(stats.cold_start_ms)} ms"
    return f"{name}: {size}cold start: load {_whole(stats.load_ms)} ms, first inference {_whole(stats.first_ms)} ms"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _share(value: Proportion | Unmeasured) -> str:
    if isinstance(value, Unmeasured):
        return f"unmeasured: {value.unmeasured}"
    low, high = value.interval.low, value.interval.high
    return (
        f"{value.value:.2%} ({value.count} of {value.total}; {value.interval.confidence:.0%}: {low:.1%} to {high:.1%})"
    )


def _some(words: Sequence[str], most: int = 8) -> str:
    more = f", ... ({len(words)} in all)" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
    return table
