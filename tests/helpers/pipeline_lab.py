"""An audit that must be refused."""

from crafter_pl.cli import main


def refused(tiny, capsys, tmp_path, *more, store=None, oracles=None):
    args = tiny.audit("--out", str(tmp_path / "out"), *more)
    if store is not None:
        args[args.index("--features") + 1] = f"[{store}]"
    if oracles is not None:
        args[args.index("--oracles") + 1] = f"[{', '.join(oracles)}]"
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert not (tmp_path / "out" / "report.json").exists()
    return error
