"""Which pairs come when: difficulties by hand, each schedule's promise, and runs that resume in the middle of a stage."""
import numpy as np
import pytest

from curriculum import Stage, deal_out, given_levels, make_plan, reference_error, reply_likeness
from data.store import PairStore, StoreWriter
from runtime.config import DPOConfig
from runtime.errors import UserError


def settings(**changes) -> DPOConfig:
    return DPOConfig(**({"batch": 8, "epochs": 1.0, "difficulty": "edit"} | changes))


def flat(plan, stage: Stage | None = None) -> list[int]:
    steps = plan.steps if stage is None else plan.steps[stage.start:stage.start + stage.steps]
    return np.concatenate(steps).tolist()


@pytest.fixture
def store(tmp_path) -> PairStore:
    with StoreWriter(tmp_path / "s", 50) as writer:
        for level, chosen, rejected in ((2, [1, 2, 3, 49], [1, 2, 4, 49]), (1, [1, 2, 3, 49], [5, 6, 49]), (2, [7, 49], [7, 8, 49])):
            writer.add([49, 9], [0, 0], chosen, rejected, level=level)
        writer.close({})
    return PairStore(tmp_path / "s")


def test_difficulties_by_hand(store):
    assert given_levels(store).tolist() == [2, 1, 2]
    # one of four tokens replaced; two replaced and one deleted of four; one inserted among three
    assert reply_likeness(store) == pytest.approx([1 - 1 / 4, 1 - 3 / 4, 1 - 1 / 3])
    # per token: the reference is wrong about the first pair (-2/4 against -1/4), right about the second (-1/4 against -3/3)
    logps = np.array([[-2.0, -1.0], [-1.0, -3.0], [-4.0, -6.0]])
    assert reference_error(store, logps) == pytest.approx([-1 / 4 + 2 / 4, -1 + 1 / 4, -6 / 3 + 4 / 2])


def test_no_levels_and_unknown_names_are_one_sentence(tmp_path):
    with StoreWriter(tmp_path / "s", 50) as writer:
        writer.add([49], [0], [1], [2])
        writer.close({})
    with pytest.raises(UserError, match="says no levels"):
        given_levels(PairStore(tmp_path / "s"))
    with pytest.raises(UserError, match="'stage' is none of none, staged"):
        make_plan(settings(curriculum="stage"), 5, 0, np.arange(5.0))


@pytest.mark.parametrize("epochs", [1.0, 2.0])
def test_staged_visits_every_pair_once_per_pass_easy_before_hard(epochs):
    hard = np.random.default_rng(0).permutation(100).astype(float)
    plan = make_plan(settings(curriculum="staged", stages=3, epochs=epochs), 100, 7, hard)
    assert [stage.pairs for stage in plan.stages] == [34, 33, 33] and sorted(flat(plan)) == sorted(list(range(100)) * int(epochs))
    highest = -1.0
    for stage in plan.stages:
        mine = hard[flat(plan, stage)]
        assert mine.min() > highest
        highest = mine.max()
        assert not np.array_equal(mine, np.sort(mine))  # shuffled within
    assert plan.stage_at(0) == 0 and plan.stage_at(plan.stages[1].start) == 1 and plan.stage_at(plan.stages[1].start - 1) == 0
    backwards = make_plan(settings(curriculum="staged", stages=3, reverse=True), 100, 7, hard)
    assert hard[flat(backwards, backwards.stages[0])].min() == 66


def test_max_steps_is_dealt_out_by_size_and_equal_for_all_orders():
    assert deal_out(10, [5, 30, 65]) == [1, 3, 6] and deal_out(2, [1, 1, 1]) == [1, 1, 0]
    hard = np.repeat([1.0, 2.0, 3.0], [20, 50, 30])
    lengths = {len(make_plan(settings(curriculum=name, difficulty="level", max_steps=40, reverse=r), 100, 0, hard).steps)
               for name in ("none", "staged", "cumulative", "linear", "hardest_last") for r in (False, True)}
    assert lengths == {40}
    plan = make_plan(settings(curriculum="staged", difficulty="level", max_steps=40), 100, 0, hard)
    assert [(stage.name, stage.steps) for stage in plan.stages] == [("level 1", 8), ("level 2", 20), ("level 3", 12)]


def test_cumulative_keeps_a_share_of_what_came_before():
    hard = np.arange(90.0)
    plan = make_plan(settings(curriculum="cumulative", keep=0.5), 90, 0, hard)
    assert [stage.pairs for stage in plan.stages] == [30, 30 + 15, 30 + 30]
    third = set(flat(plan, plan.stages[2]))
    assert set(range(60, 90)) <= third and len(third & set(range(60))) == 30


def test_linear_pacing_opens_the_pool():
    hard = np.random.default_rng(1).permutation(1000).astype(float)
    plan = make_plan(settings(curriculum="linear", opening=0.1, pace=0.5, max_steps=100, batch=50), 1000, 0, hard)
    hardest = [hard[step].max() for step in plan.steps]
    assert hardest[0] < 100 and hardest[25] < 550 and max(hardest[50:]) > 950
    assert all(len(set(step.tolist())) == 50 for step in plan.steps)


def test_hardest_last_is_sorted_with_ties_shuffled():
    hard = np.repeat([3.0, 1.0, 2.0], 20)
    plan = make_plan(settings(curriculum="hardest_last", epochs=2.0), 60, 0, hard)
    for k, stage in enumerate(plan.stages):
        assert hard[flat(plan, stage)].tolist() == sorted(hard)
    assert flat(plan, plan.stages[0]) != flat(plan, plan.stages[1])
    assert hard[flat(make_plan(settings(curriculum="hardest_last", reverse=True), 60, 0, hard))].tolist() == sorted(hard, reverse=True)


@pytest.mark.parametrize("name", ["none", "staged", "cumulative", "linear", "hardest_last"])
def test_plans_are_pure_and_depend_on_the_seed(name):
    hard = np.random.default_rng(2).random(77)
    one, same, other = (make_plan(settings(curriculum=name), 77, seed, hard) for seed in (0, 0, 1))
    assert all(map(np.array_equal, one.steps, same.steps)) and one.stages == same.stages
    assert flat(one) != flat(other) or name == "hardest_last"  # without ties there is nothing to shuffle


def test_max_pairs_chooses_without_repeating():
    plan = make_plan(settings(max_pairs=30, epochs=2.0), 100, 3)
    assert len(set(flat(plan))) == 30 and len(flat(plan)) == 60 and [stage.pairs for stage in plan.stages] == [30, 30]
    assert set(flat(plan)) != set(flat(make_plan(settings(max_pairs=30), 100, 4)))


@pytest.mark.parametrize("field, value", [("keep", -0.5), ("keep", 2.0), ("opening", 0.0), ("opening", 1.5), ("pace", -1.0)])
def test_shares_outside_their_range_are_refused(field, value):
    """Trap: a negative share of earlier pairs counts from the end of a list, and keeps half of it without a word."""
    with pytest.raises(UserError, match="--dpo.keep must be from 0 to 1"):
        make_plan(settings(curriculum="cumulative", **{field: value}), 20, 0, np.arange(20.0))
