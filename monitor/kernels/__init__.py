"""Triton kernels for what the monitor computes on a GPU in every forward pass. Nothing here is imported on a CPU."""
