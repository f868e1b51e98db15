"""Who runs a command, for the audit: the account on this machine; whether they may is not asked."""

from __future__ import annotations

import os
import platform
import pwd

from tenants.values import Actor


def operator() -> Actor:
    """Return the account that runs this process, and the machine."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under a number of its own
        name = f"uid {os.getuid()}"
    return Actor(name, "cli", platform.node())
