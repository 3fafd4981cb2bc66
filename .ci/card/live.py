"""A pytest plugin that writes failures into the file $FAILURES as they come.

pytest itself tells what failed when all is done, which a time limit may come before.
"""

import os


def pytest_runtest_logreport(report):
    """Is called in the main process for each phase of each test."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ and "FAILURES" in os.environ:
        with open(os.environ["FAILURES"], "a", encoding="utf-8") as file:
            file.write(f"== {report.nodeid} ({report.when})\n{report.longreprtext[-2000:]}\n\n")
