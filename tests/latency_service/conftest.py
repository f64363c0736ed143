"""Tests of the service see it on both of its databases."""

import pytest


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def service_url(request: pytest.FixtureRequest) -> str:
    """A live service."""
    url: str = request.getfixturevalue(f"{request.param}_service_url")
    return url
