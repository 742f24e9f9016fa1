"""The export of this study: the network. Its search is no fixed graph, so there is none for ONNX."""

from collections.abc import Mapping

from torch import Tensor, nn

from etude.studies.text2math.study import Text2MathConfig
from etude.studies.text2math.task import build_model
from etude.studies.text2math.tokens import read_vocabularies

HUB_TASK = "text-generation"
NO_GRAPHS = "a beam search over a grammar takes as many steps as a program has tokens"


def networks(config: Text2MathConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module] | None:
    """The network of an exported file, by the name its tensors have there; None with a BERT, which lies elsewhere."""
    if config.model.encoder == "bert":
        return None
    words, tokens = read_vocabularies(tensors, "the file")
    return {"model": build_model(config.model, words, tokens)}
