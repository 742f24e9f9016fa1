"""The tab of `resnet`: what a photograph shows, what the network looked at, and the norms beside each other."""

from collections import defaultdict
from typing import Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.core.summary import committed, read_summaries
from etude.serve.kit.classes import PHOTOS, Seen, seen
from etude.serve.kit.site import Site, answering, picture, samples, shown

TITLE = "resnet"
_SIDE = 320


def classify(site: Site, choice: str, path: str | None) -> Seen:
    """The classes that the network of a choice takes a picture for."""
    with site.using(TITLE, choice) as network:
        return seen(network, path)


def look(site: Site, choice: str, path: str | None, name: str) -> np.ndarray:
    """The Grad-CAM map of a class, over the picture as it got it: uint8 ``[H, W, 3]``."""
    import torch

    from etude.studies.resnet.cam import batched_cam, overlay

    with site.using(TITLE, choice) as network:
        image_HWC = seen(network, path).image_HWC
        # The menu may still list another network's classes.
        index = network.classes.index(name) if name in network.classes else 0
        x_1CHW = network.model.prepare(torch.from_numpy(image_HWC)[None])
        cam_1HW = batched_cam(network.model, x_1CHW, torch.tensor([index]))
    small_HWC = overlay(image_HWC, cam_1HW[0].numpy())
    # With each pixel as a square, so that a browser does not blur it.
    times = max(1, _SIDE // len(small_HWC))
    return small_HWC.repeat(times, axis=0).repeat(times, axis=1)


def by_norm(site: Site, path: str | None) -> list[list[str]]:
    """The classes that the finished runs of each norm take the picture for: norm, run, class, probability."""
    rows = []
    for choice in site.choices(TITLE):
        try:
            with site.using(TITLE, choice) as network:
                norm = network.config.model.norm
        except UserError:
            # A run that cannot be read keeps the others from nothing.
            continue
        label, probability = next(iter(classify(site, choice, path).probabilities.items()))
        rows.append([norm, choice, label, f"{100 * probability:.1f} %"])
    return sorted(rows)


def published_norms() -> list[list[str]]:
    """Test accuracy of the committed runs of the norms: norm, then a column a data set, the mean over seeds."""
    from etude.studies.resnet.study import NORMS

    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for summary in read_summaries([committed()], TITLE).values():
        for row in summary["results"]:
            if (row["experiment"], row["metric"], row["split"]) == ("norms", "accuracy", "test"):
                found[row["cell"], row["variant"]].append(row["value"])
    data = sorted({variant for _, variant in found})
    lines = [["norm", *data]]
    for norm in NORMS:
        values = [found.get((norm, variant), []) for variant in data]
        seeds = ["1 seed" if len(found) == 1 else f"mean of {len(found)} seeds" for found in values]
        lines.append(
            [norm, *(f"{np.mean(v):.1f} ({told})" if v else "" for v, told in zip(values, seeds, strict=True))]
        )
    return lines


def tab(site: Site) -> None:
    gr.Markdown("What a photograph shows, and where the network looked. The one that comes with etude knows CIFAR-10's "
                "ten classes; a run on a folder of your own knows those.")  # fmt: skip
    with gr.Row():
        with gr.Column():
            photo = picture("Photograph", height=300)
            samples(sorted(PHOTOS.glob("*.png")), photo)
            choice = site.chooser(TITLE)
        with gr.Column():
            answer = gr.Label(label="Top five classes", num_top_classes=5)
            name = gr.Dropdown([], label="Grad-CAM of", interactive=True,
                               info="Red is where the network found most evidence for this class.")  # fmt: skip
            cam = shown("Grad-CAM: where the network looked, most where it is red", height=330)
    with gr.Accordion("Six norms side by side", open=False):
        ask = gr.Button("Ask the networks of all norms")
        told = gr.Markdown()
        table = gr.Dataframe(headers=["norm", "run", "taken for", "probability"], interactive=False, visible=False,
                             label="This photograph, by the finished runs")  # fmt: skip
        heads, *rows = published_norms()
        gr.Dataframe(rows, headers=heads, interactive=False, label="Test accuracy in %, committed runs")

    @answering
    def answered(choice: str, path: str | None) -> Any:
        if path is None:
            return None, gr.update(choices=[], value=None), None
        found = classify(site, choice, path)
        names = list(found.probabilities)
        return found.probabilities, gr.update(choices=names, value=names[0]), look(site, choice, path, names[0])

    @answering
    def looked(choice: str, path: str | None, name: str | None) -> Any:
        return look(site, choice, path, name) if path and name else None

    @answering
    def compared(path: str | None) -> Any:
        found = by_norm(site, path)
        norms = {row[0] for row in found}
        line = "" if len(norms) > 1 else (
            f"Only networks with `{'`, `'.join(norms)}` are here. `etude study resnet norms` trains one of each norm "
            "into the runs folder, and they will answer here.")  # fmt: skip
        return line, gr.update(value=found, visible=True)

    gr.on([photo.change, choice.change], answered, [choice, photo], [answer, name, cam], concurrency_id=TITLE)
    name.input(looked, [choice, photo, name], cam, concurrency_id=TITLE)
    ask.click(compared, photo, [told, table], concurrency_id=TITLE)


def warm(site: Site) -> None:
    """Import and load what the first answer needs."""
    import etude.studies.resnet.cam  # noqa: F401

    classify(site, site.choices(TITLE)[0], str(next(PHOTOS.glob("*.png"))))
