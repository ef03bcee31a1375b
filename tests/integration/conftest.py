import pytest


@pytest.fixture(scope="session", autouse=True)
def _server():
    """The server that forks commands imports all that they need while the first tests run."""
    from experiment import start_server

    start_server()
