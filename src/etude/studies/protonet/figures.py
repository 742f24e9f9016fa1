"""The pictures of a protonet run: curves, an episode with its predictions, the test alphabets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data import omniglot
from etude.draw.figures import PALETTE, figure, metric_curves
from etude.studies.protonet.episodes import draw_classes, draw_drawings
from etude.studies.protonet.model import prototypes
from etude.studies.protonet.task import ProtonetTask


def draw(task: ProtonetTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", task.config.evaluation.ways, metrics)
    z_CPD = task.embed_pool("test").cpu()
    episode(folder / "episode.png", task, z_CPD)
    alphabets(folder / "alphabets.png", task, z_CPD)


def learning_curves(path: Path, ways: Sequence[int], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss and accuracy of training episodes, and of validation ones where there is a validation split."""
    metric_curves(path, metrics, [
        ("Loss of training episodes", "cross-entropy", {"train": "train/loss"}),
        ("Loss of validation episodes", "cross-entropy", {f"{way} ways": f"val/loss_{way}way" for way in ways}),
        ("Accuracy of training episodes", "accuracy, %", {"train": "train/accuracy"}),
        ("Accuracy of validation episodes", "accuracy, %", {f"{way} ways": f"val/accuracy_{way}way" for way in ways}),
    ])  # fmt: skip


def episode(path: Path, task: ProtonetTask, z_CPD: Tensor, way: int = 5, query: int = 8) -> None:
    """One test episode within an alphabet: support on the left, queries with what they were taken for.

    Args:
        z_CPD: the embedding of every test drawing, on the CPU.
    """
    pool, shot = task.pool("test"), task.config.episodes.shot
    draw = task.runtime.generator("figure/episode", 0)
    classes_N = draw_classes(1, way, pool.groups_C, True, draw)[0]
    drawings_NK = draw_drawings((way,), omniglot.NUM_DRAWINGS, shot + query, draw)
    z_NKD = z_CPD[classes_N[:, None], drawings_NK]
    distances = task.distance(z_NKD[:, shot:].flatten(0, 1), prototypes(z_NKD[:, :shot]))
    probability = (-distances / task.config.model.temperature).softmax(-1).unflatten(0, (way, query))
    images = pool.images_CNHW.cpu()[classes_N[:, None], drawings_NK].numpy()
    with figure(path, 0.72 * (shot + query) + 0.6, 0.95 * way + 0.5) as drawn:
        axes = drawn.subplots(way, shot + query, squeeze=False)
        for n in range(way):
            for k in range(shot + query):
                ax = axes[n, k]
                ax.imshow(255 - images[n, k], cmap="gray", vmin=0, vmax=255)
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                ax.spines[:].set_visible(True)
                if k < shot:
                    ax.spines[:].set(color=PALETTE[n], linewidth=2)
                    ax.set_title("support" if n == 0 else "", fontsize=8)
                    continue
                taken = int(probability[n, k - shot].argmax())
                ax.spines[:].set(color=PALETTE[taken], linewidth=2)
                mark = "✓" if taken == n else "✗"
                ax.set_xlabel(f"{mark} {probability[n, k - shot, taken]:.0%}", fontsize=8, labelpad=2)
            axes[n, 0].set_ylabel(f"class {n + 1}", color=PALETTE[n])
        right = (probability.argmax(-1) == torch.arange(way)[:, None]).sum().item()
        alphabet = pool.names[classes_N[0]].split("/")[0]
        drawn.suptitle(
            f"{way} ways, {shot} shot(s) within {alphabet.replace('_', ' ')}: {right} of {way * query} right; "
            "frame and per cent: the class a query was taken for",
            fontsize=9,
        )


def alphabets(path: Path, task: ProtonetTask, z_CPD: Tensor, num_alphabets: int = 6) -> None:
    """The upright characters of the largest test alphabets in the plane.

    Each dot is one drawing, by t-SNE (scikit-learn) of its embedding; a character's own picture stands at
    its mean.
    """
    import matplotlib as mpl
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    pool, hues = task.pool("test"), mpl.colormaps["hsv"]
    upright = [n for n, name in enumerate(pool.group_names) if name.endswith("rot000")]
    sizes = pool.groups_C.bincount()
    chosen = sorted(upright, key=lambda group: -int(sizes[group]))[:num_alphabets]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    images = pool.images_CNHW.cpu()
    with figure(path, 3.6 * columns, 3.7 * rows) as drawn:
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes:
            ax.set_axis_off()
        for ax, group in zip(axes, chosen, strict=False):
            members = (pool.groups_C == group).nonzero().flatten()[:20]
            z_ND = z_CPD[members].flatten(0, 1).numpy()
            # For some hundred points threads cost more than they give.
            with threadpool_limits(1):
                plane = TSNE(init="pca", perplexity=min(20, len(z_ND) - 1), random_state=0).fit_transform(z_ND)
            points = plane.reshape(len(members), -1, 2)
            extent = np.ptp(plane, axis=0).max() / 28
            for number, (member, cloud) in enumerate(zip(members, points, strict=True)):
                ax.scatter(*cloud.T, s=7, alpha=0.55, color=hues(number / len(members)), linewidths=0)
                (x, y), half = np.median(cloud, axis=0), extent
                ink = np.zeros((*images.shape[2:], 4))
                ink[..., 3] = images[member, 0].numpy() / 255
                ax.imshow(ink, extent=(x - half, x + half, y - half, y + half), zorder=3, interpolation="bilinear")
            ax.set_xlim(plane[:, 0].min() - extent, plane[:, 0].max() + extent)
            ax.set_ylim(plane[:, 1].min() - extent, plane[:, 1].max() + extent)
            ax.set_title(f"{pool.group_names[group].split('/')[0].replace('_', ' ')}: {len(members)} characters")
        drawn.suptitle("Embeddings of unseen alphabets (t-SNE): a dot is a drawing, a colour a character", fontsize=10)
