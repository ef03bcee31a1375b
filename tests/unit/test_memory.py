"""Memory is reckoned in MB on every system."""

from types import SimpleNamespace

import pytest

from crafter_pl import memory


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_the_systems_unit_is_known(monkeypatch, system, unit):
    usage = SimpleNamespace(ru_maxrss=300 * unit)
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    assert memory.peak_memory_mb() == 300
