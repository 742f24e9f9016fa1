"""Every preset as text: all settings, parameter counts, initial weights. A changed default shows up in the diff.

To write the files anew after a change that was meant: ``ETUDE_UPDATE_GOLDEN=1 uv run pytest tests/golden``.
"""

import os
from pathlib import Path

import pytest

from etude import registry
from etude.core.config import override, to_dict, to_yaml
from etude.core.runtime import Runtime

# Where the networks' sizes follow from the data, a sample that comes with the package stands for it.
SAMPLES = {"text2math": {"data.source": "sample", "data.glove": False}}
HERE = Path(__file__).parent
PRESETS = [(study, preset) for study in registry.NAMES for preset in registry.load(study).presets]


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def described(study_name: str, preset_name: str) -> str:
    """A preset's settings and the networks that it begins with."""
    study = registry.load(study_name)
    preset = study.preset(preset_name)
    config = preset.build()
    on_cpu = override(config, {"loop.device": "cpu"} | SAMPLES.get(study_name, {}))
    task = study.task(on_cpu, Runtime(on_cpu.loop, on_cpu.seed))
    networks = {}
    for name, module in task.modules.items():
        tensors = {}
        for key, tensor in module.state_dict().items():
            values = tensor.detach().double()
            shape = "x".join(map(str, values.shape)) or "scalar"
            mean, spread = values.mean().item(), values.std(correction=0).item()
            tensors[key] = f"{shape} mean {rounded(mean):g} std {rounded(spread):g}"
        count = sum(p.numel() for p in module.parameters())
        networks[name] = {"parameters": count, "tensors": tensors}
    optimizers = {name: type(optimizer).__name__ for name, optimizer in task.optimizers.items()}
    about = {"scale": preset.scale, "config": to_dict(config), "networks": networks, "optimizers": optimizers}
    return to_yaml(about)


@pytest.mark.parametrize(("study", "preset"), PRESETS)
def test_a_preset_is_what_it_was(study: str, preset: str) -> None:
    path, text = HERE / f"{study}-{preset}.yaml", described(study, preset)
    if os.environ.get("ETUDE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"if {preset} was meant to change: ETUDE_UPDATE_GOLDEN=1 uv run pytest tests/golden"
    )


def test_no_file_is_left_of_a_preset_that_is_gone() -> None:
    assert {path.stem for path in HERE.glob("*.yaml")} == {f"{study}-{preset}" for study, preset in PRESETS}
