import pytest

from runtime.config import ROOT, Config, config_path, help_text, load_config
from runtime.errors import UserError


def write(tmp_path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_bare_flag_does_not_swallow_the_config():
    assert load_config(["--fresh", "toy"]).fresh and load_config(["toy", "--data.skip_bad"]).data.skip_bad
    assert not load_config(["toy", "--fresh=False"]).fresh


def test_every_config_loads_and_every_name_form_means_the_same():
    for path in (ROOT / "configs").glob("*.py"):
        assert load_config([path.stem]).name == path.stem
    assert load_config(["toy"]) == load_config(["configs/toy.py"]) == load_config(["config/toy.py"])


def test_sections_merge_key_by_key_over_the_base(tmp_path):
    c = load_config([write(tmp_path, 'base_config = "hh_small"\nmodel = {"n_layer": 2}\nseed = 7')])
    assert (c.model.n_layer, c.model.n_embd, c.seed, c.name) == (2, 768, 7, "mine")


def test_overrides_come_last_and_an_int_is_a_valid_float():
    c = load_config(["toy", "--dpo.beta=1", "--out", "/x", "--fresh", "--data.subsets=['a','b']"])
    assert c.dpo.beta == 1.0 and isinstance(c.dpo.beta, float)
    assert c.out == "/x" and c.fresh and c.data.subsets == ["a", "b"]
    assert str(c.run_dir) == "/x/toy"


@pytest.mark.parametrize("argv, words", [
    (["toy", "--dpo.bta=0.2"], "did you mean 'beta'"),
    (["toy", "--dop.beta=0.2"], "did you mean 'dpo'"),
    (["toy", "--dpo.beta=high"], "must be a float"),
    (["toy", "--sft.batch=2.5"], "must be a int"),
    (["toy", "--sft.batch=True"], "must be a int"),
    (["toi"], "did you mean 'toy'"),
    (["toy", "hh_cpu"], "exactly one config"),
])
def test_mistakes_are_named_with_the_nearest_valid_name(argv, words):
    with pytest.raises(UserError, match=words):
        load_config(argv)


@pytest.mark.parametrize("text, words", [
    ("import os", "only `name = literal`"),
    ("sft = {'lr': __import__('os').system('true')}", "must be a literal"),
    ("sft = {'lr': 1e-3", "not valid python"),
    ("learning_rate = 3", "unknown key"),
    ("sft = 3", "must be a dict"),
])
def test_a_config_is_data_and_cannot_run_code(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        load_config([write(tmp_path, text)])


def test_a_circle_of_base_configs_is_an_error(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text(f'base_config = "{b}"')
    b.write_text(f'base_config = "{a}"')
    with pytest.raises(UserError, match="circle: a.py -> b.py -> a.py"):
        load_config([str(a)])


def test_help_names_every_field():
    text = help_text()
    assert "--dpo.beta" in text and "--seed" in text and "--data.source" in text
    assert text.count("--") > 60 and config_path("toy").exists() and Config().sft.lr > 0
