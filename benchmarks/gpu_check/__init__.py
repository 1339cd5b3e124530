"""All that needs a GPU, in two calls of a few minutes each (docs/gpu-check.md)."""
