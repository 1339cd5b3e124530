"""The decoder's forward pass for few rows on CPUs, in C: `decoder.c`, compiled by `build`, called through `library`."""
