"""The server on the CPU that the newcomer finds running."""

from tests.live.one_server.conftest import tiny_server

__all__ = ["tiny_server"]
