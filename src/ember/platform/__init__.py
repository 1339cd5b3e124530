"""The serverless platform on a laptop: a queue with its client API and its worker protocol, in one process.

It knows nothing of either wing: workers come to it over HTTP, as they do in production.
"""
