"""What the tests share."""

# pytester forgets the modules that an in-process run imports: importing them here, once, spares
# every such run a second, and third parties a second copy of themselves.
import pytest_llmdeploy.gate
import pytest_llmdeploy.load.runner
import pytest_llmdeploy.report.json_file
import pytest_llmdeploy.serving.start  # noqa: F401
