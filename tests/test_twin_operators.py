"""Every operator of the twin's table against ONNX Runtime, at several opsets, on random numbers."""

from pathlib import Path

import numpy as np
import pytest
from twin_examples import IMAGE, RANDOM, compare, floats, graph_of, node, number, positive, run_runtime, run_twin, save

from edgeprune.robustness.twin import ir_rules
from edgeprune.robustness.twin.table import RULES


def ints(*values):
    return np.array(values, np.int64)


def case(op, opsets, inputs="x", constants=None, shape=IMAGE, x=None, outputs="y", domain="", **attributes):
    label = "-".join([op, *(f"{key}={value}" for key, value in attributes.items())])
    graphs = [(opset, [node(op, inputs, outputs, domain, **attributes)]) for opset in opsets]
    return [
        pytest.param(nodes, opset, constants or {}, floats(*shape) if x is None else x, id=f"{label[:70]}-{opset}")
        for opset, nodes in graphs
    ]


def cases(*lists):
    return [one for each in lists for one in each]


WEIGHT = {"w": floats(6, 4, 3, 2), "b": floats(6)}
GROUPED = {"w": floats(8, 2, 3, 3)}
SPREAD = {"w": floats(4, 3, 3, 2), "b": floats(3)}
PER_CHANNEL = {"s": positive(4), "b": floats(4), "m": floats(4), "v": positive(4)}
UNIT = RANDOM.uniform(-0.9, 0.9, IMAGE).astype(np.float32)
ABOVE = positive(*IMAGE)

