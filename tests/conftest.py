"""What all tests share: hypothesis profiles, threads, one registry."""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny models, whose threads would only wait for each other

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would ignore

import pytest
from hypothesis import HealthCheck, settings

from lvlm.registry.registry import Registry

settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed plugins."""
    return Registry.load(strict=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session in which something skips, where LVLM_NO_SKIPS=1 says that nothing should (make
    test-extras).
    """
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = (
        reporter.stats.get("skipped", []) if reporter else []
    )  # a worker of xdist reports nothing itself
    if os.environ.get("LVLM_NO_SKIPS") == "1" and skipped:
        for report in skipped:
            reporter.write_line(
                f"\nskipped, though every extra should be here: {report.nodeid}: {report.longrepr}"
            )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
