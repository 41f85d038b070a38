"""What turns a job into a video without a host: models, pictures, prompts, output files."""
