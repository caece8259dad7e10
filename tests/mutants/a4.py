"""Wrong solutions of assignment 4: the trap that each falls into -> what it changes."""
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "sums_not_means": [("return torch.zeros(sequences, dtype=token_logps.dtype).index_add(0, owner, token_logps)",
                        "total = torch.zeros(sequences, dtype=token_logps.dtype).index_add(0, owner, token_logps)\n"
                        "    return total / torch.bincount(owner, minlength=sequences).clamp(min=1)")],
    "a_reward_is_no_loss": [("return beta * (policy_logps - reference_logps).detach()", "return beta * (policy_logps - reference_logps)")],
    "the_reference_counts": [("    return -F.logsigmoid(beta * (chosen - rejected))\n", "    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps))\n")],
    "chosen_goes_up": [("    return -F.logsigmoid(beta * (chosen - rejected))\n", "    return -F.logsigmoid(beta * (rejected - chosen))\n")],
    "finite_at_ten_thousand": [("    return -F.logsigmoid(beta * (chosen - rejected))\n", "    return -torch.log(torch.sigmoid(beta * (chosen - rejected)))\n")],
    "beta_scales_the_whole_margin": [("    return -F.logsigmoid(beta * (chosen - rejected))\n", "    return -F.logsigmoid(beta * chosen - rejected)\n")],
    "wrongly_ordered_pairs_weigh_more": [("slope = -beta * torch.sigmoid(-beta * delta)", "slope = -beta * torch.sigmoid(beta * delta)")],
    "ipo_stops_at_its_target": [("return (chosen - rejected - 1 / (2 * beta)) ** 2", "return (beta * (chosen - rejected) - 1 / (2 * beta)) ** 2")],
    "only_a_fall_is_charged": [("penalty * torch.relu(-chosen)", "penalty * -chosen")],
    "the_charge_stands_inside_the_sigmoid": [("return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))",
                                              "return -F.logsigmoid(beta * (chosen - rejected)) + beta * penalty * torch.relu(-chosen)")],
    "the_chosen_reply_is_charged": [("penalty * torch.relu(-chosen)", "penalty * torch.relu(-rejected)")],
    "beta_scales_the_charge_too": [("return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))",
                                    "return -F.logsigmoid(beta * (chosen - rejected) - penalty * torch.relu(-chosen))")],
    "micro_batches_add_up": [("return losses.sum() / pairs_in_step", "return losses.mean()")],
}
