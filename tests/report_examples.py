"""Reports with known numbers, for every test that needs one: a traffic-sign network made 1.9 times faster.

The numbers agree with each other (counts, drops, sizes, digests), so that a test may change one and see what follows.
"""

from __future__ import annotations

from typing import Any

from ice_examples import example_curve, example_ice

from edgeprune.records import (
    AccuracyComparison,
    Artifact,
    AttackedFile,
    Environment,
    GroupPlan,
    Interval,
    LatencyComparison,
    LatencyStats,
    LayerChange,
    LayerProfile,
    LayerTime,
    ModelInfo,
    PairedDrop,
    Parity,
    Proportion,
    PrunePlan,
    Ratio,
    RecoveryInfo,
    RefusalRecord,
    Report,
    RobustnessComparison,
    RuntimeInfo,
    Side,
    SplitInfo,
    TargetInfo,
    ThreatModel,
    Unmeasured,
)

ORT = RuntimeInfo(name="onnxruntime", version="1.27.0", precision="float32", threads=1)
OPENVINO = RuntimeInfo(
    name="openvino", version="2026.2.0", precision="float32", threads=1, options={"INFERENCE_PRECISION_HINT": "f32"}
)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def digest(letter: str) -> str:
    """A digest that is easy to recognise: one hexadecimal letter, 64 times."""
    return letter * 64


DENSE_ONNX, DENSE_XML, DENSE_BIN = digest("1"), digest("2"), digest("3")
ONNX, XML, BIN = digest("a"), digest("b"), digest("c")


def example_report(**changes: Any) -> Report:
    """The example with some of its fields replaced."""
    fields: dict[str, Any] = {
        "created": "2026-11-20T12:00:00+00:00",
        "command": "edgeprune compress gtsrb_net_adv.pt --target cpu --speedup 1.9 --seed 7",
        "seed": 7,
        "environment": Environment(
            edgeprune="0.1.0",
            python="3.11.2",
            system="Linux 6.1.0 x86_64",
            cpu="AMD EPYC 7B13",
            cores=2,
            cpu_features=("avx2", "fma"),
            packages={"torch": "2.13.0", "onnxruntime": "1.27.0", "openvino": "2026.2.0"},
        ),
        "target": TargetInfo(name="cpu", description="This machine's processor", channel_multiple=8),
        "model": example_model(),
        "data": (
            SplitInfo(role="train", name="gtsrb_train.npz", samples=6535, digest=digest("d")),
            SplitInfo(role="test", name="gtsrb_test.npz", samples=3000, digest=digest("e")),
        ),
        "plan": example_plan(),
        "layers": LAYERS,
        "recovery": RecoveryInfo(
            recipe="distill",
            epochs=6,
            train_samples=5882,
            held_out=653,
            accuracy_before=0.412,
            accuracy_after=0.931,
            seconds=48.2,
        ),
        "artifacts": example_artifacts(),
        "parity": (example_parity(ONNX, ORT), example_parity(XML, OPENVINO)),
        "accuracy": (example_accuracy(), example_accuracy(OPENVINO)),
        "latency": (example_latency(), example_latency(OPENVINO)),
        "layer_times": example_layer_times(),
        "robustness": example_robustness(),
        "thin_ice": example_ice(ORT, DENSE_ONNX, ONNX),
        "curve": example_curve(ORT, DENSE_ONNX, ONNX),
        "evidence_sha256": digest("f"),
        "budgets": {"accuracy_drop": 0.02, "robust_accuracy_drop": 0.02, "speedup": 1.5, "confidence": 0.95},
        "verdict": None,
    }
    return Report(**{**fields, **changes})


def unmeasured_report(**changes: Any) -> Report:
    """What a run without data leaves: latency, but neither accuracy nor robustness."""
    reason = Unmeasured(unmeasured="no test data was given")
    fields = {
        "data": (),
        "accuracy": reason,
        "robustness": reason,
        "thin_ice": reason,
        "curve": reason,
        "recovery": Unmeasured(unmeasured="no training data was given: nothing was recovered"),
        "evidence_sha256": None,
        "warnings": ("accuracy and robustness were not measured: no test data was given",),
    }
    return example_report(**{**fields, **changes})


def hostile_report(**changes: Any) -> Report:
    """Every name that comes from the user or a file tries to leave its place in the page."""
    plan = example_plan().model_copy(
        update={
            "refusals": (RefusalRecord(name=HOSTILE, reason=HOSTILE, layers=(HOSTILE,)),),
            "notes": (HOSTILE,),
        }
    )
    fields = {
        "command": f"edgeprune compress {HOSTILE}",
        "model": example_model(name=HOSTILE, classes=(HOSTILE, "@everyone", "a|b`c")),
        "plan": plan,
        "layers": tuple(layer.model_copy(update={"name": HOSTILE, "kind": HOSTILE}) for layer in LAYERS),
        "target": TargetInfo(name=HOSTILE, description=HOSTILE, channel_multiple=8),
        "data": (SplitInfo(role="test", name=HOSTILE, samples=3000, digest=digest("e")),),
        "artifacts": tuple(item.model_copy(update={"path": HOSTILE}) for item in example_artifacts()),
        "warnings": (HOSTILE,),
        "layer_times": example_layer_times(HOSTILE),
        "robustness": example_robustness(warnings=(HOSTILE,), conclusive=False),
    }
    return example_report(**{**fields, **changes})


