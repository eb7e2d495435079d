"""Open Inference Protocol v2 as values: requests understood or refused in one sentence, answers written."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.errors import BadRequest
from appliance.inference.protocol import Ask, Signature, Wanted, parse_infer, render_infer
from appliance.inference.tensors import DTYPES, TensorSpec, classify, from_bytes, from_json, to_bytes, to_json

pytestmark = pytest.mark.fast

MODEL = Signature(
    "m",
    "1",
    inputs=(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT8", (2,)), TensorSpec("c", "BYTES", (-1,))),
    outputs=(TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "INT64", (-1,))),
)
ONE = Signature("one", "1", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


def good() -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2.5]]},
            {"name": "b", "shape": [2], "datatype": "INT8", "data": [-128, 127]},
            {"name": "c", "shape": [2], "datatype": "BYTES", "data": ["ä", ""]},
        ]
    }


def with_input(index: int, **changes: Any) -> dict[str, Any]:
    document = good()
    document["inputs"][index].update(changes)
    return document


def parse(document: Any) -> Ask:
    return parse_infer(MODEL, json.dumps(document).encode(), None)


def test_a_request_in_json_is_understood() -> None:
    ask = parse(good() | {"id": "seven"})

    assert ask.id == "seven"
    assert ask.feeds["a"].dtype == np.float32
    assert ask.feeds["a"].tolist() == [[1.0, 2.5]]
    assert ask.feeds["b"].tolist() == [-128, 127]
    assert ask.feeds["c"].tolist() == ["ä", ""]
    assert ask.wanted == (Wanted("y", False), Wanted("z", False))


BAD: dict[str, tuple[Any, str]] = {
    "a list": ([], "must be a JSON object"),
    "no inputs": ({}, "must have inputs"),
    "inputs that are no list": ({"inputs": {}}, "must have inputs"),
    "an input that is no object": ({"inputs": [1]}, "Each input must be"),
    "an input without a name": ({"inputs": [{}]}, "Each input must be"),
    "an id that is no string": (good() | {"id": 7}, "id must be a string"),
    "an unknown input": (with_input(0, name="q"), "has no input 'q'; its inputs are 'a', 'b', 'c'"),
    "a missing input": ({"inputs": good()["inputs"][:2]}, "also needs the input 'c'"),
    "an input twice": ({"inputs": [*good()["inputs"], good()["inputs"][0]]}, "'a' is given twice"),
    "another datatype": (with_input(0, datatype="FP64"), "is FP32 but was given as 'FP64'"),
    "no datatype": (with_input(0, datatype=None), "is FP32 but was given as None"),
    "another rank": (with_input(0, shape=[2]), "takes shape [-1, 2]"),
    "another size": (with_input(0, shape=[1, 3]), "takes shape [-1, 2]"),
    "a negative size": (with_input(0, shape=[-1, 2]), "shape must be a list of whole numbers"),
    "a size that is true": (with_input(0, shape=[True, 2]), "shape must be a list of whole numbers"),
    "a size beyond all memory": (with_input(0, shape=[2**60, 2]), "shape must be a list of whole numbers"),
    "no shape": (with_input(0, shape=None), "shape must be a list of whole numbers"),
    "too few values": (with_input(0, data=[1]), "needs 2 values but was given 1"),
    "too many values": (with_input(0, data=[1, 2, 3]), "needs 2 values but was given 3"),
    "ragged lists": (with_input(0, data=[[1, 2], [3]]), "different lengths"),
    "no data": (with_input(0, data=None), "data must be a list"),
    "text for numbers": (with_input(0, data=["1", "2"]), "its data must be numbers"),
    "null for numbers": (with_input(0, data=[None, 1]), "its data must be numbers"),
    "true for numbers": (with_input(0, data=[True, False]), "its data must be numbers"),
    "a number too large for FP32": (with_input(0, data=[1e300, 1]), "too large for FP32"),
    "a fraction for INT8": (with_input(1, data=[1.5, 2]), "its data must be whole numbers"),
    "too large for INT8": (with_input(1, data=[1, 128]), "INT8 holds -128 to 127"),
    "far too large for INT8": (with_input(1, data=[1, 2**70]), "whole numbers"),
    "far too small for INT8": (with_input(1, data=[1, -(2**62)]), "INT8 holds -128 to 127"),
    "one long text among numbers": (with_input(0, data=["x" * 10_000, *[1] * 10_000]), "its data must be numbers"),
    "one true among numbers": (with_input(0, data=[True, 1]), "its data must be numbers"),
    "a list among numbers": (with_input(0, data=[1, [2]]), "different lengths"),
    "numbers for BYTES": (with_input(2, data=[1, 2]), "its data must be strings"),
    "an unknown output": (good() | {"outputs": [{"name": "q"}]}, "has no output 'q'; its outputs are 'y', 'z'"),
    "outputs that are no list": (good() | {"outputs": 1}, "outputs must be a list"),
    "classes that are no number": (
        good() | {"outputs": [{"name": "y", "parameters": {"classification": "3"}}]},
        "classification must be",
    ),
    "binary_data that is no flag": (
        good() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        "binary_data must be true or false",
    ),
    "parameters that are no object": (good() | {"parameters": [1]}, "parameters must be a JSON object"),
    "shared memory": (with_input(0, parameters={"shared_memory_region": "r"}), "shared memory is not implemented"),
    "binary data that is not there": (
        {"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]},
        "announces 8 bytes but only 0",
    ),
    "both forms of data": (with_input(0, parameters={"binary_data_size": 8}), "both data and binary_data_size"),
    "a size that is no number": (with_input(0, parameters={"binary_data_size": "8"}), "must be a whole number"),
}


@pytest.mark.parametrize("document, words", BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_in_one_sentence_that_names_what_is_wrong(document: Any, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(document)

    assert words in refused.value.message
    assert refused.value.message.endswith(".")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"inputs": NaN}', b"[" * 5000, b'{"a":1}x'])
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid JSON"):
        parse_infer(MODEL, body, None)


@pytest.mark.parametrize("header", ["-1", "1e3", "", "99999", "٣", "9" * 30])
def test_a_header_length_that_is_no_length_is_refused(header: str) -> None:
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        parse_infer(MODEL, b"{}", header)


def test_json_and_binary_inputs_may_be_mixed_and_are_taken_in_their_order() -> None:
    document = good()
    del document["inputs"][0]["data"], document["inputs"][2]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": 8}
    document["inputs"][2]["parameters"] = {"binary_data_size": 11}
    text = json.dumps(document | {"parameters": {"binary_data_output": True}}).encode()

    ask = parse_infer(MODEL, text + struct.pack("<2f", 3, 4) + b"\x03\0\0\0abc\0\0\0\0", str(len(text)))

    assert ask.feeds["a"].tolist() == [[3, 4]]
    assert ask.feeds["c"].tolist() == ["abc", ""]
    assert ask.wanted == (Wanted("y", True), Wanted("z", True))


@pytest.mark.parametrize(
    "raw", [b"\x05\0\0\0abc\0\0\0\0", b"\x03\0\0\0abc\x01\0\0", b"\x03\0\0\0abc", b"\x02\0\0\0\xff\xff" + bytes(4)]
)
def test_strings_whose_bytes_do_not_add_up_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="Input 'c'"):
        from_bytes(MODEL.inputs[2], (2,), raw)


def test_bytes_behind_the_json_that_no_input_claims_are_refused() -> None:
    text = json.dumps(good()).encode()

    with pytest.raises(BadRequest, match="3 bytes behind the JSON"):
        parse_infer(MODEL, text + b"abc", str(len(text)))


def test_a_raw_request_is_the_one_inputs_bytes_and_its_free_size_follows() -> None:
    ask = parse_infer(ONE, struct.pack("<4f", 1, 2, 3, 4), "0")

    assert ask.feeds["x"].tolist() == [[1, 2], [3, 4]]
    assert ask.wanted == (Wanted("y", True),)
    with pytest.raises(BadRequest, match="needs 8 bytes but has 9"):
        parse_infer(ONE, bytes(9), "0")
    with pytest.raises(BadRequest, match="has 3"):
        parse_infer(MODEL, bytes(8), "0")


def test_an_output_named_twice_is_given_once_and_a_bool_byte_is_0_or_1() -> None:
    ask = parse(good() | {"outputs": [{"name": "y"}, {"name": "y", "parameters": {"classification": 2}}]})

    assert ask.wanted == (Wanted("y", False, 2),)
    with pytest.raises(BadRequest, match="each byte must be 0 or 1"):
        from_bytes(TensorSpec("f", "BOOL", (-1,)), (2,), b"\x01\x02")


def test_an_answer_echoes_the_id_first_and_puts_wanted_bytes_behind_the_json() -> None:
    ask = Ask("seven", {}, (Wanted("y", True), Wanted("z", False)))

    response = render_infer(MODEL, ask, [np.array([[1, 2]], np.float32), np.array([5])])
    text, raw = (bytes(part) for part in response.parts)

    assert text.startswith(b'{"id":"seven","model_name":"m","model_version":"1"')
    assert json.loads(text)["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "z", "datatype": "INT64", "shape": [1], "data": [5]},
    ]
    assert raw == struct.pack("<2f", 1, 2)
    assert response.headers == b"Inference-Header-Content-Length: %d\r\n" % len(text)


def test_numbers_that_json_has_no_word_for_become_null_and_stay_exact_in_bytes() -> None:
    array = np.array([np.nan, np.inf, 1], np.float32)
    ask = Ask(None, {}, (Wanted("y", False),))

    assert json.loads(render_infer(ONE, ask, [array]).parts[0])["outputs"][0]["data"] == [None, None, 1]
    assert bytes(to_bytes(array)) == array.tobytes()


def test_classification_gives_the_largest_with_their_index_the_largest_first() -> None:
    assert classify(np.array([[0.1, 0.7, 0.2], [3, 1, 2]], np.float32), 2, "y").tolist() == [
        ["0.700000:1", "0.200000:2"],
        ["3.000000:0", "2.000000:2"],
    ]
    assert classify(np.array([1, 9]), 5, "y").tolist() == ["9:1", "1:0"]
    with pytest.raises(BadRequest, match="cannot be classified"):
        classify(np.array(1.0), 1, "y")


NUMBERS = [(name, dtype) for name, dtype in DTYPES.items() if name != "BYTES"]


@given(st.data())
def test_every_tensor_comes_back_as_it_went_in_both_forms(data: st.DataObject) -> None:
    name, dtype = data.draw(st.sampled_from(NUMBERS))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=elements))
    spec = TensorSpec("x", name, array.shape)

    raw = from_bytes(spec, array.shape, bytes(to_bytes(array)))
    text = from_json(spec, array.shape, json.loads(json.dumps(np.asarray(to_json(array)).tolist())))

    for back in (raw, text):
        assert back.dtype == dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), max_size=5))
def test_every_text_comes_back_as_it_went_in(texts: list[str]) -> None:
    spec = TensorSpec("x", "BYTES", (-1,))
    array = from_json(spec, (len(texts),), list(texts))

    assert from_bytes(spec, array.shape, bytes(to_bytes(array))).tolist() == texts
