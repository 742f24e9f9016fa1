"""The part of this study that leaves etude: the network, and its graph for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from etude.nn.graph import Graph, classifier
from etude.studies.resnet.model import ResNet
from etude.studies.resnet.study import ResNetConfig
from etude.studies.resnet.task import build_model

HUB_TASK = "image-classification"


def networks(config: ResNetConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"model": build_model(config.model)}


def graphs(config: ResNetConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Pictures of any size to classes."""
    model = modules["model"]
    assert isinstance(model, ResNet)
    return [classifier(model, config.data.size, free_size=True)]