def example_model(**changes: Any) -> ModelInfo:
    fields: dict[str, Any] = {
        "name": "gtsrb_net_adv",
        "file_sha256": digest("4"),
        "digest": digest("5"),
        "input_shape": (3, 32, 32),
        "classes": tuple(f"sign {index}" for index in range(43)),
        "mean": (0.34, 0.31, 0.32),
        "std": (0.28, 0.27, 0.28),
        "bounds": (0.0, 1.0),
    }
    return ModelInfo(**{**fields, **changes})


LAYERS = (
    LayerChange(name="stem", kind="Conv2d", dense_channels=32, channels=16, dense_macs=884_736, macs=442_368),
    LayerChange(
        name="block1.conv1", kind="Conv2d", dense_channels=32, channels=24, dense_macs=9_437_184, macs=3_538_944
    ),
    LayerChange(
        name="block1.conv2", kind="Conv2d", dense_channels=32, channels=16, dense_macs=9_437_184, macs=3_538_944
    ),
    LayerChange(
        name="block2.conv1", kind="Conv2d", dense_channels=64, channels=48, dense_macs=4_718_592, macs=1_769_472
    ),
    LayerChange(
        name="block2.conv2", kind="Conv2d", dense_channels=64, channels=40, dense_macs=9_437_184, macs=4_423_680
    ),
    LayerChange(
        name="block3.conv1", kind="Conv2d", dense_channels=128, channels=80, dense_macs=4_718_592, macs=1_843_200
    ),
    LayerChange(
        name="block3.conv2", kind="Conv2d", dense_channels=128, channels=128, dense_macs=9_437_184, macs=5_898_240
    ),
    LayerChange(name="head", kind="Linear", dense_channels=43, channels=43, dense_macs=5_504, macs=5_504),
)


def example_plan() -> PrunePlan:
    widths = (
        ("stem", 32, 16),
        ("block1.conv1", 32, 24),
        ("block2.conv1", 64, 48),
        ("block2.conv2", 64, 40),
        ("block3.conv1", 128, 80),
    )
    return PrunePlan(
        parent=digest("5"),
        goal="speedup",
        goal_value=1.9,
        criterion="l2",
        normalisation="divided by the group's mean",
        channel_multiple=8,
        seed=7,
        groups=tuple(GroupPlan(name=name, width=width, kept=tuple(range(kept))) for name, width, kept in widths),
        refusals=(
            RefusalRecord(
                name="block3.conv2",
                reason="the group failed its proof: outputs differ by 0.78",
                layers=("block3.conv2", "block3.bn2", "channel shuffle"),
            ),
            RefusalRecord(name="head", reason="its channels are the classes", layers=("head",)),
        ),
        dense_macs=sum(layer.dense_macs for layer in LAYERS),
        dense_parameters=287_083,
        macs=sum(layer.macs for layer in LAYERS),
        parameters=131_467,
    )


def example_artifacts() -> tuple[Artifact, ...]:
    def onnx(side: Side, path: str, sha256: str, size: int) -> Artifact:
        return Artifact(
            side=side, path=path, format="onnx", sha256=sha256, size_bytes=size, opset=20, parent_digest=digest("5")
        )

    def openvino(side: Side, name: str, xml: tuple[str, int], weights: tuple[str, int]) -> Artifact:
        return Artifact(
            side=side,
            path=f"{name}.xml",
            format="openvino",
            sha256=xml[0],
            size_bytes=xml[1],
            companions=((f"{name}.bin", *weights),),
            parent_digest=digest("5"),
        )

    return (
        onnx("dense", "dense.onnx", DENSE_ONNX, 1_152_000),
        onnx("compressed", "model.onnx", ONNX, 531_000),
        openvino("dense", "dense", (DENSE_XML, 41_000), (DENSE_BIN, 1_149_000)),
        openvino("compressed", "model", (XML, 41_000), (BIN, 526_000)),
    )


def example_parity(sha256: str, runtime: RuntimeInfo) -> Parity:
    return Parity(
        sha256=sha256,
        runtime=runtime,
        batch_sizes=(1, 8),
        max_difference=3.8e-6,
        tolerance=1e-4,
        same_labels=True,
        inputs="real",
    )


