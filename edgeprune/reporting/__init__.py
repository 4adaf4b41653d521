"""report.json is the product; HTML, Markdown and JUnit XML are renderings of it.

Every rendering is a function of the report alone, so it can be made again at any time, anywhere, offline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.files import write_text
from edgeprune.records import Report

FORMATS = {"html": "report.html", "md": "report.md", "junit": "junit.xml"}


def render(report: Report, folder: Path, formats: Sequence[str] = ("html", "md")) -> tuple[Path, ...]:
    """Write the renderings into `folder`, each whole or not at all; the paths, in the order of `formats`.

    Formats: html, md, junit. UsageError for another one, before anything is written; OutputError when a file
    cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"unknown report format: {unknown[0]}", hint="known: " + ", ".join(FORMATS))
    paths = []
    for name in formats:
        paths.append(folder / FORMATS[name])
        write_text(paths[-1], _renderer(name)(report))
    return tuple(paths)


def summary(report: Report) -> str:
    """The summary and the verdict as plain text, 80 columns wide."""
    import io

    from rich.console import Console

    from edgeprune.reporting.terminal import print_summary, print_verdict

    page = io.StringIO()
    console = Console(file=page, width=80, no_color=True, legacy_windows=False)
    print_summary(report, console)
    if report.verdict is not None:
        console.print()
        print_verdict(report.verdict, console)
    return page.getvalue()


def _renderer(name: str) -> Callable[[Report], str]:
    """The renderer of a format, imported when it is used: the gate needs none of them."""
    if name == "html":
        from edgeprune.reporting.html import html

        return html
    if name == "md":
        from edgeprune.reporting.markdown import markdown

        return markdown
    from edgeprune.reporting.junit import junit

    return junit
