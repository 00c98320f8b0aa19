"""Servers with a certificate that nobody has signed but themselves."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def certificate(folder: Path) -> Path:
    """A file with a fresh certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the certificate is made with openssl")
    file, key = folder / "server.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", file, "-keyout", key],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return file


def tls(file: Path) -> ssl.SSLContext:
    """For the server of this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, file.with_name("key.pem"))
    return context
