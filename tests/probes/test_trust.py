"""Who is trusted: certificates are verified, and a key goes to no one but the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pytest_llmdeploy.load.client import Client
from pytest_llmdeploy.load.prompts import Prompt
from pytest_llmdeploy.load.samples import Outcome, Sample
from pytest_llmdeploy.load.tokenizer import ServerTokenizer, TokenizerError
from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError, EndpointTrustError
from pytest_llmdeploy.serving import ServerFailedError
from pytest_llmdeploy.serving.start import attach
from pytest_llmdeploy.spec import Spec
from tests.probes.authority import certificate, tls
from tests.probes.raw_server import ok, raw_server

KEY = "a-key-of-somebody"
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that its server has signed itself."""
    return certificate(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(signed: Path) -> Iterator[str]:
    """The URL of a server with it, which says that it is vLLM 1."""
    with raw_server(ok(b'{"version": "1"}'), tls(signed)) as url:
        yield url


@pytest.fixture(autouse=True)
def nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no authorities."""
    for name in (*VARIABLES, "SSL_CERT_DIR", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def sent(url: str) -> Sample:
    """What became of one request under load."""

    async def send() -> Sample:
        async with asyncio.timeout(10), Client(Endpoint(url, KEY)) as client:
            return await client.send(Prompt(b"{}", 1, 1), 0.0)

    return asyncio.run(send())


def test_a_certificate_of_its_own_is_refused(secure: str) -> None:
    """By everything that connects, with the reason and what to do."""
    with pytest.raises(EndpointTrustError) as caught:
        Endpoint(secure, KEY).version()
    assert str(caught.value) == (
        f"{secure}/version does not answer: its certificate is not trusted (self-signed "
        "certificate): where its authority is your own, name the file of that in SSL_CERT_FILE"
    )
    with pytest.raises(EndpointTrustError):
        Endpoint(secure).complete("m", [1], 1, 1.0)
    with pytest.raises(TokenizerError, match="certificate"):
        ServerTokenizer(Endpoint(secure), "m").text("hello")
    sample = sent(secure)
    assert sample.outcome is Outcome.CONNECTION
    assert "self-signed certificate" in sample.detail


def test_attaching_to_it_does_not_wait(secure: str) -> None:
    """No later answer would be another: the reason is told at once."""
    plain = {"version": 1, "model": {"id": "m"}, "hardware": {"device": "cpu"}}
    with pytest.raises(ServerFailedError, match="its certificate is not trusted"):
        attach(Spec.model_validate(plain), secure, lambda _text: None)


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_authority_can_be_named(
    secure: str, signed: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either variable, for the probes and for the load."""
    monkeypatch.setenv(variable, str(signed))
    assert Endpoint(secure).version() == "1"
    assert sent(secure).outcome not in {Outcome.CONNECTION, Outcome.CONNECT_TIMEOUT}


def test_an_authority_that_is_not_there(secure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't be read is said, not shown as a traceback."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    with pytest.raises(EndpointError, match=r"/nonexistent\.pem"):
        Endpoint(secure).version()


def test_a_redirect_gets_no_key() -> None:
    """To another server or not: nobody follows it, so that nobody else sees the key."""
    heard: list[bytes] = []

    def elsewhere() -> Iterator[bytes]:
        heard.append(b"a request")
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    with raw_server(elsewhere) as other:
        there = b"HTTP/1.1 307 X\r\nLocation: %s/x\r\nContent-Length: 0\r\n\r\n" % other.encode()
        with raw_server(lambda: [there]) as url:
            endpoint = Endpoint(url, KEY)
            with pytest.raises(EndpointError, match="HTTP 307"):
                endpoint.version()
            assert not endpoint.is_healthy()
            with pytest.raises(EndpointError, match="HTTP 307"):
                endpoint.complete("m", [1], 1, 1.0)
            with pytest.raises(TokenizerError, match="HTTP 307"):
                ServerTokenizer(endpoint, "m").text("hello")
            assert sent(url).outcome is Outcome.REDIRECT
    assert heard == []


def test_the_key_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that ~/.netrc has for the host is not sent, nor does our key give way to it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 0.0.0.0 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("NO_PROXY", "*")
    endpoint = Endpoint("http://0.0.0.0:9", KEY)
    session = endpoint.session()
    assert session.trust_env
    prepared = session.prepare_request(requests.Request("GET", endpoint.url))
    assert prepared.headers["Authorization"] == f"Bearer {KEY}"
