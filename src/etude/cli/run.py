"""``etude run STUDY [PRESET] [--name NAME] [--flags]``: train a preset."""

from pathlib import Path

from etude import studies
from etude.cli.flags import parse
from etude.cli.training import default_name, run_to_end, say
from etude.core.config import differences, to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.runtime import world_size

HELP = """usage: etude run STUDY [PRESET] [--name NAME] [--runs FOLDER] [--flags]

Trains a preset (laptop where none is named) in runs/STUDY/NAME. `etude run STUDY PRESET --help` lists the
flags; `etude show STUDY` lists the presets. On several processes: torchrun --nproc_per_node 2 -m etude run ..."""


def take(args: list[str], flag: str, default: str) -> str:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of the words, wherever it stands."""
    for number, word in enumerate(args):
        if word == flag:
            if number + 1 == len(args) or args[number + 1].startswith("--"):
                raise UserError(f"{flag} needs a value")
            value = args[number + 1]
            del args[number : number + 2]
            return value
        if word.startswith(f"{flag}="):
            del args[number]
            return word.split("=", 1)[1]
    return default


def main(args: list[str]) -> int:
    if not args or args[0] in {"-h", "--help"}:
        print(HELP)
        return 0 if args else 2
    study = studies.load(args.pop(0))
    preset_name = args.pop(0) if args and not args[0].startswith("-") else "laptop"
    preset = study.preset(preset_name)
    name, runs = take(args, "--name", ""), take(args, "--runs", "runs")
    before = preset.build()
    config = parse(
        study.config,
        args,
        prog=f"etude run {study.name} {preset_name}",
        default=before,
        description=preset.build.__doc__ or "",
    )
    overrides = differences(before, config)
    path = Path(runs) / study.name / (name or default_name(preset_name, overrides, config.seed))
    record = RunRecord(study.name, preset_name, preset.scale, overrides, to_dict(config))
    if world_size() > 1:
        run = _shared_folder(path, record)
    else:
        run = RunFolder.create(path, record)
    summary = run_to_end(study, run, config)
    for row in summary["results"]:
        width = f" ± {row['half_width']:.2f}" if row["half_width"] is not None else ""
        value = f"{row['value']:.2f}{width} {row['unit']}"
        say(f"  {row['experiment']} {row['cell']} {row['metric']}: {value} ({row['split']})")
    say(f"done: {path}")
    return 0


def _shared_folder(path: Path, record: RunRecord) -> RunFolder:
    """The folder of a run of several processes: made by the first, opened by all."""
    from accelerate import PartialState

    cpu = record.config["loop"]["device"] == "cpu"
    state = PartialState(cpu=cpu)
    if state.is_main_process:
        RunFolder.create(path, record)
    state.wait_for_everyone()
    return RunFolder.open(path)
