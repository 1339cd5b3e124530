"""The serverless platform on a laptop: a queue with its client API and its worker protocol, in one process.

It imports neither the front nor the engine: workers call it over HTTP, as they do in production.
"""
