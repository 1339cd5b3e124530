"""Models that transformers runs, over Ember's paged attention. transformers is imported in functions of this room only,
when a model needs it."""
