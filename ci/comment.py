"""Keeps one comment on a pull request up to date: `python ci/comment.py verdict.md --name model.onnx`.

Standard library alone. The comment is found again by a marker, so that a second run edits it instead of adding
another; each `--name` has a comment of its own. Reads GITHUB_API_URL, GITHUB_REPOSITORY, GITHUB_TOKEN and
PULL_REQUEST. A token that may not write (a pull request from a fork) is a warning, never a failed job: the verdict is
the gate's exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

LONGEST = 65_000  # GitHub refuses a body of more than 65,536 characters
PER_PAGE = 100


def main(arguments: list[str]) -> int:
    """Create or edit the comment; 0 also where it could not be written, with a warning that says why."""
    parser = argparse.ArgumentParser(description="Keeps one comment on a pull request up to date.")
    parser.add_argument("markdown", type=Path)
    parser.add_argument("--name", default="model", help="what the comment is about: each name has its own")
    given = parser.parse_args(arguments)
    marker = f"<!-- edgeprune gate {hashlib.sha256(given.name.encode()).hexdigest()[:16]} -->"
    body = f"{marker}\n{given.markdown.read_text(encoding='utf-8')}"
    if len(body) > LONGEST:
        body = body[:LONGEST] + "\n\n(cut: the whole verdict is in the job summary)\n"
    try:
        print(_write(marker, body))
    except (urllib.error.URLError, OSError, KeyError, ValueError) as error:
        print(f"::warning title=edgeprune::the comment was not written: {type(error).__name__}: {error}")
    return 0


def _write(marker: str, body: str) -> str:
    place = f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    number = int(os.environ["PULL_REQUEST"])
    found = _find(f"{place}/{number}/comments", marker)
    if found is None:
        made = _ask("POST", f"{place}/{number}/comments", {"body": body})
        return f"commented: {made.get('html_url', '')}"
    made = _ask("PATCH", f"{place}/comments/{found}", {"body": body})
    return f"updated: {made.get('html_url', '')}"


def _find(place: str, marker: str) -> int | None:
    """The comment that begins with the marker; one that only quotes it is somebody else's."""
    page = 1
    while True:
        comments = _ask("GET", f"{place}?per_page={PER_PAGE}&page={page}")
        for comment in comments:
            if str(comment.get("body", "")).startswith(marker):
                return int(comment["id"])
        if len(comments) < PER_PAGE:
            return None
        page += 1


def _ask(method: str, path: str, data: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        os.environ.get("GITHUB_API_URL", "https://api.github.com") + path,
        method=method,
        data=None if data is None else json.dumps(data).encode(),
        headers={
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "Accept": "application/vnd.github+json",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
