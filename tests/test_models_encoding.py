"""Values of modules as JSON: everything comes back as it was, and what has no form is named."""

import enum
import json
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.models.building import build
from edgeprune.models.encoding import Encoder, Opaque, decode
from edgeprune.models.trust import NOBODY, Trust

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.integers())
    ),
    max_leaves=12,
)


def again(value, trust=NOBODY):
    """Through JSON text and back."""
    encoder = Encoder()
    text = json.dumps(encoder.value(value, "here"), allow_nan=False)
    objects = json.loads(json.dumps(encoder.objects, allow_nan=False))
    return build(decode(json.loads(text), objects, encoder.tensors), trust, "a file")


@given(values)
def test_plain_data_comes_back_as_it_was(value):
    got = again(value)
    assert type(got) is type(value)
    if isinstance(value, set | frozenset):
        assert got == value
    else:
        assert repr(got) == repr(value) or got == value


@pytest.mark.parametrize(
    "value",
    [
        torch.float16,
        torch.device("cpu"),
        torch.Size([1, 2]),
        torch.channels_last,
        slice(1, None, 2),
        range(3, 9, 2),
        F.relu,
        F.gelu,
        torch.sigmoid,
        nn.ReLU,
        int,
        (1, (2.5, [None, {"a": (True,)}])),
    ],
)
def test_values_of_torch_come_back(value):
    got = again(value)
    assert got == value
    assert type(got) is type(value)


def test_partial_of_a_layer_comes_back():
    got = again(partial(nn.LayerNorm, 8, eps=1e-6))
    assert (got.func, got.args, got.keywords) == (nn.LayerNorm, (8,), {"eps": 1e-6})


def test_numpy_scalars_become_numbers():
    assert again((np.int64(3), np.float32(0.5), np.bool_(True))) == (3, 0.5, True)


class Colour(enum.Enum):
    RED = "r"


def test_enum_members_come_back_where_their_class_is_trusted():
    assert again(Colour.RED, Trust((__name__,))) is Colour.RED


def test_tensors_keep_kind_and_bits():
    tensor, parameter = torch.tensor([float("nan"), -0.0, 1e-45]), nn.Parameter(torch.ones(2), requires_grad=False)
    got = again([tensor, parameter, tensor])
    assert torch.equal(got[0].view(torch.int32), tensor.view(torch.int32))
    assert isinstance(got[1], nn.Parameter)
    assert not got[1].requires_grad
    assert got[0] is got[2]


def test_a_module_that_holds_itself_comes_back():
    module = nn.Sequential(nn.Linear(2, 2))
    module.__dict__["parent_of_mine"] = module
    got = again(module)
    assert got.parent_of_mine is got


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x: x, "cannot be found by name"),
        (nn.Linear(1, 1).forward, "cannot be found by name"),
        (torch.zeros(2).to_sparse(), "layout"),
        (torch.Generator(), "pickles in a way of its own"),
        (np.zeros(3), "pickles in a way of its own"),
    ],
)
def test_what_has_no_form_is_named(value, words):
    with pytest.raises(Opaque, match=words) as caught:
        Encoder().value([value], "here")
    assert "here.0" in str(caught.value)


@pytest.mark.parametrize(
    "damaged", [{"tuple": 3}, {"dtype": "load"}, {"tensor": ["w", "parameter", True]}, {}, {"a": 1, "b": 2}]
)
def test_damaged_descriptions_are_model_errors(damaged):
    with pytest.raises(ModelError, match="damaged"):
        decode(damaged, [], {})
