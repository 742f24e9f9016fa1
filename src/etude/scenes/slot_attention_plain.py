"""Slot Attention as algorithm 1 of Locatello et al. 2020 reads, a line of code a line of the paper.

It has the parameters of `SlotAttention`, trains to the same losses up to rounding, and takes longer: keys and values of
all inputs are made, where the fast form projects the few slots in their place.

Shape suffixes: B images, N inputs of an image, D their channels, K slots, S a slot's size.
"""

import torch
from torch import Tensor
from torch.nn import functional

from etude.scenes.slot_attention import EPSILON, SlotAttention


class PlainSlotAttention(SlotAttention):
    """Slot Attention with the iteration in its published form; see `SlotAttention` for arguments, start and loop."""

    def step(self, slots_BKS: Tensor, inputs_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Lines 4 to 10 of algorithm 1: the next slots ``[B, K, S]``, and the attention ``[B, K, N]`` that made them.

        Args:
            slots_BKS: slots, float32 or more.
            inputs_BND: inputs after their layer norm, which is line 2.
        """
        to_keys_SD, to_values_SD = self.to_keys_and_values.weight.chunk(2)
        # Half precision loses inputs that many slots share, and drifts over the iterations.
        with torch.autocast(slots_BKS.device.type, enabled=False):
            inputs_BND = inputs_BND.to(slots_BKS.dtype)
            previous_BKS = slots_BKS
            slots_BKS = self.norm_slots(slots_BKS)
            keys_BNS = functional.linear(inputs_BND, to_keys_SD)
            queries_BKS = self.to_queries(slots_BKS)
            values_BNS = functional.linear(inputs_BND, to_values_SD)
            attention_BNK = (keys_BNS @ queries_BKS.mT / self.slot_size**0.5).softmax(-1)
            weights_BNK = attention_BNK + EPSILON
            weights_BNK = weights_BNK / weights_BNK.sum(1, keepdim=True)
            updates_BKS = weights_BNK.mT @ values_BNS
            slots_BKS = self.gru(updates_BKS, previous_BKS)
            slots_BKS = slots_BKS + self.mlp(self.norm_mlp(slots_BKS))
        return slots_BKS, attention_BNK.mT
