"""A name, and every address behind it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError

_MOST = 256


def behind(endpoint: Endpoint) -> Sequence[Endpoint]:
    """Everyone that the name of `endpoint` stands for (a headless Service has an address for each
    of its pods); itself, by its name, where it is one.

    Raises:
        EndpointError: when the name has no address, more than anybody runs, or several and a
            certificate to go by.
    """
    parts = urlsplit(endpoint.url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError as error:
        msg = f"{parts.hostname} does not resolve: {error.strerror}"
        raise EndpointError(msg) from None
    # A pod that speaks both has an address of each kind, and is one.
    families = {family for family, *_ in found}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    addresses = sorted({str(address[0]) for kind, *_, address in found if kind == family})
    if len(addresses) == 1:
        return [endpoint]
    if len(addresses) > _MOST:
        msg = f"{parts.hostname} has {len(addresses):,} addresses: more than {_MOST} are not asked"
        raise EndpointError(msg)
    if parts.scheme == "https":
        msg = (
            f"{parts.hostname} has {len(addresses)} addresses, and a certificate is made out to "
            "names: write the URL of each, by its own name"
        )
        raise EndpointError(msg)
    port = f":{parts.port}" if parts.port else ""
    hosts = (f"[{address}]" if ":" in address else address for address in addresses)
    return [
        replace(endpoint, url=parts._replace(netloc=f"{host}{port}").geturl(), host=parts.netloc)
        for host in hosts
    ]
