"""Installing from a folder, such as a USB stick, where there is no network: same checks, same update machine."""
