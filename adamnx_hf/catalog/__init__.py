"""What an `optim=` name stands for."""
