"""What a request means: schemas, validation, one service per route, one router."""
