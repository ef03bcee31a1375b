"""The command that trains an adaptive black-box attacker."""


def fit(tiny, name, *more):
    return tiny.command("fit", "adaptive_black_box", "--name", name, *more)
