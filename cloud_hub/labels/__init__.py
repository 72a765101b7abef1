"""What the right answers were: labels of predictions, how good the models are by them, and what can be said without."""
