"""Triton kernels of Ember. Depends on torch and triton alone; imports nothing from ember."""
