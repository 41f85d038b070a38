"""What every layer stands on: errors, devices, pictures, video files."""
