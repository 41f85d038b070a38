"""Sections, schedules, solvers and the loop that makes a video."""
