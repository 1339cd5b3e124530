"""Batch files: requests as JSON lines in, results as JSON lines out, in OpenAI's form."""
