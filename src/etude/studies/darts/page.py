"""The tab of `darts`: a search over its evaluations, known cells, and what a network of cells sees."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.serve.kit.classes import PHOTOS, seen
from etude.serve.kit.site import (
    Site,
    answering,
    current_tab,
    drawn,
    first_look,
    metrics_of,
    picture,
    samples,
    shown,
)

TITLE = "darts"
_CELLS = "The normal and the reduction cell as graphs"


def searches(site: Site) -> list[str]:
    """The searches of the runs folder that have been evaluated at least once, ended or not."""
    return [name for name, path in site.folders(TITLE).items() if evaluations(metrics_of(path))]


def is_network(config: Mapping[str, Any]) -> bool:
    """Returns whether a run of this configuration leaves a network; a search leaves a cell."""
    return config.get("phase") == "retrain"


def evaluations(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of metrics.jsonl that say what every operation weighs."""
    return [row for row in rows if "mixture/normal/0/none" in row]


def search_at(site: Site, name: str | None, place: int) -> tuple[np.ndarray, np.ndarray, str, int]:
    """A search at one of its evaluations.

    Args:
        site: the page's.
        name: the run's.
        place: the evaluation, from 1; beyond the last the last.

    Returns:
        The cells that the mixture has come to and the weights of all edges as pictures, a line of what was measured,
        and the number of evaluations.
    """
    from etude.studies.darts.figures import cells, edge_names, mixtures
    from etude.studies.darts.genotype import Genotype

    path = site.folders(TITLE).get(name or "")
    rows = evaluations(metrics_of(path)) if path else []
    if path is None or not rows:
        raise UserError(f"no search '{name}': choose one of the menu")
    row = rows[min(max(place, 1), len(rows)) - 1]
    genotype = Genotype(*(_cell(row, kind) for kind in ("normal", "reduction")))
    graph = drawn(lambda to: cells(to, genotype, f"step {row['step']:,}"))
    heat = drawn(lambda to: mixtures(to, [row], edge_names(len(genotype.normal))))
    measured = (
        ("accuracy of the mixture", "val/accuracy", ".1f", " %"), ("skips", "val/skips", ".0f", ""),
        ("entropy", "val/entropy", ".2f", " nats"), ("largest eigenvalue", "val/eigenvalue", ".2f", ""),
    )  # fmt: skip
    told = [f"{label} {row[key]:{form}}{unit}" for label, key, form, unit in measured if key in row]
    line = f"Step {row['step']:,}: {', '.join(told)}."
    if RunFolder.open(path).record.config.get("search", {}).get("edge_norm"):
        line += " The weights of whole edges (beta) stand in the checkpoint only: the cell found may be another."
    return graph, heat, line, len(rows)


def _cell(row: Mapping[str, Any], kind: str) -> Any:
    import torch

    from etude.studies.darts.choice import derive
    from etude.studies.darts.genotype import OPERATIONS

    weights: list[list[float]] = []
    while f"mixture/{kind}/{len(weights)}/none" in row:
        weights.append([row[f"mixture/{kind}/{len(weights)}/{name}"] for name in OPERATIONS])
    return derive(torch.tensor(weights, dtype=torch.float64))


def known_cell(name: str) -> tuple[np.ndarray, str]:
    """A cell that comes with etude: its picture, and its size in words."""
    from etude.studies.darts.figures import cells
    from etude.studies.darts.genotype import OPERATIONS, known_cells, read
    from etude.studies.darts.model import CellNetwork

    if name not in known_cells():
        raise UserError(f"no known cell '{name}': choose one of the menu")
    genotype = read(name)
    counts = [f"{genotype.count(one)} {one}" for one in OPERATIONS if genotype.count(one)]
    made = CellNetwork(genotype, auxiliary=False).num_parameters
    line = f"The normal cell has {', '.join(counts)}. A network of 20 cells of 36 channels has {made:,} parameters."
    return drawn(lambda to: cells(to, genotype, name)), line


def cell_names() -> list[str]:
    """The names of the cells that come with etude."""
    from etude.studies.darts.genotype import known_cells

    return known_cells()


def tab(site: Site) -> None:
    gr.Markdown("A cell that gradient descent looked for: a search step by step, known cells, and a network of "
                "cells at work.")  # fmt: skip
    here = current_tab()
    site.fits[TITLE] = is_network
    with gr.Tabs():
        with gr.Tab("A search"):
            _search(site, here)
        with gr.Tab("Known cells"):
            _known()
        with gr.Tab("Classify"):
            _classifier(site)


def _search(site: Site, here: Any) -> None:
    names = searches(site)
    none_yet = gr.Markdown(
        "No search in the runs folder yet: `etude run darts smoke` makes one in seconds, `etude run darts laptop` a "
        "real one. It shows here from its first evaluation on.", visible=not names,
    )  # fmt: skip
    with gr.Row():
        run = gr.Dropdown(names, value=names[0] if names else None, label="Search", scale=2, min_width=280)
        place = gr.Slider(1, 2, value=1, step=1, label="Evaluation", scale=3, min_width=280)
    line = gr.Markdown()
    graph = shown(_CELLS, "fullscreen")
    heat = shown("Two tables of weights, edges down and operations across", "fullscreen")

    @answering
    def at(name: str | None, place: int) -> Any:
        return search_at(site, name, place)[:3] if name is not None else (None, None, "")

    @answering
    def opened(name: str | None) -> Any:
        names = searches(site)
        name = name if name in names else names[0] if names else None
        menu = gr.update(choices=names, value=name)
        if name is None:
            return gr.update(visible=True), menu, gr.update(), None, None, ""
        # From the last, which a search that goes on moves.
        graph, heat, line, count = search_at(site, name, 10**9)
        slider = gr.update(maximum=max(2, count), value=count, label=f"Evaluation, of {count}")
        return gr.update(visible=False), menu, slider, graph, heat, line

    parts = [none_yet, run, place, graph, heat, line]
    run.input(opened, run, parts, concurrency_id=TITLE, show_progress="hidden")
    place.input(at, [run, place], [graph, heat, line], concurrency_id=TITLE, trigger_mode="always_last",
                show_progress="hidden")  # fmt: skip
    first_look(here, opened, [run], parts)


def _known() -> None:
    names = cell_names()
    name = gr.Dropdown(names, value=names[0], label="Cell")
    line = gr.Markdown()
    graph = shown(_CELLS, "fullscreen")
    name.input(answering(known_cell), name, [graph, line], concurrency_id=TITLE)
    first_look(current_tab(), known_cell, [name], [graph, line])


def _classifier(site: Site) -> None:
    with gr.Row():
        with gr.Column():
            photo = picture("Photograph", height=280)
            samples(sorted(PHOTOS.glob("*.png")), photo)
            choice = site.chooser(TITLE)
        with gr.Column():
            answer = gr.Label(label="Top five classes", num_top_classes=5)

    @answering
    def answered(choice: str, path: str | None) -> Any:
        if path is None:
            return None
        with site.using(TITLE, choice) as network:
            return seen(network, path).probabilities

    gr.on([photo.change, choice.change], answered, [choice, photo], answer, concurrency_id=TITLE)


def warm(site: Site) -> None:
    """Import what the first answer needs."""
    known_cell(cell_names()[0])
