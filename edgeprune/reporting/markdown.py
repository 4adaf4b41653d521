"""Report -> Markdown that fits a pull-request comment: the verdict, what changed, the fine print folded away.

Names come from files and may say anything: each one stands in a code span, where nobody is mentioned by an @ and
no markup lives.
"""

from __future__ import annotations

import re

from edgeprune.records import RefusalRecord, Report, Unmeasured, Verdict
from edgeprune.reporting import ice
from edgeprune.reporting import numbers as n
from edgeprune.reporting.attacked import attack_lines
from edgeprune.reporting.goals import goal_remark, payoff
from edgeprune.reporting.recovered import recovery_lines
from edgeprune.reporting.view import (
    Change,
    Figure,
    changes,
    fitting,
    flips,
    headline,
    judged,
    loose_flags,
    pieces,
    remedies,
    step_recovery,
    threat,
)

_MARKS = {"passed": "✅", "failed": "❌", "inconclusive": "⚠️", "no budgets": "⚪"}
_MANY = 12


def markdown(report: Report) -> str:
    """The whole comment, ending in a newline."""
    head = headline(report.verdict)
    target = f"{code(report.model.name)} for {code(report.target.name)}"
    blocks = [
        f"## {_MARKS[head.status]} {head.title}: {target}",
        text(head.sentence),
        _gate(report.verdict),
        _changes(report),
        _warnings(report),
        _folded("Security curve", _curve(report)),
        _folded("Thin ice", _thin_ice(report)),
        _folded("Beside the attack", _beside(report)),
        _folded("Flips, image by image", _flips(report)),
        _folded("MACs and milliseconds", _worth(report)),
        _folded(f"Pruned in {len(report.steps) + 1} steps", _steps(report)),
        _folded("Recovery", _recovery(report)),
        _folded(f"Blocks removed ({len(report.plan.removed_blocks)})", _removed(report)),
        _folded(f"Left alone ({len(_left_alone(report))})", _refusals(report)),
        _folded("The files, the attack and how to reproduce this", _provenance(report)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def verdict_markdown(verdict: Verdict) -> str:
    """A verdict alone, as the gate writes it."""
    head = headline(verdict)
    digest = f"sha256 `{verdict.artifact_sha256}`"
    blocks = [f"## {_MARKS[head.status]} {head.title}", text(head.sentence), _gate(verdict), digest]
    return "\n\n".join(block for block in blocks if block) + "\n"


def code(value: str) -> str:
    """`value` as a code span that it cannot leave; pipes are escaped for tables, line breaks become spaces."""
    line = " ".join(value.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}".replace("|", "\\|")


def text(value: str) -> str:
    """`value` as plain text: markup, mentions and table borders in it are only characters."""
    line = " ".join(value.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", line)


def _gate(verdict: Verdict | None) -> str:
    rows = judged(verdict)
    if not rows:
        return ""
    lines = ["| | budget | limit | measured | judged | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        word = row.word if row.status == "pass" else f"**{row.word}**"
        name = f"{row.metric} ({text(row.subject)})"
        lines.append(
            f"| {word} | {name} | {row.limit} | {row.actual} | {row.bound or text(row.reason)} | {row.distance} |"
        )
    advice = [f"- {names}: {_advice(remedy)}" for names, remedy in remedies(rows)]
    if verdict and verdict.command and loose_flags(rows):
        advice += ["", f"Flags go behind the command of the run: {code(verdict.command)}"]
    return "\n".join([*lines, *(["", "What would help:", *advice] if advice else [])])


def _advice(remedy: str) -> str:
    return " ".join(code(part) if command else text(part) for part, command in pieces(remedy))


def _changes(report: Report) -> str:
    lines = ["| | dense | compressed | change |", "| --- | ---: | ---: | ---: |"]
    lines.extend(_change(row) for row in changes(report))
    return "\n".join(lines)


def _change(row: Change) -> str:
    name = f"{row.label}<br><sub>{text(row.detail)}</sub>" if row.detail else row.label
    if row.missing:
        return f"| {name} | unmeasured | unmeasured | {text(row.missing)} |"
    return f"| {name} | {_figure(row.dense)} | {_figure(row.compressed)} | {_figure(row.change)} |"


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "unmeasured"
    return f"{figure.text}<br><sub>{text(figure.spread)}</sub>" if figure.spread else figure.text


def _warnings(report: Report) -> str:
    remark = goal_remark(report)
    found = [*report.warnings, *([remark.text] if remark and remark.warns else []), *report.plan.notes]
    if not isinstance(report.robustness, Unmeasured):
        found.extend(report.robustness.warnings)
    lines = [f"> {text(line)}" for line in dict.fromkeys(found)]
    more = [f"> and {len(lines) - _MANY} more, in report.html"] if len(lines) > _MANY else []
    return "\n>\n".join(lines[:_MANY] + more)


def _worth(report: Report) -> str:
    """What came of the goal, where nothing is wrong with it, and what removed MACs were worth."""
    remark = goal_remark(report)
    lines = [*([remark.text] if remark and not remark.warns else []), *payoff(report)]
    return "\n".join(f"- {text(line)}" for line in lines)


def _beside(report: Report) -> str:
    return "\n".join(f"- {name}: {text(line)}" for name, line in attack_lines(report.robustness))


def _flips(report: Report) -> str:
    rows = flips(report)
    if not rows:
        return ""
    lines = ["| | right in both | lost | won | wrong in both | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    lines.extend(
        f"| {row.label}<br><sub>{text(row.detail)}</sub> | {row.both_right:,} | {row.lost:,} | {row.won:,} "
        f"| {row.both_wrong:,} | {row.test} |"
        for row in rows
    )
    return "\n".join(lines)


def _curve(report: Report) -> str:
    if isinstance(report.curve, Unmeasured):
        return "" if isinstance(report.robustness, Unmeasured) else f"Unmeasured: {text(report.curve.unmeasured)}."
    lines = [
        f"Robust accuracy over epsilon ({report.curve.search.norm}), an upper bound, on "
        f"{report.curve.search.samples:,} images: what the distances and the attack left standing.",
        "",
        "| epsilon | dense | compressed | change | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in ice.checked(report.curve):
        said = "; ".join(part for part in (row.test, row.remark, *(text(line) for line in row.doubts)) if part)
        change = f"{_figure(row.dense)} | {_figure(row.compressed)} | {_figure(row.change)}"
        lines.append(f"| {row.epsilon} | {change} | {said} |")
    more = ice.beyond(report)
    return "\n".join([*lines, *(["", more] if more else [])])


def _thin_ice(report: Report) -> str:
    thin = report.thin_ice
    if isinstance(thin, Unmeasured):
        return "" if isinstance(report.robustness, Unmeasured) else f"Unmeasured: {text(thin.unmeasured)}."
    doubt = [] if thin.conclusive else [f"The attack at {thin.epsilon} is inconclusive: do not rely on it there.", ""]
    lines = [
        *(ice.lead(thin), "", ice.net(thin), "", *doubt),
        *("| flip | images | flipped | AUROC | |", "| --- | ---: | ---: | ---: | --- |"),
        *(
            f"| {row.label}<br><sub>{row.detail}</sub> | {row.images:,} | {row.flipped:,} | {_figure(row.auroc)} "
            f"| {row.test} |"
            for row in ice.ranks(thin)
        ),
    ]
    if tenths := ice.tenths(thin):
        lines += [
            *("", f"| tenth, by distance | lost | lost at {thin.epsilon} |", "| --- | ---: | ---: |"),
            *(f"| {row.span} | {_figure(row.lost)} | {_figure(row.lost_at_epsilon)} |" for row in tenths),
        ]
    at_risk = [
        f"- {gallery.title}: {', '.join(_at_risk(one) for one in gallery.images)}"
        for gallery in ice.galleries(thin, report.model.classes)
    ]
    return "\n".join(
        [*lines, "", "At risk, by sample id (true class, distance):", "", *at_risk, "", text(ice.how(thin))]
    )


def _at_risk(one: ice.Risk) -> str:
    return f"{one.id} ({code(one.label)}, {one.distance})"


def _steps(report: Report) -> str:
    """One line for each step but the last, whose result is the plan."""
    return "\n".join(
        f"{number}. {step.channels:,} channels, {n.count(step.macs)} MACs; {text(step_recovery(step.recovery))}"
        for number, step in enumerate(report.steps, start=1)
    )


def _recovery(report: Report) -> str:
    info = report.recovery
    return "" if isinstance(info, Unmeasured) else "\n".join(f"- {text(line)}" for line in recovery_lines(info))


def _removed(report: Report) -> str:
    """All blocks that went, in the order of their removal, and what chose them."""
    plan = report.plan
    if not plan.removed_blocks:
        return ""
    names = ", ".join(code(name) for name in plan.removed_blocks)
    return f"{names}: chosen by {text(plan.block_criterion or 'no criterion')}, the least important first"


def _left_alone(report: Report) -> tuple[RefusalRecord, ...]:
    return (*report.plan.refusals, *report.plan.block_refusals)


def _refusals(report: Report) -> str:
    refusals = _left_alone(report)
    lines = [f"- {code(item.name)}: {text(item.reason)}" for item in refusals[:_MANY]]
    if len(refusals) > _MANY:
        lines.append(f"- and {len(refusals) - _MANY} more, in report.html")
    return "\n".join(lines)


def _provenance(report: Report) -> str:
    lines = ["| file | side | sha256 |", "| --- | --- | --- |"]
    for artifact in report.artifacts:
        lines.append(f"| {code(artifact.path)} | {artifact.side} | `{artifact.sha256}` |")
        lines.extend(f"| {code(name)} | {artifact.side} | `{digest}` |" for name, digest, _ in artifact.companions)
    environment = report.environment
    facts = [
        f"- Network: {code(report.model.name)}, sha256 `{report.model.file_sha256}`",
        *([f"- Input: {text(fitting(report.model))}"] if fitting(report.model) else []),
        *(
            f"- {item.role} data: {code(item.name)}, {item.samples:,} images, digest `{n.short(item.digest)}`"
            for item in report.data
        ),
        f"- Machine: {text(environment.cpu)}, {environment.cores} cores, {text(environment.system)}",
        *(f"- {line}" for line in _devices(report)),
        f"- edgeprune {text(environment.edgeprune)}, Python {text(environment.python)}, {text(report.created)}",
        f"- Seed: {report.seed}",
        f"- Command: {code(report.command)}",
    ]
    if isinstance(report.robustness, Unmeasured):
        facts.append(f"- Robustness: unmeasured, {text(report.robustness.unmeasured)}")
    else:
        facts.append(
            f"- Attack: {text(threat(report.robustness.threat))}, on {report.robustness.threat.samples:,} images"
        )
    return "\n".join([*lines, "", *facts])


def _devices(report: Report) -> list[str]:
    """A line for every device that is not the machine of the report."""
    if isinstance(report.latency, Unmeasured):
        return []
    told = {item.target: item.machine for item in report.latency if item.machine is not None}
    return [
        f"Device {text(name)}: {text(machine.cpu)}, {machine.cores} cores, {text(machine.system)}"
        for name, machine in told.items()
    ]


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>" if body else ""
