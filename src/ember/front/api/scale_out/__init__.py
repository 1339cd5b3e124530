"""Routes that divide the work of a request between servers: text to token ids (`render`), token ids to token ids
(`generate`), and token ids back to text (`derender`)."""
