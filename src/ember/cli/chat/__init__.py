"""`ember chat`: a conversation in the terminal."""
