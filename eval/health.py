"""Is this DPO run healthy? The curves of metrics.jsonl, read by rules and told in plain language with the remedy.

    python -m eval.health out/toy/dpo

Why a panel: the loss falls and reward accuracy rises in healthy and in broken runs alike. Both are about other people's
replies. What the policy itself writes (eval/watch.py) and how far it has moved tell the two apart.
"""
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from objectives import beta_of
from runtime.checkpoint import find_checkpoint, read_run
from runtime.errors import UserError, run_main
from runtime.run import read_metrics

# (warning, alarm). Nats and shares; each is argued where it is used.
THRESHOLDS = {
    "chosen_fall": (20.0, 60.0),      # nats per reply below the reference
    "kl": (10.0, 30.0),               # nats per reply
    "gap": (0.15, 0.25),              # training minus validation accuracy
    "overfit": (0.02, 0.10),          # final minus lowest validation loss
    "well_formed_fall": (0.10, 0.25),
    "helpful_fall": (0.10, 0.25),
    "ended_fall": (0.10, 0.25),
    "repetition_rise": (0.05, 0.15),
    "length_factor": (1.5, 2.5),      # replies so many times longer or shorter than before
    "skipped": (0.02, 0.10),          # share of steps skipped by the float16 scaler
}
LEVELS = ("ok", "warning", "alarm")


@dataclass(frozen=True)
class Finding:
    """One line of the panel: what was looked at, "ok", "warning" or "alarm", what was seen, and what to do about it."""
    check: str
    level: str
    seen: str
    remedy: str = ""


def _level(value: float, key: str) -> str:
    warning, alarm = THRESHOLDS[key]
    return LEVELS[(value >= warning) + (value >= alarm)]


def examine(stage: Path) -> list[dict]:
    """The findings on a DPO stage folder as plain values, worst first. UserError when there is nothing to read."""
    rows = read_metrics(stage / "metrics.jsonl")
    last = find_checkpoint(stage / "last")
    if not any(row["split"] == "val" for row in rows):
        raise UserError(f"{stage} has no metrics.jsonl with validation rows: give the folder of a DPO stage, such as out/toy/dpo.")
    settings = read_run(last)["config"]["dpo"] if last else {}
    found = panel(rows, settings.get("objective", "dpo"), beta_of(settings.get("objective", "dpo"), settings.get("beta", 0.1)))
    return [asdict(finding) for finding in sorted(found, key=lambda f: -LEVELS.index(f.level))]


def panel(rows: Sequence[dict], objective: str, beta: float) -> list[Finding]:
    """All checks on the rows of one metrics.jsonl, in reading order. A column that was not measured gives no finding."""
    val, train = ([row for row in rows if row["split"] == split] for split in ("val", "train"))
    return [*_learning(val, train, objective), *_drift(val, beta), *_replies(val), *_precision(train, rows)]


def _change(val: Sequence[dict], key: str) -> tuple[float, float] | None:
    """(first, last) of a validation column, or None when it was not measured twice."""
    values = [row[key] for row in val if row.get(key) is not None]
    return (values[0], values[-1]) if len(values) > 1 else None


