"""Making a server's text safe to print.

What this keeps true: no byte that came over the network moves the cursor, changes colours or retitles a terminal.

Why: log lines and names are other people's, and a terminal obeys whoever writes to it.
"""

from __future__ import annotations

import re

# C0 but tab, DEL, C1, line separators, the bidirectional overrides and lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """`text` with control characters written as escapes (`\\x1b`), on one line."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), str(text))


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
