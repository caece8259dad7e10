"""What the README says can be typed, and its figures are those of results/."""
import re
import subprocess
import sys

import pytest

from runtime.config import ROOT, load_config

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_names_files_and_settings_that_exist():
    scripts = [c for c in COMMANDS if "python " in c and "venv .venv" not in c]
    assert len(scripts) >= 8
    for command in scripts:
        words = command.split("python ", 1)[1].split()
        if words[0] == "-m":
            assert words[1] == "pytest" or (ROOT / f"{words[1].replace('.', '/')}.py").exists(), command
        else:
            assert (ROOT / words[0]).exists(), command
        if words[0].startswith("train_") or words[:2] == ["-m", "eval.run"]:
            load_config(words[2:] if words[0] == "-m" else words[1:])


def test_the_makefile_has_the_readmes_targets_and_plain_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for command in ("train_dpo.py toy", "-m eval.run toy", "-m pytest -q tests"):
        assert command in makefile and command in README


@pytest.mark.skipif(not (ROOT / "results" / "toy" / "seed0").exists(), reason="no committed results yet")
def test_the_figures_of_the_readme_are_those_of_results():
    subprocess.run([sys.executable, "bench/readme.py", "--check"], cwd=ROOT, check=True)


def test_every_file_the_readme_names_exists():
    for name in re.findall(r"`([\w/]+\.(?:py|md|png))`", README) + re.findall(r"\]\(([\w/.]+)\)", README):
        assert name.startswith("config/") or (ROOT / name).exists(), name