def _learning(val: Sequence[dict], train: Sequence[dict], objective: str) -> list[Finding]:
    found, start, loss = [], val[0], [row["loss"] for row in val]
    if start["step"] == 0 and objective == "dpo":
        # a training row's loss is of before its update; dropout left on shows there alone
        first = {"validation": start["loss"]} | {"training": row["loss"] for row in train if row["step"] == 1}
        right = all(abs(loss - math.log(2)) < 0.01 for loss in first.values())
        found.append(Finding("loss at step 0", "ok" if right else "alarm", f"{', '.join(f'{split} {loss:.4f}' for split, loss in first.items())}; ln 2 is .6931",
                             "" if right else "policy and reference differ before training: another checkpoint, another number format, or dropout left on."))
    accuracy = _change(val, "rewards/accuracy")
    if accuracy and objective == "dpo" and min(loss) > loss[0] - 0.002 and accuracy[1] < 0.53:
        found.append(Finding("learning", "warning", f"validation loss {loss[0]:.4f} to {loss[-1]:.4f}, accuracy {accuracy[1]:.2f}: nothing was learnt",
                             "raise --dpo.lr or --dpo.epochs; on real text with few pairs this may be all there is: compare with the bag of words in the report."))
    elif accuracy:
        found.append(Finding("learning", "ok", f"validation loss {loss[0]:.4f} to {min(loss):.4f} at best, accuracy {accuracy[1]:.2f}"))
    rise = loss[-1] - min(loss)
    found.append(Finding("overfitting, loss", _level(rise, "overfit"), f"validation loss ends {rise:.3f} above its lowest",
                         "" if rise < THRESHOLDS["overfit"][0] else "best/ holds the lowest; train fewer epochs, lower --dpo.lr, or raise --dpo.beta."))
    late = [row["rewards/accuracy"] for row in train[-max(1, len(train) // 5):] if row["rewards/accuracy"] is not None]
    if accuracy and late:
        gap = sum(late) / len(late) - accuracy[1]
        found.append(Finding("overfitting, accuracy", _level(gap, "gap"), f"training {sum(late) / len(late):.2f}, validation {accuracy[1]:.2f}",
                             "" if gap < THRESHOLDS["gap"][0] else "the pairs are being learnt by heart: fewer epochs, more pairs, or a larger --dpo.beta."))
    return found


def _drift(val: Sequence[dict], beta: float) -> list[Finding]:
    found, chosen, rejected = [], _change(val, "logps/chosen"), _change(val, "logps/rejected")
    if chosen and rejected:
        fall, both = chosen[0] - chosen[1], f"chosen {chosen[1] - chosen[0]:+.1f}, rejected {rejected[1] - rejected[0]:+.1f} nats per reply"
        # DPO only widens the difference: some fall of both is normal (Rafailov et al. 2024; Pal et al. 2024), tens of nats mean that
        # probability has gone to replies nobody wrote
        found.append(Finding("chosen log-probs", _level(fall, "chosen_fall"), f"{both} against the reference",
                             "" if fall < THRESHOLDS["chosen_fall"][0] else "chosen log-probs fell far below the reference: --dpo.objective=dpop (it "
                             f"penalises just this), a larger --dpo.beta (now {beta}), or a lower --dpo.lr."))
    if kl := _change(val, "replies/kl"):
        # in best-of-n and RL curves the true reward peaks at some 5 to 30 nats and then falls (Gao et al. 2022)
        found.append(Finding("distance from the reference", _level(kl[1], "kl"), f"KL {kl[1]:.1f} nats per reply",
                             "" if kl[1] < THRESHOLDS["kl"][0] else f"the policy has left its reference: larger --dpo.beta (now {beta}) or lower --dpo.lr."))
    return found


def _replies(val: Sequence[dict]) -> list[Finding]:
    found, accuracy = [], _change(val, "rewards/accuracy")
    falls = []
    for key, name, what in (("replies/well_formed", "well_formed_fall", "well-formed replies"),
                            ("replies/helpful_correct", "helpful_fall", "helpful prompts answered correctly"),
                            ("replies/ended", "ended_fall", "replies that end by themselves")):
        if change := _change(val, key):
            falls.append(change[0] - change[1])
            bad = falls[-1] >= THRESHOLDS[name][0]
            found.append(Finding(what, _level(falls[-1], name), f"{100 * change[0]:.0f} % to {100 * change[1]:.0f} %",
                                 "the policy's own replies are getting worse: lower --dpo.lr, raise --dpo.beta, fewer epochs." if bad else ""))
    if change := _change(val, "replies/repetition"):
        rise = change[1] - change[0]
        found.append(Finding("repetition", _level(rise, "repetition_rise"), f"repeated 3-grams {100 * change[0]:.1f} % to {100 * change[1]:.1f} %",
                             "the policy talks in circles: lower --dpo.lr, raise --dpo.beta." if rise >= THRESHOLDS["repetition_rise"][0] else ""))
    if change := _change(val, "replies/words"):
        factor = max(change[1], 0.5) / max(change[0], 0.5)
        level = _level(max(factor, 1 / factor), "length_factor")
        found.append(Finding("reply length", level, f"{change[0]:.1f} to {change[1]:.1f} words",
                             "" if level == "ok" else "length is being rewarded (or punished): compare the lengths of chosen and rejected replies in the data, "
                             "and read the length-controlled win rate."))
    if accuracy and falls and accuracy[1] >= 0.75 and max(falls) >= 0.25:
        found.append(Finding("accuracy against replies", "alarm", f"reward accuracy {accuracy[1]:.2f}, yet the replies have fallen apart",
                             "reward accuracy does not see what the policy writes: judge this run by its win rate, not by its accuracy."))
    return found


def _precision(train: Sequence[dict], rows: Sequence[dict]) -> list[Finding]:
    steps, skipped = max(row["step"] for row in rows), max((row["skipped_steps"] or 0 for row in train), default=0)
    if not steps:
        return []
    share = skipped / steps
    return [Finding("skipped steps", _level(share, "skipped"), f"{skipped} of {steps}",
                    "" if share < THRESHOLDS["skipped"][0] else "float16 gradients overflow: use bfloat16 or float32, or lower --dpo.lr.")]


def main(argv: list[str]) -> None:
    """Print the panel of one DPO stage."""
    if len(argv) != 1:
        raise UserError("usage: python -m eval.health out/<name>/dpo")
    found = examine(Path(argv[0]))
    colour = {"ok": "32", "warning": "33", "alarm": "31"} if sys.stdout.isatty() else {}
    for f in found:
        level = f"\x1b[{colour[f['level']]}m{f['level']:<7}\x1b[0m" if colour else f"{f['level']:<7}"
        print(f"{level}  {f['check']:<36} {f['seen']}" + (f"\n{'':9}-> {f['remedy']}" if f["remedy"] else ""))
    worst = found[0]["level"]
    print({"ok": "no complaint", "warning": "look at the warnings", "alarm": "do not trust this run before the alarms are understood"}[worst])


if __name__ == "__main__":
    run_main(main)
