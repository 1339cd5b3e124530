"""The page that a browser gets at `/` of `ember serve` and of `ember platform`: its document and how it is answered.

Nothing of it is imported or read before the first request for it, so that it costs a boot nothing.
"""
