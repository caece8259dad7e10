"""The human-likeness study in miniature: the scripted models, and the whole chain from transcripts to the curve."""
import json
import subprocess
import sys
from random import Random

import pytest

pytest.importorskip("openai")
from runtime.config import ROOT  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from studies.human_likeness import miniature, scripted  # noqa: E402
from studies.human_likeness.dialogue import problems, turns  # noqa: E402
from studies.human_likeness.folders import read_study  # noqa: E402


def test_the_scripted_judge_measures_what_the_scripted_writers_vary():
    def mean(human: float) -> dict[str, float]:
        rated = [scripted.measure(scripted.talk(Random(f"{human} {i}"), human, "knee", "monday", ("P", "D"), 4), "P") for i in range(60)]
        return {name: sum(r[name] for r in rated) / 60 for name in scripted.TRAITS}
    human, formal = mean(0.9), mean(0.1)
    assert all(human[name] > formal[name] + 0.5 for name in ("brevity", "slang", "lowercase")) and human["asks_back"] < formal["asks_back"] - 0.5
    by_hand = scripted.measure("P: yeah its fine\nD: Is it?\nP: Good morning, Doctor. What would you recommend?", "P")
    assert by_hand == {"brevity": 5, "slang": 3, "lowercase": 3, "asks_back": 3}  # 3 and 7 words, 5 on average; the rest in one turn of two
    assert not problems(turns(scripted.talk(Random(0), 1.0, "hip", "monday", ("P", "D"), 3)))


def test_a_folder_with_other_things_is_not_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        miniature.main(["--out", str(tmp_path)])
    with pytest.raises(UserError, match="holds something else"):
        miniature.main(["--out", str(tmp_path / "thesis.txt")])
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def run(out, *more):
    done = subprocess.run([sys.executable, "-m", "studies.human_likeness.miniature", "--out", str(out), *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, next(iter(json.loads((out / "curves" / "curves.json").read_text())["models"].values()))["curve"]


@pytest.mark.slow
def test_every_stage_of_the_chain_works(tmp_path):
    told, curve = run(tmp_path / "mini", "--quick", "--results", str(tmp_path / "results"))
    assert [row["epoch"] for row in curve][:1] == [0] and len(curve) >= 2 and "at equal length" in told
    assert (tmp_path / "results" / "curves.png").stat().st_size > 5000 and (tmp_path / "results" / "summary.md").read_text() in told
    model = read_study(tmp_path / "mini")[0]
    assert not any("not of these samples" in warning for warning in model.warnings) and set(model.rated) == {"judge"}  # every scored text is its sample's
    weights = json.loads((tmp_path / "mini" / "score" / "weights.json").read_text())["w"]
    assert weights.keys() <= scripted.TRAITS.keys() and sum(weights[name] > 0 for name in weights if name != "asks_back") >= 2
    provenance = json.loads((tmp_path / "mini" / "items.provenance.json").read_text())
    assert all(item["statements"] for item in provenance["items"].values())


@pytest.mark.long
def test_the_miniature_s_human_likeness_rises(tmp_path):
    told, curve = run(tmp_path / "mini")
    assert curve[-1]["difference"]["low"] > 0 and curve[-1]["p_holm"] < 0.05 and "at_equal_length" in curve[-1]
