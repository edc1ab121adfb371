"""Write FusionRoute yourself, in eight steps: see README.md here, then run python -m exercises."""
