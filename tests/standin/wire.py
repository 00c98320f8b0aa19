"""The wire format that every endpoint shares: JSON bodies, errors, server-sent events."""

import json
from typing import Any

Json = dict[str, Any]

ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class RefusalError(Exception):
    """A request that is answered with an error status and vLLM's error object."""

    def __init__(
        self, status: int, message: str, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param, kind)


def error_body(
    status: int, message: str, param: str | None = None, kind: str | None = None
) -> Json:
    """Return vLLM's error object."""
    kind = kind or ERROR_TYPES[status]
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def sse(payload: Json | str) -> bytes:
    """Return one server-sent event."""
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def read_object(raw: bytes) -> Json:
    """Parse a request body; what is no JSON object gets FastAPI's 400."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        found = {"type": "json_invalid", "loc": "body", "msg": "JSON decode error", "input": {}}
        message = f"1 validation error:\n  {found | {'ctx': {'error': str(error)}}}"
        raise RefusalError(400, message, "body", "Bad Request") from error
    if not isinstance(body, dict):
        raise RefusalError(400, "1 validation error:\n  body: not an object", "body", "Bad Request")
    return body
