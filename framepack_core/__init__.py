"""FramePack without a host: models, sampling, training and a command line.

Imports point one way: cli -> headless -> toyworld -> training -> sampling -> models -> lora ->
weights -> parsing -> runtime.
"""
