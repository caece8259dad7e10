"""Wrong solutions of assignment 3: the trap that each falls into -> what it changes."""
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "shifted_by_one": [("return at - 1, ids[at]\n    # end", "return at, ids[at]\n    # end")],
    "the_end_is_a_target": [("    at = at[at > 0]\n    return", "    at = at[(at > 0) & (ids[at] != 0)]\n    return")],
    "nobody_predicts_the_first": [("    at = at[at > 0]\n    return", "    return")],
    "no_overflow": [("    return z.gather(1, targets[:, None]).squeeze(1) - z.logsumexp(1)\n    # end",
                     "    return z.gather(1, targets[:, None]).squeeze(1) - z.exp().sum(1).log()\n    # end")],
    "sixteen_bits_are_not_enough": [("    z = logits.float()\n    return", "    z = logits\n    return")],
    "tokens_of_the_step_not_of_the_micro_batch": [("    return -logps.sum() / tokens_in_step\n", "    return -logps.mean()\n")],
    "an_empty_micro_batch_weighs_nothing": [("    total = max(1, sum(tokens))\n    return", "    total = sum(tokens)\n    return")],
    "the_first_step_moves": [("return peak * (step + 1) / warm", "return peak * step / warm")],
    "one_norm_for_all": [("    return [g * scale for g in gradients], norm\n", "    return [g * min(1.0, most / max(g.norm().item(), 1e-12)) for g in gradients], norm\n")],
    "small_gradients_stay": [("    scale = min(1.0, most / max(norm, 1e-12))\n    return", "    scale = most / max(norm, 1e-12)\n    return")],
    "means_begin_at_zero": [("    move = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)", "    move = mean / (square.sqrt() + eps)")],
    "decay_is_no_gradient": [("    mean = beta1 * mean + (1 - beta1) * gradient\n", "    gradient, decay = gradient + decay * weight, 0.0\n    mean = beta1 * mean + (1 - beta1) * gradient\n")],
}
