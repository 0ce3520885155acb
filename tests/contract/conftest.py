"""Fixtures of the provider tests."""
import pytest

from tests.harness.provider import Driver


@pytest.fixture
def make_driver(tmp_path):
    """Function that starts a driver of a provider kind; all end with the test, cleanly."""
    started = []

    def make(kind):
        started.append(Driver(kind, tmp_path))
        return started[-1]

    yield make
    statuses = [d.end() for d in started]
    assert all(status in (0, 9) for status in statuses), statuses  # 9: it was told to die
