"""``etude data list|get|verify|audit [NAME]``: the data sets; ``etude data render --help`` tells of rendering one."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from etude import data
from etude.cli import data_render
from etude.core.errors import UserError
from etude.data.audit import audit
from etude.data.fetch import fetch, forget, status
from etude.runs.flags import parse
from etude.runs.table import show


@dataclass(frozen=True)
class _Options:
    verb: Annotated[Literal["list", "get", "verify", "audit"], tyro.conf.Positional]
    """list what there is; get it (download, or read from ETUDE_MIRROR); verify its checksums again; audit what
    repeats itself across its splits and classes."""
    name: Annotated[str, tyro.conf.Positional] = ""
    """One data set; all of them where none is named. Of an audit: a folder or zip file, too."""
    force: bool = False
    """True lets get fetch again what is there already."""
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> None:
    if args[:1] == ["render"]:
        data_render.main(args[1:])
        return
    options = parse(_Options, args, prog="etude data", description=__doc__ or "")
    if options.verb == "audit":
        if not options.name:
            raise UserError(f"name what is audited: a folder, a zip file, or one of {', '.join(data.NAMES)}")
        show([row.to_dict() for row in audit(options.name)], as_json=options.json)
        return
    sets = [data.load(name) for name in ((options.name,) if options.name else data.NAMES)]
    if options.verb == "list":
        show(
            [
                {
                    "name": dataset.name,
                    "about": dataset.about,
                    "licence": dataset.licence,
                    "home": dataset.home,
                    "files": {source.filename: status(source) for source in dataset.sources},
                    "state": _worst([status(source) for source in dataset.sources]),
                }
                for dataset in sets
            ],
            as_json=options.json,
        )
        return
    rows = []
    for dataset, source in [(one, source) for one in sets for source in one.sources]:
        if options.verb == "get" and options.force:
            forget(source)
        where = str(fetch(source)) if options.verb == "get" else source.url
        state = status(source, recheck=options.verb == "verify")
        about = {"name": dataset.name, "file": source.filename, "state": state}
        rows.append({**about, "where": where, "sha256": source.sha256})
    show(rows, as_json=options.json)
    wrong = [f"{row['name']}/{row['file']} is {row['state']}" for row in rows if row["state"] in ("altered", "missing")]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: `etude data get --force` fetches them again")


def _worst(states: list[str]) -> str:
    return max(states, key=("verified", "present", "altered", "missing").index)
