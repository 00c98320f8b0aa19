"""Whose certificates are trusted: the same for everything that connects to a server."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH


def authorities() -> str:
    """The file, or the folder, of the authorities: what SSL_CERT_FILE or REQUESTS_CA_BUNDLE names,
    else those of the system, else those that come with requests.
    """
    # By itself requests does not look at the first, nor OpenSSL at the second.
    if named := os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE"):
        return named
    paths = ssl.get_default_verify_paths()
    folder = paths.capath if paths.capath and any(Path(paths.capath).iterdir()) else None
    return paths.cafile or folder or DEFAULT_CA_BUNDLE_PATH


def tls() -> ssl.SSLContext:
    """For a connection of our own.

    Raises:
        OSError: when the authorities can't be read.
    """
    found = authorities()
    if Path(found).is_dir():
        return ssl.create_default_context(capath=found)
    return ssl.create_default_context(cafile=found)
