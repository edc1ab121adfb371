"""The trained toy in a browser: see README.md."""
