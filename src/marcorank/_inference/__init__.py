"""From texts to logits on this machine."""
