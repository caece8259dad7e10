"""Tests run offline and from anywhere. The summary ends with the seconds each file took."""
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# two test files run at a time: a thread that waits must sleep, or it keeps the other file's from working
os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def server():
    """A scripted OpenAI-compatible server (judge_server.py), of this test alone."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    from judge_server import Server
    s = Server()
    yield s
    s.stop()


def pytest_terminal_summary(terminalreporter):
    seconds = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                seconds[report.nodeid.split("::")[0]] += report.duration
    terminalreporter.write_line("seconds per group: " + ", ".join(f"{Path(k).stem[5:]} {v:.1f}" for k, v in sorted(seconds.items(), key=lambda x: -x[1])))
