"""The token with which a Ray cluster tells its users from others: where it lies, and what is wrong with it.

Ray looks into RAY_AUTH_TOKEN, then into the file that RAY_AUTH_TOKEN_PATH names, then into ~/.ray/auth_token.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from perceiver.errors import UserError
from pipelines.checks import Check, checking

NO_TOKEN = "put the cluster's token into a file of mode 0600 and name that in RAY_AUTH_TOKEN_PATH"
WRONG_TOKEN = "name a file with the cluster's own token in RAY_AUTH_TOKEN_PATH"
_OTHERS = 0o077


@dataclass(frozen=True)
class Token:
    """A token, and where it comes from, which alone may be shown."""

    value: str
    source: str
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Token({self.source})"


def find_token() -> Token | None:
    """Return the token that Ray would use; None if there is none, or RAY_AUTH_MODE is disabled.

    Raises:
        UserError: If RAY_AUTH_TOKEN_PATH names no file that holds one.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        file = Path(named).expanduser()
        try:
            value = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"RAY_AUTH_TOKEN_PATH {named} cannot be read ({reason}): {NO_TOKEN}") from None
        if not value:
            raise UserError(f"RAY_AUTH_TOKEN_PATH {named} is empty: {NO_TOKEN}")
        return Token(value, named, file)
    file = Path.home() / ".ray" / "auth_token"
    value = file.read_text().strip() if os.access(file, os.R_OK) else ""
    return Token(value, str(file), file) if value else None


@checking("token")
def check_token(joins: bool) -> Check:
    """Check that there is a token, if one is wanted, and that nobody else can read it.

    Args:
        joins: Whether a cluster is joined that is there already; one of this machine's own makes a token for itself.
    """
    token = find_token()
    mode = os.environ.get("RAY_AUTH_MODE")
    if token is None:
        if joins and mode == "token":
            return Check("token", "failure", "none, but RAY_AUTH_MODE is token", NO_TOKEN)
        return Check("token", "ok", f"none (RAY_AUTH_MODE is {mode or 'not set'})")
    if token.file is not None and (others := token.file.stat().st_mode & 0o777) & _OTHERS:
        found = f"{token.source} has mode {others:04o}: others on this machine can read it"
        return Check("token", "warning", found, f"chmod 600 {token.source}")
    return Check("token", "ok", token.source)
