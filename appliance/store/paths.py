"""The one validator of paths that a person or a program gives us for a place inside a tree.

What this keeps true: a path that passed can be joined to a folder without leaving it, shown in a terminal, put into
JSON and typed again. What already lies on a disk is judged by the walk instead (`ingest.scan`).

Why: each traversal hole in comparable programs was a second, slightly different check.
"""

from __future__ import annotations

import unicodedata

from appliance import errors

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_DEPTH = 200


def clean_path(text: str) -> str:
    """`text`, unchanged, if it is a fit relative path; else raises BadRequest with one sentence.

    Unicode is not normalised: composed and decomposed letters are different names, as on the disk.
    """
    problem = _problem(text)
    if problem is not None:
        shown = ascii(text if len(text) <= 200 else text[:200] + "…")
        raise errors.BadRequest(f"The path {shown} cannot be used: {problem}.")
    return text


def _problem(text: str) -> str | None:
    if not text:
        return "it is empty"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        return "it contains a control character, or is not Unicode"
    if text.startswith("/"):
        return "it must be relative to the version's folder, so it cannot start with '/'"
    if len(text.encode()) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    parts = text.split("/")
    if len(parts) > MAX_DEPTH:
        return f"it has more than {MAX_DEPTH} levels"
    return next((problem for problem in map(_part_problem, parts) if problem), None)


def _part_problem(part: str) -> str | None:
    if part == "":
        return "it has an empty part ('//' or a '/' at its end)"
    if part in (".", ".."):
        return f"it contains '{part}' as a part"
    if len(part.encode()) > MAX_NAME_BYTES:
        return f"one of its names is longer than {MAX_NAME_BYTES} bytes"
    return None
