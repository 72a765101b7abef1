"""Which agent runs: the one that was installed, or a release that came as a signed module and proved itself."""
