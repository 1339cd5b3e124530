"""`ember bench`: load tests of any server of the OpenAI API, and timed starts of servers."""
