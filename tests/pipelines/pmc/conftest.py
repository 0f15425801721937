"""Real articles, where they are."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).parents[3] / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    if not SHARED.exists():
        pytest.skip("needs ../shared/data")
    return SHARED
