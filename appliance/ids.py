"""Ids, names and references: made or parsed here, or refused.

What this keeps true: whatever passed through here is safe as a path segment, a label and an SQL value, and means one
thing. Ids follow Gradient's shapes (a project's begins with `p`, a dataset's with `ds`, a model's with `mo`); workflows,
runs and deployments have UUIDs.

Why: user text never reaches a path or a query without having been read by one function that can say no.
"""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass

from appliance.errors import BadRequest

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
LATEST = "latest"
ID_LENGTH = 13

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EMAIL = re.compile(r"[^@\s\x00-\x1f<>\"']{1,64}@[^@\s\x00-\x1f<>\"']{1,190}")


def random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_id(prefix: str, length: int = ID_LENGTH) -> str:
    """A fresh id such as `ds` + 13 characters; 13 characters are 67 bits, so two never meet."""
    return prefix + random_text(length)


def new_uuid() -> str:
    return str(uuid.uuid4())


def name(text: str, what: str, *, not_like: str | None = None) -> str:
    """`text` as a name of a `what` ("dataset"): 1 to 100 of A-Z a-z 0-9 . _ -, a letter or a digit at both ends.

    `not_like` is the prefix of that thing's ids: a name that could be one is refused, since references take either.
    """
    if not _NAME.fullmatch(text):
        raise BadRequest(
            f"{text[:120]!r} cannot be the name of a {what}: use 1 to 100 letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or a digit."
        )
    if not_like is not None and re.fullmatch(f"{not_like}[a-z0-9]{{{ID_LENGTH}}}", text):
        raise BadRequest(f"{text!r} cannot be the name of a {what}: it looks like an id; choose another name.")
    return text


def tag(text: str) -> str:
    """`text` as a tag. `latest` is no tag: it always means the newest committed version."""
    if not _TAG.fullmatch(text):
        raise BadRequest(f"{text[:120]!r} cannot be a tag: use 1 to 100 letters, digits, '.', '_' or '-'.")
    if text == LATEST:
        raise BadRequest("'latest' cannot be set as a tag: it always means the newest committed version.")
    return text


def email(text: str) -> str:
    """`text` as an e-mail address, lower case. Only its shape is checked: nothing is ever sent to it."""
    text = text.strip().lower()
    if not _EMAIL.fullmatch(text):
        raise BadRequest(f"{text[:120]!r} is not an e-mail address such as ana@example.org.")
    return text


@dataclass(frozen=True)
class Ref:
    """`[namespace/]name[:selector]`; `selector` is a version's id, its number, a tag or `latest`; None means latest."""

    namespace: str | None
    name: str
    selector: str | None

    def __str__(self) -> str:
        head = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{head}:{self.selector}" if self.selector else head


def ref(text: str, what: str) -> Ref:
    """Parse a reference to a dataset or a model in Gradient's grammar."""
    head, colon, selector = text.strip().partition(":")
    namespace, slash, short = head.rpartition("/")
    if (colon and not selector) or (slash and not namespace):
        raise BadRequest(f"{text[:120]!r} is not a reference to a {what}: write NAME, NAME:VERSION or NAME:TAG.")
    if namespace:
        name(namespace, "namespace")
    if selector and selector != LATEST and not _TAG.fullmatch(selector):
        raise BadRequest(f"{text[:120]!r} is not a reference to a {what}: {selector[:80]!r} is no version and no tag.")
    return Ref(namespace or None, name(short, what), selector or None)


def cursor(after: str | None) -> int:
    """The number below which a page goes on, from the `nextPage` of the page before; None begins at the newest."""
    if after is None:
        return 2**62
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise BadRequest(f"{after[:40]!r} is not a cursor; give the nextPage of the page before.")
    return int(after)
