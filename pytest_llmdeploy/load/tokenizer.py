"""The server's own tokenizer, over HTTP: /tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import requests

from pytest_llmdeploy.probes.endpoint import Endpoint, EndpointError, body_parts

_CONNECT_SECONDS, _ANSWER_SECONDS = 3.0, 30.0
_MOST_BYTES = 64 * 1024**2


class TokenizerError(Exception):
    """The server did not tokenize; the text says what it did."""


class _Answer(msgspec.Struct):
    tokens: list[int]


class ServerTokenizer:
    """Asks the server that serves `model`; may be used by several threads at once."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint, self._model = endpoint, model
        self._session = endpoint.session()

    def text(self, text: str) -> Sequence[int]:
        """The ids of a text as a completion has it: with the tokens that begin every text."""
        return self._ask({"prompt": text})

    def chat(self, text: str) -> Sequence[int]:
        """The ids of a user's message in the chat template, up to where the answer begins."""
        return self._ask({"messages": [{"role": "user", "content": text}]})

    def _ask(self, body: dict[str, Any]) -> Sequence[int]:
        url = f"{self._endpoint.url}/tokenize"
        try:
            with self._session.post(
                url,
                json={"model": self._model, **body},
                timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                allow_redirects=False,
                stream=True,
            ) as response:
                raw = b"".join(body_parts(response, _ANSWER_SECONDS, _MOST_BYTES))
        except EndpointError as error:
            raise TokenizerError(str(error)) from None
        except OSError as error:
            raise TokenizerError(f"{url} does not answer: {error}") from None
        if response.status_code != requests.codes.ok:
            said = raw[:500].decode("utf-8", "replace").strip()
            raise TokenizerError(f"{url} answers HTTP {response.status_code}: {said}")
        try:
            return msgspec.json.decode(raw, type=_Answer).tokens
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TokenizerError(f"{url} answers no tokens: {error}") from None
