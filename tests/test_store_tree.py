"""Directory nodes as values: one directory has one node, and every other text is refused."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import errors
from appliance.store.tree import FOLDER, Node, Row, compare, decode, encode, node_of, path_of, walk

pytestmark = pytest.mark.fast

names = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not {0, 47} & {*name})
digits = st.sampled_from([blake3(bytes([number])).hexdigest() for number in range(4)])
rows = st.builds(Row, names, st.sampled_from("fxdl"), st.integers(0, 1 << 60), digits)
nodes = st.lists(rows, max_size=8, unique_by=lambda row: row.name).map(lambda made: node_of(made, 3))

Plan = dict[bytes, "bytes | Plan"]
plans = st.recursive(
    st.binary(max_size=2), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=20
).filter(lambda made: isinstance(made, dict))


def grown(plan: Plan, shelf: dict[str, Node]) -> tuple[str, Node]:
    """The node of `plan`, put on `shelf` with all beneath it."""
    made, beneath = [], 0
    for name, inner in plan.items():
        if isinstance(inner, dict):
            digits_of_inner, node = grown(inner, shelf)
            made.append(Row(name, FOLDER, node.size_bytes, digits_of_inner))
            beneath += node.file_count
        else:
            made.append(Row(name, "f", len(inner), blake3(inner).hexdigest()))
    node = node_of(made, beneath)
    name_of_node = blake3(encode(node)).hexdigest()
    shelf[name_of_node] = node
    return name_of_node, node


@given(nodes)
def test_a_node_comes_back_as_it_was_written(node: Node) -> None:
    assert decode(encode(node), "0" * 64) == node


@given(nodes, st.data())
@settings(max_examples=300)
def test_no_other_text_is_taken_for_the_same_directory(node: Node, data: st.DataObject) -> None:
    text = encode(node)
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.binary(max_size=3)) + text[place + data.draw(st.integers(0, 3)) :]

    try:
        read = decode(changed, "0" * 64)
    except errors.Corrupt:
        return

    assert encode(read) == changed


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"appliance-tree 2 0 0 0\n",
        b"appliance-tree 1 0 0 0",
        b"appliance-tree 1 00 0 0\n",
        b"appliance-tree 1 1 1 0\nf 0 " + b"0" * 64 + b"\t..\0",
        b"appliance-tree 1 1 1 0\nf 0 " + b"0" * 64 + b"\ta/b\0",
        b"appliance-tree 1 1 1 0\nf 0 " + b"0" * 64 + b"\t\0",
        b"appliance-tree 1 1 1 0\nf 0 " + b"A" * 64 + b"\ta\0",
        b"appliance-tree 1 2 2 0\n" + (b"f 0 " + b"0" * 64 + b"\ta\0") * 2,
        b"appliance-tree 1 1 1 0\nf 0 " + b"0" * 64 + b"\ta\0trailing",
    ],
)
def test_a_text_that_is_no_node_is_refused(text: bytes) -> None:
    with pytest.raises(errors.Corrupt, match="b3:" + "0" * 64):
        decode(text, "0" * 64)


@given(plans, plans)
@settings(max_examples=200, deadline=None)
def test_a_diff_is_what_comparing_every_entry_finds(old: Plan, new: Plan) -> None:
    shelf: dict[str, Node] = {}
    left, right = grown(old, shelf)[0], grown(new, shelf)[0]
    before = {path_of(parts): row for parts, row in walk(shelf.__getitem__, left)}
    after = {path_of(parts): row for parts, row in walk(shelf.__getitem__, right)}

    added, changed, removed = compare(shelf.__getitem__, left, right)

    turned = {p for p in before.keys() & after.keys() if (before[p].kind == FOLDER) != (after[p].kind == FOLDER)}
    edited = {p for p in before.keys() & after.keys() if before[p] != after[p]} - turned
    assert {entry.path for entry in added} == (after.keys() - before.keys()) | turned
    assert {entry.path for entry in removed} == (before.keys() - after.keys()) | turned
    assert {entry.path for _, entry in changed} == {p for p in edited if before[p].kind != FOLDER}


@given(plans, st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_pages_of_any_length_add_up_to_the_whole_list(plan: Plan, length: int) -> None:
    shelf: dict[str, Node] = {}
    root = grown(plan, shelf)[0]
    whole = [parts for parts, _ in walk(shelf.__getitem__, root)]

    paged: list[tuple[bytes, ...]] = []
    while True:
        page = [parts for parts, _ in walk(shelf.__getitem__, root, after=paged[-1] if paged else ())][:length]
        if not page:
            break
        paged += page

    assert paged == whole == sorted(whole)