PLAIN = [
    *("Abs", "Neg", "Exp", "Floor", "Ceil", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Identity", "Elu"),
    *("Selu", "LeakyRelu", "HardSigmoid", "Flatten", "Transpose", "GlobalAveragePool", "GlobalMaxPool"),
    *("Sin", "Cos", "Tan", "Atan", "LpNormalization"),
]
LATER = {
    **{"Erf": 9, "Sign": 9, "Shrink": 9, "Sinh": 9, "Cosh": 9, "Asinh": 9, "Round": 11, "ThresholdedRelu": 10},
    **{"Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20},
}
ELEMENTWISE = cases(
    *(case(op, (7, 13)) for op in PLAIN),
    *(case(op, (opset, 22)) for op, opset in LATER.items()),
    *(case(op, (7, 13), x=ABOVE) for op in ("Log", "Sqrt", "Reciprocal")),
    *(case(op, (7, 22), x=UNIT) for op in ("Asin", "Acos")),
    *(case(op, (9, 22), x=UNIT) for op in ("Atanh",)),
    case("Acosh", (9,), x=ABOVE + 1),
    case("Elu", (7,), alpha=0.3),
    case("Selu", (7,), alpha=1.1, gamma=0.9),
    case("Celu", (12,), alpha=0.7),
    case("LeakyRelu", (7, 16), alpha=0.2),
    case("HardSigmoid", (7,), alpha=0.3, beta=0.4),
    case("Shrink", (9,), bias=0.2, lambd=0.7),
    case("Gelu", (20,), approximate="tanh"),
    case("Swish", (24,), alpha=0.7),
    case("PRelu", (7, 9, 16), "x w", {"w": positive(4, 1, 1)}),
    *(case(op, (7, 13), "x w", {"w": floats(4, 1, 6)}) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, (8, 13), "x w v", {"w": floats(4, 1, 6), "v": floats(6)}) for op in ("Max", "Min", "Sum", "Mean")),
    case("Pow", (7, 13), "x w", {"w": number(2.0)}),
    case("Pow", (13,), "x w", {"w": number(3, np.int64)}),
    case("Pow", (7,), "x w", {"w": positive(4, 1, 1)}, x=ABOVE),
    case("Mod", (10,), "x w", {"w": number(0.7)}, fmod=1),
    case("Clip", (7, 9), min=-0.3, max=0.4),
    case("Clip", (7,), min=-0.3),
    case("Clip", (11, 13), "x a b", {"a": number(-0.3), "b": number(0.4)}),
    case("Clip", (13,), "x - b", {"b": number(0.4)}),
    *(case(op, (7, 11), axis=1) for op in ("Softmax", "LogSoftmax")),
    *(case(op, (7, 13), axis=2) for op in ("Softmax", "LogSoftmax")),
    case("Softmax", (11, 13)),
    case("Dropout", (7, 10, 13)),
    case("Cast", (9, 13), to=11),
    case("Cast", (13,), to=7),
    case("CastLike", (15, 19), "x w", {"w": number(1, np.float64)}),
    case("Flatten", (9, 13), axis=2),
    case("Flatten", (13,), axis=-1),
    case("Flatten", (13,), axis=0),
)
COMPARISONS = {"Equal": 11, "Greater": 9, "Less": 9, "GreaterOrEqual": 12, "LessOrEqual": 12}

LINEAR = cases(
    case("MatMul", (7, 13), "x w", {"w": floats(6, 5)}),
    case("Gemm", (7, 9, 13), "x w b", {"w": floats(6, 5), "b": floats(5)}, (3, 6)),
    case("Gemm", (11,), "x w", {"w": floats(6, 5)}, (3, 6), alpha=0.5),
    case(
        "Gemm", (13,), "x w b", {"w": floats(5, 3), "b": floats(6, 1)}, (3, 6), alpha=0.5, beta=2.0, transA=1, transB=1
    ),
    case("Einsum", (12,), "x w", {"w": floats(6, 5)}, equation="...i,ij->...j"),
    case("Einsum", (12,), "x w", {"w": floats(2, 4, 5)}, equation="nchw,nck->nkhw"),
    case("Conv", (7, 11, 22), "x w b", WEIGHT, pads=[1, 1, 1, 1]),
    case("Conv", (11,), "x w b", WEIGHT, pads=[2, 0, 1, 1], strides=[2, 1]),
    case("Conv", (11,), "x w", GROUPED, group=2, dilations=[2, 1]),
    *(
        case("Conv", (11,), "x w b", WEIGHT, auto_pad=how, strides=[2, 2])
        for how in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("Conv", (11,), "x w", {"w": floats(5, 4, 3)}, (2, 4, 9), pads=[2, 1]),
    case("Conv", (11,), "x w", {"w": floats(5, 4, 3, 2, 2)}, (2, 4, 5, 4, 4), strides=[2, 1, 1]),
    case("ConvTranspose", (7, 11), "x w b", SPREAD, strides=[2, 2]),
    case("ConvTranspose", (11,), "x w b", SPREAD, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]),
    case("ConvTranspose", (11,), "x w", {"w": floats(4, 3, 3, 3)}, group=2, dilations=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", (11,), "x w", SPREAD, strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", (11,), "x w", SPREAD, strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", (11,), "x w", SPREAD, strides=[2, 2], output_shape=[14, 13]),
    case("ConvTranspose", (11,), "x w b", {"w": floats(4, 3, 3), "b": floats(3)}, (2, 4, 9), strides=[2]),
)

POOLS = cases(
    *(
        case(op, (7, 10, 11, 19, 22), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
        for op in ("MaxPool", "AveragePool")
    ),
    *(case(op, (11,), kernel_shape=[2, 2], strides=[2, 2]) for op in ("MaxPool", "AveragePool", "LpPool")),
    *(
        case(op, (10, 19), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=pads)
        for op in ("MaxPool", "AveragePool")
        for pads in ([0, 0, 0, 0], [1, 1, 1, 1])
    ),
    *(
        case(op, (11,), kernel_shape=[3, 3], strides=[2, 2], auto_pad=how)
        for op in ("MaxPool", "AveragePool")
        for how in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("AveragePool", (7, 11, 19), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", (11, 19), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1),
    case("AveragePool", (19,), kernel_shape=[3, 2], dilations=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", (19,), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1),
    case("MaxPool", (10, 12), kernel_shape=[3, 2], dilations=[2, 2]),
    case("MaxPool", (12,), kernel_shape=[3], strides=[2], pads=[1, 0], shape=(2, 4, 9)),
    case("AveragePool", (12,), kernel_shape=[3], strides=[2], pads=[1, 1], shape=(2, 4, 9)),
    case("MaxPool", (12,), kernel_shape=[2, 2, 2], shape=(2, 4, 5, 4, 4)),
    case("LpPool", (11, 18), kernel_shape=[3, 2], pads=[1, 1, 1, 0], p=3),
    case("GlobalLpPool", (7,), p=3),
)

REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]
STATISTICS = cases(
    *(case(f"Reduce{op}", (11,), axes=[1, 3]) for op in REDUCTIONS),
    *(case(f"Reduce{op}", (7, 11, 13) if op != "Sum" else (7,), axes=[-1], keepdims=0) for op in REDUCTIONS[1:2]),
    *(case(f"Reduce{op}", (18,), "x a", {"a": ints(1, 3)}, keepdims=0) for op in REDUCTIONS),
    case("ReduceSum", (13,), "x a", {"a": ints(-1)}),
    case("ReduceMean", (7, 18)),
    case("ReduceLogSum", (11,), axes=[2], x=ABOVE),
    case("ReduceSum", (13,), noop_with_empty_axes=1),
    case("ArgMax", (11, 13), axis=1),
    case("ArgMin", (11, 13), axis=-1, keepdims=0),
    case("TopK", (11,), "x k", {"k": ints(3)}, outputs="y i", axis=1),
    case("CumSum", (11, 14), "x a", {"a": number(2, np.int64)}),
    case("CumSum", (14,), "x a", {"a": number(2, np.int64)}, exclusive=1, reverse=1),
    case("BatchNormalization", (7, 9, 14, 15), "x s b m v", PER_CHANNEL, epsilon=1e-3),
    case("BatchNormalization", (15,), "x s b m v", PER_CHANNEL, (1, 4, 9), outputs="y rm rv", training_mode=1),
    case("InstanceNormalization", (7, 22), "x s b", PER_CHANNEL, epsilon=1e-3),
    case("GroupNormalization", (21,), "x s b", PER_CHANNEL, num_groups=2),
    case("LayerNormalization", (17,), "x s b", {"s": positive(7, 6), "b": floats(7, 6)}, axis=2),
    case("LayerNormalization", (17,), "x s", {"s": positive(6)}, epsilon=1e-2),
    case("RMSNormalization", (23,), "x s", {"s": positive(6)}),
    case("LpNormalization", (7,), axis=1, p=1),
    case("LRN", (7, 13), size=3, alpha=0.1, beta=0.5, bias=1.5),
    case("MeanVarianceNormalization", (9, 13), axes=[2, 3]),
)

MOVEMENTS = cases(
    case("Pad", (7, 10), pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5),
    *(case("Pad", (10,), pads=[0, 0, 2, 1, 0, 0, 3, 2], mode=mode) for mode in ("reflect", "edge")),
    *(
        case("Pad", (11, 18), "x p", {"p": ints(0, 1, 2, 1, 0, 0, 3, 2)}, mode=mode)
        for mode in ("constant", "reflect", "edge")
    ),
    case("Pad", (11,), "x p c", {"p": ints(0, 0, -1, 1, 0, 0, -2, 2), "c": number(0.7)}),
    case("Pad", (18, 21), "x p - a", {"p": ints(1, 2, 0, 3), "a": ints(3, -2)}),
    case("Pad", (19,), "x p", {"p": ints(0, 0, 2, 1, 0, 0, 3, 2)}, mode="wrap"),
    case("Concat", (7, 13), "x x w", {"w": floats(2, 1, 7, 6)}, axis=1),
    case("Concat", (13,), "x x", axis=-2),
    case("Split", (7, 11), outputs="a y", axis=1, split=[1, 3]),
    case("Split", (11,), outputs="y b", axis=1),
    case("Split", (13, 18), "x s", {"s": ints(1, 3)}, outputs="a y", axis=1),
    case("Split", (18,), outputs="a b y", axis=2, num_outputs=3),
    case("Slice", (7, 9), starts=[1, -3], ends=[3, 2**31 - 1], axes=[1, 3]),
    case("Slice", (9,), starts=[0, 1], ends=[2, 100]),
    case(
        "Slice", (10, 13), "x s e a t", {"s": ints(1, -1), "e": ints(2**62, -100), "a": ints(1, -1), "t": ints(2, -2)}
    ),
    case("Slice", (13,), "x s e", {"s": ints(0, 1), "e": ints(9, -1)}),
    case("Gather", (7, 11), "x i", {"i": ints(0, 2, 2)}, axis=1),
    case("Gather", (13,), "x i", {"i": number(-1, np.int64)}, axis=2),
    case("Gather", (13,), "x i", {"i": np.array([[0, -2], [1, 1]])}, axis=-1),
    case("GatherElements", (11, 13), "x i", {"i": RANDOM.integers(-4, 4, (2, 3, 7, 6))}, axis=1),
    case("GatherND", (12, 13), "x i", {"i": np.array([[0, 1], [1, 3]])}),
    case("ScatterND", (11, 16), "x i u", {"i": np.array([[0, 1], [1, 3]]), "u": floats(2, 7, 6)}),
    case("Reshape", (7, 13), "x s", {"s": ints(0, -1, 6)}),
    case("Reshape", (14,), "x s", {"s": ints(2, 28, -1)}, allowzero=1),
    case("Squeeze", (7, 11), axes=[1, -1], shape=(2, 1, 5, 1)),
    case("Squeeze", (7, 13), shape=(2, 1, 5, 1)),
    case("Squeeze", (13, 21), "x a", {"a": ints(-1)}, shape=(2, 1, 5, 1)),
    case("Unsqueeze", (7,), axes=[0, 3]),
    case("Unsqueeze", (11,), axes=[0, -1]),
    case("Unsqueeze", (13, 21), "x a", {"a": ints(-1, 1)}),
    case("Transpose", (7, 21), perm=[0, 2, 3, 1]),
    case("Expand", (8, 13), "x s", {"s": ints(3, 2, 1, 7, 6)}, shape=(4, 1, 6)),
    case("Tile", (7, 13), "x r", {"r": ints(1, 2, 1, 3)}),
    case("Shape", (7, 13)),
    case("Shape", (15,), start=1, end=-1),
    case("Size", (7, 13)),
    case("DepthToSpace", (7, 11), blocksize=2),
    case("DepthToSpace", (11, 13), blocksize=2, mode="CRD"),
    case("SpaceToDepth", (7, 13), blocksize=2, shape=(2, 3, 4, 6)),
    case("Trilu", (14,)),
    case("Trilu", (14,), "x k", {"k": number(1, np.int64)}, upper=0),
)

NONE = {"r": np.zeros(0, np.float32)}
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
RESAMPLING = cases(
    *(case("Upsample", (7,), mode=mode, scales=[1.0, 1.0, 2.0, 3.0]) for mode in ("nearest", "linear")),
    *(case("Upsample", (9,), "x s", {"s": number([1, 1, 2, 1.5])}, mode=mode) for mode in ("nearest", "linear")),
    *(case("Resize", (10,), "x s", {"s": number([1, 1, 0.6, 2])}, mode=mode) for mode in ("nearest", "linear")),
    *(
        case(
            "Resize",
            (11, 13),
            "x r s",
            {**NONE, "s": number([1, 1, 2.5, 0.6])},
            mode=mode,
            coordinate_transformation_mode=how,
        )
        for mode in ("nearest", "linear", "cubic")
        for how in COORDINATES
    ),
    *(
        case(
            "Resize",
            (13, 19),
            "x r r n",
            {**NONE, "n": ints(2, 4, 5, 13)},
            mode=mode,
            coordinate_transformation_mode=how,
        )
        for mode in ("linear", "cubic")
        for how in (*COORDINATES[:3],)
    ),
    *(
        case(
            "Resize",
            (13,),
            "x - s",
            {"s": number([1, 1, 2, 0.5])},
            coordinate_transformation_mode=how,
            nearest_mode=near,
        )
        for how in ("half_pixel", "asymmetric", "tf_half_pixel_for_nn")
        for near in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        if how != "tf_half_pixel_for_nn" or near == "floor"
    ),
    case(
        "Resize",
        (13,),
        "x r s",
        {**NONE, "s": number([1, 1, 2, 2])},
        mode="cubic",
        exclude_outside=1,
        cubic_coeff_a=-0.5,
    ),
    case("Resize", (18,), "x r s", {**NONE, "s": number([2, 0.5])}, mode="linear", axes=[2, 3]),
    *(
        case("Resize", (18,), "x r s", {**NONE, "s": number([1, 1, 0.6, 0.4])}, mode=mode, antialias=1)
        for mode in ("linear", "cubic")
    ),
    case(
        "Resize",
        (19,),
        "x r r n",
        {**NONE, "n": ints(5, 5)},
        mode="linear",
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
    ),
    case(
        "Resize",
        (19,),
        "x - s",
        {"s": number([1, 1, 2, 1.6])},
        mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    ),
    case(
        *("Resize", (11,), "x k r n"),
        {**NONE, "k": number([0, 0, 0.2, 0.1, 1, 1, 0.8, 0.7]), "n": ints(2, 4, 5, 5)},
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
)

ATTENTION = {"k": floats(2, 4, 5, 6), "v": floats(2, 4, 5, 3)}
EVERYTHING = cases(ELEMENTWISE, LINEAR, POOLS, STATISTICS, MOVEMENTS, RESAMPLING) + cases(
    case("Attention", (23,), "x k v", ATTENTION),
    case("Attention", (23,), "x k v m", {**ATTENTION, "m": RANDOM.random((7, 5)) > 0.3}, scale=0.3),
    case("Attention", (23,), "x k v m", {**ATTENTION, "m": np.arange(7)[:, None] > np.arange(5)}),  # the first: nowhere
    case(
        "Attention",
        (23,),
        "x k v",
        {"k": floats(2, 5, 8), "v": floats(2, 5, 12)},
        (2, 7, 16),
        q_num_heads=4,
        kv_num_heads=2,
    ),
)


@pytest.mark.parametrize(("nodes", "opset", "constants", "x"), EVERYTHING)
def test_operator_computes_what_the_runtime_computes(tmp_path, nodes, opset, constants, x):
    compare(tmp_path, graph_of(nodes, opset, x.shape, constants), x)


@pytest.mark.parametrize("op", COMPARISONS)
def test_comparison_and_choice(tmp_path, op):
    nodes = [node(op, "x w", "c"), node("Not", "c", "n"), node("And", "c n", "a"), node("Or", "a c", "o")]
    nodes += [node("Xor", "o n", "r"), node("And", "o r", "d"), node("Where", "d x w")]
    model = graph_of(nodes, max(COMPARISONS[op], 9), IMAGE, {"w": floats(4, 1, 1)})
    compare(tmp_path, model, floats(*IMAGE))


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_shapes_are_computed_anew_for_every_batch(tmp_path, opset):
    axes = {"axes": [0]} if opset < 13 else {}
    extra = "" if opset < 13 else " zero"
    nodes = [
        node("Shape", "x", "all"),
        node("Gather", "all zero", "n", axis=0),
        node("Unsqueeze", f"n{' axes' if opset >= 13 else ''}", "row", **axes),
        node("Concat", "row rest", "target", axis=0),
        node("Reshape", "x target", "flat"),
        node("ConstantOfShape", "row", "fill"),
        node("Cast", "fill", "filled", to=1),
        node("ReduceSum", f"filled{extra and ' axes'}", "total", **({"axes": [0]} if opset < 13 else {})),
        node("Add", "flat total"),
    ]
    constants = {"zero": number(0, np.int64), "rest": ints(-1), "axes": ints(0)}
    path = save(graph_of(nodes, opset, ("n", 3, 4), constants), tmp_path)
    for batch in (1, 3):
        x = floats(batch, 3, 4)
        assert np.allclose(run_twin(path, x)[0], run_runtime(path, x))


def test_range_one_hot_and_nan(tmp_path):
    nodes = [
        node("Size", "x", "size"),
        node("Range", "zero size step", "numbers"),
        node("OneHot", "numbers depth values", "hot", axis=0),
        node("ReduceSum", "hot rows", "sums", keepdims=0),
        node("Div", "x x", "ratio"),
        node("IsNaN", "ratio", "odd"),
        node("IsInf", "x", "infinite"),
        node("Or", "odd infinite", "bad"),
        node("Where", "bad x sums", "y"),
    ]
    constants = {"zero": number(0, np.int64), "step": number(2, np.int64), "depth": number(6, np.int64)}
    model = graph_of(nodes, 13, (6,), {**constants, "values": floats(2), "rows": ints(1)})
    compare(tmp_path, model, np.array([1, 2, 0, 3, 0, 5], np.float32))


def test_every_rule_of_the_table_has_a_case():
    files = Path(__file__).parent.glob("test_twin_*.py")
    here = "".join(path.read_text(encoding="utf-8") for path in files)
    names = [name for domain, name in RULES if domain != ir_rules.DOMAIN and not name.startswith("Reduce")]
    assert [name for name in names if f'"{name}"' not in here] == []
