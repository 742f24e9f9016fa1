"""The tab of `dcgan`: digits to order, and a walk between two noises."""

import base64
import io
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from etude.core.errors import UserError
from etude.serve.kit.site import Site, answering, current_tab, first_look, shown

TITLE = "dcgan"
ALL = "all in turn"
_DIGITS = (ALL, *map(str, range(10)))
_MOST = 100
_STEPS = 12
_FRAMES = 24
_SIDE = 64
"""Pixels that a digit is shown with."""


def draw(site: Site, choice: str, digit: str, count: float | int, seed: float | int) -> np.ndarray:
    """The pictures that `etude predict dcgan` draws of "0" to "9", or of `ALL`: uint8 ``[count, H, W]``."""
    from etude.studies.dcgan.predict import noises

    generator, config = site.loaded(TITLE, choice)
    number, seed = _whole("the number of pictures", count, 1, _MOST), _whole("the seed", seed, 0, 2**31)
    return _pictures(generator, config, noises(config, seed)[:number], digit)


def walked(site: Site, choice: str, digit: str, seeds: tuple[float | int, float | int], steps: int) -> np.ndarray:
    """One digit on the arc between the first noises of two seeds: uint8 ``[steps, H, W]``."""
    from etude.studies.dcgan.predict import noises, walk

    generator, config = site.loaded(TITLE, choice)
    start_Z, end_Z = (noises(config, _whole("a seed", seed, 0, 2**31))[0] for seed in seeds)
    return _pictures(generator, config, walk(start_Z, end_Z, steps), "0" if digit == ALL else digit)


def _pictures(generator: Any, config: Any, noise_NZ: Any, digit: str) -> np.ndarray:
    from etude.studies.dcgan.predict import draw_digits

    if digit not in _DIGITS:
        raise UserError(f"no digit '{digit}': choose 0 to 9")
    return draw_digits(generator, config, noise_NZ, None if digit == ALL else int(digit))[1].numpy()


def _whole(name: str, value: float | int | None, low: int, high: int) -> int:
    if value is None or value != int(value) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low:,} to {high:,}")
    return int(value)


def sheet(images_NHW: np.ndarray, columns: int) -> np.ndarray:
    """Digits in rows, each at 64 pixels: uint8 ``[H, W]``."""
    import torch

    from etude.draw import figures
    from etude.studies.dcgan.figures import LINE

    times = max(1, _SIDE // images_NHW.shape[1])
    large_NHW = images_NHW.repeat(times, axis=1).repeat(times, axis=2)
    return figures.sheet(torch.from_numpy(large_NHW), min(columns, len(large_NHW)), LINE)


def moving(images_NHW: np.ndarray, side: int = 192) -> bytes:
    """Digits one after the other, there and back without an end: the bytes of a GIF file."""
    frames = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images_NHW]
    body = io.BytesIO()
    frames[0].save(body, "GIF", save_all=True, append_images=[*frames[1:], *frames[-2:0:-1]], duration=90, loop=0)
    return body.getvalue()


def tab(site: Site) -> None:
    gr.Markdown("Handwritten digits that nobody wrote: a generator draws them from noise.")
    with gr.Row():
        with gr.Column(scale=2):
            choice = site.chooser(TITLE)
            digit = gr.Dropdown(_DIGITS, value=ALL, label="Digit")
            count = gr.Slider(1, _MOST, value=40, step=1, label="How many")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="The same seed draws the same pictures.")
            order = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3):
            drawn = shown("The drawn digits, in rows", "download")
    gr.Markdown("### A walk between two noises\nAll pictures between are drawn from the arc that joins them.")
    with gr.Row():
        with gr.Column(scale=2):
            first = gr.Number(0, label="From the noise of seed", precision=0, minimum=0)
            second = gr.Number(1, label="To the noise of seed", precision=0, minimum=0)
            go = gr.Button("Walk")
        with gr.Column(scale=3):
            strip = shown("One digit becoming another, step by step", "download")
            film = gr.HTML()

    @answering
    def ordered(choice: str, digit: str, count: float, seed: float) -> Any:
        return sheet(draw(site, choice, digit, count, seed), 10)

    @answering
    def went(choice: str, digit: str, first: float, second: float) -> Any:
        frames = walked(site, choice, digit, (first, second), _FRAMES)
        chosen = np.linspace(0, _FRAMES - 1, _STEPS).round().astype(int)
        address = f"data:image/gif;base64,{base64.b64encode(moving(frames)).decode()}"
        film = f"<img src='{address}' alt='The walk there and back, as a moving picture' width='192' height='192'>"
        return sheet(frames[chosen], 6), film

    digits, ends = [choice, digit, count, seed], [choice, digit, first, second]
    gr.on([order.click, digit.input, choice.input], ordered, digits, drawn, concurrency_id=TITLE)
    gr.on([go.click, digit.input, choice.input], went, ends, [strip, film], concurrency_id=TITLE)
    first_look(current_tab(), ordered, digits, [drawn])
    first_look(current_tab(), went, ends, [strip, film])


def warm(site: Site) -> None:
    """Import and load what the first answer needs."""
    draw(site, site.choices(TITLE)[0], ALL, 1, 0)
