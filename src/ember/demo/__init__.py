"""The demo model's files: ordinary Hugging Face files that `builder.demo_model` makes."""
