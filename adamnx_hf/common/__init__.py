"""The ground that everything stands on. It imports nothing else of ours."""
