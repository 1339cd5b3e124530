"""Offline use: the engine in a Python program, with the names of vLLM's `LLM` class."""
