"""One module a kind of golden file; each yields the cases of a folder."""
