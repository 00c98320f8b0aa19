"""Imported once: pytester forgets the modules that a run within a run imports first."""

import pytest_llmdeploy.gate
import pytest_llmdeploy.report.json_file  # noqa: F401
