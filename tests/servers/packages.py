"""What has to be installed for a test."""

import pytest


def require(installed: object, packages: str) -> None:
    """Skip the test where it is not."""
    if not installed:
        pytest.skip(f"not installed; on Debian: apt-get install --no-install-recommends {packages}")
