"""FramePack without a host: models, sampling, training and a command line.

Imports point one way: cli -> training -> sampling -> models -> weights -> runtime.
"""
