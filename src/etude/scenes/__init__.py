"""What `slots` and `slotdiffusion` share: slot attention, the encoder, the slot library, edits, scores of scenes."""
