"""Serving: the launch command, the supervisor, readiness, attach, and the diagnosis of a death.

What starts a server is in `serving.start`, and is imported when one is asked for.
"""

from pytest_llmdeploy.serving.command import Command, LaunchError, launch_command
from pytest_llmdeploy.serving.diagnosis import Diagnosis, diagnose
from pytest_llmdeploy.serving.server import Server, ServerFailedError, Stopped

__all__ = [
    "Command",
    "Diagnosis",
    "LaunchError",
    "Server",
    "ServerFailedError",
    "Stopped",
    "diagnose",
    "launch_command",
]
