"""What an audit finds by itself: attacks of a budget; stores, oracles and task model of the experiment."""

from pathlib import Path

from crafter_pl.attacks.base import Attack, checkpoint_of
from crafter_pl.attacks.reader import Reader
from crafter_pl.commands import Commands, listed, trained
from crafter_pl.data.store import read_manifest
from crafter_pl.errors import UserError
from crafter_pl.stages.checkpoints import named_run
from crafter_pl.stages.oracle import IdentityOracle

SPLIT = "private_test"
PANEL = ("oracle_resnet", "oracle_plain")  # the least that is worth training


def find_attacks(
    attacks: list[Attack] | Attack | None, budgets: dict[str, list[Attack]] | None, budget: str
) -> list[Attack]:
    """The attacks given, or those of the budget.

    Raises:
        UserError: neither is there.
    """
    if attacks is not None:
        return listed(attacks)
    if not budgets or budget not in budgets:
        known = ", ".join(budgets or {}) or "none"
        raise UserError(f"no attacks for --budget {budget}: choose from {known}, or give --attacks")
    return budgets[budget]


def left_out(attacks: list[Attack], budgets: dict[str, list[Attack]] | None) -> list[str]:
    """What the report must note of the attacks of other budgets: nothing where these all run."""
    known = {attack.name for budget in (budgets or {}).values() for attack in budget}
    names = sorted(known - {attack.name for attack in attacks})
    return [f"Not among the attacks: {', '.join(names)}; a larger budget has them."] if names else []


def without_names(readers: list[Reader]) -> tuple[list[Reader], list[str]]:
    """Those readers that say something where nobody is named, and what the report must note."""
    kept = [one for one in readers if one.suspects]
    gone = ", ".join(one.name for one in readers if not one.suspects)
    return kept, [
        "Nothing says whose the pictures are: each counts as a person, known by that very picture to judges "
        "and to whoever has a gallery. So rates are of pictures found again among these, not of people."
    ] + [f"Left out, since they compare pictures of one person: {gone}."] * bool(gone)


def find_checkpoints(home: Path, option: str, given: list[str] | str | None) -> list[str] | None:
    """Checkpoints by their paths, or by the names of runs of the experiment; None where none are given.

    Raises:
        UserError: there is no such run.
    """
    paths = [(one, checkpoint_of(home, "", one)) for one in listed(given)]
    for one, path in paths:
        if not Path(path).is_file():
            there = sorted(file.parts[-3] for file in home.glob("*/checkpoints/best.ckpt"))
            runs = ", ".join(there) or "no runs"
            raise UserError(f"--{option} {one}: there is no {path}; {home} has {runs}")
    return None if given is None else [path for _, path in paths]


def find_oracles(
    commands: Commands, given: list[str] | str | None, needed: bool = True
) -> tuple[list[str], list[str]]:
    """The oracles' checkpoints, and what the report must note.

    Args:
        commands: of the experiment.
        given: paths, or names of runs of the experiment, of which those that are not trained yet are left
            out; None: all finished oracles of the experiment.
        needed: whether nobody else judges.

    Raises:
        UserError: there is none at all where one is needed, or a path or a name is wrong.
    """
    home, paths, missing = commands.home, [], {}
    if given is None:
        every = {path.parent.parent.name: str(path) for path in trained(home, IdentityOracle.stage_name)}
        paths = [every[name] for name in dict.fromkeys((*PANEL, *every)) if name in every]
    for one in listed(given):
        run = named_run("", one)
        if run is None or (home / run / "summary.json").is_file() or commands.config(run) is None:
            paths += find_checkpoints(home, "oracles", one) or []
        else:
            missing[one] = commands.fit(one)
    if needed and not paths:
        train = list(missing.values()) or [commands.fit(name) for name in PANEL]
        raise UserError(
            "an audit needs an oracle, better two, and "
            f"{home} has none: give a checkpoint with --oracles, or train them first:\n  "
            + "\n  ".join(train)
        )
    return paths, [
        f"Oracle {one} is not trained, and not in the panel: {fit}" for one, fit in missing.items()
    ]


def find_task(commands: Commands, given: str | None) -> Path:
    """The task model's checkpoint: given by path or name, or the experiment's own.

    Raises:
        UserError: it is missing.
    """
    run, path = named_run("task", given), Path(checkpoint_of(commands.home, "task", given))
    if not path.is_file():
        way = f"train it first: {commands.fit(run)}" if run else "give the right path (--task_ckpt)"
        raise UserError(f"the task model {path} is missing; {way}")
    return path


def find_stores(home: Path, given: list[str] | str | None) -> list[str]:
    """The feature stores to audit.

    Args:
        home: the experiment's folder.
        given: their paths, or names in the experiment: ``beta1`` or, of a certain run, ``crafter/beta1`` for
            ``crafter/features/private_test-beta1``; None: the only one that is there.

    Raises:
        UserError: none was given, and the experiment has none or several; or a name is not one store's.
    """
    there: dict[str, list[str]] = {}  # by name
    broken: dict[str, Exception] = {}
    for folder in sorted(path for path in home.glob("*/features/*") if path.is_dir()):
        name, run = folder.name.removeprefix(f"{SPLIT}-"), folder.parent.parent.name
        names = {name, folder.name, f"{run}/{name}"}
        try:
            if read_manifest(folder)["split"] == SPLIT:
                for called in names:
                    there.setdefault(called, []).append(str(folder))
        except (UserError, OSError) as error:  # is none, unless it is asked for
            broken |= dict.fromkeys(names, error)
    stores = sorted({store for own in there.values() for store in own})
    has = "\n  ".join([f"{home} has", *stores]) if stores else f"{home} has no store of {SPLIT}"
    if given is None and len(stores) != 1:
        way = "name one or several with --features" if stores else "make one with predict, or give --features"
        raise UserError(f"which features are to be audited? {way}; {has}")
    paths = []
    for one in stores if given is None else listed(given):
        own = [one] if Path(one).is_dir() else there.get(one, [])
        if not own and one in broken:
            raise broken[one]
        if len(own) != 1:
            raise UserError(f"--features {one}: there {'are several' if own else 'is no'} such store; {has}")
        paths += own
    return paths
