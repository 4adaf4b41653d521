"""What recovery did, in words: nothing of it is left out, nothing unmeasured is filled in."""

from __future__ import annotations

import pytest
from report_examples import example_report

from edgeprune.records import Correction, RecoveryInfo
from edgeprune.recovery import held_out
from edgeprune.reporting.html import html
from edgeprune.reporting.markdown import markdown
from edgeprune.reporting.recovered import recovery_lines

CORRECTION = Correction(
    name="reconstruction",
    layers=9,
    skipped=(("conv1", "why"),),
    accuracy_before=0.3,
    accuracy_after=0.7,
    distance_before=2.5,
    distance_after=1.25,
    kept=True,
)
INFO = RecoveryInfo(
    recipe="robust-distill",
    epochs=4,
    minutes=10,
    train_samples=5882,
    held_out=653,
    labels=False,
    accuracy_before=None,
    accuracy_after=0.875,
    robust_before=0.1,
    robust_after=0.625,
    robust_eps=2 / 255,
    distance_before=0.75,
    distance_after=0.046875,
    corrections=(CORRECTION,),
    precision="bfloat16",
    images_per_second=512.4,
    notes=("training diverged <once>",),
    seconds=48.2,
)


def test_all_that_was_done_is_said() -> None:
    whole = "; ".join(recovery_lines(INFO))
    for part in (
        "robust-distill, 4 epochs in the 10 minutes given",
        "512 images/s in bfloat16",
        "labels were not looked at",
        "unmeasured",
        "87.5 %",
        "10.0 % before, 62.5 % after",
        "distance of its answers from the dense network's there: 0.750 nats before, 0.0469 after",
        f"on up to {held_out._ATTACKED} of them",
        "reconstruction of 9 layers",
        "30.0 % to 70.0 %",
        "1.25 nats, kept; 1 could not be fitted",
        "training diverged <once>",
    ):
        assert part in whole


@pytest.mark.parametrize("render", [html, markdown])
def test_renderings_say_it_and_escape_it(render: object) -> None:
    page = render(example_report(recovery=INFO))  # type: ignore[operator]
    assert "512 images/s" in page
    assert "<once>" not in page
    assert "&lt;once&gt;" in page


def test_what_was_not_looked_at_is_not_said() -> None:
    plain = INFO.model_copy(update={"robust_after": None, "distance_after": None, "corrections": (), "notes": ()})
    assert len(recovery_lines(plain)) == 1