def example_drop(dense_only: int = 60, compressed_only: int = 36, total: int = 3000, **changes: Any) -> PairedDrop:
    """24 of 3,000 images lost: 0.8 pt, at most 1.35 pt at 95 %."""
    fields: dict[str, Any] = {"upper": 0.0135391, "confidence": 0.95, "p_value": 0.018}
    return PairedDrop(total=total, dense_only=dense_only, compressed_only=compressed_only, **{**fields, **changes})


def example_accuracy(runtime: RuntimeInfo = ORT, **changes: Any) -> AccuracyComparison:
    onnx = runtime is ORT
    fields: dict[str, Any] = {
        "runtime": runtime,
        "dense_sha256": DENSE_ONNX if onnx else DENSE_XML,
        "compressed_sha256": ONNX if onnx else XML,
        "dense": Proportion(count=2790, total=3000, interval=Interval(low=0.920283, high=0.938868)),
        "compressed": Proportion(count=2766, total=3000, interval=Interval(low=0.911825, high=0.931356)),
        "drop": example_drop(),
    }
    return AccuracyComparison(**{**fields, **changes})


def example_latency(runtime: RuntimeInfo = ORT, **changes: Any) -> LatencyComparison:
    onnx = runtime is ORT
    dense, compressed = (0.783, 0.412) if onnx else (0.808, 0.455)
    ratio = dense / compressed
    fields: dict[str, Any] = {
        "kind": "measured-local",
        "target": "cpu",
        "runtime": runtime,
        "batch_size": 1,
        "processes": 5,
        "cores": (1,),
        "dense": example_times(DENSE_ONNX if onnx else DENSE_XML, dense),
        "compressed": example_times(ONNX if onnx else XML, compressed),
        "speedup": Ratio(value=ratio, interval=Interval(low=ratio * 0.97, high=ratio * 1.03)),
        "control": Ratio(value=1.002, interval=Interval(low=0.985, high=1.019)),
        "control_limit": 0.1,
        "verdict": "faster",
    }
    return LatencyComparison(**{**fields, **changes})


def example_layer_times(name: str = "block1.conv1") -> LayerProfile:
    return LayerProfile(
        runtime="onnxruntime",
        threads=1,
        dense_sha256=DENSE_ONNX,
        compressed_sha256=ONNX,
        inferences=(900, 1500),
        layers=(
            LayerTime(name="stem", is_layer=True, dense_ms=0.031, compressed_ms=0.018),
            LayerTime(name=name, is_layer=True, dense_ms=0.212, compressed_ms=0.094),
            LayerTime(name="block9", is_layer=True, dense_ms=0.1, compressed_ms=None),
            LayerTime(name="Relu", is_layer=False, dense_ms=0.02, compressed_ms=0.012),
        ),
    )


def example_times(sha256: str, p50: float) -> LatencyStats:
    return LatencyStats(
        sha256=sha256,
        p50_ms=p50,
        p50_interval=Interval(low=p50 * 0.985, high=p50 * 1.015),
        p90_ms=p50 * 1.08,
        p99_ms=p50 * 1.35,
        min_ms=p50 * 0.96,
        throughput_per_s=1000 / p50,
        cold_start_ms=41.0,
        samples=6200,
        preempted=37,
        peak_rss_bytes=96_000_000,
    )


def example_robustness(**changes: Any) -> RobustnessComparison:
    """17 of 1,000 images lost under attack: 1.7 pt, at most 3.2 pt at 95 %."""
    fields: dict[str, Any] = {
        "runtime": ORT,
        "threat": ThreatModel(
            norm="linf",
            epsilon="4/255",
            epsilon_value=4 / 255,
            bounds=(0.0, 1.0),
            attack="pgd",
            steps=40,
            restarts=2,
            seed=7,
            samples=1000,
            samples_digest=digest("9"),
        ),
        "dense": example_fate(DENSE_ONNX, 901, 577),
        "compressed": example_fate(ONNX, 894, 560),
        "drop": example_drop(49, 32, 1000, upper=0.0320781, p_value=0.075),
        "clean_drop": example_drop(16, 9, 1000, upper=0.0158, p_value=0.23),
        "conclusive": True,
    }
    return RobustnessComparison(**{**fields, **changes})


def example_fate(sha256: str, clean: int, robust: int) -> AttackedFile:
    intervals = {
        901: (0.880785, 0.918822),
        894: (0.873275, 0.912377),
        577: (0.545709, 0.607870),
        560: (0.528594, 0.591053),
    }

    def share(count: int) -> Proportion:
        low, high = intervals[count]
        return Proportion(count=count, total=1000, interval=Interval(low=low, high=high))

    return AttackedFile(
        sha256=sha256,
        clean=share(clean),
        robust=share(robust),
        fell=clean - robust,
        rounded=clean - robust - 3,
        rejected=0,
        dead_gradients=0,
        gradient_source="the torch network that was exported",
        twin_disagreement=0.001,
        seconds=63.0,
    )
