"""Export: the network of found cells, and its graph for ONNX."""

from collections.abc import Mapping

from torch import Tensor, nn

from etude.core.errors import UserError
from etude.nn.graph import Graph, classifier
from etude.studies.darts.model import CellNetwork
from etude.studies.darts.retrain_task import build_network
from etude.studies.darts.search_task import build_supernet
from etude.studies.darts.study import DartsConfig

HUB_TASK = "image-classification"


def networks(config: DartsConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    if config.phase == "retrain":
        return {"model": build_network(config)}
    return {"model": build_supernet(config)}


def graphs(config: DartsConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Pictures to classes, of a retrained network.

    Raises:
        UserError: of a search, whose network is thrown away.
    """
    model = modules["model"]
    if not isinstance(model, CellNetwork):
        raise UserError("a search's network is thrown away: `etude run darts retrain --genotype RUN` trains its cell")
    # Cells halve the side by pairs of convolutions that want it even, and look at every second pixel by its parity.
    return [classifier(model, config.data.size, free_size=False)]
