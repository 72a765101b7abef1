"""What runs modules on this device: workers as processes, and the keeper that keeps the right ones running."""
