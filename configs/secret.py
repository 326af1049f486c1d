"""
The cluster secret: from the settings, or from a file that is made once.

It never stands in an argument or in an address; processes read it from here.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from configs.settings import ClusterSettings, SettingsError

SECRET_BYTES_MIN = 16


def secret_path(settings: ClusterSettings) -> Path:
    return Path(settings.data_dir) / "cluster_secret"


def read_secret(settings: ClusterSettings) -> bytes:
    """
    Return the cluster secret; raises SettingsError when there is none or it is too short.
    """
    if settings.secret:
        secret = settings.secret.encode()
    else:
        try:
            secret = secret_path(settings).read_bytes().strip()
        except OSError as error:
            raise SettingsError(
                f"no cluster secret: set MILIANO_CLUSTER_SECRET or make "
                f"{secret_path(settings)} ({error})"
            ) from error
    if len(secret) < SECRET_BYTES_MIN:
        raise SettingsError(f"the cluster secret needs at least {SECRET_BYTES_MIN} bytes")
    return secret


def make_secret(settings: ClusterSettings) -> None:
    """
    Make the secret file, readable by its owner only, if nothing else provides a secret.
    """
    path = secret_path(settings)
    if settings.secret or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    partial.rename(path)
