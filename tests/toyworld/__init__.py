"""The workshop of Toy World: how it was trained, how it is measured. Nothing users run needs it."""
