"""Wrong solutions of assignment 5: the trap that each falls into -> what it changes."""
CUT = "return text.split(END_OF_TEXT)[0].split(HUMAN)[0].strip()"
KEPT = "kept = [(x, y) for x, y in pairs if x is not None and y is not None]\n"
SHARES = "shares = [sum(side) / len(kept) for side in zip(*kept)] if kept else [None, None]"
PAIRS = "pairs = [(x, y) for k, x, y in zip(kinds, before, after) if k == kind]\n"
FAILED = "    if a_first is None or b_first is None:\n        return None\n"
SETTLED = '    return one if one == other else "tie"\n'
SHARE = "missing, wins / (wins + losses) if wins + losses else None\n"
MEANS = "means = change[picks].mean(dim=1).sort().values"
ENDS = "return change.mean().item(), means[m].item(), means[-1 - m].item()"
NATS = "return math.exp(-logps.sum().item() / tokens.sum().item())"
RUNNING = "running = max(running, p_values[i] * (len(p_values) - rank))"

MUTANTS: dict[str, list[tuple[str, str]]] = {
    "an_invented_turn_is_no_reply": [(f"    {CUT}", "    return text.split(END_OF_TEXT)[0].strip()")],
    "the_first_mark_ends_it": [(f"    {CUT}", "    return text.split(END_OF_TEXT if END_OF_TEXT in text else HUMAN)[0].strip()")],
    "the_word_alone_is_no_turn": [(f"    {CUT}", '    return text.split(END_OF_TEXT)[0].split("Human:")[0].strip()')],
    "a_pooled_rate_hides_over_refusal": [(PAIRS, "pairs = list(zip(before, after))\n")],
    "unmeasured_is_no_compliance": [(f"        {KEPT}", "        kept = [(bool(x), bool(y)) for x, y in pairs]\n")],
    "both_sides_count_the_same_prompts": [
        (SHARES, "shares = [sum(x for x in side if x is not None) / max(1, sum(x is not None for x in side)) for side in zip(*pairs)]")],
    "nothing_measured_is_no_share": [(SHARES, "shares = [sum(side) / len(kept) for side in zip(*kept)] if kept else [0.0, 0.0]")],
    "none_of_ten_is_no_certainty": [("    half = Z * math.sqrt(successes * (n - successes) / n + Z * Z / 4) / (n + Z * Z)\n",
                                     "    centre, half = successes / n, Z * math.sqrt(successes * (n - successes) / n) / n\n")],
    "one_of_ten_is_not_below_zero": [("    centre = (successes + Z * Z / 2) / (n + Z * Z)\n", "    centre = successes / n\n")],
    "a_place_is_no_reply": [('other = {"first": "b", "second": "a", "tie": "tie"}[b_first]', 'other = {"first": "a", "second": "b", "tie": "tie"}[b_first]')],
    "both_orders_must_agree": [(SETTLED, '    return one if one == other else other if one == "tie" else one if other == "tie" else "tie"\n')],
    "a_failed_answer_is_no_tie": [(FAILED, '    if a_first is None or b_first is None:\n        return "tie"\n')],
    "ties_are_not_wins": [(SHARE, "missing, (wins + ties / 2) / (wins + losses + ties) if wins + losses else None\n")],
    "no_verdict_is_no_loss": [
        ('(verdicts.count(verdict) for verdict in ("b", "a", "tie", None))\n', '(verdicts.count(verdict) for verdict in ("b", "a", "tie", None))\n    losses += missing\n')],
    "nothing_decided_is_no_half": [(SHARE, "missing, wins / (wins + losses) if wins + losses else 0.5\n")],
    "hard_prompts_are_hard_for_both": [(f"    {MEANS}", "    means = (after.mean(dim=1)[picks] - before.mean(dim=1)[picks.roll(1, 0)]).mean(dim=1).sort().values")],
    "prompts_are_drawn_not_replies": [(f"    {MEANS}", "    means = (after - before).flatten()[picks].mean(dim=1).sort().values")],
    "more_resamples_are_no_evidence": [
        (f"    {ENDS}", "    half = Z * means.std().item() / len(picks) ** 0.5\n"
                       "    return change.mean().item(), change.mean().item() - half, change.mean().item() + half")],
    "no_mean_of_perplexities": [(f"    {NATS}", "    return torch.exp(-logps / tokens).mean().item()")],
    "finite_for_a_book": [(f"    {NATS}", "    return (torch.exp(logps.sum()) ** (-1 / tokens.sum())).item()")],
    "a_larger_p_stays_larger": [(f"        {RUNNING}\n", "        running = p_values[i] * (len(p_values) - rank)\n")],
    "each_p_in_its_place": [("        corrected[i] = min(1.0, running)\n", "        corrected[rank] = min(1.0, running)\n")],
    "at_most_one": [("        corrected[i] = min(1.0, running)\n", "        corrected[i] = running\n")],
    "not_all_by_the_number_of_tests": [(f"        {RUNNING}\n", "        running = p_values[i] * len(p_values)\n")],
}
