"""One tree of errors. Each has a stable code and one sentence for the person: what, where, and what to do.

What this keeps true: whatever a verb raises on purpose is an `ApplianceError`, its `str()` can be shown to a user as
it stands, and its `code` never changes its meaning between releases. Everything else that escapes is a defect.

Why: the doors (REST, CLI, pages, git) each translate this one tree once; no verb knows a status code.
"""

from __future__ import annotations


class ApplianceError(Exception):
    """The root. `code` is stable; `issues` are further sentences, one for each thing that is wrong."""

    code = "INTERNAL_SERVER_ERROR"

    def __init__(self, message: str, *, issues: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.issues = issues


class BadRequest(ApplianceError):
    """What was asked makes no sense as it stands."""

    code = "BAD_REQUEST"


class ParseError(BadRequest):
    """A text (YAML, JSON, a reference) could not be read; the message names file, line and key where there are any."""

    code = "PARSE_ERROR"


class Unauthorized(ApplianceError):
    """Nobody is signed in, or the key or password is wrong."""

    code = "UNAUTHORIZED"


class Forbidden(ApplianceError):
    """Somebody is signed in, but may not."""

    code = "FORBIDDEN"


class NotFound(ApplianceError):
    """There is no such thing, or the asker may not know of it."""

    code = "NOT_FOUND"


class Conflict(ApplianceError):
    """The thing's present state does not allow it."""

    code = "CONFLICT"


class Stale(Conflict):
    """Somebody else moved the thing first; whoever reads it again sees why."""


class PreconditionFailed(ApplianceError):
    """Something that the verb needs is missing; the message says what to do first."""

    code = "PRECONDITION_FAILED"


class TooLarge(ApplianceError):
    """More bytes, entries or depth than the limit that the message names."""

    code = "PAYLOAD_TOO_LARGE"


class TooManyRequests(ApplianceError):
    """Asked too often; the message says when to try again."""

    code = "TOO_MANY_REQUESTS"


class DiskFull(ApplianceError):
    """The disk (or its reserve) is used up. Nothing that was acknowledged is lost; deleting and collecting still work."""

    code = "INSUFFICIENT_STORAGE"


class Corrupt(ApplianceError):
    """Bytes on the disk are not those that were stored; the message names the object."""

    code = "CORRUPT"


class DurabilityLost(ApplianceError):
    """An fsync failed. A second try could lie, so the daemon stops taking writes and ends (see store/FORMAT.md)."""

    code = "DURABILITY_LOST"


class EngineBusy(ApplianceError):
    """The container engine cannot do it now; a later try may succeed."""

    code = "ENGINE_BUSY"


class EngineRefused(ApplianceError):
    """The container engine will not do it, however often it is asked; the message says why and what to do."""

    code = "ENGINE_REFUSED"


class ImageNotFound(EngineRefused):
    """The image is neither here nor to be had from a registry."""

    code = "IMAGE_NOT_FOUND"
