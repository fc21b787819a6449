"""The same weights in JAX and in PyTorch: how far their logits are apart, and how fast they are."""
