"""Reports as JSON and back: the one place where a report of another version or a damaged one fails."""

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from crafter_pl.audit.certificates import CertificateResult
from crafter_pl.audit.schema import AttackResult, Report
from crafter_pl.audit.utility import Utility, needs_key
from crafter_pl.errors import UserError
from crafter_pl.files import read_json
from crafter_pl.metrics import Estimate

SCHEMA = 1
_BY_ORACLE = {"eval_acc": "by_oracle", "eval_acc_top5": "top5_by_oracle"}  # others: <key>_by_oracle
_hints = cache(get_type_hints)


def to_json(value: Any) -> Any:  # noqa: ANN401 (a dataclass of `schema`, or what it holds)
    """A dataclass as plain values; what is None by default and still None is left out."""
    if isinstance(value, dict):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_json(one) for one in value]
    if not is_dataclass(value):
        return value
    plain = {
        one.name: to_json(own)
        for one in fields(value)
        if (own := getattr(value, one.name)) is not None or one.default is MISSING
    }
    if hasattr(value, "json_names"):
        names = value.json_names()
        plain = {names.get(key, key): own for key, own in plain.items()}
    if isinstance(value, Estimate):
        return {"value": plain.pop("value"), "ci95": [plain.pop("low"), plain.pop("high")], **plain}
    if isinstance(value, AttackResult):
        oracles = {
            _BY_ORACLE.get(key, f"{key}_by_oracle"): own for key, own in plain.pop("by_oracle").items()
        }
        return {**plain.pop("figures"), **oracles, **plain}
    if isinstance(value, Utility):
        return {**plain.pop("figures"), **plain}
    return {"schema": SCHEMA, **plain} if isinstance(value, Report) else plain


def from_json(kind: Any, plain: Any) -> Any:  # noqa: ANN401 (any type, and whatever JSON holds)
    """The dataclass, or what one holds, that `to_json` has written so; what it does not know is left out.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it is something else.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain
    if origin in (Union, types.UnionType):  # always X | None
        return None if plain is None else from_json(inner[0], plain)
    if origin is list:
        return [from_json(inner[0], one) for one in plain]
    if origin is dict:
        return {key: from_json(inner[1], one) for key, one in plain.items()}
    if hasattr(kind, "__dataclass_fields__"):
        if issubclass(kind, Estimate):
            plain = {**plain, "low": plain["ci95"][0], "high": plain["ci95"][1]}
        if kind is AttackResult:
            names = {name: key for key, name in _BY_ORACLE.items()}
            figures = {key: own for key, own in plain.items() if _is_figure(own)}
            by_oracle = {
                names.get(key, key.removesuffix("_by_oracle")): own
                for key, own in plain.items()
                if key.endswith("by_oracle")
            }
            plain = {**plain, "figures": figures, "by_oracle": by_oracle}
        if kind is Utility:
            plain = {**plain, "figures": {key: own for key, own in plain.items() if _is_figure(own)}}
        if kind is CertificateResult:
            ends = {"needs_kept": "", "needs_kept_unprotected": "_unprotected"}
            plain = {**plain, **{n: plain[needs_key(plain.get("figure"), end)] for n, end in ends.items()}}
        given = {name: hint for name, hint in _hints(kind).items() if name in plain}
        return kind(**{name: from_json(hint, plain[name]) for name, hint in given.items()})
    if not isinstance(plain, (int, float) if kind is float else kind):
        raise TypeError(f"{plain!r} is no {kind.__name__}")
    return plain


def _is_figure(plain: object) -> bool:
    return isinstance(plain, dict) and "ci95" in plain


def read_report(folder: Path) -> Report:
    """The report.json of an audit's folder.

    Raises:
        UserError: there is none, it is no report, or of another version.
    """
    file = folder / "report.json"
    if not file.is_file():
        raise UserError(
            f"no report in {folder}: report.json is missing; run the audit with --out {folder} first"
        )
    plain = read_json(file, "run the audit again with --overwrite true")
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file} has schema {schema}, expected {SCHEMA}. Run the audit again.")
    try:
        return from_json(Report, plain)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The report in {folder} is damaged or of an earlier version ({error!r}). Run the audit again "
            "with --overwrite true: what its attacks made is used again."
        ) from error
