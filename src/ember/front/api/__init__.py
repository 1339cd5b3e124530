"""What a request means: schemas, validation, one record per route, one router."""
