"""Routes for the operator of a worker, under the names of vLLM's development mode."""
