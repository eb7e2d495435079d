"""Names and references: read whole, or refused in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import clock, ids
from appliance.errors import BadRequest

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("digits", ids.Ref(None, "digits", None)),
        ("digits:latest", ids.Ref(None, "digits", "latest")),
        ("gradient/mnist:v1.2", ids.Ref("gradient", "mnist", "v1.2")),
        (" digits:3 ", ids.Ref(None, "digits", "3")),
    ],
)
def test_a_reference_is_read(text: str, found: ids.Ref) -> None:
    assert ids.ref(text, "dataset") == found


@pytest.mark.parametrize("text", ["", ":", "a:", "/a", "a/", "a b", "../a", "a:b:c", "a\nb", "é", "-a", "a" * 101])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        ids.ref(text, "dataset")


@given(st.text(max_size=40))
def test_a_reference_that_is_read_is_safe_everywhere(text: str) -> None:
    try:
        found = ids.ref(text, "dataset")
    except BadRequest:
        return

    assert ids.ref(str(found), "dataset") == found
    assert not set(str(found)) & set(" '\"\\\n\0*?[]$;`")
    assert ".." not in (found.name, found.namespace)


def test_latest_is_no_tag() -> None:
    with pytest.raises(BadRequest, match="newest committed"):
        ids.tag("latest")


def test_a_time_that_was_written_is_read_again() -> None:
    now = clock.now()

    assert abs((clock.parse(clock.stamp(now)) - now).total_seconds()) < 0.001
    assert clock.stamp(now).endswith("Z")
