"""Finds the secret of the operator's routes, or makes one; it verifies no request.

A gateway always has an admin secret: the setting, else the file `admin-token` of the data folder,
which only its owner may read. On a loopback address a missing file is made. On any other address
it is not: whoever opens a gateway to a network has to have chosen, or seen, the secret before.
"""

from __future__ import annotations

from pathlib import Path

from gateway.private_file import write_private
from gateway.settings import Settings, SettingsError
from tenants.keys import generate_admin_token, is_well_formed_admin_token


def admin_token_file(data_dir: Path) -> Path:
    """Return where a token that was not set is kept."""
    return data_dir / "admin-token"


def find_admin_token(settings: Settings) -> str:
    """Return the admin token; raises SettingsError with one line that says what to do."""
    if settings.admin_token is not None:
        return _checked(settings.admin_token.get_secret_value(), "TIERGATE_ADMIN_TOKEN")
    path = admin_token_file(settings.data_dir)
    try:
        if not path.exists():
            if not settings.is_loopback:
                raise SettingsError(
                    f"refusing to listen on {settings.host} without an admin token: set "
                    "TIERGATE_ADMIN_TOKEN, or start once on 127.0.0.1 to have one made"
                )
            write_private(path, generate_admin_token() + "\n")
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{path} can be read by others: chmod 600 {path}")
        return _checked(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the admin token file {path} cannot be used: {error}") from None


def _checked(token: str, source: str) -> str:
    if not is_well_formed_admin_token(token):
        raise SettingsError(
            f"{source}: not an admin token (tga_ and 36 characters with a right checksum)"
        )
    return token
