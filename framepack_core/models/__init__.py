"""The networks, and how they are built from files."""
