"""A pytest plugin: with ``OCDBT_PY_REQUIRE_WORKFLOWS=1`` a test that is skipped has failed.

Everything that these tests could miss is installed by ``make test-workflows``. A skip there means that a package is
gone or cannot be imported any more, and a run in which nothing happened must not look like one in which all is well.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

AnyReport = TypeVar("AnyReport", pytest.TestReport, pytest.CollectReport)


def judged(report: AnyReport) -> AnyReport:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("OCDBT_PY_REQUIRE_WORKFLOWS") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (OCDBT_PY_REQUIRE_WORKFLOWS is set, so nothing may be skipped)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return judged((yield))
