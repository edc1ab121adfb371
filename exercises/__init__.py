"""Write FusionRoute yourself, in nine steps: see README.md here, then run python -m exercises."""
