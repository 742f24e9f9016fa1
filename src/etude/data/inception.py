"""The Inception network of 2015-12-05 that FID and KID are defined with (Heusel et al. 2017), as TorchScript.

The file is the one that the package `cleanfid` reads, from the place where it gets it. Its SHA-256 is the one that is
widely quoted for it.
"""

from etude.data import Dataset
from etude.data.fetch import Source

WEIGHTS = Source(
    "inception",
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    size=95_607_719,
)
DATASET = Dataset(
    name="inception",
    about="weights of the Inception network that FID and KID look through; no data",
    licence="Apache 2.0 (TensorFlow's Inception v3); NVIDIA's conversion",
    home="https://github.com/NVlabs/stylegan2-ada-pytorch",
    sources=(WEIGHTS,),
)
