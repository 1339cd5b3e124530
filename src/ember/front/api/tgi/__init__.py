"""The routes of Text Generation Inference: POST /generate, /generate_stream and /."""
