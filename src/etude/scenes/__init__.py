"""Slots of scenes: slot attention, the encoder, the slot library, edits, scores, and tasks on them."""
